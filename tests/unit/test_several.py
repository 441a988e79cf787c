"""Several key-value stores as one: each gets what it has, and all must confirm."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_mythic_clients import (
    ConfigurationError,
    EntriesRefusedError,
    KeyValueStoreError,
    MythicClients,
)
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.model import Mark
from flask_mythic_clients.ports import KeyValueStore, RememberingStore
from flask_mythic_clients.several import RememberingStores, SeveralStores, join
from flask_mythic_clients.testing import KeyValueStoreContract, RememberingStoreContract
from tests.hosts import Gate


class TestTheContract(KeyValueStoreContract, RememberingStoreContract):
    """Three stores are as one, of which one has no mark."""

    @pytest.fixture
    def raw(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def store(self, raw: MemoryStore) -> KeyValueStore:
        return join([MemoryStore(), Gate(MemoryStore()), raw])

    def set_back(self, raw: MemoryStore) -> None:
        raw.flush()

    @pytest.fixture
    def refuse_all_but(self, raw: MemoryStore) -> Any:
        return lambda *keys: not raw.refuse(*({f"client:{letter}" for letter in "abcde"} - {*keys}))


@pytest.mark.parametrize("place", [0, 1])
def test_one_that_is_away_keeps_the_record_pending_and_the_others_from_nothing(place: int) -> None:
    cache, sessions, rows = MemoryStore(), MemoryStore(), MemoryRepository()
    stores: list[Any] = [cache, sessions]
    gate = stores[place] = Gate(stores[place])
    app = Flask("host")
    app.config.update(MYTHIC_CLIENTS_KV_KEYS=["client:{id}", "session:{id}"])
    app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {"tests": digest("key")}
    clients = MythicClients(app, repository=rows, kv=stores)
    rows.add("acme")
    cache.set("client:acme", "1")
    sessions.set("session:acme", "1")
    gate.closed = True
    hard = {"path": "/api/v1/clients/acme?hard=true", "headers": {"Authorization": "Bearer key"}}
    assert app.test_client().delete(**hard).status_code == 503
    left = [cache.get("client:acme"), sessions.get("session:acme")]
    assert (left[place], left[1 - place]) == ("1", None)
    gate.closed = False
    with app.app_context():
        assert clients.service.reconcile().settled == 1
    assert cache.get("client:acme") is sessions.get("session:acme") is None


def test_stores_without_a_mark_have_none_together() -> None:
    assert not isinstance(join([Gate(MemoryStore()), Gate(MemoryStore())]), RememberingStore)


def test_they_remember_as_far_as_the_one_that_remembers_least() -> None:
    one, other = MemoryStore(), MemoryStore()
    stores = join([one, other])
    assert isinstance(stores, RememberingStore)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for hour, store in ((1, one), (2, other)):
        time = noon + timedelta(hours=hour)
        assert store.open_run("name").close(Mark(time, time))
    assert (stores.read_mark("name"), stores.open_run("name").mark) == (one.read_mark("name"),) * 2
    other.flush()
    assert (stores.read_mark("name"), stores.open_run("name").mark) == (None, None)


def test_what_one_without_a_mark_refuses_keeps_the_mark_of_the_others() -> None:
    cache, sessions = MemoryStore(), MemoryStore()
    run = RememberingStores([cache, Gate(sessions)]).open_run("name")
    sessions.set("a", "1")
    sessions.refuse("a")
    with pytest.raises(EntriesRefusedError):
        run.apply(remove={"a"}, overwrite={})
    time = datetime(2026, 1, 1, tzinfo=UTC)
    assert run.close(Mark(time, time)) is False
    assert cache.read_mark("name") is None


def test_each_of_them_finds_out_that_it_was_set_back_in_the_middle_of_a_run() -> None:
    stores = [MemoryStore(), MemoryStore()]
    time = datetime(2026, 1, 1, tzinfo=UTC)
    for store in stores:
        run = RememberingStores(stores).open_run("name")
        copy = dict(store._entries)
        run.apply(remove={"a"}, overwrite={})
        store._entries = copy
        assert run.close(Mark(time, time)) is False


def test_what_was_there_in_any_of_them_was_there() -> None:
    first, second = MemoryStore(), MemoryStore()
    first.set("a", "1")
    second.set("b", "1")
    assert SeveralStores([first, second]).apply(remove="abc", overwrite={}) == {"a", "b"}


def test_what_either_refuses_is_refused() -> None:
    first, second = MemoryStore(), MemoryStore()
    for store, key in ((first, "a"), (second, "b")):
        store.refuse(key)
        for each in "abc":
            store.set(each, "1")
    with pytest.raises(EntriesRefusedError) as caught:
        SeveralStores([first, second]).apply(remove="abc", overwrite={})
    assert caught.value.keys == {"a", "b"}
    gate = Gate(first)
    gate.closed = True
    with pytest.raises(KeyValueStoreError) as away:
        SeveralStores([gate, second]).apply(remove="abc", overwrite={})
    assert not isinstance(away.value, EntriesRefusedError)  # an outage: nothing is known of the others


@pytest.mark.parametrize("wrong", [[], (), [MemoryStore(), "redis://localhost"], {}, None])
def test_what_is_no_store_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^kv= takes a KeyValueStore, or a list of some, not"):
        MythicClients(repository=MemoryRepository(), kv=wrong)
