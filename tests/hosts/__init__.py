"""Host apps for the tests: the package mounted as a user would mount it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import KeyValueStoreError, MythicClients
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from flask_mythic_clients.ports import KeyValueStore

ADMIN_KEY = create_key()


@dataclass(frozen=True)
class KeyValue:
    """A store under test, and `raw` to look behind it: get, set(…, ex=seconds), ttl.

    `url` is None for the memory store.
    """

    store: KeyValueStore
    raw: Any
    url: str | None


@dataclass(frozen=True)
class Host:
    """A host app with one kind of client, and doors to look behind it."""

    flask: Flask
    db: SQLAlchemy
    model: Any
    clients: MythicClients

    def add(self, **columns: Any) -> None:
        """Insert a client."""
        with self.flask.app_context():
            self.db.session.add(self.model(**columns))
            self.db.session.commit()

    def rows(self) -> list[Any]:
        """Read all clients, detached."""
        with self.flask.app_context():
            found = list(self.db.session.scalars(self.db.select(self.model)))
            self.db.session.expunge_all()
            return found

    def records(self, client_id: str) -> Any:
        """Read a client's deletion records."""
        with self.flask.app_context():
            return self.clients.service.history(client_id)

    def let_time_pass(self, seconds: float) -> None:
        """Move all times in the ledger back, in Python: databases differ in how they reckon with them."""
        ledger = self.model.metadata.tables["client_deletions"]
        with self.flask.app_context(), self.db.engine.begin() as connection:
            for row in connection.execute(sa.select(ledger)).mappings().all():
                times = (name for name in row if name.endswith("_at") and row[name] is not None)
                moved = {name: row[name] - timedelta(seconds=seconds) for name in times}
                connection.execute(ledger.update().where(ledger.c.id == row["id"]).values(moved))

    def delete(self, path: str, key: str | None = ADMIN_KEY, **options: Any) -> Any:
        """Send DELETE {prefix}/clients/{path} as production callers do."""
        return self.send("DELETE", path, key, **options)

    def send(self, method: str, path: str, key: str | None = ADMIN_KEY, **options: Any) -> Any:
        """Send a request for {prefix}/clients/{path}."""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        test_client: FlaskClient = self.flask.test_client()
        return test_client.open(f"/api/v1/clients/{path}", method=method, headers=headers, **options)

    def close(self) -> None:
        """Give the database's connections back."""
        with self.flask.app_context():
            for engine in self.db.engines.values():
                engine.dispose()


def make_host(
    database_url: str,
    store: KeyValueStore,
    *,
    db: SQLAlchemy | None = None,
    model: Any = None,
    columns: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    **extension: Any,
) -> Host:
    """Mount the package in a new app and create the tables; without a model, on ours."""
    db = db or SQLAlchemy()
    repository = SQLAlchemyRepository(db, model, **(columns or {}))
    clients = MythicClients(repository=repository, kv=store, **extension)
    app = Flask("host")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database_url, MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)}
    )
    app.config.update(config or {})
    db.init_app(app)
    clients.init_app(app)
    with app.app_context():
        db.create_all()
    return Host(app, db, repository.model, clients)


def contents(host: Host, raw: Any, *keys: str) -> Any:
    """Read every row of every table, and the entries of the keys: equal only if nothing has changed."""
    tables: dict[str, Any] = {}
    with host.flask.app_context():
        for bind, metadata in host.db.metadatas.items():
            with host.db.engines[bind].connect() as connection:
                for table in metadata.sorted_tables:
                    tables[table.name] = sorted(map(repr, connection.execute(host.db.select(table))))
    return tables, {key: (raw.get(key), raw.ttl(key) > 0) for key in keys}


@contextmanager
def mounting(*stores: Any) -> Iterator[Callable[..., Host]]:
    """Give a `make_host` on the stores; its hosts enforce foreign keys, and are closed at the end."""
    with ExitStack() as stack:

        def mount(*further_stores: Any, **options: Any) -> Host:
            host = stack.enter_context(closing(make_host(*stores, *further_stores, **options)))
            with host.flask.app_context():
                for engine in host.db.engines.values():
                    _enforce_foreign_keys(engine)
            return host

        yield mount


def _enforce_foreign_keys(engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":  # which leaves it to each connection
        sa.event.listen(engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA foreign_keys=ON").close())
        engine.dispose()


class Gate:
    """A key-value store that does not answer while it is closed."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self.closed = False

    def apply(self, **work: Any) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`."""
        if self.closed:
            raise KeyValueStoreError
        return self._store.apply(**work)


def client_model(db: SQLAlchemy, **attributes: Any) -> Any:
    """Make a model of the columns we offer and further attributes."""
    return type("Client", (ClientMixin, db.Model), {"__tablename__": "clients", **attributes})
