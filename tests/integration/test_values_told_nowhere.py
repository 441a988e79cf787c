"""No key, value or column of a client is told where something fails: a search at every door, in every log.

Its id is no secret. What the host's own code says of its clients is the host's.
"""

import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import mapped_column, relationship

from flask_mythic_clients import ClientNotFoundError, MythicClientsError, client_soft_deleted
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from tests.campaigns.proxy import Cut, Proxy
from tests.conftest import FindServer
from tests.hosts import Host, KeyValue, client_model, mounting
from tests.servers import START, Server

from .scene import AWAY, Tap, hung_server, nothing

pytestmark = pytest.mark.server

PART = 10  # characters; so many of a marker in a row do not occur by chance
MARKERS = TOKEN, NAME, VALUE = "tok9f3kq7ztw2xlmv8b", "nam4hd6rj1yc5gpe0us", "val8m2xqn7kb3wt5zr1"
PARTS = {text[at : at + PART]: text[:3] for text in MARKERS for at in range(len(text) - PART + 1)}
MARKED = re.compile("|".join(PARTS), re.IGNORECASE)
KINDS = SQLITE, POSTGRESQL, MARIADB = "sqlite", "postgresql", "mariadb"


def searched(where: str, text: str) -> list[str]:
    """Tell where in a text parts of the markers are, and not the text."""
    found = {PARTS[match[0].lower()]: match.start() for match in MARKED.finditer(text)}
    return [f"{where}: {what}… at {at} of {len(text)} characters" for what, at in found.items()]


def test_a_part_of_a_marker_would_be_found() -> None:
    for text in MARKERS:
        for part in (text, text[:PART], text[-PART:], text[5 : 5 + PART].upper()):
            assert [told[:13] for told in searched("here", f"a (…{part}…")] == [f"here: {text[:3]}… at"]
    assert searched("here", "acme client:acme token:") == []


class Doors:
    """A host's doors, with ears: `found` tells where a marker was, `told` what a failure was called."""

    def __init__(self, host: Host, caplog: Any, capfd: Any, hosts_own: type[Exception] | None) -> None:
        self._host, self._caplog, self._capfd = host, caplog, capfd
        self._hosts_own = hosts_own  # what it raises, Flask tells
        self.found: list[str] = []
        self.told: dict[str, list[str]] = {"DELETE": [], "command": [], "call": []}
        self.lines = ""  # all that was logged

    def http(self, path: str) -> int:
        """Send DELETE."""
        with self._at(f"DELETE {path}") as told:
            answer = self._host.delete(path)
            told("the response", f"{answer.status} {answer.headers} {answer.get_data(as_text=True)}")
        return int(answer.status_code)

    def command(self, command: str) -> int:
        """Run a command; what it prints on request, it may print."""
        with self._at(command) as told:
            result = self._host.flask.test_cli_runner().invoke(args=["mythic-clients", *command.split()])
            if command.partition(" ")[0] not in ("list", "history") and "--dry-run" not in command:
                told("stdout", result.stdout)
            told("stderr", result.stderr)
            self._raised(result.exception, told)
            if result.exit_code == 3:
                self.told["command"].append(result.stderr)
        return result.exit_code

    def call(self, name: str, *arguments: Any, **options: Any) -> None:
        """Call the service, as a host's job would."""
        with self._at(f"{name}()") as told, self._host.flask.app_context():
            try:
                result = getattr(self._host.clients.service, name)(*arguments, **options)
                told("the repr", repr(list(result) if isinstance(result, Iterator) else result))
            except Exception as error:
                self._raised(error, told)
                if isinstance(error, MythicClientsError) and not isinstance(error, ClientNotFoundError):
                    self.told["call"].append(f"{error} ({error.__cause__})")

    def all(self) -> tuple[int, int]:
        """Go through all doors; return the statuses of a soft and of a hard delete."""
        soft = self.http("acme")
        self.command("delete acme")
        self.call("soft_delete", "acme", actor="tests")
        self.command("restore globex")
        self.call("restore", "globex", actor="tests")
        for command in ("status", "list", "history acme", "delete --dry-run acme", "reconcile"):
            self.command(command)
        for name in ("backlog", "pending", "clients", "reconcile"):
            self.call(name)
        self.call("history", "globex")
        self.call("preview", "acme", hard=True)
        hard = self.http("acme?hard=true")
        self.command("delete --hard --yes acme")
        self.call("hard_delete", "acme", actor="tests")
        self.command("reconcile --json")
        return soft, hard

    def fail(self, statuses: tuple[int, int], name: str) -> None:
        """Go through all doors; a soft and a hard delete have these statuses."""
        answered = self.all()
        self.judge(name, *(self.told if 503 in statuses else ["call"]))
        assert answered == statuses

    def judge(self, name: str, *doors: str) -> None:
        """Check that no marker was found, and that what failed was named at these doors, and at no other."""
        assert self.found == []
        assert [door for door, told in self.told.items() if told] == list(doors)
        assert [line for told in self.told.values() for line in told if not re.search(name, line)] == []

    def _raised(self, error: BaseException | None, told: Callable[[str, str], None]) -> None:
        if error is None or (self._hosts_own and isinstance(error, self._hosts_own)):
            return
        told(f"the traceback of {type(error).__name__}", "".join(traceback.format_exception(error)))
        link: BaseException | None = error
        while link is not None:
            told(f"{type(error).__name__}, in it {type(link).__name__}", f"{link!s} {link!r}")
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)

    @contextmanager
    def _at(self, door: str) -> Iterator[Callable[[str, str], None]]:
        def told(where: str, text: str) -> None:
            self.found += searched(f"{door}, {where}", text)

        self._caplog.clear()
        yield told
        for record in self._caplog.records:
            line = logging.Formatter().format(record)
            self.lines += f"{line}\n"
            if not (self._hosts_own and record.name == "host"):
                told(f"log of {record.name} ({record.filename}:{record.lineno})", f"{line} {record.args!r}")
            if line.startswith("503: "):
                self.told["DELETE"].append(line)
        for name, text in zip(("stdout", "stderr"), self._capfd.readouterr(), strict=True):
            told(f"{name} of the process", text)


class Stage(NamedTuple):
    """A host with two clients, marked everywhere; `globex` is soft-deleted, and its record is pending."""

    host: Host
    tap: Tap
    raw: Any
    doors: Doors

    def cache(self, id: str) -> None:
        """Write the entries, as a reader does."""
        self.raw.mset({f"client:{id}": VALUE, f"token:{TOKEN}-{id}": VALUE})

    def execute(self, *statements: str) -> None:
        """Change the database, as its owner does."""
        with self.host.flask.app_context(), self.host.db.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


Make = Callable[..., Stage]
Attributes = Callable[[SQLAlchemy], dict[str, Any]]


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture) -> None:
    """Everybody logs all there is, but for SQLAlchemy's engine: who asks for its, asks for values."""
    caplog.set_level(logging.DEBUG)
    for name in {"host", "redis", "sqlalchemy.pool", "sqlalchemy.orm", *logging.root.manager.loggerDict}:
        if name != "sqlalchemy" and not name.startswith("sqlalchemy.engine"):
            caplog.set_level(logging.DEBUG, logger=name)


@pytest.fixture
def make(loud: None, empty_database: Any, empty_kv: Any, caplog: Any, capfd: Any) -> Iterator[Make]:
    """Make stages on an empty database of a kind, or at a URL; `own` is what the host itself raises."""

    def entry_values(row: Any) -> dict[str, Any]:
        return {f"client:{row.id}": f"{VALUE} {row.status}", f"token:{row.api_token}": VALUE}

    def make(
        database: str, *listened: str, attributes: Attributes = lambda db: {}, own: Any = None, **options: Any
    ) -> Stage:
        url = database if ":" in database else empty_database(database)
        db, kv, tap = SQLAlchemy(), empty_kv("either"), Tap(AWAY)
        token = mapped_column(sa.String(64), unique=True)
        model = client_model(db, **{"api_token": token, "entry_values": entry_values, **attributes(db)})
        for event in listened:
            sa.event.listen(model, event, lambda *_: None)
        config: dict[str, Any] = {"PROPAGATE_EXCEPTIONS": False}
        if "entries" not in options:
            config["MYTHIC_CLIENTS_KV_KEYS"] = ["client:{id}", "token:{api_token}"]
        host = mount(url, tap, db=db, model=model, config=config, **options)
        stage = Stage(host, tap, kv.raw, Doors(host, caplog, capfd, own))
        for id in ("acme", "globex"):
            host.add(id=id, name=f"{NAME}-{id}", api_token=f"{TOKEN}-{id}")
            stage.cache(id)
        assert host.delete("globex").status_code == 503
        tap.store = kv.store
        return stage

    with mounting() as mount:
        yield make


@pytest.fixture
def own_server(find_server: FindServer) -> Iterator[Callable[..., Server]]:
    """Start servers that may be changed and ended, for no other test uses them."""
    with ExitStack() as stack:

        def start(kind: str, *options: str) -> Server:
            find_server(kind)  # which skips where there is none
            server = START[kind](options)
            if server.process is None:
                skip = pytest.fail if os.environ.get("REQUIRE_SERVICES") else pytest.skip
                skip(f"The server from the {server.origin} is not ours to end.")
            stack.callback(server.stop)
            return server

        yield start


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_fails_nothing_is_told(make: Make, kind: str) -> None:
    """Also not by what the repository gives, nor where entries had come back."""
    stage = make(kind)
    repository = SQLAlchemyRepository(stage.host.db, stage.host.model)
    with stage.host.flask.app_context(), repository.settle(["globex"]) as held:
        assert (len(held.records), len(held.clients)) == (1, 1)
        assert searched("Holding", f"{held!r} {held.clients!r} {held.records[0]!s}") == []
    assert stage.doors.all() == (200, 200)
    stage.host.let_time_pass(3600)
    stage.cache("acme")
    assert stage.doors.command("reconcile") == 0
    assert "entries had come back" in stage.doors.lines
    assert stage.doors.found == []


INSERT = "INSERT INTO audit (token, note, number) VALUES"
AUDIT = [
    "CREATE TABLE audit (token VARCHAR(64) UNIQUE, note VARCHAR(8) NOT NULL, number INT CHECK (number > 0))",
    f"{INSERT} ('{TOKEN}', 'a', 1)",
]
CALL = {SQLITE: "SELECT", POSTGRESQL: "PERFORM", MARIADB: "SET @a ="}
# What a trigger does → the status then, and its body.
DOES = {
    "unique": (409, f"{INSERT} ('{TOKEN}', 'a', 1)"),
    "null": (409, f"{INSERT} ('{TOKEN}-new', NULL, 1)"),
    "check": (409, f"{INSERT} ('{TOKEN}-new', 'a', -1)"),
    "long": (409, f"{INSERT} ('a', '{TOKEN}', 1)"),
    "number": (409, f"{INSERT} ('a', 'a', '{TOKEN}')"),
    "table": (503, f"INSERT INTO nowhere VALUES ('{TOKEN}')"),
    "function": (503, f"{{call}} nobody_knows('{TOKEN}')"),
    "raise": (409, f"SELECT RAISE(ABORT, 'no: {TOKEN}')"),
}
# What each database calls it; "" where it has no such.
NAMES = {
    "unique": ("CONSTRAINT_UNIQUE", "UniqueViolation 23505", "Error 1062"),
    "null": ("CONSTRAINT_NOTNULL", "NotNullViolation 23502", "Error 1048"),
    "check": ("CONSTRAINT_CHECK", "CheckViolation 23514", "Error 4025"),
    "long": ("", "StringDataRightTruncation 22001", "Error 1406"),
    "number": ("", "InvalidTextRepresentation 22P02", "Error 1366"),
    "table": ("SQLITE_ERROR", "UndefinedTable 42P01", "Error 1146"),
    "column": ("SQLITE_ERROR", "UndefinedColumn 42703", "Error 1054"),
    "function": ("SQLITE_ERROR", "UndefinedFunction 42883", "Error 1305"),
    "raise": ("IntegrityError SQLITE_CONSTRAINT_TRIGGER", "", ""),
    "reference": ("FOREIGN ?KEY", "ForeignKeyViolation 23503", "Error 1451"),
    "busy": ("SQLITE_BUSY", "LockNotAvailable 55P03", "Error 1205"),
    "kept": ("let be as it was",) * 3,
    "mapping": ("InvalidRequestError",) * 3,
}
# A trigger may raise with any code, also with that of an outage.
CODES = {
    (POSTGRESQL, 409): ("P0001", "23505"),
    (POSTGRESQL, 503): ("40001", "42P01", "XX000", "08006", "53200", "57014", "58030"),
    (MARIADB, 409): ("1644", "30001"),
    (MARIADB, 503): ("1213", "1053", "1317", "1045", "1290"),
}
RAISE = {
    POSTGRESQL: f"RAISE EXCEPTION 'no: {TOKEN}' USING ERRCODE = '{{}}', DETAIL = '{NAME}'",
    MARIADB: f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {{}}, MESSAGE_TEXT = 'no: {TOKEN}'",
}
for (kind, status), codes in CODES.items():
    for code in codes:
        DOES[code] = status, RAISE[kind].format(code)
        NAMES[code] = "", *(rf"\.err(ors)?\.\w+ {code}" if kind == of else "" for of in KINDS[1:])
NAME_OF = {(what, kind): names[at] for what, names in NAMES.items() for at, kind in enumerate(KINDS)}


def triggers(kind: str, body: str, when: str = "AFTER") -> list[str]:
    """Return the statements that make triggers of the clients' table."""
    made, does = [], f"BEGIN {body}; END"
    if kind == POSTGRESQL:
        function = "CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql"
        made, does = [f"{function} AS $$ BEGIN {body}; RETURN NULL; END $$"], "EXECUTE FUNCTION act()"
    events = ("UPDATE", "DELETE")
    return made + [f"CREATE TRIGGER at_{e} {when} {e} ON clients FOR EACH ROW {does}" for e in events]


@pytest.mark.parametrize(("does", "kind"), [of for of, name in NAME_OF.items() if of[0] in DOES and name])
def test_a_trigger_that_fails_is_told_by_its_code(make: Make, does: str, kind: str) -> None:
    status, body = DOES[does]
    stage = make(kind)
    stage.execute(*AUDIT, *triggers(kind, body.format(call=CALL[kind])))
    stage.doors.fail((status, status), NAME_OF[does, kind])


@pytest.mark.parametrize("does", ["unique", "check"])
def test_psycopg2_tells_no_more(make: Make, database_by: Callable[[str], str], does: str) -> None:
    stage = make(database_by("postgresql+psycopg2"))
    stage.execute(*AUDIT, *triggers(POSTGRESQL, DOES[does][1]))
    stage.doors.fail((409, 409), rf"psycopg2\.errors\.{NAME_OF[does, POSTGRESQL]}")


def test_a_statement_that_took_too_long_is_told_by_its_code(make: Make, empty_database: Any) -> None:
    """PostgreSQL tells which, with its values."""
    stage = make(f"{empty_database(POSTGRESQL)}?options=-c%20statement_timeout%3D50")
    stage.execute(*triggers(POSTGRESQL, "EXECUTE format('SELECT pg_sleep(9), %L', OLD.api_token)"))
    stage.doors.fail((503, 503), "QueryCanceled 57014")


ORDERS = "CREATE TABLE orders (token VARCHAR(64), FOREIGN KEY (token) REFERENCES clients (api_token)"
ORDER = f"INSERT INTO orders VALUES ('{TOKEN}-acme')"
RULE = f"CREATE RULE audited AS ON UPDATE TO clients DO ALSO {INSERT} ('{TOKEN}', 'a', 1)"
LATE = "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON clients DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
RECORDS = "ALTER TABLE client_deletions ADD CONSTRAINT c CHECK"
# What was done to the database, its kinds, a soft and a hard delete's statuses, and what that is called.
CHANGES: list[tuple[list[str], tuple[str, ...], tuple[int, int], str]] = [
    ([f"{ORDERS})", ORDER], KINDS, (200, 409), "reference"),
    ([f"{ORDERS} DEFERRABLE INITIALLY DEFERRED)", ORDER], (SQLITE, POSTGRESQL), (200, 409), "reference"),
    (triggers(SQLITE, "SELECT RAISE(IGNORE)", "BEFORE"), (SQLITE,), (409, 409), "kept"),
    (triggers(POSTGRESQL, "NULL", "BEFORE"), (POSTGRESQL,), (409, 409), "kept"),
    (triggers(MARIADB, "SET NEW.status = OLD.status", "BEFORE")[:1], (MARIADB,), (409, 200), "kept"),
    ([*AUDIT, RULE], (POSTGRESQL,), (409, 200), "unique"),
    (
        [triggers(POSTGRESQL, DOES["08006"][1])[0], f"{LATE} EXECUTE FUNCTION act()"],
        *((POSTGRESQL,), (503, 200), "08006"),
    ),
    ([f"{RECORDS} (client_id <> 'acme')"], (POSTGRESQL, MARIADB), (409, 409), "check"),
    ([f"{RECORDS} (settled_at IS NULL)"], (POSTGRESQL, MARIADB), (503, 503), "check"),
    (["DROP TABLE client_deletions"], KINDS, (503, 503), "table"),
    (["ALTER TABLE clients RENAME COLUMN api_token TO token"], KINDS, (503, 503), "column"),
]
LISTENED = {"statement": (), "unit of work": ("before_update", "before_delete")}


@pytest.mark.parametrize(
    ("change", "kind", "step"),
    [
        *((change, kind, "statement") for change in CHANGES for kind in change[1]),
        *((change, kind, "unit of work") for change in CHANGES[:-2] for kind in change[1]),
    ],
    ids=lambda each: each[3] if isinstance(each, tuple) else each,
)
def test_what_the_database_forbids_or_lacks_is_told_by_its_code(
    make: Make, change: Any, kind: str, step: str
) -> None:
    statements, _, statuses, what = change
    stage = make(kind, *LISTENED[step])
    stage.execute(*statements)
    stage.doors.fail(statuses, NAME_OF[what, kind])


def orders(db: SQLAlchemy, **options: Any) -> dict[str, Any]:
    """Relate orders to the clients, which must have one."""
    key = mapped_column(sa.ForeignKey("clients.api_token"), nullable=False)
    columns = {"number": mapped_column(primary_key=True, type_=sa.Integer), "token": key}
    columns["note"] = mapped_column(sa.String(64))
    order = type("Order", (db.Model,), {"__tablename__": "orders", **columns})
    return {"orders": relationship(order, **options)}


# What a model has → a soft and a hard delete's statuses, and its attributes.
MODELS: dict[str, tuple[tuple[int, int], Attributes]] = {
    "check": ((409, 200), lambda db: {"__table_args__": (sa.CheckConstraint("status OR id <> 'acme'"),)}),
    "null": ((200, 409), orders),
    "mapping": ((200, 409), lambda db: orders(db, lazy="write_only", cascade="all, delete-orphan")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", MODELS)
def test_what_a_model_forbids_is_told_by_its_code(make: Make, what: str, kind: str) -> None:
    statuses, attributes = MODELS[what]
    stage = make(kind, "before_delete", attributes=attributes)
    if what != "check":
        stage.execute(f"INSERT INTO orders (number, token, note) VALUES (1, '{TOKEN}-acme', '{VALUE}')")
    stage.doors.fail(statuses, NAME_OF[what, kind])


def test_a_column_that_the_model_cannot_read_is_not_told(make: Make) -> None:
    plan = sa.Enum("free", "paid", native_enum=False, length=64)
    stage = make(SQLITE, attributes=lambda db: {"plan": mapped_column(plan)})
    stage.execute(f"UPDATE clients SET plan = '{VALUE}'")
    stage.doors.all()
    assert stage.doors.found == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_another_holds_is_told_by_its_code(make: Make, empty_database: Any, kind: str) -> None:
    url = empty_database(kind)
    stage = make(url)
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as holder:
        holder.exec_driver_sql("UPDATE clients SET name = 'held'")
        assert stage.doors.http("acme") == 503
        stage.doors.call("restore", "globex", actor="tests")
    stage.doors.judge(NAME_OF["busy", kind], "DELETE", "call")


@pytest.mark.parametrize("kind", [POSTGRESQL, MARIADB])
def test_a_database_that_is_killed_is_told_by_what_broke_and_later_by_its_host_and_port(
    make: Make, own_server: Callable[..., Server], kind: str
) -> None:
    server = own_server(kind)
    stage = make(server.url)
    stage.tap.before = server.kill  # between the steps
    assert stage.doors.http("acme") == 503
    stage.doors.judge(r'cause="(psycopg|pymysql)\.\S+ ', "DELETE")
    stage.doors.told["DELETE"].clear()
    stage.tap.before = nothing
    stage.doors.fail((503, 503), rf"127\.0\.0\.1\b.*\b{sa.make_url(server.url).port}\b")


def test_a_database_file_that_is_away_is_told_by_its_code(make: Make, tmp_path: Path) -> None:
    stage = make(SQLITE)
    stage.host.close()
    (tmp_path / "test.db").rename(tmp_path / "away.db")
    (tmp_path / "test.db").mkdir()
    stage.doors.fail((503, 503), "OperationalError (SQLITE_CANTOPEN|unable to open database file)")


# What the server was told → the user to come as, a soft and a hard delete's statuses, and the class.
REFUSALS = {
    "ACL SETUSER clerk on nopass ~client:* +@all": ("clerk:x@", (503, 503), "NoPermissionError"),
    "CONFIG SET maxmemory 1": ("", (503, 200), "OutOfMemoryError"),
    "REPLICAOF 127.0.0.1 1": ("", (503, 503), "ReadOnlyError"),
    "CONFIG SET requirepass s3cret": ("", (503, 503), "AuthenticationError"),
    "PING": ("clerk:wrong@", (503, 503), "AuthenticationError"),
    "--rename-command SET x --rename-command UNLINK y": ("", (503, 503), "ResponseError"),
}


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("told", REFUSALS)
def test_a_key_value_store_that_refuses_is_told_by_its_class(
    make: Make, own_server: Callable[..., Server], told: str, kind: str
) -> None:
    user, statuses, name = REFUSALS[told]
    options, command = (told.split(), "PING") if told.startswith("--") else ([], told)
    stage, server = make(SQLITE), own_server(kind, *options)
    with closing(redis.Redis.from_url(server.url)) as raw:
        raw.execute_command(*command.split())
    stage.tap.store = RedisStore.from_url(server.url.replace("//", f"//{user}"))
    stage.doors.fail(statuses, name)


@pytest.mark.parametrize("how", ["away", "hangs", "redis", "valkey"])
def test_a_key_value_store_that_does_not_answer_is_told_by_its_class(
    make: Make, empty_kv: Callable[[str], KeyValue], how: str
) -> None:
    stage = make(SQLITE)
    with ExitStack() as stack:
        if how == "away":
            stage.tap.store, name = AWAY, r"redis\.exceptions\.ConnectionError .*127\.0\.0\.1:1\b"
        elif how == "hangs":
            stage.tap.store = RedisStore.from_url(stack.enter_context(hung_server()), timeout=0.1)
            name = "TimeoutError |was not asked again"
        else:  # the connection ends in the middle
            proxy = stack.enter_context(closing(Proxy(f"{empty_kv(how).url}")))
            proxy.cut(Cut("reply", after=b"token:", connections=1_000_000))
            stage.tap.store, name = RedisStore.from_url(proxy.url), "ConnectionError "
        stage.doors.fail((503, 503), name)


@pytest.mark.parametrize("value", [{"secret": VALUE}, f"{VALUE}\ud800"], ids=["no text", "half a character"])
def test_a_value_that_cannot_be_sent_is_not_told(make: Make, value: Any) -> None:
    entry_values = {"entry_values": lambda row: {f"token:{row.api_token}": value}}
    stage = make(SQLITE, attributes=lambda db: entry_values)
    assert stage.doors.all() == (503, 200)
    assert stage.doors.found == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_hosts_rule_raises_is_logged_by_its_class_and_the_record_stays(make: Make, kind: str) -> None:
    lost: list[str] = []

    def entries(row: Any) -> dict[str, Any]:
        if lost:
            raise LookupError(f"no entries of {row.api_token}")
        return {f"token:{row.api_token}": VALUE}

    stage = make(kind, entries=entries, own=LookupError)
    lost.append("its configuration")
    assert stage.doors.command("reconcile") == 1
    for word in ("globex", "LookupError", "in entries"):
        assert word in stage.doors.lines
    assert stage.doors.command("status") == 1
    assert stage.doors.all() == (500, 500)
    assert stage.doors.found == []


def test_what_a_receiver_raises_is_logged_by_its_class(make: Make) -> None:
    def receive(_: Any, record: Any) -> None:
        raise RuntimeError(f"no hook of {record.kv_keys}")

    stage = make(SQLITE)
    with client_soft_deleted.connected_to(receive):
        assert stage.doors.all() == (200, 200)
    for word in ("mythic-client-soft-deleted", "RuntimeError", "in receive"):
        assert word in stage.doors.lines
    assert stage.doors.found == []


def test_what_a_listener_raises_is_chained_to_nothing_that_tells(make: Make) -> None:
    """The first way fails for the rule, and the second for the listener."""
    stage = make(POSTGRESQL)
    stage.execute(*AUDIT, RULE, *triggers(POSTGRESQL, DOES["unique"][1]))

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT clients"):
            raise PermissionError("not so")

    with stage.host.flask.app_context():
        sa.event.listen(stage.host.db.engine, "before_cursor_execute", listen)
    assert stage.doors.all() == (500, 500)
    assert stage.doors.found == []
