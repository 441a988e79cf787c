"""Step 1 waits for about a second: whoever holds a client's row keeps neither its callers nor others'."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import relationship

from flask_mythic_clients import RepositoryError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.model import Action
from tests.hosts import Host, client_model, contents, mounting

from .test_host_cascades import child_model, insert

BOUND = 4  # seconds: those of a wait for a turn and of one for a row, and some for a busy machine
ENDS = 10  # seconds after which a test waits no longer
SETTLES = 0.3  # seconds in which what was waiting would be carried out

CLIENTS = ["UPDATE clients SET name = 'held' WHERE id = '{id}'"]
CHILDREN = ["UPDATE orders SET id = 3"]
# How the model is made: the actions that are tried, what another holds meanwhile, and where.
WAYS: dict[str, Any] = {
    "plain": ([*Action], CLIENTS, ["sqlite", "postgresql", "mariadb"]),
    "listeners": ([*Action], CLIENTS, ["sqlite", "postgresql", "mariadb"]),
    # On SQLite that is the same lock.
    "orm cascade": ([Action.HARD], CHILDREN, ["postgresql", "mariadb"]),
    "foreign key": ([Action.HARD], CHILDREN, ["postgresql", "mariadb"]),
}


@contextmanager
def _host(url: str, store: MemoryStore, way: str, **engine_options: Any) -> Iterator[Host]:
    """Mount on a model that is plain or not; `mixed` needs the unit of work for all but a hard delete."""
    db = SQLAlchemy()
    model = client_model(db)
    if way == "orm cascade":
        model.orders = relationship("Order", cascade="all, delete-orphan")
        model.order = child_model(db, "order")
    elif way == "foreign key":
        model.order = child_model(db, "order", ondelete="CASCADE")
    listened = {"listeners": ["before_update", "before_delete"], "mixed": ["before_update"]}
    for event in listened.get(way, []):
        sa.event.listen(model, event, lambda *_: None)
    with mounting(url, store) as mount:
        yield mount(db=db, model=model, config={"SQLALCHEMY_ENGINE_OPTIONS": engine_options})


@contextmanager
def _connection(url: str) -> Iterator[sa.Connection]:
    """Connect independently of the host; what is not committed is rolled back at the end."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        yield connection


@contextmanager
def _held(url: str, *ids: str, statements: Any = CLIENTS) -> Iterator[None]:
    """Change the clients with these ids, and do not commit."""
    with _connection(url) as connection:
        for id in ids:  # one by one: MariaDB may look through the table for many, and hold all of it
            for statement in statements:
                connection.execute(sa.text(statement.format(id=id)))
        yield


def _kind(url: str) -> str:
    return sa.make_url(url).get_backend_name()


def _ask(host: Host, action: Action, id: str | None = None) -> tuple[int, float]:
    """Return the answer to a request for a client, named like the action, and its seconds."""
    began, id = time.monotonic(), id or action.value
    if action is Action.RESTORE:  # there is no route for it
        return _restore(host, id), time.monotonic() - began
    answer = host.delete(f"{id}?hard=true" if action is Action.HARD else id)
    seconds = time.monotonic() - began
    assert ("Retry-After" in answer.headers) is (answer.status_code == 503)
    return answer.status_code, seconds


def _restore(host: Host, id: str) -> int:
    with host.flask.app_context():
        try:
            host.clients.service.restore(id, actor="tests")
        except RepositoryError:
            return 503
    return 200


def _until(holds: Callable[[], bool], *, seconds: float) -> None:
    """Wait until something holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.12)  # MariaDB's table of who waits is made anew no sooner


@pytest.mark.parametrize(
    ("database_url", "way"),
    [(kind, way) for way, (_, _, kinds) in WAYS.items() for kind in kinds],
    indirect=["database_url"],
)
def test_a_row_that_another_holds_is_a_503_in_about_a_second_and_nothing_is_done_after_it(
    database_url: str, store: MemoryStore, way: str
) -> None:
    actions, statements, _ = WAYS[way]
    ids = [action.value for action in actions]
    with _host(database_url, store, way) as host:
        for id in ids:
            host.add(id=id)
            store.set(f"client:{id}", "value")
        if "restore" in ids:
            assert _ask(host, Action.SOFT, "restore")[0] == 200
        if statements is CHILDREN:
            insert(host, host.model.order(id=3, client_id="hard"))
        look = partial(contents, host, store, *(f"client:{id}" for id in ids))
        before = look()
        with ThreadPoolExecutor(len(ids)) as pool:
            with _held(database_url, *ids, statements=statements):
                for status, seconds in pool.map(partial(_ask, host), actions, timeout=ENDS):
                    assert status == 503
                    assert seconds < BOUND
                assert look() == before
            time.sleep(SETTLES)
            assert look() == before
            assert [status for status, _ in pool.map(partial(_ask, host), actions)] == [200] * len(ids)


def test_on_sqlite_a_reader_that_stays_is_a_503_in_about_a_second(
    empty_database: Callable[[str], str], store: MemoryStore
) -> None:
    """It keeps a writer from committing."""
    url = empty_database("sqlite")
    with _host(url, store, "plain") as host, ThreadPoolExecutor(1) as pool:
        host.add(id="hard")
        before = contents(host, store)
        with _held(url, "hard", statements=["BEGIN", "SELECT * FROM clients"]):
            status, seconds = pool.submit(_ask, host, Action.HARD).result(ENDS)
            assert status == 503
            assert seconds < BOUND
        assert contents(host, store) == before
        assert _ask(host, Action.HARD)[0] == 200


@pytest.mark.timed
def test_a_crowd_at_a_held_client_is_answered_as_fast_and_keeps_nobody_else(
    database_url: str, store: MemoryStore
) -> None:
    """It is more than twice the connections of the host's pool, which are 5 and 10."""
    crowd = [Action.SOFT, Action.HARD] * 20
    free, at_once = (503, BOUND) if _kind(database_url) == "sqlite" else (200, 1)  # SQLite has one lock
    with _host(database_url, store, "mixed") as host, ThreadPoolExecutor(len(crowd) + 3) as pool:
        for id in ("acme", "another", "other"):
            host.add(id=id)
        with _held(database_url, "acme"):
            asked = [pool.submit(_ask, host, action, "acme") for action in crowd]
            time.sleep(0.3)
            read = pool.submit(_read_by_the_host, host)
            soft = pool.submit(_ask, host, Action.SOFT, "other")
            hard = pool.submit(_ask, host, Action.HARD, "another")
            for status, seconds in (soft.result(ENDS), hard.result(ENDS)):
                assert status == free
                assert seconds < at_once
            assert read.result(ENDS) < 1
            if free == 200:
                assert any(not answer.done() for answer in asked)  # or the others have met no crowd
            answers = [answer.result(ENDS) for answer in asked]
            assert Counter(status for status, _ in answers) == {503: len(crowd)}
            assert max(seconds for _, seconds in answers) < BOUND + 0.5
        assert host.records("acme") == []
        assert _ask(host, Action.HARD, "acme")[0] == 200


def _read_by_the_host(host: Host) -> float:
    """Read through the host's session, and on a further connection of its pool; return the seconds."""
    began = time.monotonic()
    query = sa.select(host.model.name).where(host.model.id == "acme")
    with host.flask.app_context():
        assert host.db.session.scalar(query) == ""
        with host.db.engine.connect() as connection:
            assert connection.scalar(query) == ""
    return time.monotonic() - began


# Limits of the host's own, so that a wait without one of ours ends too, but late.
LATE: dict[str, Any] = {
    "postgresql": {"options": "-c lock_timeout=8s"},
    "mariadb": {"init_command": "SET innodb_lock_wait_timeout=8, lock_wait_timeout=9"},
    "sqlite": {"timeout": 8},
}


def test_a_service_called_in_the_hosts_own_transaction_on_the_row_gives_up_and_leaves_that_usable(
    database_url: str, store: MemoryStore
) -> None:
    with _host(database_url, store, "mixed", connect_args=LATE[_kind(database_url)]) as host:
        host.add(id="acme")
        with host.flask.app_context():
            session, service = host.db.session, host.clients.service
            session.get_one(host.model, "acme").name = "renamed"
            session.flush()
            for delete in (service.soft_delete, service.hard_delete):
                began = time.monotonic()
                with pytest.raises(RepositoryError):
                    delete("acme", actor="tests")
                assert time.monotonic() - began < BOUND
            session.commit()
        assert [(row.name, row.status) for row in host.rows()] == [("renamed", True)]
        assert host.records("acme") == []
        assert _ask(host, Action.HARD, "acme")[0] == 200


@contextmanager
def _altered(url: str, table: str) -> Iterator[None]:
    """A migration waits for an open transaction, and whoever comes later waits for the migration."""
    waiting = sa.text("SELECT count(*) FROM information_schema.processlist WHERE state LIKE '%metadata%'")
    with ThreadPoolExecutor(1) as pool, _connection(url) as migration, _connection(url) as reader:
        reader.execute(sa.text(f"SELECT count(*) FROM {table}"))
        altered = pool.submit(migration.execute, sa.text(f"ALTER TABLE {table} ADD COLUMN further INTEGER"))
        try:
            with _connection(url) as watch:
                _until(lambda: watch.scalar(waiting) == 1, seconds=ENDS)
            yield
        finally:
            reader.rollback()
            altered.result(ENDS)


@contextmanager
def _kept(url: str, *statements: str) -> Iterator[None]:
    with _held(url, "", statements=statements):
        yield  # what is kept ends with the connection


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(lambda url: _kept(url, "LOCK TABLES clients WRITE"), id="the clients"),
        pytest.param(lambda url: _kept(url, "LOCK TABLES client_deletions WRITE"), id="the ledger"),
        pytest.param(lambda url: _altered(url, "clients"), id="the clients by a migration"),
        pytest.param(lambda url: _altered(url, "client_deletions"), id="the ledger by a migration"),
        pytest.param(lambda url: _kept(url, "FLUSH TABLES WITH READ LOCK"), id="every table"),
    ],
)
def test_on_mariadb_what_another_keeps_as_a_whole_is_a_503_in_about_a_second(
    empty_database: Callable[[str], str], store: MemoryStore, kept: Any
) -> None:
    url = empty_database("mariadb")
    actions = [Action.SOFT, Action.HARD]
    with _host(url, store, "mixed") as host, ThreadPoolExecutor(2) as pool:
        for action in actions:
            host.add(id=action.value)
        with kept(url):
            for status, seconds in pool.map(partial(_ask, host), actions, timeout=ENDS):
                assert status == 503
                assert seconds < BOUND
        assert [host.records(action.value) for action in actions] == [[], []]
        assert [status for status, _ in pool.map(partial(_ask, host), actions)] == [200, 200]


WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    "mariadb": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}


@pytest.mark.parametrize("database", WAITING)
def test_what_a_killed_process_was_waiting_for_is_not_carried_out_later(
    empty_database: Callable[[str], str], store: MemoryStore, database: str
) -> None:
    """The server does not see that nobody is there any longer, and would go on once it has the row."""
    url = empty_database(database)
    with _host(url, store, "plain") as host:
        host.add(id="hard")
        before = contents(host, store)
        # Not a fork: the child must not share the parent's connections.
        child = multiprocessing.get_context("spawn").Process(target=_delete_in_a_process, args=(url,))
        with _connection(url) as watch, _held(url, "hard"):

            def somebody_waits() -> bool:
                watch.rollback()
                return bool(watch.scalar(sa.text(WAITING[database])))

            child.start()
            try:
                _until(lambda: somebody_waits() or not child.is_alive(), seconds=6 * ENDS)
            finally:
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join(ENDS)
            assert child.exitcode == -signal.SIGKILL  # it was still waiting
            _until(lambda: not somebody_waits(), seconds=2.5)
        time.sleep(SETTLES)
        assert contents(host, store) == before
        assert _ask(host, Action.HARD)[0] == 200


def _delete_in_a_process(url: str) -> None:
    with _host(url, MemoryStore(), "plain") as host:
        host.delete("hard?hard=true")


# Limits of the host's own on its connections, and the query that shows these and what else is set there.
SET: dict[str, Any] = {
    "postgresql": (
        {"options": "-c lock_timeout=7s -c synchronous_commit=remote_write"},
        "SELECT name, setting FROM pg_settings ORDER BY name",
    ),
    "mariadb": (
        {"init_command": "SET innodb_lock_wait_timeout=7, lock_wait_timeout=8"},
        "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@tx_isolation, @@autocommit",
    ),
    "sqlite": ({"timeout": 7}, "PRAGMA busy_timeout"),
}


def test_the_limits_are_those_of_step_1_alone_and_the_hosts_connection_keeps_its_own(
    database_url: str, store: MemoryStore
) -> None:
    connect_args, query = SET[_kind(database_url)]
    one = {"pool_size": 1, "max_overflow": 0, "pool_timeout": ENDS, "connect_args": connect_args}
    with _host(database_url, store, "mixed", **one) as host:

        def settings() -> list[Any]:
            with host.flask.app_context(), host.db.engine.connect() as connection:
                return list(connection.exec_driver_sql(query))

        for id in ("soft", "hard"):
            host.add(id=id)
        before = settings()
        with _held(database_url, "soft"):
            status, seconds = _ask(host, Action.SOFT)
            assert status == 503
            assert seconds < BOUND
        assert settings() == before
        for action in (Action.SOFT, Action.HARD):
            assert _ask(host, action)[0] == 200
            assert settings() == before
