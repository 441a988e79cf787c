"""What every repository must do."""

from .reading import ReadingContract
from .recording import RecordingContract
from .repairing import RepairingContract
from .settling import SettlingContract
from .verifying import VerifyingContract


class ClientRepositoryContract(
    RecordingContract, SettlingContract, VerifyingContract, RepairingContract, ReadingContract
):
    """A repository joins by overriding the fixtures of `RepositoryFixtures`; it starts empty.

    They are `repository`, `add_client`, `let_time_pass` and `keep_rows`.

    The tests run code in threads: a backend that needs something pushed there overrides `context`.
    A backend whose ids are not just any text overrides `ids` and `lookalikes`.
    """
