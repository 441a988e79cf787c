"""What the database did is looked at, not assumed: whatever keeps a row as it was makes it a 409."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import mapped_column

from flask_mythic_clients import MythicClientsError, wire
from flask_mythic_clients.backends.memory import MemoryStore

from ..hosts import Host, client_model, contents, mounting

P, M, S = "postgresql", "mariadb", "sqlite"
CHANGES, HARD, ALL = ["soft", "restore"], ["hard"], ["soft", "hard", "restore"]
# What step 1 has to heed: nothing, the listeners of the model, a function that names the entries.
PATHS = ["statement", "listeners", "entries"]
EVENTS = {"soft": "UPDATE", "restore": "UPDATE", "hard": "DELETE"}
TOKEN = "s3cret"
KEYS = ["client:acme", f"token:{TOKEN}"]


def make(
    mount: Callable[..., Host], path: str = "statement", db: SQLAlchemy | None = None, **attributes: Any
) -> Host:
    """Mount a client with a key of its own, orders that go with it, and a table that triggers write to."""
    db = db or SQLAlchemy()
    db.Table("audits", sa.Column("said", sa.String(255)))
    db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id", ondelete="CASCADE")))
    token, changes = mapped_column(sa.String(255)), mapped_column(sa.Integer, server_default="0")
    model = client_model(db, api_token=token, changes=changes, **attributes)
    for event in ("before_update", "before_delete") if path == "listeners" else ():
        sa.event.listen(model, event, lambda *_: None)
    if path == "entries":
        return mount(db=db, model=model, entries=entries)
    return mount(db=db, model=model, config={"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "token:{api_token}"]})


def entries(row: Any) -> dict[str, str | None]:
    """Name the entries that the templates name."""
    return dict.fromkeys([f"client:{row.id}", *([f"token:{row.api_token}"] if row.api_token else [])])


@dataclass(frozen=True)
class Planted:
    """A host with the client `acme`, and its entries."""

    host: Host
    store: MemoryStore

    @property
    def kind(self) -> str:
        """The database's kind."""
        with self.host.flask.app_context():
            return self.host.db.engine.name

    def run(self, *statements: str) -> None:
        """Execute the statements, as a migration of the host's would."""
        with self.host.flask.app_context(), self.host.db.engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def act(self, action: str) -> tuple[int, Any]:
        """Return the status and the body of the answer; for a restore, those of its outcome."""
        if action != "restore":
            answer = self.host.delete("acme?hard=true" if action == "hard" else "acme")
            return answer.status_code, answer.json
        with self.host.flask.app_context():
            try:
                self.host.clients.service.restore("acme", actor="tests")
            except MythicClientsError as error:
                body = wire.refusal(error)
                return body["code"], body
        return 200, {}

    def everything(self) -> Any:
        """Read both stores, also the tables that no model knows."""
        with self.host.flask.app_context(), self.host.db.engine.connect() as connection:
            unknown = set(sa.inspect(connection).get_table_names()) - set(self.host.model.metadata.tables)
            rows = {name: connection.execute(sa.text(f"SELECT * FROM {name}")).all() for name in unknown}
        return contents(self.host, self.store, *KEYS), rows

    def refuses(self, action: str, *names: str) -> None:
        """Check for a 409 that names these, tells no value, and changes nothing in either store."""
        before = self.everything()
        status, body = self.act(action)
        assert (status, list(body)) == (409, ["error", "message", "code"])
        assert (body["error"], body["code"]) == ("Conflict", 409)
        assert set(names) <= set(re.findall(r"[\w.]*\w", body["message"]))
        assert TOKEN not in json.dumps(body)
        assert self.everything() == before
        if action in ("soft", "hard"):
            with self.host.flask.app_context():
                preview = self.host.clients.service.preview("acme", hard=action == "hard", actor="tests")
            # The hint may tell more, for the preview always looks row by row.
            assert (preview.refused or "").partition(" Look at")[0] == body["message"].partition(" Look at")[
                0
            ]
            assert self.everything() == before


def planting(
    mount: Callable[..., Host], store: MemoryStore, action: str, *path: str, **options: Any
) -> Planted:
    """Make a host, and the client as the action is to find it."""
    planted = Planted(make(mount, *path, **options), store)
    planted.host.add(id="acme", name="Acme", api_token=TOKEN, status=action != "restore")
    for key in KEYS:
        store.set(key, "value", ex=1000)
    return planted


@pytest.fixture
def plant(mount: Callable[..., Host], store: MemoryStore) -> Callable[..., Planted]:
    return partial(planting, mount, store)


def trigger(kind: str, when: str, does: str) -> list[str]:
    """Return the statements that make the trigger `act`, for each row unless it says otherwise."""
    head = when if "FOR EACH" in when else f"{when} FOR EACH ROW"
    if kind != P:
        return [f"CREATE TRIGGER act {head} BEGIN {does} END"]
    what = "CONSTRAINT TRIGGER" if "DEFERRABLE" in when else "TRIGGER"
    function = f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does} END $$"
    return [function, f"CREATE {what} act {head} EXECUTE FUNCTION act()"]


UNDO = {P: "DROP FUNCTION act CASCADE", M: "DROP TRIGGER act", S: "DROP TRIGGER act"}
TENANT = {
    P: (
        ["CREATE ROLE tenant LOGIN PASSWORD 'tenant'", "GRANT USAGE ON SCHEMA public TO tenant"],
        ["GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO tenant"],
        ["DROP OWNED BY tenant", "DROP ROLE tenant"],
    ),
    M: (["CREATE USER tenant IDENTIFIED BY 'tenant'"], [], ["DROP USER tenant"]),
}


@contextmanager
def tenant(owner: Planted, path: str, **grants: str) -> Iterator[Planted]:
    """Connect the same host as a user who owns no table; grants are of all on each but those named."""
    with owner.host.flask.app_context():
        url = owner.host.db.engine.url
    makes, lets, drops = TENANT[owner.kind]
    tables = dict.fromkeys(["clients", "client_deletions", "audits", "orders"], "ALL") | grants
    owner.run(*makes)
    try:
        owner.run(*lets, *(f"GRANT {what} ON {table} TO tenant" for table, what in tables.items()))
        as_tenant = url.set(username="tenant", password="tenant").render_as_string(hide_password=False)
        with mounting(as_tenant, owner.store) as mount:
            yield Planted(make(mount, path), owner.store)
    finally:
        owner.run(*drops)


SEEN = "INSERT INTO audits VALUES ('seen');"
SKIP = {P: f"{SEEN} RETURN NULL;", S: f"{SEEN} SELECT RAISE(IGNORE);"}
AFTER = {P: "RETURN NULL;", M: "", S: ""}
_BACK = f"{SEEN} INSERT INTO clients (id, name, status, api_token) VALUES "
BACK = f"{_BACK} (OLD.id, OLD.name, OLD.status, OLD.api_token);"
BACK_WITH_ORDER = f"{_BACK} (OLD.client_id, '', true, NULL);"
BACK_WITH_RECORD = f"{_BACK} (NEW.client_id, '', true, NULL);"
TURNED_WITH_RECORD = f"{SEEN} UPDATE clients SET status = NOT status WHERE id = NEW.client_id;"
SET_BACK = f"{SEEN} UPDATE clients SET status = OLD.status, changes = changes + 1 WHERE id = OLD.id;"
# It is called for its own change, too.
SET_BACK_ONCE = f"IF NEW.changes = OLD.changes THEN {SET_BACK} END IF; RETURN NULL;"
AT_COMMIT = "DEFERRABLE INITIALLY DEFERRED"

# What keeps a row: the database, the actions, a name, when the trigger is called, what it does.
TRIGGERS = [
    *((kind, HARD, "skips", "BEFORE DELETE ON clients", SKIP[kind]) for kind in (P, S)),
    *((kind, HARD, "puts back", "AFTER DELETE ON clients", BACK + AFTER[kind]) for kind in (P, S)),
    (P, HARD, "puts back at commit", f"AFTER DELETE ON clients {AT_COMMIT}", BACK + AFTER[P]),
    *((kind, HARD, "order", "AFTER DELETE ON orders", BACK_WITH_ORDER + AFTER[kind]) for kind in (P, S)),
    *((kind, CHANGES, "skips", "BEFORE UPDATE ON clients", SKIP[kind]) for kind in (P, S)),
    (P, CHANGES, "keeps", "BEFORE UPDATE ON clients", f"{SEEN} NEW.status := OLD.status; RETURN NEW;"),
    (M, CHANGES, "keeps", "BEFORE UPDATE ON clients", f"{SEEN} SET NEW.status = OLD.status;"),
    (P, CHANGES, "sets back", "AFTER UPDATE ON clients", SET_BACK_ONCE),
    (S, CHANGES, "sets back", "AFTER UPDATE ON clients", SET_BACK),
    (P, CHANGES, "sets back at commit", f"AFTER UPDATE ON clients {AT_COMMIT}", SET_BACK_ONCE),
    *((kind, ALL, "no record", "BEFORE INSERT ON client_deletions", SKIP[kind]) for kind in (P, S)),
    *(
        (kind, actions, "record", "AFTER INSERT ON client_deletions", does + AFTER[kind])
        for kind in (P, M)
        for actions, does in ((HARD, BACK_WITH_RECORD), (CHANGES, TURNED_WITH_RECORD))
    ),
]
ONCE_A_STATEMENT = [
    *trigger(P, "BEFORE DELETE ON clients FOR EACH STATEMENT", f"{SEEN} RETURN NULL;"),
    "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE TRIGGER skip BEFORE DELETE ON clients FOR EACH ROW EXECUTE FUNCTION skip()",
]
RULES = [
    (HARD, "DELETE TO clients DO INSTEAD NOTHING"),
    (HARD, "DELETE TO clients WHERE OLD.id = 'acme' DO INSTEAD NOTHING"),
    (HARD, f"DELETE TO clients DO INSTEAD {SEEN}"),
    (HARD, "DELETE TO clients DO INSTEAD UPDATE clients SET changes = 7 WHERE id = OLD.id RETURNING OLD.*"),
    (CHANGES, "UPDATE TO clients DO INSTEAD NOTHING"),
    (ALL, "INSERT TO client_deletions DO INSTEAD NOTHING"),
]
KEEPERS = [
    *((kind, actions, name, trigger(kind, *does), UNDO[kind]) for kind, actions, name, *does in TRIGGERS),
    (P, HARD, "skips and tells once", ONCE_A_STATEMENT, "DROP FUNCTION act, skip CASCADE"),
    *(
        (P, actions, rule, [f"CREATE RULE act AS ON {rule}"], f"DROP RULE act ON {rule.split()[2]}")
        for actions, rule in RULES
    ),
]


def table(rows: list[Any], names: str) -> pytest.MarkDecorator:
    """Parametrise with rows of a database, actions, a name and the rest: once for each action."""
    return pytest.mark.parametrize(
        ("database_url", "action", *names.split()),
        [
            pytest.param(kind, action, *rest, id=f"{kind}-{action}-{name}")
            for kind, actions, name, *rest in rows
            for action in actions
        ],
        indirect=["database_url"],
    )


@pytest.mark.parametrize("path", PATHS)
class TestWhatKeepsARow:
    @table(KEEPERS, "made undo")
    def test_it_is_a_409_and_nothing_has_changed_until_it_is_gone(
        self, plant: Callable[..., Planted], path: str, action: str, made: list[str], undo: str
    ) -> None:
        planted = plant(action, path)
        planted.run("INSERT INTO orders VALUES ('acme')", *made)
        planted.refuses(action, "clients")
        planted.run(undo)
        assert planted.act(action)[0] == 200

    @pytest.mark.filterwarnings("ignore:DELETE statement on table")
    @pytest.mark.parametrize("database_url", [P, S], indirect=True)
    def test_also_where_the_orm_only_warns(self, plant: Callable[..., Planted], path: str) -> None:
        planted = plant("hard", path)
        planted.run(*trigger(planted.kind, "BEFORE DELETE ON clients", SKIP[planted.kind]))
        planted.refuses("hard", "clients")

    @table([row for row in TRIGGERS if row[0] == P and row[3].endswith(" ON clients")], "when does")
    def test_a_trigger_of_a_partition_is_no_less_a_trigger(
        self, plant: Callable[..., Planted], path: str, action: str, when: str, does: str
    ) -> None:
        parts = sa.DDL("CREATE TABLE part PARTITION OF clients FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
        by_id = {"postgresql_partition_by": "HASH (id)", "listeners": [("after_create", parts)]}
        planted = plant(action, path, __table_args__=by_id)
        planted.run(*trigger(P, when.replace("clients", "part"), does))
        planted.refuses(action, "clients")

    @pytest.mark.parametrize("database_url", [P], indirect=True)
    @pytest.mark.parametrize("action", ALL)
    def test_of_two_rows_by_one_id_neither_is_changed(
        self, plant: Callable[..., Planted], path: str, action: str
    ) -> None:
        """As a table may have that inherits the clients'."""
        planted = plant(action, path)
        heirs = ["CREATE TABLE heirs () INHERITS (clients)", "INSERT INTO heirs SELECT * FROM ONLY clients"]
        planted.run(*heirs)
        planted.refuses(action, "clients")


POLICIES = {"SELECT": "(true)", "UPDATE": "(true)", "DELETE": "(true)"}


@pytest.mark.parametrize("database_url", [P], indirect=True)
@pytest.mark.parametrize("path", PATHS)
class TestRowLevelSecurity:
    def guarded(self, plant: Callable[..., Planted], action: str, **policies: str) -> Planted:
        """Make a client whose table has policies; an empty one is none."""
        owner: Planted = plant(action)
        made = [
            f"CREATE POLICY may_{command} ON clients FOR {command} USING {using}"
            for command, using in (POLICIES | policies).items()
            if using
        ]
        owner.run("ALTER TABLE clients ENABLE ROW LEVEL SECURITY", *made)
        return owner

    @pytest.mark.parametrize(
        ("action", "using"),
        [
            *((action, using) for action in ALL for using in ("", "(id <> 'acme')")),
            *((action, "(true) WITH CHECK (changes = 1)") for action in CHANGES),
        ],
    )
    def test_a_row_that_may_be_read_and_not_changed_is_a_409(
        self, plant: Callable[..., Planted], path: str, action: str, using: str
    ) -> None:
        owner = self.guarded(plant, action, **{EVENTS[action]: using})
        with tenant(owner, path) as planted:
            planted.refuses(action, "clients")
            owner.run("ALTER TABLE clients DISABLE ROW LEVEL SECURITY")
            assert planted.act(action)[0] == 200

    def test_a_row_that_may_be_removed_and_not_updated_is_not_called_absent(
        self, plant: Callable[..., Planted], path: str
    ) -> None:
        owner = self.guarded(plant, "hard", UPDATE="")
        with tenant(owner, path) as planted:
            status, _ = planted.act("hard")
        assert (status, len(owner.host.rows())) in [(200, 0), (409, 1)]


@pytest.mark.parametrize("database_url", [P, S], indirect=True)
@pytest.mark.parametrize("action", ALL)
def test_where_a_trigger_skips_the_stamp_of_a_record_its_entries_are_not_called_done(
    plant: Callable[..., Planted], store: MemoryStore, action: str
) -> None:
    planted = plant(action)
    planted.run(*trigger(planted.kind, "BEFORE UPDATE ON client_deletions", SKIP[planted.kind]))
    assert planted.act(action)[0] == 503 or store.get(KEYS[0]) != "value"
    planted.run(UNDO[planted.kind])
    assert planted.act(action)[0] == 200
    assert store.get(KEYS[0]) != "value"


COUNTS = {
    P: ("BEFORE UPDATE ON clients", "NEW.changes := OLD.changes + 1; RETURN NEW;"),
    M: ("BEFORE UPDATE ON clients", "SET NEW.changes = OLD.changes + 1;"),
    S: ("AFTER UPDATE ON clients", "UPDATE clients SET changes = changes + 1 WHERE id = OLD.id;"),
}
CLEARS = {
    P: ("BEFORE UPDATE ON clients", "NEW.api_token := NULL; RETURN NEW;"),
    M: ("BEFORE UPDATE ON clients", "SET NEW.api_token = NULL;"),
    S: ("AFTER UPDATE ON clients", "UPDATE clients SET api_token = NULL WHERE id = OLD.id;"),
}
# And how often the audit is written to, and the changes are counted.
HARMLESS = [
    *((kind, CHANGES, "counts", trigger(kind, *COUNTS[kind]), 0, 1) for kind in (P, M, S)),
    *(
        (kind, [action], "tells", trigger(kind, f"AFTER {event} ON clients", SEEN + AFTER[kind]), 1, 0)
        for kind in (P, M, S)
        for action, event in EVENTS.items()
    ),
    *(
        (P, [action], f"tells {when}", trigger(P, f"AFTER {event} ON clients {when}", SEEN + AFTER[P]), 1, 0)
        for when in (AT_COMMIT, "FOR EACH STATEMENT")
        for action, event in EVENTS.items()
    ),
    *(
        (P, [action], "also", [f"CREATE RULE act AS ON {event} TO clients DO ALSO {SEEN}"], 1, 0)
        for action, event in EVENTS.items()
    ),
]


class TestWhatForbidsNothing:
    @table(HARMLESS, "made told changes")
    @pytest.mark.parametrize("path", PATHS)
    def test_it_is_a_200_and_what_the_database_does_beside_is_done_once(
        self, plant: Callable[..., Planted], path: str, action: str, made: list[str], told: int, changes: int
    ) -> None:
        planted = plant(action, path)
        planted.run(*made)
        assert planted.act(action)[0] == 200
        tables, _ = contents(planted.host, planted.store)
        assert len(tables["audits"]) == told
        expected = [] if action == "hard" else [(action == "restore", changes)]
        assert [(row.status, row.changes) for row in planted.host.rows()] == expected
        records = planted.host.records("acme")
        assert [(record.action.value, record.kv_keys) for record in records] == [(action, tuple(KEYS))]

    @pytest.mark.parametrize("path", PATHS)
    def test_a_key_that_a_trigger_clears_is_recorded_as_it_was(
        self, plant: Callable[..., Planted], store: MemoryStore, path: str
    ) -> None:
        planted = plant("soft", path)
        planted.run(*trigger(planted.kind, *CLEARS[planted.kind]))
        assert planted.act("soft")[0] == 200
        assert [(row.status, row.api_token) for row in planted.host.rows()] == [(False, None)]
        assert [record.kv_keys for record in planted.host.records("acme")] == [tuple(KEYS)]
        assert store.get(KEYS[1]) is None

    @pytest.mark.parametrize("path", PATHS[:2])
    @pytest.mark.parametrize("action", ["soft", "hard"])
    def test_of_many_at_once_none_is_refused(
        self, plant: Callable[..., Planted], mount: Callable[..., Host], path: str, action: str
    ) -> None:
        first = plant(action, path)
        kind = first.kind
        first.run(*trigger(kind, f"AFTER {EVENTS[action]} ON clients", SEEN + AFTER[kind]))
        # As in four processes: in one they take turns.
        all_of_them = [first, *(Planted(make(mount, path), first.store) for _ in range(3))] * 4
        with ThreadPoolExecutor(16) as pool:
            answers = Counter(status for status, _ in pool.map(Planted.act, all_of_them, [action] * 16))
        assert answers[200] >= 1
        assert set(answers) <= {200, 503} | ({404} if action == "hard" else set())
        assert len(first.host.records("acme")) == 1
        tables, _ = contents(first.host, first.store)
        assert len(tables["audits"]) == 1
