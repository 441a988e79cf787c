"""Our key-value stores meet the contract."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.model import Mark
from flask_mythic_clients.ports import KeyValueStore
from flask_mythic_clients.testing import (
    KeyValueStoreContract,
    ReadableStoreContract,
    ReadThroughContract,
    RememberingStoreContract,
    ScannableStoreContract,
)
from tests import topologies
from tests.conftest import Running
from tests.hosts import KeyValue

_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
_MARK = Mark(_NOON, _NOON)


class OurStoreContract(
    KeyValueStoreContract,
    RememberingStoreContract,
    ReadThroughContract,
    ReadableStoreContract,
    ScannableStoreContract,
):
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


@pytest.fixture(scope="module")
def cluster(running: Running) -> Iterator[topologies.Cluster]:
    """One for all of these tests."""
    with running(topologies.cluster()) as cluster:
        yield cluster


class TestCluster(OurStoreContract):
    """On a real Redis Cluster of three."""

    @pytest.fixture
    def store(self, cluster: topologies.Cluster, raw: Any) -> Iterator[RedisStore]:
        store = RedisStore.from_url(cluster.url, cluster=True)
        yield store
        store.close()

    @pytest.fixture
    def raw(self, cluster: topologies.Cluster) -> Iterator[Any]:
        with redis.RedisCluster.from_url(cluster.url, decode_responses=True) as raw:
            raw.flushdb()
            yield raw

    @pytest.fixture
    def refuse_all_but(self, cluster: topologies.Cluster) -> Iterator[Callable[..., bool]]:
        def allow(*keys: str) -> bool:
            for node in cluster.nodes:
                with redis.Redis.from_url(node.url) as its:
                    its.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=keys)
            return True

        yield lambda *keys: allow(*keys, "mythic:lease:*")
        allow("*")

    def mark_keys(self, name: str) -> list[str]:
        raise NotImplementedError

    def test_a_mark_that_somebody_has_overwritten_is_none(self, store: Any, raw: Any) -> None:
        assert store.open_run("mythic:clients:x").close(_MARK)
        keys = raw.keys("mythic:clients:x:mark:*", target_nodes="primaries")
        assert len(keys) == 3, "each primary has its own"
        raw.set(keys[0], "what is that?")
        assert store.read_mark("mythic:clients:x") is None

    def test_a_key_whose_lease_would_lie_elsewhere_is_loaded_and_never_kept(
        self, store: RedisStore, raw: Any
    ) -> None:
        for key in ("a}b", "}", "a{}b"):
            assert store.fetch(key, lambda: "loaded", expire=100) == b"loaded"
            assert raw.get(key) is None
            raw.set(key, "kept by the host")
            assert store.fetch(key, lambda: "not asked", expire=100) == b"kept by the host"
            assert store.apply(remove=[key], overwrite={}) == {key}


class TestValkeyStore(OurStoreContract):
    """On a real Valkey."""

    kind = "valkey"
