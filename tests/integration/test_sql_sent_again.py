"""Transactions the database has rolled back, and connections it has closed, are no error."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from flask_mythic_clients import RepositoryError
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Action
from tests.hosts import KeyValue

from .scene import BOUNDED, OURS, Scene, Told, make_scene

LISTENERS = Told(path="listeners")
# Statements that fail: by these a server tells of a transaction that it rolled back, and of something else.
CONFLICTS = {
    "postgresql": ["DO $$BEGIN RAISE SQLSTATE '40001'; END$$", "DO $$BEGIN RAISE SQLSTATE '40P01'; END$$"],
    "mariadb": ["SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'"],
}
DISK_FULL = {
    "postgresql": "DO $$BEGIN RAISE SQLSTATE '53100'; END$$",
    "mariadb": "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021, MESSAGE_TEXT = 'Disk full'",
}


DRIVERS = ["postgresql+psycopg", "postgresql+psycopg2", "mariadb+pymysql", "mariadb+mysqldb"]
BY_UNIT_OF_WORK = ["postgresql+psycopg", "mariadb+pymysql"]


@pytest.fixture(
    params=[*((driver, OURS) for driver in DRIVERS), *((driver, LISTENERS) for driver in BY_UNIT_OF_WORK)],
    ids=lambda param: "-".join(map(str, param)),
)
def scene(
    request: pytest.FixtureRequest,
    database_by: Callable[[str], str],
    empty_kv: Callable[[str], KeyValue],
) -> Iterator[Scene]:
    """Client `acme`, on the databases with servers, by each driver that people use with them."""
    driver, told = request.param
    with make_scene(database_by(driver), empty_kv("either"), told) as scene:
        scene.add()
        yield scene


def _is_quick(scene: Scene) -> bool:
    """Whether both steps are tried at once before they are, one by one."""
    return scene.kind == "mariadb" or scene.told is LISTENERS


def _engine(scene: Scene) -> sa.Engine:
    with scene.host.flask.app_context():
        return scene.host.db.engine


def _failing(scene: Scene, failures: list[str]) -> list[str]:
    """Put statements that fail before the next ones that change something; return those tried."""
    tried = []

    def do_execute(cursor: Any, statement: str, *_: object) -> None:
        statement = statement.removeprefix(BOUNDED)
        if statement.startswith(("WITH", "INSERT", "UPDATE", "SELECT", "BEGIN NOT ATOMIC")) and failures:
            tried.append(statement)
            cursor.execute(failures.pop(0))

    sa.event.listen(_engine(scene), "do_execute", do_execute)
    return tried


@pytest.mark.parametrize("action", [Action.SOFT, Action.HARD])
def test_a_conflict_is_tried_again(scene: Scene, action: Action) -> None:
    failures = [*CONFLICTS[scene.kind]]
    tried = _failing(scene, failures)
    scene.act(action)
    assert tried
    assert failures == []
    assert scene.agrees()


def test_a_conflict_that_does_not_end_is_an_error_and_loses_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [CONFLICTS[scene.kind][0]] * 50
    tried = _failing(scene, failures)
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    with pytest.raises(RepositoryError):
        scene.act(Action.HARD)
    at_once = _is_quick(scene)
    assert len(tried) == 5 + at_once
    assert len(naps) == 4
    assert max(naps) <= 0.02  # the client waits
    failures.clear()
    scene.act(Action.HARD)
    assert scene.agrees()


def test_another_error_is_not_tried_again(scene: Scene) -> None:
    tried = _failing(scene, [DISK_FULL[scene.kind]] * 50)
    with pytest.raises(RepositoryError):
        scene.act(Action.HARD)
    assert len(tried) == 1


def test_a_real_deadlock_is_survived(scene: Scene) -> None:
    """Ours: record, then row. The other: row, then record."""
    with scene.host.flask.app_context():
        scene.host.db.session.execute(sa.text("CREATE TABLE ballast (id INTEGER)"))
        scene.host.db.session.commit()
    scene.act(Action.SOFT)
    scene.age()
    conflicts: list[BaseException] = []
    sa.event.listen(
        _engine(scene), "handle_error", lambda context: conflicts.append(context.original_exception)
    )
    with scene.second_connection() as other:
        if scene.kind == "postgresql":
            other.execute(sa.text("SET deadlock_timeout = '20s'"))  # so that ours is the one to notice
        else:
            # InnoDB rolls back the lighter transaction: let that be ours.
            other.execute(sa.text("INSERT INTO ballast SELECT seq FROM seq_1_to_200"))
        other.execute(sa.text("SELECT * FROM clients WHERE id = 'acme' FOR UPDATE"))
        blocked = threading.Thread(target=_lock_record_and_end, args=(other,))

        def cross(_conn: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.removeprefix(BOUNDED).startswith("UPDATE client_deletions") and not blocked.ident:
                blocked.start()

        sa.event.listen(_engine(scene), "after_cursor_execute", cross)
        # Who waits; a reconcile first takes what nobody holds.
        verify = SQLAlchemyRepository(scene.host.db, scene.host.model).verify
        with scene.host.flask.app_context(), verify(["acme"], settled_for=timedelta()) as holding:
            assert len(holding.records) == 1
        blocked.join(10)
    (conflict,) = conflicts
    assert "deadlock" in f"{conflict}".lower()
    assert scene.agrees()


def _lock_record_and_end(other: sa.Connection) -> None:
    other.execute(sa.text("UPDATE client_deletions SET actor = 'other' WHERE client_id = 'acme'"))
    other.commit()


@pytest.mark.parametrize("query", ["", "?hard=true"])
def test_connections_that_the_server_closed_are_replaced_and_not_reported(scene: Scene, query: str) -> None:
    engine = _engine(scene)
    connections = [engine.connect() for _ in range(5)]
    for connection in connections:
        connection.close()
    assert _close_all(scene) >= 5
    answer = scene.host.delete(f"acme{query}")
    assert answer.status_code == 200
    assert scene.agrees()


@pytest.mark.parametrize("query", ["", "?hard=true"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_connection_closed_between_the_steps_or_in_one_is_replaced(
    scene: Scene, query: str, step: int
) -> None:
    closed = []

    def close(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        is_step_1 = "INSERT INTO client_deletions" in statement
        is_meant = is_step_1 if step == 1 else not is_step_1 and "client_deletions" in statement
        if is_meant and not closed:
            closed.append(_close_all(scene))

    sa.event.listen(_engine(scene), "before_cursor_execute", close)
    assert scene.host.delete(f"acme{query}").status_code == 200
    assert closed
    assert len(scene.host.records("acme")) == 1
    assert scene.agrees()


@pytest.mark.parametrize("query", ["", "?hard=true"])
def test_a_database_that_closes_every_connection_is_tried_twice(scene: Scene, query: str) -> None:
    closed = []

    def close(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO client_deletions" in statement:
            closed.append(_close_all(scene))

    sa.event.listen(_engine(scene), "before_cursor_execute", close)
    assert scene.host.delete(f"acme{query}").status_code == 503
    at_once = _is_quick(scene)
    assert len(closed) == 2 + at_once
    sa.event.remove(_engine(scene), "before_cursor_execute", close)
    assert scene.host.delete(f"acme{query}").status_code == 200
    assert scene.agrees()


def _close_all(scene: Scene) -> int:
    """Let the server close every connection but ours; return how many."""
    with scene.second_connection() as connection:
        if scene.kind == "postgresql":
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            return len(connection.execute(sa.text(f"SELECT pg_terminate_backend(pid, 5000) {others}")).all())
        mine = "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND db = 'test'"
        ids = connection.scalars(sa.text(mine)).all()
        for id in ids:
            with suppress(sa.exc.OperationalError):  # gone already
                connection.execute(sa.text(f"KILL {id}"))
    return len(ids)
