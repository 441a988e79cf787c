"""Columns that no client was expected to have: refused at start, or handled to the letter."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import Mapped, mapped_column, validates

from flask_mythic_clients import ClientNotFoundError, ConfigurationError
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from tests.hosts import Host, KeyValue, contents, mounting


@pytest.fixture
def kv(empty_kv: Callable[[str], KeyValue]) -> KeyValue:
    """A real key-value store."""
    return empty_kv("either")


@pytest.fixture
def mount(empty_database: Callable[[str], str], kv: KeyValue) -> Iterator[Callable[..., Host]]:
    """Make hosts whose clients have an id of a type, on a kind of database."""

    def mount_on(kind: str, type_: Any, *preparations: str) -> Host:
        url = empty_database(kind)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in preparations:
                connection.execute(sa.text(statement))
        db = SQLAlchemy()
        return mounted(url, kv.store, db=db, model=_model(db, sa.Column("id", type_, primary_key=True)))

    with mounting() as mounted:
        yield mount_on


def _model(db: SQLAlchemy, *columns: Any, status: Any = sa.Boolean) -> Any:
    """Map a table of these columns and a status."""
    status = sa.Column("status", status, nullable=False, default=True)
    return type("Client", (db.Model,), {"__table__": sa.Table("clients", db.metadata, *columns, status)})


class TestAnIdThatMayNameTwoRows:
    """`id` must be unique by itself."""

    @pytest.mark.parametrize(
        "further",
        [
            list,
            lambda: [sa.Index("ix", "account")],
            lambda: [sa.UniqueConstraint("account", "region")],
            lambda: [sa.Index("ix", "account", "region", unique=True)],
        ],
        ids=["nothing", "index", "constraint-of-two", "unique-index-of-two"],
    )
    def test_it_is_refused_and_named(self, further: Callable[[], list[Any]]) -> None:
        db = SQLAlchemy()
        with pytest.raises(ConfigurationError, match=r"Client\.account .*unique"):
            SQLAlchemyRepository(db, self._accounts(db, further()), id="account")

    def test_half_of_a_composite_primary_key_is_refused(self) -> None:
        db = SQLAlchemy()
        halves = (sa.Column(name, sa.String(40), primary_key=True) for name in ("tenant", "account"))
        with pytest.raises(ConfigurationError, match=r"Client\.account .*unique"):
            SQLAlchemyRepository(db, _model(db, *halves), id="account")

    @pytest.mark.parametrize(
        "further",
        [lambda: [sa.UniqueConstraint("account")], lambda: [sa.Index("ix", "account", unique=True)]],
        ids=["constraint", "index"],
    )
    def test_one_that_a_constraint_or_an_index_makes_unique_is_accepted(
        self, further: Callable[[], list[Any]]
    ) -> None:
        db = SQLAlchemy()
        SQLAlchemyRepository(db, self._accounts(db, further()), id="account")

    def test_one_that_says_unique_is_accepted(self) -> None:
        db = SQLAlchemy()
        SQLAlchemyRepository(db, self._accounts(db, [], unique=True), id="account")

    def test_half_of_a_composite_primary_key_that_is_unique_by_itself_is_accepted(self) -> None:
        db = SQLAlchemy()
        halves = [sa.Column(name, sa.String(40), primary_key=True) for name in ("tenant", "account")]
        SQLAlchemyRepository(db, _model(db, *halves, sa.UniqueConstraint("account")), id="account")

    def _accounts(self, db: SQLAlchemy, further: list[Any], **options: Any) -> Any:
        columns = [sa.Column("number", sa.Integer, primary_key=True), sa.Column("region", sa.String(40))]
        account = sa.Column("account", sa.String(40), nullable=False, **options)
        return _model(db, *columns, account, *further)


class TestAStatusThatIsNoBoolean:
    """No other type can tell an active client."""

    class Flag(sa.TypeDecorator[bool]):
        """A bool for Python, and what it likes for the database."""

        impl = sa.String(1)
        cache_ok = True

        @property
        def python_type(self) -> type:
            return bool

    @pytest.mark.parametrize("type_", [sa.String(40), sa.Integer(), sa.SmallInteger(), Flag()])
    def test_it_is_refused_and_named(self, type_: Any) -> None:
        db = SQLAlchemy()
        model = _model(db, sa.Column("id", sa.String(40), primary_key=True), status=type_)
        with pytest.raises(ConfigurationError, match=r"Client\.status .*Boolean"):
            SQLAlchemyRepository(db, model)


class TestMariaDB:
    """Its columns fill with zeros, and its character sets do not compare."""

    def test_the_key_of_an_id_that_is_filled_with_zeros_has_none(
        self, mount: Callable[..., Host], kv: KeyValue
    ) -> None:
        host = mount("mariadb", mysql.INTEGER(zerofill=True))
        host.add(id=42)
        for key in ("client:42", "client:0000000042"):
            kv.raw.set(key, "value")
        assert host.delete("0000000042?hard=true").status_code == 404
        assert host.delete("42").status_code == 200
        assert host.delete("42?hard=true").status_code == 200
        assert (kv.raw.get("client:42"), kv.raw.get("client:0000000042")) == (None, "value")
        assert {record.kv_keys for record in host.records("42")} == {("client:42",)}
        assert host.rows() == []

    @pytest.mark.parametrize("charset", ["utf16", "latin1", "ucs2", "utf32"])
    def test_an_id_in_another_character_set_is_found_to_the_letter(
        self, mount: Callable[..., Host], kv: KeyValue, charset: str
    ) -> None:
        host = mount("mariadb", mysql.VARCHAR(40, charset=charset))
        _is_deleted_to_the_letter(host, kv)

    def test_an_id_in_another_character_set_of_the_whole_table_is_found_to_the_letter(
        self, mount: Callable[..., Host], kv: KeyValue
    ) -> None:
        # The model does not tell.
        host = mount("mariadb", sa.String(40), "ALTER DATABASE test CHARACTER SET utf16")
        _is_deleted_to_the_letter(host, kv)

    def test_an_id_that_ends_in_a_blank_is_not_the_one_without(
        self, empty_database: Callable[[str], str], kv: KeyValue
    ) -> None:
        """MariaDB finds it; and a rule of the host's is asked about the row that was read."""
        db = SQLAlchemy()
        model = _model(db, sa.Column("id", sa.String(20), primary_key=True))
        with mounting(empty_database("mariadb"), kv.store) as mount:
            host = mount(db=db, model=model, entries=lambda row: {f"client:{row.id}": None})
            host.add(id="acme ")
            for path in ("acme", "acme?hard=true"):
                assert host.delete(path).status_code == 404
            assert [(row.id, row.status) for row in host.rows()] == [("acme ", True)]


class TestSQLite:
    """Its columns may ignore case."""

    def test_an_id_that_ignores_case_is_found_to_the_letter(
        self, mount: Callable[..., Host], kv: KeyValue
    ) -> None:
        _is_deleted_to_the_letter(mount("sqlite", sa.String(40, collation="NOCASE")), kv)


class TestPostgreSQL:
    """Its columns ignore case, and are padded with blanks."""

    def test_an_id_that_ignores_case_is_found_to_the_letter(
        self, mount: Callable[..., Host], kv: KeyValue
    ) -> None:
        try:
            host = mount("postgresql", postgresql.CITEXT(), "CREATE EXTENSION citext")
        except sa.exc.NotSupportedError:
            pytest.skip("This PostgreSQL has no citext: install its contrib modules.")
        _is_deleted_to_the_letter(host, kv)

    @pytest.mark.parametrize("type_", [sa.CHAR(20), sa.NCHAR(20)])
    def test_an_id_that_is_padded_has_no_blanks(
        self, mount: Callable[..., Host], kv: KeyValue, type_: Any
    ) -> None:
        host = mount("postgresql", type_)
        _is_deleted_to_the_letter(host, kv)
        assert {record.kv_keys for record in host.records("acme")} == {("client:acme",)}


def _is_deleted_to_the_letter(host: Host, kv: KeyValue) -> None:
    host.add(id="acme")
    for key in ("client:acme", "client:ACME"):
        kv.raw.set(key, "value")
    before = contents(host, kv.raw, "client:acme", "client:ACME")
    for path in ("ACME", "ACME?hard=true", "acm", "acme-"):
        assert (host.delete(path).status_code, path) == (404, path)
    with host.flask.app_context(), pytest.raises(ClientNotFoundError):
        _restore(host, "ACME")
    assert contents(host, kv.raw, "client:acme", "client:ACME") == before
    assert host.delete("acme").status_code == 200
    assert [row.status for row in host.rows()] == [False]
    assert host.delete("acme").status_code == 200  # again
    assert [record.action for record in host.records("acme")] == ["soft"]
    with host.flask.app_context():
        _restore(host, "acme")
    assert [row.status for row in host.rows()] == [True]
    assert host.delete("acme?hard=true").status_code == 200
    assert host.rows() == []
    assert (kv.raw.get("client:acme"), kv.raw.get("client:ACME")) == (None, "value")


def _restore(host: Host, id: str) -> None:
    host.clients.service.restore(id, actor="tests")


@pytest.mark.parametrize("by", ["validator", "listener", "listener, when configured"])
def test_what_watches_the_status_is_asked_on_soft_delete_and_restore_alone(
    database_url: str, kv: KeyValue, by: str
) -> None:
    db, asked = SQLAlchemy(), []

    def check(row: Any, name: str, value: bool) -> bool:
        asked.append((row.id, name, value))
        return value

    class Client(db.Model):
        id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
        status: Mapped[bool] = mapped_column(default=True)
        if by == "validator":
            validate_status = validates("status")(check)

    def listen(*_: object) -> None:
        sa.event.listen(Client.status, "set", lambda row, value, *_: check(row, "status", value))

    if by == "listener":
        listen()
    elif by != "validator":
        sa.event.listen(Client, "mapper_configured", listen)
    with mounting() as mount:
        host = mount(database_url, kv.store, db=db, model=Client)
        with host.flask.app_context(), db.engine.begin() as connection:  # no ORM, which would configure it
            connection.execute(sa.insert(Client.__table__).values(id="acme", status=True))
        assert host.delete("acme").status_code == 200
        with host.flask.app_context():
            _restore(host, "acme")
        assert host.delete("acme?hard=true").status_code == 200
    assert asked == [("acme", "status", False), ("acme", "status", True)]


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_a_constraint_that_forbids_the_change_is_a_409_and_nothing_changes(
    empty_database: Callable[[str], str], kv: KeyValue, database: str
) -> None:
    db = SQLAlchemy()
    model = _model(db, sa.Column("id", sa.String(20), primary_key=True), sa.CheckConstraint("status"))
    with mounting() as mounted:
        host = mounted(empty_database(database), kv.store, db=db, model=model)
        host.add(id="acme")
        kv.raw.set("client:acme", "cached")
        answer = host.delete("acme")
        assert (answer.status_code, answer.json["error"]) == (409, "Conflict")
        assert "constraint" in answer.json["message"]
        assert [row.status for row in host.rows()] == [True]
        assert host.records("acme") == []
        assert kv.raw.get("client:acme") == "cached"
        assert host.delete("acme?hard=true").status_code == 200
