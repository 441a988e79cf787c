"""The promises of the order of steps, on each real database and a real Redis; crashes have their own file."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_mythic_clients import ClientNotFoundError, StoreError, client_hard_deleted, client_soft_deleted
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.backends.sqlalchemy.rows import ClientRows
from flask_mythic_clients.model import Action
from tests.hosts import KeyValue

from .scene import AWAY, CONFIG, OURS, SOME, Scene, Told, WithoutValues, hung_server, make_scene

THREADS = 16
# As a foreign key does that is inserted; on SQLite a write, for it has one lock.
READ_TO_SHARE = {
    "sqlite": "UPDATE clients SET name = name",
    "postgresql": "SELECT id FROM clients FOR SHARE NOWAIT",
    "mariadb": "SELECT id FROM clients LOCK IN SHARE MODE NOWAIT",
}


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, database_url: str, empty_kv: Callable[[str], KeyValue]
) -> Iterator[Scene]:
    """Client `acme`, on each database."""
    with make_scene(database_url, empty_kv("either"), getattr(request, "param", OURS)) as scene:
        scene.add()
        yield scene


def test_after_a_200_for_hard_both_stores_are_clean(scene: Scene) -> None:
    answer = scene.host.delete("acme?hard=true")
    assert (answer.status_code, scene.status(), scene.entries()) == (200, None, [])
    assert scene.pending() == 0


def test_after_a_200_for_soft_the_entry_says_deleted(scene: Scene) -> None:
    assert scene.host.delete("acme").status_code == 200
    assert scene.status() is False
    assert scene.agrees()


@pytest.mark.parametrize("action", Action)
def test_the_kv_store_is_touched_after_step_1_is_committed_and_with_the_record_held_where_it_writes(
    scene: Scene, action: Action
) -> None:
    if action is Action.RESTORE:
        scene.act(Action.SOFT)
    seen = []

    def look() -> None:
        seen.append((scene.status(), _record_is_locked(scene)))

    scene.tap.before = scene.tap.after = look
    scene.act(action)
    status = {Action.SOFT: False, Action.HARD: None, Action.RESTORE: True}[action]
    # A hard delete that is alone need not hold its record: its stamp is refused where it was not.
    assert seen == [(status, action is not Action.HARD)] * 2
    assert not _record_is_locked(scene)


@pytest.mark.parametrize("action", [Action.SOFT, Action.HARD])
def test_a_rule_of_the_hosts_names_the_keys_with_the_row_held_for_a_change(
    database_url: str, empty_kv: Callable[[str], KeyValue], action: Action
) -> None:
    held = []

    def rule(row: Any) -> dict[str, None]:
        held.append(_is_locked(scene, READ_TO_SHARE[scene.kind]))
        return {f"client:{row.id}": None}

    with make_scene(database_url, empty_kv("memory"), entries=rule, config={}) as scene:
        scene.add()
        scene.act(action)
    assert held[0]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_while_verify_writes_the_row_can_be_referred_to_but_not_changed(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], database: str
) -> None:
    seen = []

    def look() -> None:
        change = "SELECT id FROM clients FOR UPDATE NOWAIT"
        seen.append([_is_locked(scene, statement) for statement in (READ_TO_SHARE[database], change)])

    with make_scene(empty_database(database), empty_kv("memory")) as scene:
        scene.add()
        scene.act(Action.SOFT)
        scene.age()
        scene.tap.before = look
        assert scene.reconcile().verified == 1
    assert seen == [[False, True]]


def test_another_settle_of_the_client_waits_for_the_one_that_writes(scene: Scene) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        writing.set()
        assert go_on.wait(10)

    scene.tap.before = pause
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(scene.act, Action.SOFT)
        assert writing.wait(10)
        second = pool.submit(scene.reconcile)
        time.sleep(0.3)
        held_back = not second.done() and scene.tap.calls == 1
        go_on.set()
        first.result(10)
        assert second.result(10).settled == 0
    assert held_back
    assert scene.tap.calls == 1


@pytest.mark.parametrize("query", ["", "?hard=true"])
def test_a_request_repeated_after_a_503_finishes_the_first(scene: Scene, query: str) -> None:
    scene.tap.store, real = AWAY, scene.tap.store
    first = scene.host.delete(f"acme{query}")
    assert (first.status_code, first.headers["Retry-After"], scene.pending()) == (503, "5", 1)
    assert scene.status() is (None if query else False)
    scene.tap.store = real
    assert scene.host.delete(f"acme{query}").status_code == 200
    assert scene.agrees()
    assert len(scene.host.records("acme")) == 1
    assert scene.host.delete(f"acme{query}").status_code == (404 if query else 200)


def test_a_soft_delete_finishes_a_pending_hard_delete(scene: Scene) -> None:
    scene.tap.store, real = AWAY, scene.tap.store
    assert scene.host.delete("acme?hard=true").status_code == 503
    scene.tap.store = real
    assert scene.host.delete("acme").status_code == 200
    assert scene.agrees()
    assert scene.host.delete("acme").status_code == 404


@pytest.mark.parametrize("scene", [WithoutValues()], indirect=True, ids=str)
@pytest.mark.parametrize("query", ["", "?hard=true"])
def test_what_was_left_is_finished_also_where_the_row_is_read_with_the_rest(scene: Scene, query: str) -> None:
    scene.tap.store, real = AWAY, scene.tap.store
    assert scene.host.delete("acme?hard=true").status_code == 503
    scene.tap.store = real
    assert scene.host.delete(f"acme{query}").status_code == 200
    assert (scene.entries(), scene.pending()) == ([], 0)
    assert scene.host.delete(f"acme{query}").status_code == 404


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("told", [OURS, SOME[3]], ids=str)
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_removal_that_comes_just_before_the_row_is_read_is_finished(
    empty_database: Callable[[str], str],
    empty_kv: Callable[[str], KeyValue],
    database: str,
    told: Told,
    quick: bool,
    action: Action,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there was nothing to change before it. On SQLite none can come: a writer has the whole file."""
    url, kv, read = empty_database(database), empty_kv("memory"), ClientRows.read
    removals = iter([lambda: other.host.delete("acme?hard=true").status_code])
    removed: list[int] = []

    def read_late(rows: ClientRows, session: Any, client_ids: Any, dialect: Any, lock: Any = None) -> Any:
        if lock is None:
            removed.extend(remove() for remove in removals)
        return read(rows, session, client_ids, dialect, lock)

    guard = {**CONFIG, "MYTHIC_CLIENTS_HARD_DELETE": "after-soft-delete"}
    with make_scene(url, kv, told, config=guard) as scene, make_scene(url, kv, told) as other:
        other.tap.store = AWAY
        scene.add()
        if action is Action.SOFT:
            scene.act(action)
        monkeypatch.setattr(ClientRows, "read", read_late)
        if not quick:
            monkeypatch.setattr(SQLAlchemyRepository, "record_and_settle", lambda *_: nullcontext())
        with pytest.raises(ClientNotFoundError) if action is Action.RESTORE else nullcontext():
            scene.act(action)
        assert removed == [503]
        assert scene.agrees()


def test_a_reconcile_repeated_does_nothing(scene: Scene) -> None:
    scene.tap.store, real = AWAY, scene.tap.store
    with pytest.raises(StoreError):
        scene.act(Action.HARD)
    scene.tap.store = real
    assert [scene.reconcile().settled for _ in range(3)] == [1, 0, 0]
    assert scene.tap.calls == 2


@pytest.mark.timed
@pytest.mark.parametrize(
    ("scene", "query"),
    [(OURS, ""), (OURS, "?hard=true"), (SOME[0], ""), (SOME[3], "")],
    indirect=["scene"],
    ids=str,
)
def test_equal_requests_at_once_have_one_effect(scene: Scene, query: str) -> None:
    announced = []
    start = threading.Barrier(THREADS)

    def receive(_: object, record: object) -> None:
        announced.append(record)

    def send(_: int) -> int:
        start.wait()
        return int(scene.host.delete(f"acme{query}").status_code)

    with (
        client_soft_deleted.connected_to(receive),
        client_hard_deleted.connected_to(receive),
        ThreadPoolExecutor(THREADS) as pool,
    ):
        answers = list(pool.map(send, range(THREADS)))
    assert set(answers) <= ({200, 404} if query else {200})
    assert 200 in answers
    assert len(scene.host.records("acme")) == len(announced) == 1
    assert scene.agrees()


@pytest.mark.parametrize("action", Action)
def test_the_session_of_the_host_is_left_alone(scene: Scene, action: Action) -> None:
    if action is Action.RESTORE:
        scene.act(Action.SOFT)
    db, touched = scene.host.db, []
    with scene.host.flask.app_context():
        other = scene.host.model(id="other")
        db.session.add(other)
        for event in ("before_flush", "before_commit", "after_rollback", "after_begin"):
            sa.event.listen(db.session(), event, lambda *_, event=event: touched.append(event))
        scene.act(action)
        scene.host.clients.service.reconcile()
        assert touched == []
        assert list(db.session.new) == [other]
    assert scene.status("other") is None


def test_an_open_transaction_of_the_host_stays_open(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    config = {**CONFIG}
    if database_url.startswith("sqlite"):  # one writer a file: a host that writes makes us wait
        config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": 0.2}}
    with make_scene(database_url, empty_kv("either"), config=config) as scene:
        scene.add()
        with scene.host.flask.app_context():
            session = scene.host.db.session
            session.execute(sa.text("CREATE TABLE notes (id INTEGER)"))
            session.commit()
            session.execute(sa.text("INSERT INTO notes VALUES (1)"))
            if scene.kind == "sqlite":
                with pytest.raises(StoreError):
                    scene.act(Action.HARD)
            else:
                scene.act(Action.HARD)
            assert session.scalar(sa.text("SELECT count(*) FROM notes")) == 1
            session.rollback()
            assert session.scalar(sa.text("SELECT count(*) FROM notes")) == 0
            session.rollback()
        if scene.kind == "sqlite":
            assert scene.status() is True
            scene.act(Action.HARD)
        assert scene.status() is None
        assert scene.agrees()


def test_without_keys_every_request_is_refused_and_the_log_says_why(
    database_url: str, empty_kv: Callable[[str], KeyValue], caplog: pytest.LogCaptureFixture
) -> None:
    with make_scene(database_url, empty_kv("either")) as scene:
        scene.add()
        closed = Flask("closed")
        closed.config["SQLALCHEMY_DATABASE_URI"] = database_url
        scene.host.db.init_app(closed)
        scene.host.clients.init_app(closed)
        assert "MYTHIC_CLIENTS_ADMIN_KEYS is empty" in caplog.text
        for header in ({}, {"Authorization": "Bearer anything"}, {"Authorization": "Bearer "}):
            answer = closed.test_client().delete("/api/v1/clients/acme?hard=true", headers=header)
            assert answer.status_code == 401
        assert scene.status() is True
        assert len(scene.entries()) == 2


@pytest.mark.parametrize(("argument", "warned"), [("run", True), ("mythic-clients", False)])
def test_its_own_commands_which_need_no_key_do_not_miss_one(
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    argument: str,
    warned: bool,
) -> None:
    monkeypatch.setattr("sys.argv", ["flask", argument])
    closed = Flask("closed")
    closed.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    scene.host.db.init_app(closed)
    scene.host.clients.init_app(closed)
    assert ("MYTHIC_CLIENTS_ADMIN_KEYS is empty" in caplog.text) is warned


@pytest.mark.timed
@pytest.mark.parametrize("query", ["", "?hard=true"])
def test_a_kv_store_that_times_out_is_unknown_and_in_time(scene: Scene, query: str) -> None:
    real = scene.tap.store
    with hung_server() as hung:
        scene.tap.store = RedisStore.from_url(hung, timeout=0.2)
        began = time.monotonic()
        answer = scene.host.delete(f"acme{query}")
        took = time.monotonic() - began
    assert (answer.status_code, scene.pending()) == (503, 1)
    assert took < 1
    scene.tap.store = real
    assert scene.reconcile().settled == 1
    assert scene.agrees()


def test_times_are_utc_wherever_the_process_and_the_database_think_they_are(
    database_url: str, empty_kv: Callable[[str], KeyValue], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TZ", "PGTZ"):  # the latter is the time zone of a session of PostgreSQL
        monkeypatch.setenv(variable, "Asia/Kolkata")
    time.tzset()
    try:
        with make_scene(database_url, empty_kv("memory")) as scene:
            scene.add()
            scene.act(Action.SOFT)
            (record,) = scene.host.records("acme")
    finally:
        monkeypatch.undo()
        time.tzset()
    for at in (record.requested_at, record.settled_at):
        assert at is not None
        assert at.tzinfo is UTC
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


def _record_is_locked(scene: Scene) -> bool:
    """Whether another transaction holds the client's record."""
    if scene.kind == "sqlite":
        return _is_locked(scene, "UPDATE client_deletions SET actor = actor")
    return _is_locked(scene, "SELECT id FROM client_deletions FOR UPDATE NOWAIT")


def _is_locked(scene: Scene, statement: str) -> bool:
    """Whether a statement, which does not wait, meets a lock."""
    with scene.second_connection() as connection:
        try:
            connection.execute(sa.text(statement))
        except sa.exc.OperationalError:
            return True
        finally:
            connection.rollback()
    return False
