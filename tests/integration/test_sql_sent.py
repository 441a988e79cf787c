"""The statements and round trips that really go out: few, and what each of them must carry."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
import redis
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import mapped_column

from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Action
from tests.hosts import KeyValue, client_model, mounting

from .scene import AWAY, BOUNDED, CONFIG, IN_ONE, OURS, Scene, Told, WithoutValues, make_scene

ACTION = {Action.SOFT: "UPDATE", Action.HARD: "DELETE"}


@pytest.fixture
def open_scene(empty_kv: Callable[[str], KeyValue]) -> Callable[[str], Any]:
    """Client `acme` on a database; a first deletion has opened connections and filled caches."""

    @contextmanager
    def open_on(url: str, told: Told = OURS, **engine_options: Any) -> Iterator[Scene]:
        config = {**CONFIG, "SQLALCHEMY_ENGINE_OPTIONS": engine_options}
        with make_scene(url, empty_kv("either"), told, config=config) as scene:
            for action in ACTION:
                scene.add(f"first-{action}")
                scene.act(action, f"first-{action}")
            scene.add()
            yield scene

    return open_on


@contextmanager
def _sent(scene: Scene, all_engines: bool = False) -> Iterator[list[str]]:
    """List the statements and commits of the engine, with the KV call between them."""
    log: list[str] = []

    def statement(_conn: object, _cursor: object, text: str, *_: object) -> None:
        log.append(" ".join(text.split()))

    with scene.host.flask.app_context():
        engine = sa.Engine if all_engines else scene.host.db.engine
    hooks = {
        "before_cursor_execute": statement,
        "commit": lambda _: log.append("COMMIT"),
        "rollback": lambda _: log.append("ROLLBACK"),
    }
    for event, hook in hooks.items():
        sa.event.listen(engine, event, hook)
    scene.tap.before = lambda: log.append("KV")
    yield log
    for event, hook in hooks.items():
        sa.event.remove(engine, event, hook)


def _matches(log: list[str], patterns: list[str]) -> None:
    assert len(log) == len(patterns), log
    for line, pattern in zip(log, patterns, strict=True):
        assert re.match(pattern, line), (line, pattern)


@pytest.mark.parametrize("action", ACTION)
def test_postgresql_gets_one_statement_then_one_update_and_one_read_where_it_writes(
    empty_database: Callable[[str], str], open_scene: Any, action: Action
) -> None:
    with open_scene(empty_database("postgresql")) as scene, _sent(scene) as log:
        scene.act(action)
    changed = rf"WITH found AS .* changed AS \({ACTION[action]} .* RETURNING .*\), "
    changed += r"recorded AS \(INSERT INTO client_deletions .* RETURNING .*\) SELECT recorded.id"
    stamp = "UPDATE client_deletions SET settled_at"
    step_2 = [stamp, "SELECT .* FROM clients", "KV", "COMMIT"]
    if action is Action.HARD:
        step_2 = ["KV", f"{stamp}.* NOT .*EXISTS", "COMMIT"]
    _matches(log, [changed, "COMMIT", *step_2])
    assert "pg_trigger" in log[0]
    assert "BYTEA" not in log[0]  # the id is compared as it is, by its index
    assert "set_config" in next(line for line in log if line.startswith(stamp))


def test_postgresql_gets_one_statement_also_where_the_id_is_a_uuid(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    db, id = SQLAlchemy(), uuid.uuid4()
    model = client_model(db, id=mapped_column(sa.Uuid, primary_key=True))
    store = empty_kv("memory").raw
    with mounting(empty_database("postgresql"), store) as mount:
        host = mount(db=db, model=model)
        another = uuid.uuid4()
        for key in (another, id):
            host.add(id=key)
        assert host.delete(f"{another}?hard=true").status_code == 200  # it asks whether there are triggers
        statements: list[str] = []
        with host.flask.app_context():
            sa.event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        assert host.delete(f"{id}?hard=true").status_code == 200
        assert [record.kv_keys for record in host.records(f"{id}")] == [(f"client:{id}",)]
    assert statements[0].startswith("WITH found")


STEP_1, STAMP, ROW = (
    "WITH found AS .* changed AS",
    "UPDATE client_deletions SET settled_at",
    "SELECT .* FROM clients",
)
BEGIN, NEXT = "BEGIN ISOLATION LEVEL READ COMMITTED", "COMMIT AND CHAIN"
DURABLE, LEFT = "SELECT pg_logical_emit_message", "SELECT client_deletions.id FROM client_deletions"
WRITTEN_AGAIN = [[BEGIN], [f"{ROW}.* FOR SHARE"], ["COMMIT"]]
# Where no code of the host's sees the row, it is read with the rest; else the ORM loads it.
TRIPS = {
    "acme": [[BEGIN, STEP_1, NEXT, STAMP, ROW], ["COMMIT"]],
    "acme?hard=true": [[STEP_1], [STAMP]],
    "nobody?hard=true": [[STEP_1], [BEGIN, DURABLE, "COMMIT", ROW, LEFT]],
    "nobody": [[BEGIN, STEP_1, NEXT, STAMP, ROW], ["COMMIT", BEGIN, DURABLE, "COMMIT", ROW, LEFT]],
    "deleted": [
        [BEGIN, STEP_1, NEXT, STAMP, ROW],
        ["COMMIT", BEGIN, DURABLE, "COMMIT", ROW, LEFT],
        *WRITTEN_AGAIN,
    ],
}
TRIPS_OF_ORM = {
    "acme": [[BEGIN, STEP_1, NEXT, STAMP], [ROW], ["COMMIT"]],
    "acme?hard=true": [[STEP_1], [STAMP]],
    "nobody?hard=true": [[STEP_1], [BEGIN, DURABLE, "COMMIT", LEFT], [ROW]],
    "nobody": [[BEGIN, STEP_1, NEXT, STAMP], ["COMMIT", BEGIN, DURABLE, "COMMIT", LEFT], [ROW], [LEFT]],
    "deleted": [
        [BEGIN, STEP_1, NEXT, STAMP],
        ["COMMIT", BEGIN, DURABLE, "COMMIT", LEFT],
        [ROW],
        *WRITTEN_AGAIN,
    ],
}
# The unit of work: step 1 is the host's session's, then it goes on in the same way.
LOCKED, FOUND_NOBODY = f"{ROW}.* FOR UPDATE", [[BEGIN, DURABLE, "COMMIT", LEFT], [ROW]]
RECORDED = [["INSERT INTO client_deletions"], ["COMMIT"]]
TRIPS_OF_UNIT = {
    "acme": [["BEGIN"], [LOCKED], ["UPDATE clients"], *RECORDED, [BEGIN, STAMP], [ROW], ["COMMIT"]],
    "acme?hard=true": [["BEGIN"], [LOCKED], ["DELETE FROM clients"], *RECORDED, [STAMP]],
    "nobody?hard=true": [["BEGIN"], [LOCKED], [ROW], ["COMMIT"], *FOUND_NOBODY],
    "nobody": [["BEGIN"], [LOCKED], [ROW], ["COMMIT"], *FOUND_NOBODY, [LEFT]],
    "deleted": [["BEGIN"], [LOCKED], ["COMMIT"], *FOUND_NOBODY, *WRITTEN_AGAIN],
}
UNPREPARED = {"connect_args": {"prepare_threshold": None}}  # so that each statement's text is sent


def test_postgresql_locks_no_row_whose_id_is_the_beginning_of_the_one_asked_for(
    empty_database: Callable[[str], str], open_scene: Any
) -> None:
    """As a cast to the column's length would; the unit of work asks for a list of ids."""
    long = "a" * 64

    class Listened(WithoutValues):
        def map(self, db: SQLAlchemy, table: str = "clients") -> Any:
            model = super().map(db, table)
            sa.event.listen(model, "before_delete", lambda *_: None)
            return model

    with open_scene(empty_database("postgresql"), Listened()) as scene:
        scene.host.add(id=long, status=True)
        with scene.second_connection() as connection:
            connection.exec_driver_sql(f"SELECT * FROM clients WHERE id = '{long}' FOR UPDATE")
            assert scene.host.delete(f"{long}b?hard=true").status_code == 404


@pytest.mark.skipif(not hasattr(psycopg, "RawCursor"), reason="psycopg has numbered parameters since 3.2")
@pytest.mark.parametrize("path", TRIPS)
@pytest.mark.parametrize(
    ("told", "expected"),
    [(WithoutValues(), TRIPS), (OURS, TRIPS_OF_ORM), (Told(path="listeners"), TRIPS_OF_UNIT)],
    ids=str,
)
def test_psycopg_makes_few_round_trips(
    empty_database: Callable[[str], str],
    open_scene: Any,
    told: Told,
    expected: Any,
    path: str,
    tmp_path: Path,
) -> None:
    with open_scene(empty_database("postgresql"), told, **UNPREPARED) as scene:
        scene.add("deleted")
        scene.act(Action.SOFT, "deleted")
        trips = _round_trips(scene, lambda: scene.host.delete(path), tmp_path / "trace")
    assert list(map(len, trips)) == list(map(len, expected[path])), trips
    for trip, patterns in zip(trips, expected[path], strict=True):
        _matches(trip, patterns)


@pytest.mark.skipif(not hasattr(psycopg, "RawCursor"), reason="psycopg has numbered parameters since 3.2")
@pytest.mark.parametrize("path", ["nobody", "nobody?hard=true", "deleted"])
def test_what_psycopg_has_prepared_lasts(
    empty_database: Callable[[str], str], open_scene: Any, path: str
) -> None:
    """The driver forgets it all at a ROLLBACK."""
    with open_scene(empty_database("postgresql")) as scene:
        scene.add("deleted")
        for id in ("acme", "deleted"):
            scene.act(Action.SOFT, id)
        scene.host.delete(path)
        with scene.host.flask.app_context(), scene.host.db.engine.connect() as connection:
            prepared = connection.exec_driver_sql("SELECT statement FROM pg_prepared_statements").scalars()
            assert [text for text in prepared if "changed AS (UPDATE" in " ".join(text.split())]


@pytest.mark.parametrize("to", ["the engine", "all engines"])
def test_who_listens_to_sqlalchemy_hears_every_statement(
    empty_database: Callable[[str], str], open_scene: Any, tmp_path: Path, to: str
) -> None:
    """As OpenTelemetry's instrumentation does, which begins after the engine was made, and Sentry's."""
    url = empty_database("postgresql")
    with open_scene(url, **UNPREPARED) as scene, _sent(scene, to == "all engines") as log:
        trips = _round_trips(scene, lambda: scene.host.delete("acme"), tmp_path / "trace")
    assert [len(trip) for trip in trips] == [1] * 5
    heard = [line.split()[0] for line in log if line not in ("COMMIT", "KV")]
    assert heard == [trip.split()[0] for (trip,) in trips if trip not in (BEGIN, "COMMIT")]


def _round_trips(scene: Scene, act: Callable[[], object], path: Path) -> list[list[str]]:
    """What libpq itself sent, a list for each time that it waited for the server."""
    with scene.host.flask.app_context(), path.open("w") as trace:
        with scene.host.db.engine.connect() as connection:
            pgconn = connection.connection.dbapi_connection.pgconn
        pgconn.trace(trace.fileno())  # the pool gives out the connection it got back last
        act()
        pgconn.untrace()
    trips: list[list[str]] = [[]]
    for message in re.split(r"\n(?=\d{4}-)", path.read_text()):
        if found := re.search(r'\t(?:Parse|Query)\t.*?"([A-Z]{3,}[^"]*)"', message, re.S):
            trips[-1].append(" ".join(found[1].split()))
        if "\tReadyForQuery" in message:
            trips.append([])
    return [trip for trip in trips if trip]


# That of a hard delete is a lone statement, which sets it for itself.
@pytest.mark.parametrize("action", [Action.SOFT, Action.RESTORE])
def test_step_2_does_not_wait_for_the_disk_and_step_1_does(
    empty_database: Callable[[str], str], open_scene: Any, action: Action
) -> None:
    with open_scene(empty_database("postgresql")) as scene:
        if action is Action.RESTORE:
            scene.act(Action.SOFT)
        found = _asked_at_commit(scene, action, "SHOW synchronous_commit")
    assert found == ["on", "off"]


@pytest.mark.parametrize("default", ["SERIALIZABLE", "REPEATABLE READ"])
@pytest.mark.parametrize("action", ACTION)
def test_postgresql_works_at_read_committed_whatever_the_engine_does(
    empty_database: Callable[[str], str], open_scene: Any, action: Action, default: Any
) -> None:
    with open_scene(empty_database("postgresql"), isolation_level=default) as scene:
        # A lone statement has no transaction of its own level: the server's default, which is this.
        found = _asked_at_commit(scene, action, "SHOW transaction_isolation")
        assert found == ["read committed", "read committed"]
        with scene.host.flask.app_context(), scene.host.db.engine.connect() as connection:
            level = connection.scalar(sa.text("SHOW transaction_isolation"))
    assert level == default.lower()  # given back as it was


@pytest.mark.parametrize("default", ["SERIALIZABLE", "REPEATABLE READ"])
@pytest.mark.parametrize("action", ACTION)
def test_mariadb_works_at_read_committed_whatever_the_engine_does(
    empty_database: Callable[[str], str], open_scene: Any, action: Action, default: Any
) -> None:
    # The table is a copy, made anew when nobody has read it for 0.1 seconds.
    note = (
        "FOR EACH ROW BEGIN DO SLEEP(0.15); INSERT INTO levels SELECT trx_isolation_level"
        " FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID(); END"
    )
    with open_scene(empty_database("mariadb"), isolation_level=default) as scene:
        with scene.second_connection() as connection:
            connection.exec_driver_sql("CREATE TABLE levels (level TEXT)")
            for event in ("INSERT", "UPDATE"):  # of step 1, and of step 2
                connection.exec_driver_sql(
                    f"CREATE TRIGGER of_{event} BEFORE {event} ON client_deletions {note}"
                )
            scene.act(action)
            found = connection.exec_driver_sql("SELECT level FROM levels").scalars().all()
        assert found == ["READ COMMITTED", "READ COMMITTED"]
        with scene.host.flask.app_context(), scene.host.db.engine.connect() as connection:
            level = connection.scalar(sa.text("SELECT @@tx_isolation"))
    assert level == default.replace(" ", "-")


def _asked_at_commit(scene: Scene, action: Action, question: str) -> list[Any]:
    """Ask each transaction before it commits, past SQLAlchemy."""
    answers = []

    def ask(connection: sa.Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(question)
        answers.append(cursor.fetchone()[0])
        cursor.close()

    with scene.host.flask.app_context():
        engine = scene.host.db.engine
    sa.event.listen(engine, "commit", ask)
    scene.act(action)
    sa.event.remove(engine, "commit", ask)
    return answers


# MySQL is what a URL may call MariaDB.
@pytest.mark.parametrize("driver", ["mariadb+pymysql", "mysql+pymysql"])
@pytest.mark.parametrize("action", ACTION)
def test_mariadb_gets_few_statements_for_each_step_and_each_is_bounded(
    database_by: Callable[[str], str], open_scene: Any, action: Action, driver: str
) -> None:
    with open_scene(database_by(driver)) as scene, _sent(scene) as log:
        scene.act(action)
    begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; "
    insert = "INSERT INTO client_deletions .* SELECT .* FROM clients .* AS BINARY.* FOR UPDATE RETURNING"
    look = (
        r"IF EXISTS \( SELECT clients.status FROM clients .* \)"
        if action is Action.SOFT
        else "IF ROW_COUNT.*"
    )
    change = {"UPDATE": "UPDATE clients SET status", "DELETE": "DELETE FROM clients"}[ACTION[action]]
    step_1 = f"{IN_ONE}{begin}DO LAST_INSERT_ID.*; {BOUNDED}{insert} .*; IF .* THEN {BOUNDED}{change}.*; "
    step_1 += f"{look} THEN ROLLBACK; .* ELSE COMMIT; END IF; ELSE SELECT 0 .*; ROLLBACK; END IF; END$"
    stamp = "UPDATE client_deletions SET settled_at"
    if action is Action.HARD:
        settle = (
            rf"{IN_ONE}{begin}{BOUNDED}{stamp}.* NOT \(EXISTS .*; IF ROW_COUNT.* THEN SELECT .*; COMMIT; "
        )
        expected = [step_1, "KV", f"{settle}ELSE ROLLBACK; END IF; END$", "ROLLBACK"]
    else:
        lock = f"{BOUNDED}SELECT client_deletions.id FROM client_deletions .* FOR UPDATE ; "
        settle = (
            f"{IN_ONE}DECLARE .*; {begin}{lock}SET mythic_stamp = UTC_TIMESTAMP.*; {BOUNDED}{stamp}.*; SELECT"
        )
        expected = [step_1, settle, "SELECT .* FROM clients", "KV", "COMMIT"]
    _matches(log, expected)


# The pool's own ROLLBACK among them.
@pytest.mark.parametrize(
    ("path", "told", "trips"),
    [
        ("acme?hard=true", OURS, 3),
        ("acme", OURS, 5),
        ("acme", WithoutValues(), 4),
        ("nobody?hard=true", WithoutValues(), 2),
        ("nobody", WithoutValues(), 2),
    ],
    ids=str,
)
def test_mariadb_makes_few_round_trips(
    empty_database: Callable[[str], str],
    open_scene: Any,
    path: str,
    told: Told,
    trips: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[object] = []
    execute = pymysql.connections.Connection._execute_command

    def count(connection: Any, command: int, sql: Any) -> None:
        sent.append(sql)
        execute(connection, command, sql)

    with open_scene(empty_database("mariadb"), told) as scene:
        monkeypatch.setattr(pymysql.connections.Connection, "_execute_command", count)
        assert scene.host.delete(path).status_code == (404 if "nobody" in path else 200)
    assert len(sent) == trips, sent


@pytest.mark.parametrize("action", ACTION)
def test_mariadb_may_give_a_record_its_id_by_a_trigger(
    empty_database: Callable[[str], str], open_scene: Any, action: Action
) -> None:
    """It is no LAST_INSERT_ID, by which a compound knows that there is a record."""
    with open_scene(empty_database("mariadb")) as scene:
        with scene.second_connection() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER numbers BEFORE INSERT ON client_deletions FOR EACH ROW"
                " SET NEW.id = (SELECT 1000 + count(*) FROM client_deletions)"
            )
        scene.act(action)
        (record,) = scene.host.records("acme")
        assert record.id >= 1000
        assert scene.status() is (None if action is Action.HARD else False)
        assert scene.agrees()


DURABLE_ENOUGH = {"delete": [2, 2], "wal": [2, 1]}  # the others lose more than a stamp


@pytest.mark.parametrize("hosts", ["OFF", "EXTRA"])
@pytest.mark.parametrize("journal", DURABLE_ENOUGH)
@pytest.mark.parametrize("action", ACTION)
def test_sqlite_waits_for_the_disk_once_where_that_is_enough(
    empty_database: Callable[[str], str], open_scene: Any, action: Action, journal: str, hosts: str
) -> None:
    set_by_host = {"OFF": 0, "EXTRA": 3}[hosts]
    with open_scene(empty_database("sqlite")) as scene, scene.host.flask.app_context():
        engine = scene.host.db.engine
        with engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA journal_mode = {journal}")
        engine.dispose()

        def set_up(connection: Any, _: object) -> None:
            connection.execute(f"PRAGMA synchronous = {hosts}")

        sa.event.listen(engine, "connect", set_up)
        found = _asked_at_commit(scene, action, "PRAGMA synchronous")
        with engine.connect() as connection:
            left = connection.exec_driver_sql("PRAGMA synchronous").scalar()
    step_1, step_2 = DURABLE_ENOUGH[journal]
    at_least = max(step_1, set_by_host)
    assert found == [at_least, at_least if step_2 == step_1 else step_2]
    assert left == set_by_host


@pytest.mark.parametrize("action", ACTION)
def test_sqlite_writes_first_in_each_step(
    empty_database: Callable[[str], str], open_scene: Any, action: Action
) -> None:
    with open_scene(empty_database("sqlite")) as scene, _sent(scene) as log:
        scene.act(action)
    change = {"UPDATE": "UPDATE clients SET status", "DELETE": "DELETE FROM clients"}[ACTION[action]]
    insert = "INSERT INTO client_deletions .* SELECT .* FROM clients"
    look = "SELECT clients.status AS status FROM clients"
    stamp = "UPDATE client_deletions SET settled_at=.* RETURNING"
    step_2 = [stamp, "SELECT .* FROM clients", "KV", "COMMIT"]
    if action is Action.HARD:
        step_2 = ["KV", "UPDATE client_deletions SET settled_at=.* NOT .*EXISTS", "COMMIT"]
    _matches(log, [insert, change, look, "COMMIT", *step_2])


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_reconcile_first_takes_what_nobody_holds(
    empty_database: Callable[[str], str], open_scene: Any, database: str
) -> None:
    with open_scene(empty_database(database)) as scene:
        scene.tap.store, store = AWAY, scene.tap.store
        assert scene.host.delete("acme").status_code == 503
        scene.tap.store = store
        with _sent(scene) as log:
            assert scene.reconcile().settled == 1
    begin = {
        "postgresql": [],
        "mariadb": [f"{IN_ONE}SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; END"],
    }[database]
    free = [
        "SELECT .* FROM client_deletions .* FOR UPDATE SKIP LOCKED$",
        "SELECT .* FROM client_deletions .* IS NULL$",
    ]
    read_time = {"postgresql": [], "mariadb": ["SELECT utc_timestamp"]}[database]
    stamp = [*free, *read_time, "UPDATE client_deletions SET settled_at"]
    page = [*begin, "SELECT .* FROM client_deletions .* LIMIT", "COMMIT"]
    by_index = {"postgresql": ["SET LOCAL enable_seqscan"], "mariadb": []}[database]
    settle = [*begin, *by_index, *stamp, "SELECT .* FROM clients", "KV", "COMMIT"]
    log = [line.removeprefix(BOUNDED) for line in log]
    time = [*begin, "SELECT (clock_timestamp|utc_timestamp)", "COMMIT"]
    # Page, whose commits are waited for, and page after it, once leaving what is held and once waiting for
    # it; then what is to be verified; at the end what may lose its keys.
    durable = {"postgresql": ["SELECT pg_logical_emit_message", "COMMIT"], "mariadb": []}[database]
    _matches(log, [*time, *page, *durable, *settle, *page, *page, *page, *page, *page])


def test_the_clients_are_read_page_by_page(empty_database: Callable[[str], str], open_scene: Any) -> None:
    with open_scene(empty_database("postgresql")) as scene, _sent(scene) as log:
        repository = SQLAlchemyRepository(scene.host.db, scene.host.model)
        with scene.host.flask.app_context():
            assert len(list(repository.clients())) == 2
    page = "SELECT .* FROM clients .*ORDER BY clients.id LIMIT"
    _matches(log, [page, "COMMIT", page, "COMMIT"])


@pytest.mark.server
@pytest.mark.parametrize("action", Action)
def test_a_settle_is_one_round_trip_to_the_kv_store(
    empty_database: Callable[[str], str], open_scene: Any, action: Action
) -> None:
    trips = []

    class Counting(redis.Connection):
        def send_packed_command(self, *arguments: Any, **options: Any) -> Any:
            trips.append(1)
            return super().send_packed_command(*arguments, **options)

    with open_scene(empty_database("sqlite")) as scene:
        if action is Action.RESTORE:
            scene.act(Action.SOFT)
        kwargs = scene.raw.connection_pool.connection_kwargs
        pool = redis.ConnectionPool(connection_class=Counting, host=kwargs["host"], port=kwargs["port"])
        client = redis.Redis(connection_pool=pool)
        client.ping()  # a new connection introduces itself
        scene.tap.store = RedisStore(client)
        trips.clear()
        scene.act(action)
        assert len(trips) == 1
        assert scene.agrees()
        pool.disconnect()
