"""Models of the host's own: the names of their columns, their ids, their database."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import Mapped, deferred, mapped_column, registry

from flask_mythic_clients import ConfigurationError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from flask_mythic_clients.model import Result

from ..hosts import Host, client_model


class _BytesOfUuid(sa.TypeDecorator[uuid.UUID]):
    """Takes a UUID alone, as a well-known recipe does."""

    impl = sa.LargeBinary(16)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.bytes

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else uuid.UUID(bytes=bytes(value))

    def load_dialect_impl(self, dialect: Any) -> Any:
        """MariaDB makes no key of what has no length."""
        type_ = sa.LargeBinary(16) if dialect.name in ("sqlite", "postgresql") else sa.BINARY(16)
        return dialect.type_descriptor(type_)

    @staticmethod
    def of(number: int) -> uuid.UUID:
        return uuid.UUID(int=number)


class _NumberBehindPrefix(sa.TypeDecorator[str]):
    """Writes 7 as `acc-7`, and fails in ways of its own for what is not written so."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else int(value.split("-")[1])

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else f"acc-{value}"

    @staticmethod
    def of(number: int) -> str:
        return f"acc-{number}"


class _NumberOrWhatever(_NumberBehindPrefix):
    """Lets pass what is no text."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return super().process_bind_param(value, dialect) if isinstance(value, str) else value


class TestNames:
    def test_attributes_may_be_called_otherwise_and_their_columns_otherwise_again(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()

        class Account(db.Model):
            __tablename__ = "crm accounts"
            surrogate: Mapped[int] = mapped_column(primary_key=True)
            account_no: Mapped[str] = mapped_column("Account No", sa.String(40), unique=True)
            enabled: Mapped[bool] = mapped_column("is on", default=True)
            publishable: Mapped[str | None] = mapped_column("public-key", sa.String(40))

        host = mount(
            db=db,
            model=Account,
            columns={"id": "account_no", "status": "enabled"},
            config={"MYTHIC_CLIENTS_KV_KEYS": ["c:{id}", "p:{publishable}", "{surrogate}/{account_no}"]},
        )
        host.add(surrogate=9, account_no="acme", publishable="pk")
        host.add(surrogate=10, account_no="bare")
        for key in ("c:acme", "p:pk", "9/acme", "c:bare", "p:None", "10/bare"):
            store.set(key, "value")
        assert host.delete("9").status_code == 404  # the primary key is not the client's id
        assert host.delete("acme").status_code == 200
        assert [row.enabled for row in host.rows() if row.surrogate == 9] == [False]
        assert host.delete("acme?hard=true").status_code == 200
        assert host.delete("bare?hard=true").status_code == 200
        assert host.rows() == []
        assert [store.get(key) for key in ("c:acme", "p:pk", "9/acme", "c:bare", "10/bare")] == [None] * 5
        assert store.get("p:None") == "value"

    def test_a_status_of_null_counts_as_false(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()

        class Client(db.Model):
            id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
            status: Mapped[bool | None]

        host = mount(db=db, model=Client, config={"MYTHIC_CLIENTS_HARD_DELETE": "after-soft-delete"})
        for id in ("acme", "gone"):
            host.add(id=id)
        assert host.delete("acme").status_code == 200
        assert [row.status for row in host.rows()] == [None, None]
        assert host.records("acme") == []
        assert host.delete("gone?hard=true").status_code == 200
        with host.flask.app_context():
            host.clients.service.restore("acme", actor="tests")
        assert [row.status for row in host.rows()] == [True]

    def test_a_status_that_is_no_boolean_is_refused_at_start(self) -> None:
        db = SQLAlchemy()

        class Client(db.Model):
            id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
            status: Mapped[str] = mapped_column(sa.String(40), default="active")

        # SQLite would take "active" for false, and a delete that did nothing would be a 200.
        with pytest.raises(ConfigurationError, match="status"):
            SQLAlchemyRepository(db, Client)


class TestIds:
    @pytest.mark.parametrize("type_", [sa.Integer, sa.BigInteger, sa.SmallInteger])
    def test_an_integer_has_one_spelling(
        self, mount: Callable[..., Host], store: MemoryStore, type_: Any
    ) -> None:
        db = SQLAlchemy()

        class Client(db.Model):
            id: Mapped[int] = mapped_column(type_, primary_key=True, autoincrement=False)
            status: Mapped[bool] = mapped_column(default=True)

        host = mount(db=db, model=Client)
        for id in (7, -8, 0, 1000):
            host.add(id=id)
            store.set(f"client:{id}", "value")
        wrong = ["007", "abc", "7_", "1_000", "-0", "00", "0x7", "7e0", "-", "_", "70", "--7"]
        # Beyond what the column can hold, or the driver can send, there is no client either.
        wrong += [
            str(sign * number)
            for number in (2**15, 2**31, 2**63, 2**63 + 1, 10**30, 10**200)
            for sign in (1, -1)
        ]
        for id in wrong:
            for path in (id, f"{id}?hard=true"):
                assert (host.delete(path).status_code, path) == (404, path)
        assert [row.status for row in host.rows()] == [True] * 4
        for id in ("7", "-8", "0", "1000"):
            assert host.delete(id).status_code == 200
            assert host.delete(f"{id}?hard=true").status_code == 200
            assert store.get(f"client:{id}") is None

    @pytest.mark.parametrize("id", [-(2**63), 2**63 - 1])
    def test_the_least_and_the_greatest_number_are_found(self, mount: Callable[..., Host], id: int) -> None:
        db = SQLAlchemy()
        model = client_model(db, id=mapped_column(sa.BigInteger, primary_key=True, autoincrement=False))
        host = mount(db=db, model=model)
        host.add(id=id)
        assert host.delete(f"{id}").status_code == 200
        assert host.delete(f"{id}?hard=true").status_code == 200

    @pytest.mark.parametrize(
        "type_",
        [sa.Enum("a", "b", name="ids"), sa.LargeBinary(16), sa.Numeric(), sa.Float(), sa.Date()],
        ids=str,
    )
    def test_a_type_that_makes_no_id_is_refused_at_start(self, type_: Any) -> None:
        db = SQLAlchemy()
        model = client_model(db, id=mapped_column(type_, primary_key=True))
        with pytest.raises(
            ConfigurationError, match=r"^Client\.id is a \w+, which is no id: .*TypeDecorator"
        ):
            SQLAlchemyRepository(db, model)

    @pytest.mark.parametrize("type_", [_BytesOfUuid, _NumberBehindPrefix, _NumberOrWhatever])
    def test_a_type_of_the_hosts_is_asked_by_what_it_takes(
        self, mount: Callable[..., Host], store: MemoryStore, type_: Any
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(type_, primary_key=True), "entry_values": lambda _: {}}
        host = mount(db=db, model=client_model(db, **columns))
        soft, hard = type_.of(1), type_.of(2)
        for value in (soft, hard):
            host.add(id=value)
            store.set(f"client:{value}", "cached")
        for path in ("nobody", "acc-x", f"{uuid.uuid4()}", f"{uuid.uuid4()}".upper()):
            for flag in ("", "?hard=true"):
                assert host.delete(f"{path}{flag}").status_code == 404
        assert host.delete(f"{soft}").status_code == 200
        assert host.delete(f"{hard}?hard=true").status_code == 200
        assert {f"{row.id}": row.status for row in host.rows()} == {f"{soft}": False}
        assert (store.get(f"client:{soft}"), store.get(f"client:{hard}")) == ("cached", None)
        with host.flask.app_context():
            purged = host.clients.service.purge(older_than=timedelta(0), actor="tests")
            assert [outcome.result for outcome in purged] == [Result.DONE]
        assert host.rows() == []

    def test_an_id_that_the_hosts_own_type_refuses_is_no_clients(self, mount: Callable[..., Host]) -> None:
        class Slug(sa.TypeDecorator[str]):
            impl = sa.String(20)
            cache_ok = True

            def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
                if value is not None and not value.islower():
                    raise ValueError(value)
                return value

        db = SQLAlchemy()
        host = mount(db=db, model=client_model(db, id=mapped_column(Slug, primary_key=True)))
        host.add(id="acme")
        for path in ("ACME", "ACME?hard=true"):
            assert host.delete(path).status_code == 404
        assert host.delete("acme").status_code == 200
        assert host.delete("acme?hard=true").status_code == 200

    @pytest.mark.parametrize("as_uuid", [True, False])
    def test_a_uuid_has_one_spelling(
        self, mount: Callable[..., Host], store: MemoryStore, as_uuid: bool
    ) -> None:
        db = SQLAlchemy()

        class Client(db.Model):
            id: Mapped[Any] = mapped_column(sa.Uuid(as_uuid=as_uuid), primary_key=True)
            status: Mapped[bool] = mapped_column(default=True)

        id = uuid.UUID("12345678-90ab-4def-8234-567890abcdef")
        host = mount(db=db, model=Client)
        host.add(id=id if as_uuid else str(id))
        store.set(f"client:{id}", "value")
        for wrong in (str(id).upper(), id.hex, f"urn-uuid-{id}", str(uuid.uuid4()), "7", "x" * 36):
            for path in (wrong, f"{wrong}?hard=true"):
                assert (host.delete(path).status_code, path) == (404, path)
        assert host.delete(str(id)).status_code == 200
        assert [row.status for row in host.rows()] == [False]
        assert host.delete(f"{id}?hard=true").status_code == 200
        assert store.get(f"client:{id}") is None
        assert [record.client_id for record in host.records(str(id))] == [str(id)] * 2

    def test_letter_case_tells_clients_apart(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        host = mount()
        host.add(id="Acme")
        store.set("client:acme", "value")
        for path in ("acme", "ACME", "acme?hard=true"):
            assert host.delete(path).status_code == 404
        assert store.get("client:acme") == "value"
        assert [row.status for row in host.rows()] == [True]


class TestBinds:
    def test_the_ledger_lies_in_the_models_database(self, mount: Callable[..., Host], tmp_path: Any) -> None:
        db = SQLAlchemy()
        model: Any = type("Client", (ClientMixin, db.Model), {"__bind_key__": "tenants"})
        url = f"sqlite:///{tmp_path / 'tenants.db'}"
        host = mount(db=db, model=model, config={"SQLALCHEMY_BINDS": {"tenants": url}})
        host.add(id="acme")
        assert host.delete("acme?hard=true").status_code == 200
        assert host.rows() == []
        with host.flask.app_context():
            names = {bind: sa.inspect(engine).get_table_names() for bind, engine in db.engines.items()}
        assert names == {None: [], "tenants": ["client", "client_deletions"]}
        assert [record.action for record in host.records("acme")] == ["hard"]


def test_what_is_mapped_imperatively_has_its_ledger_beside_its_table(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    columns = (sa.Column("id", sa.String(40), primary_key=True), sa.Column("status", sa.Boolean))
    model = type("Client", (), {})
    registry().map_imperatively(model, sa.Table("clients", db.metadata, *columns))
    host = mount(db=db, model=model)
    with host.flask.app_context(), host.db.engine.begin() as connection:
        connection.execute(sa.insert(db.metadata.tables["clients"]).values(id="acme", status=True))
    with host.flask.app_context():
        assert "client_deletions" not in f"{host.clients.service.check()}"
    assert host.delete("acme").status_code == 200
    assert host.delete("acme?hard=true").status_code == 200
    assert host.rows() == []


def test_a_column_that_may_not_be_loaded_later_stops_no_preview(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    large = deferred(mapped_column(sa.Text(), nullable=True), raiseload=True)
    host = mount(db=db, model=client_model(db, large=large))
    host.add(id="acme", large="x")
    for hard in (False, True):
        with host.flask.app_context():
            preview = host.clients.service.preview("acme", hard=hard)
        assert preview.refused is None
        assert preview.columns.keys() == {"id", "name", "status"}
    assert host.delete("acme?hard=true").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("hook", [None, lambda session, row, action: None], ids=["plain", "hook"])
def test_a_column_that_ignores_case_in_the_database_alone_finds_nobody_else(
    mount: Callable[..., Host], store: MemoryStore, hook: Any
) -> None:
    host = mount(columns={"before": hook})
    with host.flask.app_context(), host.db.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE clients")
        connection.exec_driver_sql(
            "CREATE TABLE clients (id VARCHAR(40) COLLATE NOCASE PRIMARY KEY, name TEXT, status BOOLEAN)"
        )
    host.add(id="Acme")
    for path in ("acme", "acme?hard=true"):
        assert host.delete(path).status_code == 404
    assert host.delete("Acme").status_code == 200
    assert host.delete("Acme?hard=true").status_code == 200


def test_a_value_that_sqlalchemy_watches_lets_many_go_at_once(mount: Callable[..., Host]) -> None:
    """It listens to each row that is loaded, and changes none."""
    db = SQLAlchemy()
    host = mount(
        db=db, model=client_model(db, extra=mapped_column(MutableDict.as_mutable(sa.JSON()), default=dict))
    )
    for id in ("a", "b"):
        host.add(id=id)
    with host.flask.app_context():
        told = list(host.clients.service.delete_each(["a", "b"], hard=True, actor="tests"))
    assert [(each.result, each.alone) for each in told] == [(Result.DONE, False)] * 2
