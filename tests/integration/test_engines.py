"""The engine is the host's, however it has one: each way is mounted, and walked from end to end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as Lite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

from flask_mythic_clients import ConfigurationError, MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from tests.hosts import ADMIN_KEY

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


class _Host:
    """An app with a model on a metadata of its own, and eyes on both stores."""

    def __init__(self, url: str) -> None:
        class Base(DeclarativeBase):
            pass

        class Tenant(ClientMixin, Base):
            __tablename__ = "tenants"
            plan: Mapped[str | None] = mapped_column(sa.String(20))

        self.url, self.model, self.metadata = url, Tenant, Base.metadata
        self.engine = sa.create_engine(url)
        self.app, self.store = Flask("host"), MemoryStore()
        self.app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {"tests": digest(ADMIN_KEY)}

    def mount(self, db: Any) -> MythicClients:
        repository = SQLAlchemyRepository(db, self.model)
        self.metadata.create_all(self.engine)  # now it has the ledger, too
        with self.engine.begin() as connection:
            connection.execute(sa.insert(self.model.__table__).values(id="acme", name="Acme", status=True))
        self.store.set("client:acme", "value")
        return MythicClients(self.app, repository=repository, kv=self.store)

    def row(self) -> bool | None:
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(self.model.__table__.c.status))

    def delete(self, path: str) -> int:
        return self.app.test_client().delete(f"/api/v1/clients/{path}", headers=HEADERS).status_code


@pytest.fixture
def host(database_url: str) -> Iterator[_Host]:
    host = _Host(database_url)
    yield host
    host.engine.dispose()


def _engine(host: _Host, stack: ExitStack) -> Any:
    return host.engine


def _function(host: _Host, stack: ExitStack) -> Any:
    return lambda: host.engine


def _lite(host: _Host, stack: ExitStack) -> Any:
    db = Lite()
    host.app.config["SQLALCHEMY_ENGINES"] = {"default": host.url}
    db.init_app(host.app)
    with host.app.app_context():
        stack.callback(db.engine.dispose)
    return db


def _flask_sqlalchemy(host: _Host, stack: ExitStack) -> Any:
    """Whose own metadata the model does not use."""
    db = SQLAlchemy()
    host.app.config["SQLALCHEMY_DATABASE_URI"] = host.url
    db.init_app(host.app)
    with host.app.app_context():
        stack.callback(db.engine.dispose)
    return db


@pytest.mark.parametrize("way", [_engine, _function, _lite, _flask_sqlalchemy])
def test_a_client_is_deleted_restored_and_removed_by_whatever_has_the_engine(
    host: _Host, way: Callable[..., Any]
) -> None:
    with ExitStack() as stack:
        clients = host.mount(way(host, stack))
        for _ in range(2):
            assert (host.delete("acme"), host.row()) == (200, False)
        with host.app.app_context():
            clients.service.restore("acme", actor="tests")
        assert host.row() is True
        assert (host.delete("acme?hard=true"), host.row()) == (200, None)
        assert host.delete("acme?hard=true") == 404
        assert host.store.get("client:acme") is None
        with host.app.app_context():
            records = clients.service.history("acme")
        assert [record.action for record in records] == ["soft", "restore", "hard"]
        status = host.app.test_cli_runner().invoke(args=["mythic-clients", "status"])
        assert status.exit_code == 0
        assert status.stdout.startswith("pending 0, oldest -,")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_named_engine_of_lite_is_that_of_the_metadatas_bind_key(host: _Host, database_url: str) -> None:
    db = Lite()
    host.app.config["SQLALCHEMY_ENGINES"] = {"default": "sqlite:////no/such/folder.db", "tenants": host.url}
    host.metadata.info["bind_key"] = "tenants"
    db.init_app(host.app)
    host.mount(db)
    assert (host.delete("acme"), host.row()) == (200, False)
    with host.app.app_context():
        db.get_engine("tenants").dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_engine_that_lites_session_chooses_is_that(host: _Host, database_url: str) -> None:
    db = Lite(session_options={"binds": {host.model: "tenants"}})
    host.app.config["SQLALCHEMY_ENGINES"] = {"default": "sqlite:////no/such/folder.db", "tenants": host.url}
    db.init_app(host.app)
    host.mount(db)
    assert (host.delete("acme"), host.row()) == (200, False)
    with host.app.app_context():
        db.get_engine("tenants").dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("db", [SQLAlchemy(), Lite()], ids=["flask-sqlalchemy", "lite"])
def test_an_app_without_the_engine_is_a_503_and_told(
    host: _Host, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host.mount(db)
    assert host.delete("acme") == 503
    assert "db has no engine for Tenant in this app: call its init_app" in caplog.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "sqlite://",
        sa.Engine,
        sessionmaker(),
        scoped_session(sessionmaker()),
        sessionmaker()(),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_has_no_engine_to_give_is_refused_beside_what_would_do(host: _Host, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^db takes your app's object of .* an Engine, or a fun"):
        SQLAlchemyRepository(wrong, host.model)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_engine_without_a_model_is_refused(host: _Host) -> None:
    with pytest.raises(ConfigurationError, match=r"^model is missing: pass the model of your clients"):
        SQLAlchemyRepository(host.engine)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_function_that_returns_no_engine_is_told(host: _Host) -> None:
    repository = SQLAlchemyRepository(lambda: "sqlite://", host.model)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match=r"^db: the function returned str in place of an Engine"):
        repository.now()
