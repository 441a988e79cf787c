"""SQLite enforces foreign keys in our transactions, and its connections go back to the host as they were."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients.backends.memory import MemoryStore
from tests.hosts import Gate, Host, client_model, contents, make_host

WAIT = 7  # seconds that a host waits for a lock: its own limit, and not ours


def _as_it_comes(_: sa.Engine) -> None:
    """Enforce no foreign keys."""


def _enforces(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def connect(driver: Any, _: object) -> None:
        driver.execute("PRAGMA foreign_keys = ON")


def _begins_by_itself(engine: sa.Engine) -> None:
    """Do as SQLAlchemy's documentation says, where it is about transactions of sqlite3."""

    @sa.event.listens_for(engine, "connect")
    def connect(driver: Any, _: object) -> None:
        driver.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}
ALWAYS_BEGUN = {"connect_args": {"timeout": WAIT, "autocommit": False}}
HOSTS = [
    pytest.param(_as_it_comes, {}, id="as it comes"),
    pytest.param(_enforces, {}, id="enforces"),
    pytest.param(_begins_by_itself, {}, id="begins by itself"),
    pytest.param(_as_it_comes, AUTOCOMMIT, id="autocommit"),
    pytest.param(
        _as_it_comes,
        ALWAYS_BEGUN,
        id="always begun",
        marks=pytest.mark.skipif(
            sys.version_info < (3, 12), reason="sqlite3 has this mode since Python 3.12"
        ),
    ),
]


@pytest.fixture
def mount(empty_database: Callable[[str], str]) -> Any:
    """Make a host on SQLite, with one connection, and what is done to its engine before it connects."""

    @contextmanager
    def mount(store: Any, db: SQLAlchemy, model: Any, set_up: Any, options: Any) -> Iterator[Host]:
        one = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, "connect_args": {"timeout": WAIT}}
        config = {"SQLALCHEMY_ENGINE_OPTIONS": one | options}
        with closing(make_host(empty_database("sqlite"), store, db=db, model=model, config=config)) as host:
            with host.flask.app_context():
                set_up(db.engine)
                db.engine.dispose()
            yield host

    return mount


def _connection(host: Host) -> dict[str, Any]:
    """Return what is set on the one connection of the host's pool."""
    with host.flask.app_context(), closing(host.db.engine.raw_connection()) as connection:
        driver: Any = connection.driver_connection
        pragmas = ("foreign_keys", "busy_timeout")
        return {
            "isolation_level": driver.isolation_level,
            "autocommit": getattr(driver, "autocommit", None),
            "in_transaction": driver.in_transaction,
            **{pragma: driver.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas},
        }


# What a foreign key says, the answer to a hard delete, and what is left of a row that refers to the client.
CASES: dict[str, Any] = {
    "cascade": ({"ondelete": "CASCADE"}, 200, []),
    "set-null": ({"ondelete": "SET NULL"}, 200, [None]),
    "restrict": ({"ondelete": "RESTRICT"}, 409, ["restrict"]),
    "no-action": ({}, 409, ["no-action"]),
    "deferred": ({"deferrable": True, "initially": "DEFERRED"}, 409, ["deferred"]),
}


@pytest.mark.parametrize(("set_up", "options"), HOSTS)
@pytest.mark.parametrize("events", [(), ("before_delete",)], ids=["plain", "listeners"])
def test_rows_that_refer_to_a_client_go_or_stay_as_their_foreign_key_says(
    mount: Any, store: MemoryStore, events: tuple[str, ...], set_up: Any, options: Any
) -> None:
    db = SQLAlchemy()
    model = client_model(db)
    for event in events:
        sa.event.listen(model, event, lambda *_: None)
    tables = {}
    for id, (foreign_key, _, _) in CASES.items():
        tables[id] = db.Table(id, sa.Column("client_id", sa.ForeignKey("clients.id", **foreign_key)))
    with mount(store, db, model, set_up, options) as host:
        with host.flask.app_context():
            for id, table in tables.items():
                db.session.add(model(id=id))
                db.session.flush()
                db.session.execute(table.insert().values(client_id=id))
                store.set(f"client:{id}", "value")
            db.session.commit()
        connection, look = (
            _connection(host),
            partial(contents, host, store, *(f"client:{id}" for id in CASES)),
        )
        for id, (_, status, left) in CASES.items():
            before = look()
            assert host.delete(f"{id}?hard=true").status_code == status, id
            with host.flask.app_context():
                assert list(db.session.scalars(sa.select(tables[id].c.client_id))) == left, id
            assert (look() == before) is (status == 409), id
            assert _connection(host) == connection


@pytest.mark.parametrize(("set_up", "options"), HOSTS)
def test_whatever_comes_of_a_request_the_connection_goes_back_as_it_was(
    mount: Any, store: MemoryStore, set_up: Any, options: Any
) -> None:
    """By a statement or two for a soft delete, by the unit of work for a hard one."""
    db, gate = SQLAlchemy(), Gate(store)
    model = client_model(db)
    table = db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id")))

    @sa.event.listens_for(model, "before_delete")
    def protect(_mapper: object, _connection: object, row: Any) -> None:
        if row.id == "protected":
            raise PermissionError

    with mount(gate, db, model, set_up, options) as host:
        for id in ("acme", "in-use", "protected"):
            host.add(id=id)
        with host.flask.app_context():
            db.session.execute(table.insert().values(client_id="in-use"))
            db.session.commit()
            url = db.engine.url
        connection = _connection(host)
        assert connection["busy_timeout"] == WAIT * 1000

        def ask(path: str) -> int:
            status = host.delete(path).status_code
            assert _connection(host) == connection
            return int(status)

        with sa.create_engine(url, poolclass=sa.NullPool).connect() as other:
            other.execute(sa.update(model).values(name="held"))
            began = time.monotonic()
            assert ask("acme") == 503
            assert time.monotonic() - began < 4
        assert ask("protected?hard=true") == 500
        assert ask("in-use?hard=true") == 409
        assert ask("nobody") == 404
        for path in ("acme", "acme?hard=true"):
            gate.closed = True
            assert ask(path) == 503
            gate.closed = False
            assert ask(path) == 200
        with host.flask.app_context():
            host.clients.service.reconcile()
        assert _connection(host) == connection
        assert sorted(row.id for row in host.rows()) == ["in-use", "protected"]
