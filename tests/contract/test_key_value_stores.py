"""Our key-value stores meet the contract."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.ports import KeyValueStore
from flask_mythic_clients.testing import (
    KeyValueStoreContract,
    ReadThroughContract,
    RememberingStoreContract,
)
from tests.hosts import KeyValue


class OurStoreContract(KeyValueStoreContract, RememberingStoreContract, ReadThroughContract):
    """The contracts for one kind of store of ours."""

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

    @pytest.fixture
    def refuse_all_but(self, raw: Any) -> Iterator[Callable[..., bool]]:
        def refuse(*keys: str) -> bool:
            every = [*keys, "mythic:lease:*"]
            raw.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=every)
            return True

        yield refuse
        raw.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=["*"])


class TestMemoryStore(OurStoreContract):
    """In this process."""

    kind = "memory"

    @pytest.fixture
    def refuse_all_but(self, store: MemoryStore) -> Callable[..., bool]:
        def refuse(*keys: str) -> bool:
            store.refuse(*({f"client:{letter}" for letter in "abcde"} - set(keys)))
            return True

        return refuse

    def set_back(self, raw: MemoryStore) -> None:
        raw.flush()


class TestRedisStore(OurStoreContract):
    """On a real Redis."""

    kind = "redis"


class TestValkeyStore(OurStoreContract):
    """On a real Valkey."""

    kind = "valkey"
