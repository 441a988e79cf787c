"""`check` finds what could break a deletion, and changes nothing."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import mapped_column, relationship
from werkzeug.routing import BaseConverter

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Finding, HardDelete

from ..documents import GUIDE
from ..hosts import ADMIN_KEY, Host, KeyValue, client_model, contents, mounting
from .scene import AWAY, hung_server

P, M, S = "postgresql", "mariadb", "sqlite"
NONE_YET = ("reconcile", False)
GRANTS = re.findall(r"^GRANT .*;$", GUIDE, re.MULTILINE)


# What the tests' own servers do without, for they are thrown away.
THROWN_AWAY = ("fsync", "It keeps nothing on disk")


def found(host: Host, but: Sequence[str] = THROWN_AWAY) -> list[Finding]:
    """Check."""
    with host.flask.app_context():
        return [each for each in host.clients.service.check() if not each.problem.startswith(tuple(but))]


def told(host: Host) -> list[tuple[str, bool]]:
    """Return what each finding is about, and whether it breaks a promise."""
    return [(each.subject, each.breaks) for each in found(host)]


def run(host: Host, *statements: str) -> None:
    """Run statements, each a transaction, as the host's user."""
    with host.flask.app_context(), host.db.engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
            connection.commit()


class TestAHostThatIsWell:
    def test_nothing_is_found_once_a_reconcile_has_run(self, database_url: str, kv: KeyValue) -> None:
        with mounting(database_url, kv.store) as mount:
            host = mount()
            host.add(id="acme")
            assert told(host) == [NONE_YET]
            with host.flask.app_context():
                host.clients.service.reconcile()
            assert told(host) == []

    def test_nothing_is_changed_in_either_store(self, database_url: str, kv: KeyValue) -> None:
        with mounting(database_url, kv.store) as mount:
            host = mount()
            for id in ("acme", "acme2"):
                host.add(id=id)
                kv.raw.set(f"client:{id}", "cached", ex=600)
                host.delete("acme2")
            before = contents(host, kv.raw, "client:acme", "client:acme2")
            keys = sorted(kv.raw.keys()) if kv.url else None
            assert told(host) == [NONE_YET]
            assert contents(host, kv.raw, "client:acme", "client:acme2") == before
            assert (sorted(kv.raw.keys()) if kv.url else None) == keys

    def test_several_stores_and_a_function_that_names_the_entries_are_checked(
        self, database_url: str, empty_kv: Callable[[str], KeyValue]
    ) -> None:
        store = empty_kv("either").store
        with mounting(database_url, [store, MemoryStore()]) as mount:
            assert told(mount(entries=lambda row: {f"client:{row.id}": None})) == [NONE_YET]


class TestTheDatabase:
    def test_one_that_is_away_is_a_finding_and_the_store_is_checked_all_the_same(self) -> None:
        host = _unmade("postgresql://nobody:s3cret@127.0.0.1:1/none", AWAY, SQLAlchemy())
        assert told(host) == [("database", True), ("key-value store", True)]
        assert "s3cret" not in f"{found(host)}"

    def test_what_it_lacks_is_told_by_its_name(self, mount: Callable[..., Host]) -> None:
        host = mount()
        run(host, "ALTER TABLE client_deletions DROP COLUMN reason")
        assert told(host)[:-1] == [("client_deletions.reason", True)]
        run(host, "DROP TABLE client_deletions")
        assert told(host) == [("client_deletions", True)]

    @pytest.mark.parametrize("name", ["ix_client_deletions_client", "ix_client_deletions_keyed"])
    def test_an_index_that_is_missing_is_told(self, mount: Callable[..., Host], name: str) -> None:
        host = mount()
        on = " ON client_deletions" if _kind(host) == M else ""
        run(host, f"DROP INDEX {name}{on}")
        (missing, _) = found(host)
        assert (missing.subject, missing.breaks) == ("client_deletions", False)
        assert name in missing.problem

    def test_an_old_version_is_told(
        self, mount: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = mount()
        with host.flask.app_context():
            told(host)  # connects
            monkeypatch.setattr(host.db.engine.dialect, "server_version_info", (3, 1))
        (old, *_) = found(host)
        assert (old.subject, old.breaks) == ("database", True)
        assert "3.1" in old.problem

    @pytest.mark.parametrize("database_url", [P], indirect=True)
    def test_postgresql_without_its_safety_is_told(self, mount: Callable[..., Host]) -> None:
        host = mount()
        with host.flask.app_context(), host.db.engine.connect() as connection:
            off = [
                n
                for n in ("fsync", "full_page_writes")
                if connection.exec_driver_sql(f"SHOW {n}").scalar() == "off"
            ]
            problems = [each.problem for each in host.clients.service.check()]
        assert [problem.split(" ")[0] for problem in problems if " is off" in problem] == off

    @pytest.mark.parametrize("database_url", [P], indirect=True)
    @pytest.mark.parametrize("table", ["clients", "client_deletions"])
    def test_a_table_that_a_crash_empties_is_told(self, mount: Callable[..., Host], table: str) -> None:
        host = mount()
        run(host, f"ALTER TABLE {table} SET UNLOGGED")
        assert told(host)[:-1] == [(table, True)]
        assert f"ALTER TABLE {table} SET LOGGED" in found(host)[0].fix

    @pytest.mark.parametrize("database_url", [M], indirect=True)
    @pytest.mark.parametrize(
        ("table", "engine"),
        [("clients", "Aria"), ("client_deletions", "Aria"), ("client_deletions", "MyISAM")],
    )
    def test_a_table_without_transactions_is_told(
        self, mount: Callable[..., Host], table: str, engine: str
    ) -> None:
        host = mount()
        run(host, f"ALTER TABLE {table} ENGINE={engine}")
        assert told(host)[:-1] == [(table, True)]
        assert engine in found(host)[0].problem

    @pytest.mark.parametrize("database_url", [M], indirect=True)
    def test_mariadb_that_looks_at_no_foreign_key_is_told(self, mount: Callable[..., Host]) -> None:
        options = {"connect_args": {"init_command": "SET foreign_key_checks=0"}}
        host = mount(config={"SQLALCHEMY_ENGINE_OPTIONS": options})
        assert told(host) == [("database", True), NONE_YET]

    @pytest.mark.parametrize("database_url", [P], indirect=True)
    def test_postgresql_that_looks_at_no_foreign_key_is_told(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()
        db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id", ondelete="CASCADE")))
        host = mount(db=db, model=client_model(db))
        assert told(host) == [NONE_YET]
        run(host, "ALTER TABLE clients DISABLE TRIGGER ALL")
        assert told(host) == [("clients", True), NONE_YET]
        options = {"connect_args": {"options": "-c session_replication_role=replica"}}
        assert ("database", True) in told(mount(config={"SQLALCHEMY_ENGINE_OPTIONS": options}))

    def test_sqlite_that_another_writes_to_or_that_is_none_is_told(
        self, empty_database: Callable[[str], str], tmp_path: Path
    ) -> None:
        url = empty_database(S)
        with mounting(url, MemoryStore()) as mount:
            host = mount()
            with closing(sqlite3.connect(sa.make_url(url).database or "")) as writer:
                writer.execute("BEGIN EXCLUSIVE")
                began = time.monotonic()
                assert told(host) == [("database", True)]
                assert time.monotonic() - began < 4
        (tmp_path / "none.db").write_text("no database at all, but a text that is long enough for one")
        host = _unmade(f"sqlite:///{tmp_path / 'none.db'}", MemoryStore(), SQLAlchemy())
        assert told(host) == [("database", True)]

    @pytest.mark.parametrize("database_url", [M], indirect=True)
    @pytest.mark.parametrize("value", [0, 1, 2, 3])
    def test_a_commit_that_does_not_wait_for_the_disk_is_told(
        self, mount: Callable[..., Host], value: int
    ) -> None:
        host = mount()
        run(host, f"SET GLOBAL innodb_flush_log_at_trx_commit={value}")
        try:
            assert told(host)[:-1] == ([("database", True)] if value in (0, 2) else [])
        finally:
            run(host, "SET GLOBAL innodb_flush_log_at_trx_commit=1")

    @pytest.mark.parametrize(
        ("pragma", "is_told"),
        [
            ("journal_mode=OFF", True),
            ("journal_mode=MEMORY", True),
            ("journal_mode=WAL", False),
            ("journal_mode=TRUNCATE", False),
            ("synchronous=OFF", True),
            ("synchronous=NORMAL", False),
        ],
    )
    def test_sqlite_that_loses_what_was_committed_is_told(
        self, empty_database: Callable[[str], str], pragma: str, is_told: bool
    ) -> None:
        with mounting(empty_database(S), MemoryStore()) as mount:
            host = mount()
            with host.flask.app_context():
                engine = host.db.engine
            sa.event.listen(engine, "connect", lambda driver, _: driver.execute(f"PRAGMA {pragma}").close())
            engine.dispose()
            assert told(host)[:-1] == ([("database", True)] if is_told else [])

    def test_sqlite_in_memory_is_told(self) -> None:
        with mounting("sqlite://", MemoryStore()) as mount:
            memory = found(mount())[0]
            assert (memory.subject, memory.breaks) == ("database", True)
            assert "memory" in memory.problem

    def test_a_pool_of_one_connection_is_enough(self, database_url: str) -> None:
        options = {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}}
        with mounting(database_url, MemoryStore()) as mount:
            assert told(mount(config=options)) == [NONE_YET]

    def test_a_table_that_another_transaction_holds_is_waited_for_no_longer_than_elsewhere(
        self, empty_database: Callable[[str], str]
    ) -> None:
        with mounting(empty_database(P), MemoryStore()) as mount:
            host = mount()
            with host.flask.app_context(), host.db.engine.connect() as migration:
                migration.exec_driver_sql("LOCK TABLE client_deletions IN ACCESS EXCLUSIVE MODE")
                began = time.monotonic()
                assert told(host) == [("database", True)]
                assert time.monotonic() - began < 5


USERS = {
    P: (
        # The schema was made anew for the test, without the right to it that everybody has to the first one.
        ["CREATE ROLE app LOGIN PASSWORD 'app'", "GRANT USAGE ON SCHEMA public TO app"],
        ["DROP OWNED BY app", "DROP ROLE app"],
    ),
    M: (["CREATE USER app IDENTIFIED BY 'app'"], ["DROP USER app"]),
}


@contextmanager
def _as_app(owner: Host, *grants: str) -> Iterator[Host]:
    """Mount the same host as a user of the database who has these rights alone."""
    makes, drops = USERS[_kind(owner)]
    with owner.flask.app_context():
        url = owner.db.engine.url.set(username="app", password="app")
    run(owner, *makes)
    try:
        run(owner, *grants)
        db = SQLAlchemy()
        with ExitStack() as stack:
            host = _unmade(url.render_as_string(hide_password=False), MemoryStore(), db)
            stack.callback(host.close)
            yield host
    finally:
        run(owner, *drops)


def _unmade(url: str, store: Any, db: SQLAlchemy) -> Host:
    """Mount without making the tables."""
    repository = SQLAlchemyRepository(db)
    clients = MythicClients(repository=repository, kv=store)
    app = Flask("host")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)})
    app.config["MYTHIC_CLIENTS_VERIFY_AFTER"] = 0
    db.init_app(app)
    clients.init_app(app)
    return Host(app, db, repository.model, clients)


def _kind(host: Host) -> str:
    with host.flask.app_context():
        return host.db.engine.url.get_backend_name()


def _well(host: Host) -> list[tuple[str, bool]]:
    """Return what is told where nothing is wrong: a user of MariaDB does not see the tables of others."""
    return [("database", False)] * (_kind(host) == M) + [NONE_YET]


def _grants(host: Host) -> list[str]:
    return [grant for grant in GRANTS if _kind(host) == P or "SEQUENCE" not in grant]


@pytest.mark.parametrize("database_url", [P, M], indirect=True)
class TestTheRights:
    def test_those_that_the_readme_lists_are_enough(self, mount: Callable[..., Host]) -> None:
        owner = mount()
        owner.add(id="acme")
        with _as_app(owner, *_grants(owner)) as host:
            assert told(host) == _well(host)
            assert [host.delete("acme").status_code for _ in range(2)] == [200, 200]
            with host.flask.app_context():
                host.clients.service.restore("acme", actor="tests")
                assert host.clients.service.reconcile().failed == 0
            assert [host.delete("acme?hard=true").status_code for _ in range(2)] == [200, 404]
            with host.flask.app_context():
                assert host.clients.service.reconcile().verified == 1
            assert told(host) == _well(host)[:-1]

    @pytest.mark.parametrize("table", ["clients", "client_deletions"])
    @pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
    def test_each_that_is_missing_is_told_with_the_line_that_grants_it(
        self, mount: Callable[..., Host], table: str, right: str
    ) -> None:
        owner = mount()
        needed = [grant for grant in _grants(owner) if f"ON {table} " in grant]
        with _as_app(owner, *_grants(owner)) as host:
            run(owner, f"REVOKE {right} ON {table} FROM app") if right in needed[0] else None
            breaking = [each for each in found(host) if each.breaks]
            assert bool(breaking) is (right in needed[0])
            assert {each.subject for each in breaking} <= {table}
            if breaking:
                assert f"GRANT {right} ON {table} TO" in " ".join(each.fix for each in breaking)
                run(owner, f"GRANT {right} ON {table} TO app")
            assert told(host) == _well(host)

    def test_of_a_service_that_removes_nobody_the_right_to_remove_is_not_needed(
        self, mount: Callable[..., Host]
    ) -> None:
        owner = mount()
        with _as_app(owner, *(grant.replace(", DELETE", "") for grant in _grants(owner))) as host:
            assert told(host)[0] == ("clients", True)
            host.flask.extensions["mythic_clients"]._guard = HardDelete.DENY
            assert told(host) == [NONE_YET]


@pytest.mark.parametrize("database_url", [P], indirect=True)
def test_the_right_to_the_numbers_of_the_records_is_told(mount: Callable[..., Host]) -> None:
    owner = mount()
    with _as_app(owner, *(grant for grant in GRANTS if "SEQUENCE" not in grant)) as host:
        (missing, _) = found(host)
        assert (missing.subject, missing.breaks) == ("client_deletions", True)
        sequence = re.search(r"GRANT USAGE ON SEQUENCE (\S+)", missing.fix)
        assert sequence is not None
        run(owner, f"{sequence[0]} TO app")
        assert told(host) == _well(host)


@pytest.mark.parametrize("database_url", [P], indirect=True)
def test_policies_that_may_hide_clients_are_told(mount: Callable[..., Host]) -> None:
    owner = mount()
    run(owner, "ALTER TABLE clients ENABLE ROW LEVEL SECURITY")
    assert told(owner) == [NONE_YET]  # none for its owner
    with _as_app(owner, *GRANTS) as host:
        assert told(host) == [("clients", False), NONE_YET]


# What a column is like, and whether two clients may have the same value there.
UNIQUE: dict[str, tuple[Any, Sequence[str], Sequence[str], bool]] = {
    "the id": ((), ["k:{id}"], (), True),
    "unique": (("unique",), ["k:{slug}"], (), True),
    "plain": ((), ["k:{slug}"], (), False),
    "plain, and the id": ((), ["k:{slug}:{id}"], (), True),
    "by an index": ((), ["k:{slug}"], ["CREATE UNIQUE INDEX i ON clients (slug)"], True),
    "by an index that is not unique": ((), ["k:{slug}"], ["CREATE INDEX i ON clients (slug)"], False),
    "two together": ((), ["k:{slug}:{name}"], ["CREATE UNIQUE INDEX i ON clients (slug, name)"], True),
    "one of two together": ((), ["k:{slug}"], ["CREATE UNIQUE INDEX i ON clients (slug, name)"], False),
    "one of two templates": ((), ["k:{id}", "s:{slug}"], (), False),
    "side by side": (("unique",), ["k:{slug}{id}"], (), False),
    "of one form": (("unique",), ["k:{id}", "k:{slug}"], (), False),
    "of two forms": (("unique",), ["k:{id}", "s:{slug}"], (), True),
}
PARTLY = {
    "of some rows": ((), ["k:{slug}"], ["CREATE UNIQUE INDEX i ON clients (slug) WHERE status"], False),
    "by an expression": ((), ["k:{slug}"], ["CREATE UNIQUE INDEX i ON clients (lower(slug))"], True),
    "by two expressions": (
        (),
        ["k:{slug}"],
        ["CREATE UNIQUE INDEX i ON clients (lower(slug), lower(name))"],
        False,
    ),
}


def _check_templates(
    mount: Callable[..., Host], case: tuple[Any, Sequence[str], Sequence[str], bool]
) -> None:
    options, templates, statements, unique = case
    slug = mapped_column(sa.String(40), unique="unique" in options or None)
    db = SQLAlchemy()
    host = mount(db=db, model=client_model(db, slug=slug), config={"MYTHIC_CLIENTS_KV_KEYS": templates})
    run(host, *statements)
    breaking = [each.subject for each in found(host) if each.breaks]
    assert bool(breaking) is not unique
    assert set(breaking) <= set(templates)


@pytest.mark.parametrize("case", UNIQUE)
def test_a_template_by_which_two_clients_own_one_key_is_told(mount: Callable[..., Host], case: str) -> None:
    _check_templates(mount, UNIQUE[case])


@pytest.mark.parametrize("database_url", [S, P], indirect=True)
@pytest.mark.parametrize("case", PARTLY)
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_an_index_on_a_part_or_an_expression_counts_for_what_it_is(
    mount: Callable[..., Host], case: str, database_url: str
) -> None:
    if case.startswith("by") and database_url.startswith(S):
        pytest.skip("SQLAlchemy tells no expression of an index on SQLite: there it is a false alarm.")
    _check_templates(mount, PARTLY[case])


ENTRY_VALUES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "those of the templates": (lambda row: {f"client:{row.id}": "x"}, False),
    "fewer": (lambda _: {}, False),
    "one more": (lambda row: {f"client:{row.id}": "x", f"cache:{row.id}": "x"}, True),
    "one that has no prefix": (lambda _: {"s3cret": "x"}, True),
    "one that is no text": (lambda _: {b"s3cret": "x", 7: "y"}, True),
    "one of a template without a value": (lambda row: {f"token:{row.token}": "x"}, False),
    "one like a template": (lambda row: {f"client:{row.id}:s3cret": "x"}, True),
    "none: it fails": (lambda row: {f"client:{row.id}": row.nothing}, True),
}


@pytest.mark.parametrize("case", ENTRY_VALUES)
def test_entries_that_no_template_yields_are_told(mount: Callable[..., Host], case: str) -> None:
    values, is_told = ENTRY_VALUES[case]
    db, config = SQLAlchemy(), {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "token:{token}"]}
    token = mapped_column(sa.String(40), unique=True)
    host = mount(db=db, model=client_model(db, token=token, entry_values=values), config=config)
    host.add(id="acme")
    assert told(host)[:-1] == ([("Client.entry_values", True)] if is_told else [])
    assert "s3cret" not in f"{found(host)}"


class Sealed(sa.TypeDecorator[str]):
    """A column that the app can no longer read."""

    impl = sa.String(40)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Fail, and quote the value."""
        raise RuntimeError(f"cannot open {value}")


def test_a_row_that_the_model_cannot_read_is_told_without_its_values(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    model = client_model(db, sealed=mapped_column(Sealed()), entry_values=lambda _: {})
    host = mount(db=db, model=model)
    host.add(id="acme", sealed="s3cret")
    (failing, _) = found(host)
    assert (failing.subject, failing.breaks) == ("Client.entry_values", True)
    assert "RuntimeError" in failing.problem
    assert "s3cret" not in f"{found(host)}"


def test_a_function_that_names_the_entries_and_fails_is_told(mount: Callable[..., Host]) -> None:
    host = mount(entries=lambda row: {row.nothing: None})
    assert told(host) == [NONE_YET]
    host.add(id="acme")
    assert told(host) == [("entries=", True), NONE_YET]


def test_a_value_that_the_driver_cannot_read_is_told_nowhere(empty_database: Callable[[str], str]) -> None:
    with mounting(empty_database(S), MemoryStore()) as mount:
        host = mount()
        run(host, "INSERT INTO clients VALUES (CAST(x'ff' || 's3cret' AS TEXT), '', true)")
        (broken, *_) = found(host)
        assert broken.subject == "database"
        assert "3cret" not in f"{found(host)}"


def test_a_model_of_two_tables_is_checked_as_well(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    kind = {"polymorphic_on": "kind", "polymorphic_identity": "party"}
    columns = {"id": mapped_column(sa.String(40), primary_key=True), "kind": mapped_column(sa.String(40))}
    party = type("Party", (db.Model,), {"__tablename__": "parties", **columns, "__mapper_args__": kind})
    key = mapped_column(sa.ForeignKey("parties.id"), primary_key=True)
    own = {
        "id": key,
        "status": mapped_column(sa.Boolean),
        "__mapper_args__": {"polymorphic_identity": "client"},
    }
    host = mount(db=db, model=type("Client", (party,), {"__tablename__": "clients", **own}))
    assert told(host) == [NONE_YET]


MANY = 1000


@pytest.mark.parametrize(
    ("options", "rows", "expected"),
    [
        ({}, MANY - 1, []),
        ({}, MANY, [False]),
        ({"cascade": "all, delete-orphan"}, MANY, [False]),
        ({"passive_deletes": True}, MANY, []),
        ({"viewonly": True}, MANY, []),
        ({"lazy": "dynamic"}, MANY, [False]),
        ({"lazy": "write_only"}, 0, [True]),
        ({"lazy": "write_only", "passive_deletes": True}, 0, []),
    ],
)
def test_a_relationship_that_fails_or_loads_thousands_is_told(
    mount: Callable[..., Host], options: dict[str, Any], rows: int, expected: list[bool]
) -> None:
    db = SQLAlchemy()
    client_id = mapped_column(sa.ForeignKey("clients.id", ondelete="SET NULL"))
    columns = {"id": mapped_column(sa.Integer, primary_key=True), "client_id": client_id}
    order = type("Order", (db.Model,), {"__tablename__": "orders", **columns})
    host = mount(db=db, model=client_model(db, orders=relationship(order, **options)))
    host.add(id="acme")
    host.add(id="acme2")
    orders = [{"client_id": "acme" if number < rows else "acme2"} for number in range(rows + 10)]
    with host.flask.app_context(), db.engine.begin() as connection:
        connection.execute(sa.insert(db.metadata.tables["orders"]), orders)
    assert [each.breaks for each in found(host) if each.subject == "Client.orders"] == expected


ALL = ("+get", "+set", "+unlink", "+del", "+eval", "+ping")
OURS, BOTH = {"key-value store"}, {"client:{id}", "key-value store"}
# What is missing, and what is told of.
MISSING = {"+unlink": BOTH, "+set": BOTH, "+del": OURS, "+eval": OURS, "+get": OURS}


class TestTheKeyValueStore:
    @pytest.fixture
    def mounted(
        self, empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
    ) -> Iterator[Callable[..., Host]]:
        with mounting(empty_database(S)) as mount:
            yield mount

    @pytest.fixture
    def kv(self, empty_kv: Callable[[str], KeyValue]) -> KeyValue:
        return empty_kv("redis")

    def _as_user(self, kv: KeyValue, keys: list[str], commands: list[str]) -> RedisStore:
        rights = {"keys": keys, "commands": commands}
        kv.raw.acl_setuser("app", enabled=True, nopass=True, reset=True, **rights)
        assert kv.url is not None
        return RedisStore.from_url(kv.url.replace("redis://", "redis://app:x@"))

    @pytest.mark.parametrize(
        ("keys", "commands", "subjects"),
        [
            (["client:*", "mythic:*"], ALL, set()),
            (["mythic:*"], ALL, {"client:{id}"}),
            (["client:*"], ALL, {"client:{id}", "key-value store"}),
            *(
                (["client:*", "mythic:*"], tuple(each for each in ALL if each != right), subjects)
                for right, subjects in MISSING.items()
            ),
        ],
    )
    def test_rights_that_are_missing_are_told(
        self,
        mounted: Callable[..., Host],
        kv: KeyValue,
        keys: list[str],
        commands: list[str],
        subjects: set[str],
    ) -> None:
        host = mounted(self._as_user(kv, keys, commands))
        assert {each.subject for each in found(host) if each.breaks} == subjects
        assert "not be looked at" not in f"{found(host)}"  # it is not away
        kv.raw.acl_deluser("app")

    def test_memory_that_runs_out_and_no_disk_are_told_as_notes(
        self, mounted: Callable[..., Host], kv: KeyValue
    ) -> None:
        host = mounted(kv.store)
        before = kv.raw.config_get("maxmemory*", "save", "appendonly")
        try:
            for memory, policy, save in (("0", "allkeys-lru", "60 1"), ("100mb", "noeviction", "60 1")):
                kv.raw.config_set("maxmemory", memory, "maxmemory-policy", policy, "save", save)
                assert told(host) == [NONE_YET]
            kv.raw.config_set("maxmemory-policy", "allkeys-lru")
            assert told(host) == [("key-value store", False), NONE_YET]
            kv.raw.config_set("save", "")
            notes = [each.breaks for each in found(host, but=()) if each.subject == "key-value store"]
            assert notes == [False, False]
        finally:
            kv.raw.config_set(
                "maxmemory", before["maxmemory"], "maxmemory-policy", before["maxmemory-policy"]
            )
            kv.raw.config_set("save", before["save"])

    def test_a_replica_is_told(self, mounted: Callable[..., Host], kv: KeyValue) -> None:
        host = mounted(kv.store)
        kv.raw.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            assert told(host) == [("key-value store", True)]
            assert "ReadOnly" in found(host)[0].problem
        finally:
            kv.raw.execute_command("REPLICAOF", "NO", "ONE")

    def test_one_that_is_away_or_hangs_is_told(self, mounted: Callable[..., Host]) -> None:
        assert told(mounted(AWAY)) == [("key-value store", True)]

    def test_one_that_hangs_is_told(self, mounted: Callable[..., Host]) -> None:
        with hung_server() as url:
            assert told(mounted(RedisStore.from_url(url, timeout=0.2))) == [("key-value store", True)]

    def test_a_store_of_the_hosts_that_fails_for_an_unknown_entry_is_told(
        self, mounted: Callable[..., Host]
    ) -> None:
        class Picky:
            def apply(self, *, remove: Any, overwrite: Any) -> set[str]:
                raise KeyError(next(iter([*remove, *overwrite])))

        assert ("key-value store", True) in told(mounted(Picky()))

    def test_of_several_stores_the_one_that_keeps_no_mark_is_told(self, mounted: Callable[..., Host]) -> None:
        class Plain:
            apply = MemoryStore().apply

        notes = [("key-value store (2 of 2)", False), NONE_YET]
        assert told(mounted([MemoryStore(), Plain()])) == notes

    def test_one_that_keeps_no_mark_is_told_as_a_note(self, mounted: Callable[..., Host]) -> None:
        class Plain:
            apply = MemoryStore().apply

        assert told(mounted(Plain())) == [("key-value store", False)]


class TestReconcile:
    def test_one_that_does_not_run_is_told(self, mount: Callable[..., Host]) -> None:
        host = mount()
        host.add(id="acme")
        host.delete("acme")
        assert told(host) == [NONE_YET]
        host.let_time_pass(3600)
        assert told(host) == [("reconcile", True)]
        with host.flask.app_context():
            host.clients.service.reconcile()
        assert told(host) == []

    def test_one_that_has_stopped_is_told(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        host = mount()
        with host.flask.app_context():
            host.clients.service.reconcile()
        (key,) = [key for key in store._entries if key.endswith(":mark")]
        for age, expected in ((timedelta(minutes=4), []), (timedelta(minutes=6), [("reconcile", True)])):
            self._set_mark(host, store, key, age)
            assert told(host) == expected

    def test_a_mark_that_is_older_than_the_keys_of_the_ledger_is_told(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount(config={"MYTHIC_CLIENTS_KEYS_KEPT": 0, "MYTHIC_CLIENTS_VERIFY_AFTER": 0})
        host.add(id="acme")
        host.delete("acme")
        with host.flask.app_context():
            for _ in range(3):
                host.clients.service.reconcile()
        assert host.records("acme")[0].kv_digests
        (key,) = [key for key in store._entries if key.endswith(":mark")]
        self._set_mark(host, store, key, timedelta(days=1))
        (blind,) = found(host)
        assert (blind.subject, blind.breaks) == ("key-value store", True)
        assert "audit" in blind.fix

    def _set_mark(self, host: Host, store: MemoryStore, key: str, age: timedelta) -> None:
        with host.flask.app_context():
            at = host.clients.service._repository.now() - age
        store.set(key, f"{at.isoformat()} {at.isoformat()}")


@pytest.mark.parametrize(
    ("rule", "method", "is_told"),
    [
        ("/api/v1/clients/<int:client_id>", "DELETE", True),
        ("/api/v1/clients/acme", "DELETE", True),
        ("/api/v1/clients/<int:client_id>", "GET", False),
        ("/api/v1/clients/<int:client_id>/users", "DELETE", False),
        ("/<path:any>", "DELETE", False),
        ("/api/v2/clients/<int:client_id>", "DELETE", False),
    ],
)
def test_a_route_of_the_apps_that_answers_in_place_of_ours_is_told(
    empty_database: Callable[[str], str], rule: str, method: str, is_told: bool
) -> None:
    """As an app has it that deleted by hand before."""
    with mounting(empty_database(S), MemoryStore()) as mount:
        host = mount()
        host.flask.url_map.converters["failing"] = type(
            "Failing", (BaseConverter,), {"to_python": lambda *_: 1 / 0}
        )
        host.flask.add_url_rule("/api/v1/clients/<failing:id>", "fails", lambda **_: "", methods=["POST"])
        host.flask.add_url_rule(rule, "by_hand", lambda **_: "gone", methods=[method])
        runner = host.flask.test_cli_runner()
        result = runner.invoke(args=["mythic-clients", "check"])
        assert ("by_hand of your app answers " in result.stdout) is is_told
        assert ("Remove that route" in result.stdout) is is_told
