"""Our key-value stores meet the contract."""

from collections.abc import Callable
from typing import Any

import pytest

from flask_mythic_clients.ports import KeyValueStore
from flask_mythic_clients.testing import KeyValueStoreContract
from tests.hosts import KeyValue


class OurStoreContract(KeyValueStoreContract):
    """The contract for one kind of store of ours."""

    kind: str

    @pytest.fixture
    def kv(self, empty_kv: Callable[[str], KeyValue]) -> KeyValue:
        return empty_kv(self.kind)

    @pytest.fixture
    def store(self, kv: KeyValue) -> KeyValueStore:
        return kv.store

    @pytest.fixture
    def raw(self, kv: KeyValue) -> Any:
        return kv.raw


class TestMemoryStore(OurStoreContract):
    """In this process."""

    kind = "memory"


class TestRedisStore(OurStoreContract):
    """On a real Redis."""

    kind = "redis"


class TestValkeyStore(OurStoreContract):
    """On a real Valkey."""

    kind = "valkey"
