"""The host's session class: its listeners run where the ORM has work, and none hides a row from us."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as Lite
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    deferred,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
    with_loader_criteria,
)

from flask_mythic_clients import ConfigurationError, MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from tests.hosts import ADMIN_KEY, Host, client_model, mounting

WAYS = ["flask-sqlalchemy", "lite", "sessionmaker", "scoped_session", "class", "scoped_class"]


class _Audited:
    """A host whose session class writes an audit row, and notes when it is flushed and committed."""

    def __init__(self, url: str, way: str) -> None:
        class Base(DeclarativeBase):
            pass

        class Client(ClientMixin, Base):
            __tablename__ = "clients"

        class Audit(Base):
            __tablename__ = "audit"
            id: Mapped[int] = mapped_column(primary_key=True)
            told: Mapped[str] = mapped_column(sa.String(80))

        self.model, self.audit, self.called = Client, Audit, list[str]()
        self.app = Flask("host")
        self.app.config.update(
            MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)},
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_ENGINES={"default": url},
        )
        self.engine = sa.create_engine(url)
        db, session, target = getattr(self, f"_{way.replace('-', '_')}")()
        self.target = target
        sa.event.listen(target, "before_flush", self._before_flush)
        sa.event.listen(target, "after_flush", lambda *_: self.called.append("flushed"))
        sa.event.listen(target, "after_commit", lambda *_: self.called.append("committed"))
        self.repository = SQLAlchemyRepository(db, Client, session=session)
        MythicClients(self.app, repository=self.repository, kv=MemoryStore())
        Base.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(sa.insert(Client).values(id="acme", name="Acme", status=True))

    def _flask_sqlalchemy(self) -> Any:
        db = SQLAlchemy()
        db.init_app(self.app)
        return db, None, db.session

    def _lite(self) -> Any:
        db = Lite()
        db.init_app(self.app)
        with self.app.app_context():
            return db, None, db.sessionmaker

    def _sessionmaker(self) -> Any:
        factory = sessionmaker(self.engine)
        return self.engine, factory, factory

    def _scoped_session(self) -> Any:
        factory = scoped_session(sessionmaker(self.engine))
        return (lambda: self.engine), factory, factory

    def _class(self) -> Any:
        class Ours(Session):
            pass

        return self.engine, Ours, Ours

    def _scoped_class(self) -> Any:
        engine, ours, _ = self._class()
        return engine, scoped_session(ours), ours

    def _before_flush(self, session: Session, *_: Any) -> None:
        for row in session.deleted:
            session.add(self.audit(told=f"removed {row.id}"))
        for row in session.dirty:
            session.add(self.audit(told=f"changed {row.id} to {row.status}"))

    def delete(self, path: str) -> int:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return self.app.test_client().delete(f"/api/v1/clients/{path}", headers=headers).status_code

    def told(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(self.audit.told).order_by(self.audit.id)))

    def dispose(self) -> None:
        self.engine.dispose()
        with self.app.app_context():
            if (extension := self.app.extensions.get("sqlalchemy")) is not None:
                for engine in extension.engines.values():
                    engine.dispose()


# Each way on one database, the first also on the others: what differs is where the sessions come from.
@pytest.fixture(
    params=[*(f"{way} sqlite" for way in WAYS), "flask-sqlalchemy postgresql", "flask-sqlalchemy mariadb"]
)
def audited(empty_database: Callable[[str], str], request: pytest.FixtureRequest) -> Iterator[_Audited]:
    way, _, database = request.param.partition(" ")
    host = _Audited(empty_database(database), way)
    yield host
    host.dispose()


def test_listeners_on_the_session_class_run_in_step_1s_transaction(audited: _Audited) -> None:
    assert audited.delete("acme") == 200
    assert audited.delete("acme?hard=true") == 200
    assert audited.told() == ["changed acme to False", "removed acme"]
    assert audited.called == ["flushed", "committed"] * 2


def test_what_a_listener_writes_goes_back_with_a_refusal(audited: _Audited) -> None:
    with audited.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE notes (client_id VARCHAR(255) REFERENCES clients (id))"))
        connection.execute(sa.text("INSERT INTO notes VALUES ('acme')"))
    assert audited.delete("acme?hard=true") == 409
    assert audited.told() == []
    assert audited.called in (["flushed"], [])  # SQLite and MariaDB refuse at once, PostgreSQL at the end
    with audited.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE notes"))


def test_a_rollback_is_told_to_those_who_listen_for_it(audited: _Audited) -> None:
    for event in ("after_rollback", "after_soft_rollback"):
        sa.event.listen(audited.target, event, lambda *_, event=event: audited.called.append(event))
    sa.event.listen(audited.target, "before_commit", lambda _: 1 / 0)
    assert audited.delete("acme") == 500
    assert audited.called == ["flushed", "after_rollback", "after_soft_rollback"]


def test_without_listeners_nothing_of_the_orm_runs(mount: Callable[..., Host]) -> None:
    host = mount()
    host.add(id="acme")
    flushed: list[object] = []
    assert host.delete("acme").status_code == 200
    with host.flask.app_context():
        sa.event.listen(host.db.session, "after_flush", lambda *_: flushed.append(1))
    assert host.delete("acme?hard=true").status_code == 200
    assert flushed == [1]  # asked when the removal is planned


def test_a_row_of_another_bind_is_written_there(database_url: str, tmp_path: Any) -> None:
    """As the host's own session would: it chooses the engine by the model."""
    db = SQLAlchemy()
    model = client_model(db)

    class Audit(db.Model):
        __tablename__ = "audit"
        __bind_key__ = "audit"
        id: Mapped[int] = mapped_column(primary_key=True)
        told: Mapped[str] = mapped_column(sa.String(80))

    @sa.event.listens_for(db.session, "before_flush")
    def note(session: Session, *_: Any) -> None:
        for row in session.deleted:
            session.add(Audit(told=row.id))

    config = {"SQLALCHEMY_BINDS": {"audit": f"sqlite:///{tmp_path}/audit.db"}}
    with mounting(database_url, MemoryStore()) as mount:
        host = mount(db=db, model=model, config=config)
        host.add(id="acme")
        assert host.delete("acme?hard=true").status_code == 200
        with host.flask.app_context():
            assert list(db.session.scalars(db.select(Audit.told))) == ["acme"]
        assert host.rows() == []


class TestAListenerThatHidesRows:
    """A host that filters soft-deleted rows out of every SELECT."""

    @staticmethod
    def _criteria(model: Any) -> Callable[[Any], None]:
        def hide(state: Any) -> None:
            if state.is_select and not state.execution_options.get("with_deleted"):
                option = with_loader_criteria(model, lambda row: row.status.is_(True), include_aliases=True)
                state.statement = state.statement.options(option)

        return hide

    @staticmethod
    def _where(model: Any) -> Callable[[Any], None]:
        def hide(state: Any) -> None:
            if state.is_select and not state.is_column_load:
                for described in state.statement.column_descriptions:
                    if described.get("entity") is model:
                        state.statement = state.statement.where(model.status.is_(True))

        return hide

    @pytest.fixture(params=["db.session", "every session"])
    def hidden(
        self, mount: Callable[..., Host], request: pytest.FixtureRequest, hides: str
    ) -> Iterator[Host]:
        db = SQLAlchemy()

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            notes: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON()))
            large: Mapped[str | None] = deferred(mapped_column(sa.Text()))

        config = {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "name:{name}"]}
        host = mount(db=db, model=Client, config=config, columns={"before": self._note})
        host.add(id="acme", name="Acme", notes={"calls": 0}, large="x")
        target: Any = db.session if request.param == "db.session" else Session
        listener = getattr(self, hides)(Client)
        sa.event.listen(target, "do_orm_execute", listener)
        yield host
        sa.event.remove(target, "do_orm_execute", listener)

    @staticmethod
    def _note(_session: Session, row: Any, action: str) -> None:
        row.notes["calls"] += 1

    @pytest.mark.parametrize("hides", ["_criteria", "_where"])
    def test_it_is_none_of_our_business(self, hidden: Host, store: MemoryStore) -> None:
        for key in ("client:acme", "name:Acme"):
            store.set(key, "value")
        for _ in range(2):
            assert hidden.delete("acme").status_code == 200
            assert '"status": false' in str(store.get("client:acme"))
        hidden.let_time_pass(120)
        run = hidden.flask.test_cli_runner().invoke
        assert run(args=["mythic-clients", "reconcile"]).stdout == "settled 0, verified 1, failed 0\n"
        assert '"status": false' in str(store.get("client:acme"))
        assert run(args=["mythic-clients", "list"]).stdout.splitlines()[1:] == ["acme\tFalse"]
        assert run(args=["mythic-clients", "delete", "--hard", "--dry-run", "acme"]).exit_code == 0
        assert run(args=["mythic-clients", "restore", "acme"]).exit_code == 0
        assert [row.notes for row in hidden.rows()] == [{"calls": 2}]  # by listeners of a mutable type
        assert hidden.delete("acme").status_code == 200
        assert hidden.rows() == []  # hidden from the host
        assert hidden.delete("acme?hard=true").status_code == 200
        assert [store.get(key) for key in ("client:acme", "name:Acme")] == [None, None]
        assert hidden.delete("acme?hard=true").status_code == 404
        assert [record.action for record in hidden.records("acme")] == ["soft", "restore", "soft", "hard"]


@pytest.mark.parametrize("kind", ["single", "joined"])
def test_a_hidden_row_of_a_subclass_is_that(
    mount: Callable[..., Host], kind: str, store: MemoryStore
) -> None:
    db = SQLAlchemy()

    class Client(ClientMixin, db.Model):
        __tablename__ = "clients"
        type: Mapped[str] = mapped_column(sa.String(20))
        orders = relationship("Order", cascade="all, delete-orphan")
        __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "plain"}  # noqa: RUF012

    class Shop(Client):
        if kind == "joined":
            __tablename__ = "shops"
            id: Mapped[str] = mapped_column(sa.ForeignKey(Client.id), primary_key=True)
        domain: Mapped[str | None] = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_identity": "shop"}  # noqa: RUF012

    class Order(db.Model):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        client_id: Mapped[str] = mapped_column(sa.ForeignKey(Client.id))

    def rule(row: Any) -> dict[str, None]:
        return {f"{type(row).__name__}:{getattr(row, 'domain', row.id)}": None}

    host = mount(db=db, model=Client, entries=rule)
    with host.flask.app_context():
        db.session.add_all([Shop(id="acme", domain="a.example", orders=[Order()]), Client(id="plain")])
        db.session.commit()
    listener = TestAListenerThatHidesRows._criteria(Client)
    sa.event.listen(Session, "do_orm_execute", listener)
    try:
        for key in ("Shop:a.example", "Client:plain"):
            store.set(key, "value")
        for id in ("acme", "plain"):
            assert [host.delete(id).status_code for _ in range(2)] == [200, 200]
            assert host.delete(f"{id}?hard=true").status_code == 200
    finally:
        sa.event.remove(Session, "do_orm_execute", listener)
    assert [store.get(key) for key in ("Shop:a.example", "Client:plain")] == [None, None]
    with host.flask.app_context():
        assert db.session.scalar(db.select(sa.func.count()).select_from(Order)) == 0


@pytest.mark.parametrize(
    "wrong",
    [Session(), "sessions", sessionmaker, lambda: Session(), async_sessionmaker()],
    ids=["a session", "text", "a class of something else", "a function", "an async one"],
)
def test_what_makes_no_sessions_is_refused(wrong: Any) -> None:
    class Base(DeclarativeBase):
        pass

    model = type("Client", (ClientMixin, Base), {"__tablename__": "clients"})
    message = (
        r"^session= takes what makes the sessions of your app: a sessionmaker, a scoped_session, or a class"
    )
    with pytest.raises(ConfigurationError, match=message):
        SQLAlchemyRepository(sa.create_engine("sqlite://"), model, session=wrong)
