"""What the database or the mapping says no with is a 409, never a 500 and never an endless 503."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import mapped_column, relationship

from flask_mythic_clients.backends.memory import MemoryStore

from ..hosts import Host
from .test_what_the_database_did import (
    ALL,
    CHANGES,
    EVENTS,
    TOKEN,
    UNDO,
    M,
    P,
    Planted,
    S,
    planting,
    tenant,
    trigger,
)

EVERYWHERE = [P, M, S]
BOTH, ORM = ["statement", "listeners"], ["listeners"]


@pytest.fixture
def plant(mount: Callable[..., Host], store: MemoryStore) -> Callable[..., Planted]:
    return partial(planting, mount, store)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, which never holds a client's value."""
    yield caplog
    assert TOKEN not in "".join(map(caplog.handler.format, caplog.get_records("call")))


def invoices(db: SQLAlchemy, *, nullable: bool = True, in_key: bool = False, **foreign_key: Any) -> Any:
    """Make a model whose rows refer to a client."""
    refers = sa.ForeignKey("clients.id", **foreign_key)
    columns = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "client_id": mapped_column(sa.String(255), refers, primary_key=in_key, nullable=nullable),
        "note": mapped_column(sa.String(255)),
    }
    return type("Invoice", (db.Model,), {"__tablename__": "invoices", **columns})


INVOICE = f"INSERT INTO invoices (id, client_id, note) VALUES (1, 'acme', '{TOKEN}')"
WRITE_ONLY, OWNED = {"lazy": "write_only"}, {"cascade": "all, delete-orphan"}

# The databases, the paths, a name, the options of the foreign key, those of a relationship if there is one.
DEPENDENTS: list[tuple[list[str], list[str], str, dict[str, Any], dict[str, Any] | None]] = [
    (EVERYWHERE, BOTH, "at once", {}, None),
    (EVERYWHERE, BOTH, "restricts", {"ondelete": "RESTRICT"}, None),
    ([P, S], BOTH, "at commit", {"deferrable": True, "initially": "DEFERRED"}, None),
    ([P, S], BOTH, "sets null, which is not allowed", {"ondelete": "SET NULL", "nullable": False}, None),
    (EVERYWHERE, ORM, "the ORM sets null", {"nullable": False}, {}),
    (EVERYWHERE, ORM, "the ORM is first to set null", {"nullable": False, "ondelete": "CASCADE"}, {}),
    (EVERYWHERE, ORM, "part of a primary key", {"nullable": False, "in_key": True}, {}),
    (EVERYWHERE, ORM, "write-only", {}, WRITE_ONLY),
    (EVERYWHERE, BOTH, "write-only and owned", {}, WRITE_ONLY | OWNED),
]


class TestDependentRows:
    @pytest.mark.parametrize(
        ("database_url", "path", "foreign_key", "related"),
        [
            pytest.param(kind, path, *options, id=f"{kind}-{path}-{name}")
            for kinds, paths, name, *options in DEPENDENTS
            for kind in kinds
            for path in paths
        ],
        indirect=["database_url"],
    )
    def test_a_client_that_they_need_is_a_409_that_names_their_column(
        self,
        plant: Callable[..., Planted],
        path: str,
        foreign_key: dict[str, Any],
        related: dict[str, Any] | None,
    ) -> None:
        db = SQLAlchemy()
        invoice = invoices(db, **foreign_key)
        of_client = {} if related is None else {"invoices": relationship(invoice, **related)}
        planted = plant("hard", path, db=db, **of_client)
        planted.run(INVOICE)
        planted.refuses("hard", "invoices.client_id")
        if "lazy" not in (related or {}):  # the mapping itself is wrong
            planted.run("DELETE FROM invoices")
            assert planted.act("hard")[0] == 200

    @pytest.mark.parametrize("path", BOTH)
    def test_of_a_foreign_key_of_two_columns_both_are_named(
        self, plant: Callable[..., Planted], path: str
    ) -> None:
        db = SQLAlchemy()
        columns = [sa.Column(name, sa.String(190)) for name in ("client_id", "client_name")]
        refers = sa.ForeignKeyConstraint(["client_id", "client_name"], ["clients.id", "clients.name"])
        db.Table("visits", *columns, refers)
        id, name = mapped_column(sa.String(190), primary_key=True), mapped_column(sa.String(190))
        unique = (sa.UniqueConstraint("id", "name"),)
        planted = plant("hard", path, db=db, id=id, name=name, __table_args__=unique)
        planted.run("INSERT INTO visits VALUES ('acme', 'Acme')")
        planted.refuses("hard", "visits.client_id", "visits.client_name")

    def test_of_a_write_only_relationship_through_a_table_that_tables_column_is_named(
        self, plant: Callable[..., Planted]
    ) -> None:
        db = SQLAlchemy()
        columns = [
            sa.Column(f"{name}_id", sa.ForeignKey(f"{name}s.id"), primary_key=True)
            for name in ("client", "tag")
        ]
        tagged = db.Table("tagged", *columns)
        tag = type(
            "Tag", (db.Model,), {"__tablename__": "tags", "id": mapped_column(sa.Integer, primary_key=True)}
        )
        planted = plant("hard", ORM[0], db=db, tags=relationship(tag, secondary=tagged, **WRITE_ONLY))
        planted.refuses("hard", "tagged.client_id")

    @pytest.mark.parametrize("path", BOTH)
    def test_those_that_only_the_database_knows_are_found(
        self, plant: Callable[..., Planted], path: str
    ) -> None:
        planted = plant("hard", path)
        refers = "FOREIGN KEY (of_client) REFERENCES clients (id)"
        planted.run(
            f"CREATE TABLE visits (of_client VARCHAR(255), note VARCHAR(255), {refers})",
            f"INSERT INTO visits VALUES ('acme', '{TOKEN}')",
        )
        planted.refuses("hard", "visits.of_client")

    @pytest.mark.parametrize("database_url", [S], indirect=True)
    @pytest.mark.parametrize("path", BOTH)
    def test_a_foreign_key_to_what_is_not_unique_is_a_409(
        self, plant: Callable[..., Planted], path: str
    ) -> None:
        planted = plant("hard", path)
        planted.run("CREATE TABLE visits (of_client VARCHAR(255) REFERENCES clients (name))")
        planted.refuses("hard", "clients")  # whoever visits
        planted.run("PRAGMA foreign_keys=OFF", "INSERT INTO visits VALUES ('Acme')")
        planted.refuses("hard", "visits.of_client")

    @pytest.mark.parametrize("database_url", [P, S], indirect=True)
    @pytest.mark.parametrize("warns", [False, True])
    @pytest.mark.parametrize(("event", "related"), [("UPDATE", {}), ("DELETE", OWNED)])
    def test_one_that_a_trigger_keeps_is_a_409(
        self,
        request: pytest.FixtureRequest,
        plant: Callable[..., Planted],
        event: str,
        related: dict[str, Any],
        warns: bool,
    ) -> None:
        if warns:
            request.node.add_marker(pytest.mark.filterwarnings("ignore:DELETE statement"))
        db = SQLAlchemy()
        planted = plant("hard", "listeners", db=db, invoices=relationship(invoices(db), **related))
        does = {P: "RETURN NULL;", S: "SELECT RAISE(IGNORE);"}[planted.kind]
        planted.run(INVOICE, *trigger(planted.kind, f"BEFORE {event} ON invoices", does))
        planted.refuses("hard")
        planted.run(UNDO[planted.kind])
        assert planted.act("hard")[0] == 200


@pytest.mark.parametrize("path", BOTH)
class TestOtherConstraints:
    @pytest.mark.parametrize(
        ("action", "holds"), [("soft", "status OR name = ''"), ("restore", "NOT status OR name = ''")]
    )
    def test_a_check_that_the_new_status_breaks_is_a_409(
        self, plant: Callable[..., Planted], path: str, action: str, holds: str
    ) -> None:
        planted = plant(action, path, __table_args__=(sa.CheckConstraint(holds),))
        planted.refuses(action, "clients")
        planted.run("UPDATE clients SET name = ''")
        assert planted.act(action)[0] == 200

    @pytest.mark.parametrize("database_url", [P, M], indirect=True)
    @pytest.mark.parametrize("action", ALL)
    def test_a_check_that_the_record_breaks_is_a_409(
        self, plant: Callable[..., Planted], path: str, action: str
    ) -> None:
        planted = plant(action, path)
        planted.run("ALTER TABLE client_deletions ADD CONSTRAINT known CHECK (actor <> 'tests')")
        planted.refuses(action, "clients")

    @pytest.mark.parametrize("database_url", [P, S], indirect=True)
    def test_what_is_unique_among_the_active_and_taken_is_a_409(
        self, plant: Callable[..., Planted], path: str
    ) -> None:
        planted = plant("restore", path)
        planted.host.add(id="other", api_token=TOKEN)
        planted.run("CREATE UNIQUE INDEX one ON clients (api_token) WHERE status")
        planted.refuses("restore", "clients")


RAISES = {
    P: {
        "raise": f"RAISE EXCEPTION '{TOKEN}' USING DETAIL = '{TOKEN}';",
        "of its own": f"RAISE EXCEPTION '{TOKEN}' USING ERRCODE = 'UE001';",
        "unhandled": f"RAISE EXCEPTION '{TOKEN}' USING ERRCODE = '45000';",
        "as a check": f"RAISE EXCEPTION '{TOKEN}' USING ERRCODE = 'check_violation';",
        "assert": f"ASSERT false, '{TOKEN}';",
        "division by zero": "PERFORM 1 / 0;",
        "no number": f"PERFORM CAST(concat('{TOKEN}') AS integer);",
    },
    M: {
        "signal": f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{TOKEN}';",
        "of its own": f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{TOKEN}', MYSQL_ERRNO = 31001;",
        "division by zero": "INSERT INTO audits VALUES (1 / 0);",
        "too long": f"INSERT INTO audits VALUES (REPEAT('{TOKEN}', 255));",
        "its own table": "UPDATE clients SET changes = 1;",
    },
    S: {how: f"SELECT RAISE({how}, '{TOKEN}');" for how in ("ABORT", "FAIL", "ROLLBACK")},
}


def raising(*kinds: str) -> pytest.MarkDecorator:
    """Parametrise with what triggers of the databases raise."""
    rows = [(kind, name, does) for kind in kinds for name, does in RAISES[kind].items()]
    cases = [pytest.param(kind, does, id=f"{kind}-{name}") for kind, name, does in rows]
    return pytest.mark.parametrize(("database_url", "does"), cases, indirect=["database_url"])


class TestTriggersThatRaise:
    @raising(P, M, S)
    @pytest.mark.parametrize("path", BOTH)
    @pytest.mark.parametrize("action", ALL)
    def test_it_is_a_409_until_they_are_gone(
        self, plant: Callable[..., Planted], path: str, action: str, does: str
    ) -> None:
        planted = plant(action, path)
        planted.run(*trigger(planted.kind, f"BEFORE {EVENTS[action]} ON clients", does))
        planted.refuses(action, "clients")
        planted.run(UNDO[planted.kind])
        assert planted.act(action)[0] == 200

    @raising(P, S)  # on MariaDB a foreign key calls no trigger
    @pytest.mark.parametrize("path", BOTH)
    def test_also_where_the_database_takes_a_row_along(
        self, plant: Callable[..., Planted], path: str, does: str
    ) -> None:
        planted = plant("hard", path)
        made = trigger(planted.kind, "BEFORE DELETE ON orders", does)
        planted.run("INSERT INTO orders VALUES ('acme')", *made)
        # A constraint's code leads to the rows that refer; SQLite says so itself of a FAIL beneath a cascade.
        planted.refuses("hard", "orders.client_id" if "FAIL" in does or "check" in does else "clients")
        planted.run(UNDO[planted.kind])
        assert planted.act("hard")[0] == 200

    def test_also_where_the_orm_takes_a_row_along(self, plant: Callable[..., Planted]) -> None:
        db = SQLAlchemy()
        planted = plant("hard", db=db, invoices=relationship(invoices(db), **OWNED))
        does = next(iter(RAISES[planted.kind].values()))
        planted.run(INVOICE, *trigger(planted.kind, "BEFORE DELETE ON invoices", does))
        planted.refuses("hard", "clients")

    @pytest.mark.parametrize(
        ("database_url", "does", "told"),
        [
            (P, f"PERFORM {TOKEN}();", "psycopg.errors.UndefinedFunction 42883"),
            (M, f"CALL {TOKEN}();", "pymysql.err.OperationalError 1305"),
            (S, f"SELECT {TOKEN}();", "sqlite3.OperationalError SQLITE_ERROR"),
        ],
        indirect=["database_url"],
        ids=EVERYWHERE,
    )
    @pytest.mark.parametrize("path", BOTH)
    @pytest.mark.parametrize("action", ["soft", "hard"])
    def test_what_is_not_understood_is_a_503_that_tells_the_log_its_class_and_code(
        self,
        plant: Callable[..., Planted],
        log: pytest.LogCaptureFixture,
        path: str,
        action: str,
        does: str,
        told: str,
    ) -> None:
        planted = plant(action, path)
        planted.run(*trigger(planted.kind, f"BEFORE {EVENTS[action]} ON clients", does))
        before = planted.everything()
        status, body = planted.act(action)
        assert (status, body["error"]) == (503, "Service Unavailable")
        assert TOKEN not in json.dumps(body)
        assert planted.everything() == before
        (line,) = [record.getMessage() for record in log.records]
        assert "no outage" in line
        assert told in line

    @pytest.mark.parametrize(
        ("database_url", "does"),
        [
            (P, f"RAISE EXCEPTION '{TOKEN}' USING ERRCODE = 'query_canceled', DETAIL = '{TOKEN}';"),
            (M, f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{TOKEN}', MYSQL_ERRNO = 1317;"),
        ],
        indirect=["database_url"],
        ids=[P, M],
    )
    def test_where_they_pretend_an_outage_their_text_is_not_logged(
        self, plant: Callable[..., Planted], log: pytest.LogCaptureFixture, does: str
    ) -> None:
        planted = plant("hard")
        planted.run(*trigger(planted.kind, "BEFORE DELETE ON clients", does))
        assert planted.act("hard")[0] in (409, 503)
        assert TOKEN not in log.text


@pytest.mark.parametrize("database_url", [P], indirect=True)
@pytest.mark.parametrize("action", CHANGES)
def test_a_rule_that_cannot_return_what_the_orm_asks_for_is_a_409(
    plant: Callable[..., Planted], action: str
) -> None:
    stamped = mapped_column(sa.Integer, server_default="0", onupdate=sa.literal_column("1 + 1"))
    planted = plant(action, "listeners", stamped=stamped, __mapper_args__={"eager_defaults": True})
    planted.run("CREATE RULE act AS ON UPDATE TO clients DO INSTEAD NOTHING")
    planted.refuses(action, "clients")


@pytest.mark.parametrize("database_url", [P, M], indirect=True)
@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("action", "grants"),
    [
        ("hard", {"clients": "SELECT, UPDATE"}),
        *((action, {"clients": "SELECT, DELETE"}) for action in CHANGES),
        *((action, {"client_deletions": "SELECT, UPDATE"}) for action in ALL),
    ],
)
def test_a_privilege_that_the_user_lacks_is_a_409_until_it_is_granted(
    plant: Callable[..., Planted], path: str, action: str, grants: dict[str, str]
) -> None:
    owner = plant(action)
    with tenant(owner, path, **grants) as planted:
        planted.refuses(action, "clients")
        owner.run(*(f"GRANT ALL ON {table} TO tenant" for table in grants))
        assert planted.act(action)[0] == 200
