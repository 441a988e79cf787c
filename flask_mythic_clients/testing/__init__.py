"""The contracts of the ports, in executable form: a backend that passes them keeps the promises.

A backend joins by overriding fixtures; every test of the contract then runs on it::

    from flask_mythic_clients.testing import KeyValueStoreContract

    class TestMyStore(KeyValueStoreContract):
        @pytest.fixture
        def raw(self):  # looks behind: get, set(…, ex=seconds), ttl, as redis-py with decode_responses=True
            return my_server()

        @pytest.fixture
        def store(self, raw):
            return MyStore(raw)

A repository joins `ClientRepositoryContract` with the fixtures that its docstring names.
"""

import pytest

# Before the contracts are imported, or their assertions would fail without showing the values.
_CONTRACTS = [
    *("fixtures", "recording", "settling", "verifying", "repairing", "reading", "quick", "bulk", "archive"),
    "audited",
    *("key_value_store", "remembering", "leasing", "readable"),
]
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _CONTRACTS))

from .archive import ArchiveContract  # noqa: E402 - see above
from .audited import AuditedRepositoryContract  # noqa: E402 - see above
from .bulk import BulkStepsContract  # noqa: E402 - see above
from .fixtures import AddClient, KeepRows, LetTimePass  # noqa: E402 - see above
from .key_value_store import KeyValueStoreContract, RawStore  # noqa: E402 - see above
from .leasing import ReadThroughContract, ReadThroughStore  # noqa: E402 - see above
from .quick import QuickStepsContract  # noqa: E402 - see above
from .readable import ReadableStoreContract, ScannableStoreContract  # noqa: E402 - see above
from .remembering import RememberingStoreContract  # noqa: E402 - see above
from .repository import ClientRepositoryContract  # noqa: E402 - see above

__all__ = [
    "AddClient",
    "ArchiveContract",
    "AuditedRepositoryContract",
    "BulkStepsContract",
    "ClientRepositoryContract",
    "KeepRows",
    "KeyValueStoreContract",
    "LetTimePass",
    "QuickStepsContract",
    "RawStore",
    "ReadThroughContract",
    "ReadThroughStore",
    "ReadableStoreContract",
    "RememberingStoreContract",
    "ScannableStoreContract",
]
