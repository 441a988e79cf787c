"""Our repositories meet the contract, on every database and by every plan of step 1."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository, Status, ledger
from flask_mythic_clients.model import Action
from flask_mythic_clients.ports import ClientRepository
from flask_mythic_clients.testing import (
    AddClient,
    ArchiveContract,
    AuditedRepositoryContract,
    BulkStepsContract,
    ClientRepositoryContract,
    KeepRows,
    LetTimePass,
    QuickStepsContract,
)
from flask_mythic_clients.testing.fixtures import RepositoryFixtures
from tests.hosts import Host, make_host


class TestMemoryRepository(
    ClientRepositoryContract, BulkStepsContract, ArchiveContract, AuditedRepositoryContract
):
    """In this process."""

    @pytest.fixture
    def repository(self) -> MemoryRepository:
        return MemoryRepository()

    @pytest.fixture
    def let_time_pass(self, repository: MemoryRepository) -> LetTimePass:
        def go_on(seconds: float) -> None:
            clock = repository._clock
            repository._clock = lambda: clock() + timedelta(seconds=seconds)

        return go_on

    @pytest.fixture
    def keep_rows(self, repository: MemoryRepository) -> KeepRows:
        def keep() -> Collection[Action]:
            for client in repository.clients():
                repository.keep(client.id)
            return list(Action)

        return keep

    @pytest.fixture
    def add_client(self, repository: MemoryRepository) -> AddClient:
        def add(client_id: str, *, status: bool = True, name: str | None = "a name") -> None:
            repository.add(client_id, status=status, name=name)

        return add


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the contract's many records fill more than one."""
    monkeypatch.setattr(ledger, "_PAGE", 100)


@pytest.fixture(scope="class")
def hosts() -> Iterator[dict[str, Host]]:
    """Keep the hosts of a class, for making tables takes longer than most tests."""
    hosts: dict[str, Host] = {}
    yield hosts
    for host in hosts.values():
        host.close()


class SQLAlchemyFixtures(RepositoryFixtures):
    """Repositories on SQLite, PostgreSQL and MariaDB, for one model of a host."""

    columns: ClassVar[dict[str, Any]] = {}

    def make_model(self, db: SQLAlchemy) -> Any:
        raise NotImplementedError

    @pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
    def host(
        self, request: pytest.FixtureRequest, hosts: dict[str, Host], empty_database: Callable[[str], str]
    ) -> Host:
        kind = request.param
        if kind not in hosts:
            db = SQLAlchemy()
            model = self.make_model(db)
            hosts[kind] = make_host(
                empty_database(kind), MemoryStore(), db=db, model=model, columns=self.columns
            )
        host = hosts[kind]
        with host.flask.app_context():
            for table in reversed(host.db.metadata.sorted_tables):
                host.db.session.execute(sa.delete(table))
            host.db.session.commit()
        return host

    @pytest.fixture
    def context(self, host: Host) -> Any:
        return host.flask.app_context

    @pytest.fixture
    def repository(self, host: Host) -> Iterator[ClientRepository]:
        with host.flask.app_context():
            yield SQLAlchemyRepository(host.db, host.model, **self.columns)

    @pytest.fixture
    def let_time_pass(self, host: Host) -> LetTimePass:
        return host.let_time_pass

    @pytest.fixture
    def keep_rows(self, host: Host) -> Iterator[KeepRows]:
        with ExitStack() as stack:
            yield partial(_keep_rows, host, stack)

    @pytest.fixture
    def add_client(self, host: Host) -> AddClient:
        def add(client_id: str, *, status: bool = True, name: str | None = "a name") -> None:
            host.add(id=client_id, status=status, name=name)

        return add


class SQLAlchemyContract(SQLAlchemyFixtures, ClientRepositoryContract):
    """The contract on them."""


KEEP = {
    "postgresql": [
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep()",
    ],
    "mariadb": ["CREATE TRIGGER keep BEFORE UPDATE ON {table} FOR EACH ROW SET NEW.{status} = OLD.{status}"],
    "sqlite": [
        "CREATE TRIGGER keep BEFORE UPDATE ON {table} BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER keep_all BEFORE DELETE ON {table} BEGIN SELECT RAISE(IGNORE); END",
    ],
}
LET_GO = {
    "postgresql": ["DROP FUNCTION keep CASCADE"],
    "mariadb": ["DROP TRIGGER keep"],
    "sqlite": ["DROP TRIGGER keep", "DROP TRIGGER keep_all"],
}


STATUS = ("status", "enabled", "closed_at", "state")


def _keep_rows(host: Host, stack: ExitStack) -> Collection[Action]:
    """Plant a trigger until the stack is left; MariaDB has none that keeps a row from its removal."""
    with host.flask.app_context():
        engine = host.db.engine
    kind, mapper = engine.dialect.name, sa.inspect(host.model)
    (status,) = [mapper.columns[name].name for name in STATUS if name in mapper.columns]

    def execute(statements: Collection[str]) -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement.format(table=mapper.local_table, status=status))

    execute(KEEP[kind])
    stack.callback(execute, LET_GO[kind])
    return [action for action in Action if kind != "mariadb" or action is not Action.HARD]


class TestQuickSteps(QuickStepsContract):
    """Both steps at once, by psycopg 3, whether the ORM reads the row or it comes with the rest."""

    @pytest.fixture(params=["values", "no values"])
    def host(self, request: pytest.FixtureRequest, empty_database: Callable[[str], str]) -> Iterator[Host]:
        db = SQLAlchemy()
        columns = {"id": sa.Column(sa.String(255), primary_key=True), "name": sa.Column(sa.String(255))}
        columns["status"] = sa.Column(sa.Boolean, nullable=False, default=True)
        bases: tuple[Any, ...] = (ClientMixin, db.Model) if request.param == "values" else (db.Model,)
        model = type("Client", bases, {"__tablename__": "clients", **columns})
        host = make_host(empty_database("postgresql"), MemoryStore(), db=db, model=model)
        yield host
        host.close()

    @pytest.fixture
    def repository(self, host: Host) -> Iterator[ClientRepository]:
        with host.flask.app_context():
            yield SQLAlchemyRepository(host.db, host.model)

    @pytest.fixture
    def add_client(self, host: Host) -> AddClient:
        def add(client_id: str, *, status: bool = True, name: str | None = "a name") -> None:
            host.add(id=client_id, status=status, name=name)

        return add


class TestOurColumns(SQLAlchemyContract):
    """Our own columns: SQL does it all, but for a rule that is a function."""

    def make_model(self, db: SQLAlchemy) -> Any:
        class Client(ClientMixin, db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "clients"
            name: Mapped[str | None] = mapped_column(sa.String(255))  # type: ignore[assignment]

        return Client


class TestBulkSteps(SQLAlchemyFixtures, BulkStepsContract, ArchiveContract, AuditedRepositoryContract):
    """Many at once, and the ledger as a whole, on our own columns."""

    make_model = TestOurColumns.make_model


class TestListeners(TestOurColumns):
    """A model with listeners: the unit of work does it all."""

    def make_model(self, db: SQLAlchemy) -> Any:
        model = super().make_model(db)
        for event in ("before_update", "before_delete"):
            sa.event.listen(model, event, lambda *_: None)
        return model


class TestColumnsOfTheHosts(SQLAlchemyContract):
    """A model with numbers for ids, and names for its columns that are not ours."""

    columns: ClassVar[dict[str, str]] = {"id": "number", "status": "enabled"}
    ids = ("7", "8", "71")
    lookalikes = ("07", "-7", "7_", "_7", "7-", "7_0", "70", "77", "0x7", "7e0", "VII", "acme", "9" * 255)

    def make_model(self, db: SQLAlchemy) -> Any:
        class Tenant(db.Model):  # type: ignore[name-defined,misc]
            number: Mapped[int] = mapped_column("tenant_no", primary_key=True, autoincrement=False)
            enabled: Mapped[bool | None] = mapped_column("is_enabled")
            name: Mapped[str | None] = mapped_column("full name", sa.String(255))

        return Tenant

    @pytest.fixture
    def add_client(self, host: Host) -> AddClient:
        def add(client_id: str, *, status: bool = True, name: str | None = "a name") -> None:
            host.add(number=int(client_id), enabled=status, name=name)

        return add


class TestBulkStepsOnColumnsOfTheHosts(
    SQLAlchemyFixtures, BulkStepsContract, ArchiveContract, AuditedRepositoryContract
):
    """Many at once, on columns of the host's."""

    columns: ClassVar[dict[str, str]] = TestColumnsOfTheHosts.columns
    ids = TestColumnsOfTheHosts.ids
    make_model = TestColumnsOfTheHosts.make_model
    add_client = TestColumnsOfTheHosts.add_client


class TestATimeForAStatus(TestOurColumns):
    """A nullable time: null is active."""

    columns: ClassVar[dict[str, Any]] = {"status": "closed_at"}

    def make_model(self, db: SQLAlchemy) -> Any:
        class Client(db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "clients"
            id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
            name: Mapped[str | None] = mapped_column(sa.String(255))
            closed_at: Mapped[datetime | None] = mapped_column()

        return Client

    @pytest.fixture
    def add_client(self, host: Host) -> AddClient:
        def add(client_id: str, *, status: bool = True, name: str | None = "a name") -> None:
            host.add(id=client_id, closed_at=None if status else datetime(2020, 1, 1), name=name)

        return add


class TestWordsForAStatus(TestOurColumns):
    """A text, of which one word means deleted; through the unit of work."""

    columns: ClassVar[dict[str, Any]] = {"status": Status("state", active="normal", deleted="archived")}

    def make_model(self, db: SQLAlchemy) -> Any:
        class Client(db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "clients"
            id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
            name: Mapped[str | None] = mapped_column(sa.String(255))
            state: Mapped[str | None] = mapped_column(sa.String(20))

        sa.event.listen(Client, "before_update", lambda *_: None)
        return Client

    @pytest.fixture
    def add_client(self, host: Host) -> AddClient:
        def add(client_id: str, *, status: bool = True, name: str | None = "a name") -> None:
            host.add(id=client_id, state="new" if status else "archived", name=name)

        return add
