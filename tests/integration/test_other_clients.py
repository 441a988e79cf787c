"""A removal that would take other clients along is refused: their entries would stay, without a record."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from flask_mythic_clients import MythicClients, OtherClientsError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from flask_mythic_clients.entries import KeyTemplates
from flask_mythic_clients.service import DeletionService
from tests.hosts import Host, contents

MESSAGE = (
    "A cascade would remove other clients along with this one, without a record of theirs. "
    "Look at {}: remove those first, or part them from this one."
)


def _insert(host: Host, table: str, **values: Any) -> None:
    with host.flask.app_context(), host.db.engine.begin() as connection:
        names = ", ".join(values)
        parameters = ", ".join(f":{name}" for name in values)
        connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({parameters})"), values)


def _refused(host: Host, store: MemoryStore, id: str, *others: str) -> None:
    """Try to remove a client; nothing may have changed after that."""
    keys = [f"client:{each}" for each in ("acme", "globex", "initech")]
    for key in keys:
        store.set(key, "value")
    before = contents(host, store, *keys)
    for _ in range(2):
        answer = host.delete(f"{id}?hard=true")
        assert (answer.status_code, answer.json["message"]) == (409, MESSAGE.format(", ".join(others)))
    assert contents(host, store, *keys) == before


def _with_parents(db: SQLAlchemy, **attributes: Any) -> Any:
    class Client(ClientMixin, db.Model):
        __tablename__ = "clients"
        parent_id: Mapped[str | None] = mapped_column(sa.ForeignKey("clients.id", ondelete="CASCADE"))

    for name, attribute in attributes.items():
        setattr(Client, name, attribute)
    return Client


class TestByTheDatabase:
    @pytest.mark.parametrize("path", ["statements", "unit of work"])
    def test_a_parent_column_that_cascades(
        self, mount: Callable[..., Host], store: MemoryStore, path: str
    ) -> None:
        db = SQLAlchemy()
        columns = {} if path == "statements" else {"before": lambda *_: None}
        host = mount(db=db, model=_with_parents(db), columns=columns)
        for id, parent in (("acme", None), ("globex", "acme"), ("initech", "globex")):
            host.add(id=id, parent_id=parent)
        _refused(host, store, "acme", "clients globex")
        assert host.delete("acme").status_code == 200  # a soft delete takes nobody along
        for id in ("initech", "globex", "acme"):
            assert host.delete(f"{id}?hard=true").status_code == 200

    def test_a_column_that_the_model_does_not_know(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        with host.flask.app_context(), host.db.engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE clients"))
            # In a line, MariaDB would read the reference and forget it.
            connection.execute(
                sa.text(
                    "CREATE TABLE clients (id VARCHAR(255) PRIMARY KEY, name VARCHAR(255), status BOOLEAN, "
                    "owner VARCHAR(255), FOREIGN KEY (owner) REFERENCES clients (id) ON DELETE CASCADE)"
                )
            )
        host.add(id="acme")
        _insert(host, "clients", id="globex", status=True, owner="acme")
        _refused(host, store, "acme", "clients globex")

    def test_through_other_tables_however_deep(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        """Client → department → department below it → team of two columns → client."""
        db = SQLAlchemy()
        metadata: Any = db.metadata
        text = sa.String(20)
        sa.Table(
            "departments",
            metadata,
            sa.Column("name", text, primary_key=True),
            sa.Column("client_id", sa.ForeignKey("clients.id", ondelete="CASCADE")),
            sa.Column("above", sa.ForeignKey("departments.name", ondelete="CASCADE")),
        )
        sa.Table(
            "teams",
            metadata,
            sa.Column("department", sa.ForeignKey("departments.name", ondelete="CASCADE"), primary_key=True),
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        )

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            of_department: Mapped[str | None] = mapped_column(text)
            of_team: Mapped[int | None]
            __table_args__ = (
                sa.ForeignKeyConstraint(
                    ["of_department", "of_team"],
                    ["teams.department", "teams.number"],
                    ondelete="CASCADE",
                    use_alter=True,
                    name="fk_team",
                ),
            )

        host = mount(db=db, model=Client)
        host.add(id="acme")
        _insert(host, "departments", name="all", client_id="acme")
        above = "all"
        for name in ("a", "b", "c"):
            _insert(host, "departments", name=name, above=above)
            above = name
        _insert(host, "teams", department="c", number=7)
        for id in ("globex", "initech"):
            host.add(id=id, of_department="c", of_team=7)
        host.add(id="apart")
        _refused(host, store, "acme", "clients globex", "clients initech")
        for id in ("globex", "initech", "acme"):
            assert host.delete(f"{id}?hard=true").status_code == 200
        assert [row.id for row in host.rows()] == ["apart"]

    def test_many_are_named_in_part(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        db = SQLAlchemy()
        host = mount(db=db, model=_with_parents(db))
        host.add(id="acme")
        for number in range(7):
            host.add(id=f"c{number}", parent_id="acme")
        named = [f"clients c{number}" for number in range(5)]
        _refused(host, store, "acme", *named[:-1], f"{named[-1]} and others")

    def test_a_column_that_is_set_to_null_parts_them(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            parent_id: Mapped[str | None] = mapped_column(sa.ForeignKey("clients.id", ondelete="SET NULL"))

        host = mount(db=db, model=Client)
        host.add(id="acme")
        host.add(id="globex", parent_id="acme")
        assert host.delete("acme?hard=true").status_code == 200
        assert [(row.id, row.parent_id) for row in host.rows()] == [("globex", None)]

    def test_a_hook_may_part_them_first(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()
        model = _with_parents(db)

        def part(session: Session, row: Any, action: str) -> None:
            for child in session.scalars(sa.select(model).where(model.parent_id == row.id)):
                child.parent_id = None

        host = mount(db=db, model=model, columns={"before": part})
        host.add(id="acme")
        host.add(id="globex", parent_id="acme")
        assert host.delete("acme?hard=true").status_code == 200
        assert [(row.id, row.parent_id) for row in host.rows()] == [("globex", None)]

    def test_a_row_of_its_own_in_another_table_is_no_other_client(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()

        class User(ClientMixin, db.Model):
            __tablename__ = "users"
            type: Mapped[str] = mapped_column(sa.String(20))
            __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "user"}  # noqa: RUF012

        class Tenant(User):
            __tablename__ = "tenants"
            id: Mapped[str] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
            __mapper_args__ = {"polymorphic_identity": "tenant"}  # noqa: RUF012

        host = mount(db=db, model=Tenant)
        host.add(id="acme")
        assert host.delete("acme?hard=true").status_code == 200
        assert host.rows() == []


class TestByTheOrm:
    @pytest.mark.parametrize("passive_deletes", [False, True])
    def test_a_cascade_to_the_same_kind(
        self, mount: Callable[..., Host], store: MemoryStore, passive_deletes: bool
    ) -> None:
        db = SQLAlchemy()

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            parent_id: Mapped[str | None] = mapped_column(
                sa.ForeignKey("clients.id", ondelete="CASCADE" if passive_deletes else None)
            )
            branches = relationship("Client", cascade="all, delete-orphan", passive_deletes=passive_deletes)

        host = mount(db=db, model=Client)
        host.add(id="acme")
        for id in ("globex", "initech"):
            host.add(id=id, parent_id="acme")
        _refused(host, store, "acme", "clients globex", "clients initech")
        for id in ("globex", "initech", "acme"):
            assert host.delete(f"{id}?hard=true").status_code == 200

    def test_a_listener_of_the_hosts_that_removes_another(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        host = mount(db=db)
        model = host.model

        @sa.event.listens_for(db.session, "before_flush")
        def remove_all(session: Session, *_: Any) -> None:
            if session.deleted:
                for row in session.scalars(sa.select(model).where(model.id != "acme")):
                    session.delete(row)

        for id in ("acme", "globex"):
            host.add(id=id)
        _refused(host, store, "acme", "clients globex")

    def test_the_error_is_a_refusal_that_a_job_may_catch(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()
        host = mount(db=db, model=_with_parents(db))
        host.add(id="acme")
        host.add(id="globex", parent_id="acme")
        with host.flask.app_context(), pytest.raises(OtherClientsError) as caught:
            host.clients.service.hard_delete("acme", actor="tests")
        assert caught.value.client_id == "acme"


class TestAnotherKind:
    @staticmethod
    def _mount(
        mount: Callable[..., Host], store: MemoryStore, *, orm: bool, by: Callable[[SQLAlchemy], Any]
    ) -> tuple[Host, Any]:
        db = SQLAlchemy()

        class Organization(ClientMixin, db.Model):
            __tablename__ = "organizations"
            client_id: Mapped[str | None] = mapped_column(
                sa.ForeignKey("clients.id", ondelete=None if orm else "CASCADE")
            )

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            if orm:
                organizations = relationship(Organization, cascade="all, delete-orphan")

        second = SQLAlchemyRepository(by(db), Organization, ledger="organization_deletions")
        host = mount(db=db, model=Client)
        host.flask.config["MYTHIC_ORGANIZATIONS_KV_KEYS"] = "organization:{id}"
        MythicClients(host.flask, repository=second, kv=store, name="organizations")
        return host, Organization

    @pytest.mark.parametrize("orm", [False, True])
    @pytest.mark.parametrize(
        "by", [lambda db: db, lambda db: lambda: db.engine], ids=["its_db", "a_function"]
    )
    def test_it_is_named_with_its_table(
        self, mount: Callable[..., Host], store: MemoryStore, orm: bool, by: Callable[[SQLAlchemy], Any]
    ) -> None:
        host, organization = self._mount(mount, store, orm=orm, by=by)
        host.add(id="acme")
        with host.flask.app_context():
            host.db.session.add(organization(id="eu", client_id="acme"))
            host.db.session.commit()
        _refused(host, store, "acme", "organizations eu")
        with host.flask.app_context():
            host.db.session.execute(sa.delete(organization))
            host.db.session.commit()
        assert host.delete("acme?hard=true").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_kind_whose_engine_is_not_to_be_had_forbids_nothing(
    mount: Callable[..., Host], store: MemoryStore
) -> None:
    def fails() -> Any:
        raise OSError("s3cret")

    db = SQLAlchemy()
    elsewhere = type("Order", (ClientMixin, db.Model), {"__tablename__": "orders"})
    kept = SQLAlchemyRepository(fails, elsewhere, ledger="order_deletions")
    host = mount(db=db)
    host.add(id="acme")
    assert host.delete("acme?hard=true").status_code == 200
    assert kept.model is elsewhere


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_same_table_in_another_database_is_none_of_ours(
    mount: Callable[..., Host], store: MemoryStore, tmp_path: Any
) -> None:
    """Where another app of the process has clients in a table that is called like a dependent one here."""
    other = SQLAlchemy()
    elsewhere = type("Order", (ClientMixin, other.Model), {"__tablename__": "orders"})
    kept = SQLAlchemyRepository(other, elsewhere)
    db = SQLAlchemy()
    orders = db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id", ondelete="CASCADE")))
    host = mount(db=db)
    host.add(id="acme")
    with host.flask.app_context(), db.engine.begin() as connection:
        connection.execute(orders.insert().values(client_id="acme"))
    assert host.delete("acme?hard=true").status_code == 200
    assert kept.model is elsewhere


def test_two_engines_whose_urls_tell_nothing_are_two_databases() -> None:
    one, other = (sa.create_engine("sqlite://", poolclass=sa.StaticPool) for _ in range(2))

    class Base(DeclarativeBase):
        pass

    class Order(ClientMixin, Base):
        __tablename__ = "orders"
        client_id: Mapped[str | None] = mapped_column(sa.ForeignKey("clients.id", ondelete="CASCADE"))

    class Client(ClientMixin, Base):
        __tablename__ = "clients"

    kept = SQLAlchemyRepository(other, Order, ledger="order_deletions")
    repository = SQLAlchemyRepository(one, Client)
    Base.metadata.create_all(one)
    with one.begin() as connection:
        connection.execute(sa.insert(Client).values(id="acme", status=True))
        connection.execute(sa.insert(Order).values(id="1", status=True, client_id="acme"))
    service = DeletionService(repository, MemoryStore(), KeyTemplates(["client:{id}"]))
    service.hard_delete("acme", actor="tests")
    assert list(repository.clients()) == []
    assert kept.model is Order
    for engine in (one, other):
        engine.dispose()
