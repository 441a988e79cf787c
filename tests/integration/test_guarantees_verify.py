"""Step 3, and what reconcile does with a client it cannot finish."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from flask_mythic_clients import StoreError
from flask_mythic_clients.model import Action, Reconciliation
from tests.hosts import KeyValue

from .scene import AWAY, OURS, SOME, Scene, document, make_scene


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, database_url: str, empty_kv: Callable[[str], KeyValue]
) -> Iterator[Scene]:
    """Client `acme`, on each database."""
    with make_scene(database_url, empty_kv("either"), getattr(request, "param", OURS)) as scene:
        scene.add()
        yield scene


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_entry_that_a_slow_reader_put_back_is_removed_after_the_window(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.act(Action.HARD)
    scene.cache(status=True)
    assert scene.reconcile() == Reconciliation(settled=0, verified=0, failed=0)
    assert len(scene.entries()) == 2
    caplog.clear()
    scene.age()
    assert scene.reconcile() == Reconciliation(settled=0, verified=1, failed=0)
    assert scene.agrees()
    assert len(_warnings(caplog)) == 1
    assert "acme" in _warnings(caplog)[0]


def test_a_client_is_verified_once_and_in_silence_where_nothing_came_back(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.act(Action.HARD)
    scene.age()
    caplog.clear()
    assert [scene.reconcile().verified for _ in range(2)] == [1, 0]
    assert _warnings(caplog) == []
    assert scene.host.records("acme")[0].verified_at is not None


def test_one_entry_that_came_back_is_one_warning_also_after_two_deletions(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.act(Action.SOFT)
    scene.act(Action.HARD)
    scene.cache(status=True)
    scene.age()
    caplog.clear()
    assert scene.reconcile().verified == 2
    assert scene.agrees()
    assert len(_warnings(caplog)) == 1


@pytest.mark.parametrize("scene", [OURS, *SOME[1:3]], indirect=True, ids=str)
def test_the_old_value_that_a_slow_reader_put_back_is_overwritten_with_the_current_one(scene: Scene) -> None:
    scene.act(Action.SOFT)
    scene.cache(status=True)
    scene.age()
    scene.reconcile()
    assert scene.raw.get("client:acme") == document("acme", False)
    scene.act(Action.RESTORE)
    scene.cache(status=False)
    scene.age()
    scene.reconcile()
    assert scene.raw.get("client:acme") == document("acme", True)


@pytest.mark.parametrize("action", [Action.SOFT, Action.HARD])
def test_a_paused_verifier_never_puts_an_old_value_over_a_newer_one(scene: Scene, action: Action) -> None:
    scene.act(Action.SOFT)
    scene.act(Action.RESTORE)
    _finished(scene, 2000)  # in a small table MariaDB locks more than it needs, which would hide a fault
    scene.age()
    verifying, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        if threading.current_thread() is verifier:
            verifying.set()
            assert go_on.wait(10)

    scene.tap.before = pause
    verifier = threading.Thread(target=scene.reconcile)
    verifier.start()
    assert verifying.wait(10)
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(scene.act, action)
        time.sleep(0.3)
        go_on.set()
        deletion.result(10)
    verifier.join(10)
    assert scene.status() is (False if action is Action.SOFT else None)
    assert scene.agrees()


def _finished(scene: Scene, count: int) -> None:
    """Add records of other clients, settled and verified."""
    ledger = scene.host.db.metadata.tables["client_deletions"]
    then = datetime(2001, 1, 1, tzinfo=UTC)
    times = {"requested_at": then, "settled_at": then, "verified_at": then}
    record = {"action": "hard", "actor": "tests", "kv_keys": [], **times}
    with scene.host.flask.app_context(), scene.host.db.engine.begin() as connection:
        records = [{"client_id": f"gone-{number}", **record} for number in range(count)]
        connection.execute(ledger.insert(), records)


def test_reconcile_with_the_kv_store_away_loses_nothing(scene: Scene) -> None:
    scene.add("settled")
    scene.act(Action.HARD, "settled")
    scene.age()
    scene.tap.store, real = AWAY, scene.tap.store
    with pytest.raises(StoreError):
        scene.act(Action.HARD)
    with pytest.raises(StoreError):
        scene.reconcile()
    assert scene.pending() == 1
    scene.tap.store = real
    assert scene.reconcile() == Reconciliation(settled=1, verified=1, failed=0)
    assert scene.agrees()


def test_keys_are_recorded_before_a_change_of_the_configuration(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    kv = empty_kv("either")
    with make_scene(database_url, kv) as before:
        before.add()
        before.tap.store = AWAY
        with pytest.raises(StoreError):
            before.act(Action.HARD)
    with make_scene(database_url, kv, config={"MYTHIC_CLIENTS_KV_KEYS": ["other:{id}"]}) as after:
        after.raw.set("other:acme", "a newer client's")
        assert after.reconcile().settled == 1
        assert after.agrees()
        assert after.raw.get("other:acme") is not None


class Poison:
    """A host's rule of entries, which fails for some clients."""

    def __init__(self) -> None:
        self.clients: set[str] = set()
        self.entries: Callable[[Any], Any] = self.fail

    def __call__(self, row: Any) -> dict[str, Any]:
        if row.id in self.clients:
            return self.entries(row)  # type: ignore[no-any-return]
        return {f"client:{row.id}": document(row.id, row.status)}

    def fail(self, row: Any) -> None:
        raise LookupError(row.id)


@pytest.fixture
def poison() -> Poison:
    """Harmless until it names a client."""
    return Poison()


@pytest.fixture
def poisoned(database_url: str, empty_kv: Callable[[str], KeyValue], poison: Poison) -> Iterator[Scene]:
    """Three clients; their soft deletions are pending, and the entries of the second cannot be named."""
    with make_scene(database_url, empty_kv("either"), config={}, entries=poison) as scene:
        scene.tap.store, real = AWAY, scene.tap.store
        for id in ("a", "b", "c"):
            scene.add(id)
            with pytest.raises(StoreError):
                scene.act(Action.SOFT, id)
        scene.tap.store = real
        poison.clients.add("b")
        yield scene


def test_one_poisoned_client_holds_back_no_other(
    poisoned: Scene, poison: Poison, caplog: pytest.LogCaptureFixture
) -> None:
    assert poisoned.reconcile() == Reconciliation(settled=2, verified=0, failed=1)
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 1
    assert "Client b" in logged[0].getMessage()
    assert logged[0].exc_info is not None
    for id in ("a", "c"):
        assert poisoned.raw.get(f"client:{id}") == document(id, False)
    assert poisoned.pending() == 1
    poison.clients.clear()
    assert poisoned.reconcile() == Reconciliation(settled=1, verified=0, failed=0)
    assert poisoned.agrees("b")


def test_one_poisoned_client_holds_back_the_verification_of_no_other(poisoned: Scene, poison: Poison) -> None:
    poison.clients.clear()
    assert poisoned.reconcile().settled == 3
    poison.clients.add("b")
    for id in ("a", "c"):
        poisoned.cache(id, status=True)
    poisoned.age()
    assert poisoned.reconcile() == Reconciliation(settled=0, verified=2, failed=1)
    for id in ("a", "c"):
        assert poisoned.raw.get(f"client:{id}") == document(id, False)


@pytest.mark.server
def test_a_value_that_the_kv_store_cannot_take_holds_back_no_other_client(
    poisoned: Scene, poison: Poison
) -> None:
    poison.entries = lambda row: {f"client:{row.id}": {"status": row.status}}
    assert poisoned.reconcile() == Reconciliation(settled=2, verified=0, failed=1)


def test_a_rule_of_entries_whose_query_fails_holds_back_no_other_client(
    poisoned: Scene, poison: Poison
) -> None:
    def query(row: Any) -> None:
        db = poisoned.host.db
        try:
            db.session.execute(db.text("SELECT * FROM no_such_table"))
        finally:
            db.session.rollback()

    poison.entries = query
    assert poisoned.reconcile() == Reconciliation(settled=2, verified=0, failed=1)
