"""One client never holds up another: not by an entry that the store refuses, not by a lock."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Timer
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import EntriesRefusedError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.model import Action, Change, Reconciliation, Result
from tests.hosts import Gate, KeyValue, mounting

from .scene import AWAY, Scene, make_scene

MANY = 12
IDS = [f"c{number}" for number in range(MANY)]
SERVERS = ["postgresql", "mariadb"]


@pytest.fixture
def scene(database_url: str, empty_kv: Callable[[str], KeyValue]) -> Iterator[Scene]:
    """Clients that have been recorded while the store was away."""
    with make_scene(database_url, empty_kv("redis")) as scene:
        store, scene.tap.store = scene.tap.store, AWAY
        for number, id in enumerate(IDS):
            scene.add(id)
            assert scene.host.delete(f"{id}?hard=true" if number % 2 else id).status_code == 503
        scene.tap.store = store
        yield scene


def _run(scene: Scene, *arguments: str) -> Any:
    return scene.host.flask.test_cli_runner().invoke(args=["mythic-clients", *arguments])


def _last(scene: Scene, id: str) -> tuple[int, str | None, bool]:
    record = scene.host.records(id)[-1]
    return record.attempts, record.last_error, record.settled_at is None


@contextmanager
def _forbidden(scene: Scene, keys: str) -> Iterator[None]:
    """Let the service come as a user who may touch only these keys."""
    raw, store = scene.raw, scene.tap.store
    raw.acl_setuser(
        "clerk", enabled=True, nopass=True, keys=[*keys.split(), "mythic:*"], categories=["+@all"], reset=True
    )
    kwargs = raw.connection_pool.connection_kwargs
    scene.tap.store = RedisStore.from_url(f"redis://clerk:x@{kwargs['host']}:{kwargs['port']}/0")
    yield
    raw.acl_deluser("clerk")
    scene.tap.store = store


@contextmanager
def _set(raw: Any, name: str, value: int) -> Iterator[None]:
    before = raw.config_get(name)[name]
    raw.config_set(name, value)
    yield
    raw.config_set(name, before)


# The database only counts the tries, which the contract tests on each.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestAnEntryThatIsRefused:
    @pytest.mark.parametrize(("id", "by"), [("c2", "soft"), ("c3", "hard")])
    def test_by_its_key_leaves_that_client_alone(self, scene: Scene, id: str, by: str) -> None:
        others = " ".join(f"*:pk-{each} client:{each}" for each in IDS if each != id)
        with _forbidden(scene, others):
            for tries in (1, 2):
                ran = _run(scene, "reconcile")
                settled = MANY - 1 if tries == 1 else 0
                assert (ran.exit_code, ran.stdout) == (1, f"settled {settled}, verified 0, failed 1\n")
                assert _last(scene, id) == (tries, "redis.exceptions.NoPermissionError", True)
        assert all(_last(scene, each) == (0, None, False) for each in IDS if each != id)
        assert scene.reconcile() == Reconciliation(1, 0, 0)
        assert _last(scene, id)[2] is False

    def test_at_verify_leaves_the_others_verified(self, scene: Scene) -> None:
        assert scene.reconcile().settled == MANY
        scene.age()
        for each in IDS:
            scene.cache(each, status=True)  # slow readers
        others = " ".join(f"*:pk-{each} client:{each}" for each in IDS if each != "c2")
        with _forbidden(scene, others):
            assert scene.reconcile() == Reconciliation(0, MANY - 1, 1)
        assert scene.host.records("c2")[-1].attempts == 1
        assert scene.reconcile() == Reconciliation(0, 1, 0)

    def test_without_memory_the_soft_deletes_alone_are_left(self, scene: Scene) -> None:
        with _set(scene.raw, "maxmemory", 1):
            done = scene.reconcile()
        assert (done.settled, done.failed) == (MANY // 2, MANY // 2)
        assert _last(scene, "c0")[1:] == ("redis.exceptions.OutOfMemoryError", True)
        assert scene.reconcile().settled == MANY // 2

    def test_by_a_value_that_is_too_large_leaves_that_client_alone(
        self, database_url: str, empty_kv: Callable[[str], KeyValue]
    ) -> None:
        """The server closes the connection at it, and does nothing of what came with it."""

        def rule(row: Any) -> dict[str, str | None]:
            large = "x" * 2_000_000 if row.id == "c2" else "small"
            return {f"client:{row.id}": f"{large} {row.status}", f"publishable_key:pk-{row.id}": None}

        with make_scene(database_url, empty_kv("redis"), entries=rule, config={}) as scene:
            store, scene.tap.store = scene.tap.store, AWAY
            for id in IDS:
                scene.add(id)
                assert scene.host.delete(id).status_code == 503
            scene.tap.store = store
            with _set(scene.raw, "proto-max-bulk-len", 1_048_576):
                assert scene.reconcile() == Reconciliation(MANY - 1, 0, 1)
                assert _last(scene, "c2")[0] == 1
            assert scene.raw.get("client:c1") == "small False"
            assert scene.reconcile() == Reconciliation(1, 0, 0)

    def test_is_a_503_for_its_request_alone(self, scene: Scene) -> None:
        with _forbidden(scene, "*:pk-* client:c1*"):
            assert scene.host.delete("c1?hard=true").status_code == 200
            assert scene.host.delete("c3?hard=true").status_code == 503
            with scene.host.flask.app_context(), pytest.raises(EntriesRefusedError) as caught:
                scene.host.clients.service.hard_delete("c3", actor="tests")
        assert caught.value.client_ids == {"c3"}
        assert "c3" not in f"{caught.value} {caught.value.__cause__}"
        assert _last(scene, "c3") == (0, None, True)  # it is reconcile that counts

    def test_the_history_tells_it(self, scene: Scene) -> None:
        with _forbidden(scene, "nothing"):
            assert _run(scene, "reconcile").exit_code == 1
        [record] = json.loads(_run(scene, "history", "c3", "--json").stdout)
        assert (record["attempts"], record["last_error"]) == (1, "redis.exceptions.NoPermissionError")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_outage_of_the_whole_store_ends_a_reconcile_at_once(scene: Scene) -> None:
    began = time.monotonic()
    scene.tap.store, store = AWAY, scene.tap.store
    assert _run(scene, "reconcile").exit_code == 3
    scene.tap.store = store
    scene.raw.replicaof("127.0.0.1", "1")  # a server that answers, but takes nothing
    assert _run(scene, "reconcile").exit_code == 3
    scene.raw.replicaof("NO", "ONE")
    assert time.monotonic() - began < 5
    assert all(_last(scene, id) == (0, None, True) for id in IDS)
    assert scene.reconcile().settled == MANY


@contextmanager
def _held(scene: Scene, table: str, column: str, id: str = "c2") -> Iterator[None]:
    """Hold a row, as a stopped worker or a transaction of the host's would."""
    with scene.second_connection() as connection:
        found = connection.scalar(sa.text(f"SELECT id FROM {table} WHERE {column} = :id"), {"id": id})
        # By the primary key: else MariaDB locks whatever it comes across.
        connection.execute(sa.text(f"SELECT id FROM {table} WHERE id = :id FOR UPDATE"), {"id": found})
        yield


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
class TestALock:
    def test_on_a_row_leaves_that_client_alone_at_verify(self, scene: Scene) -> None:
        assert scene.reconcile().settled == MANY
        scene.age()
        for each in IDS:
            scene.cache(each, status=True)
        with _held(scene, "clients", "id"):
            began = time.monotonic()
            assert scene.reconcile() == Reconciliation(0, MANY - 1, 1)
            assert time.monotonic() - began < 5
            # A row that is skipped is none that is gone.
            assert scene.entries("c2") == ["client:c2", "publishable_key:pk-c2"]
            assert scene.entries("c3") == []
        assert scene.reconcile() == Reconciliation(0, 1, 0)
        assert "false" in scene.raw.get("client:c2")

    @pytest.mark.parametrize("aged", [False, True])
    def test_on_a_record_leaves_that_client_alone_and_verify_runs(self, scene: Scene, aged: bool) -> None:
        if aged:
            assert scene.reconcile().settled == MANY
            scene.age()
        with _held(scene, "client_deletions", "client_id"):
            began = time.monotonic()
            expected = (0, MANY - 1, 1) if aged else (MANY - 1, 0, 1)
            assert scene.reconcile() == Reconciliation(*expected)
            assert time.monotonic() - began < 5
        assert scene.reconcile() == Reconciliation(*((0, 1, 0) if aged else (1, 0, 0)))

    def test_of_a_pending_client_does_not_keep_verify_from_the_others(self, scene: Scene) -> None:
        with _held(scene, "client_deletions", "client_id"):
            assert scene.reconcile() == Reconciliation(MANY - 1, 0, 1)
            with scene.second_connection() as connection:
                found = "SELECT id FROM client_deletions WHERE settled_at IS NOT NULL"
                for id in list(connection.scalars(sa.text(found))):  # by the primary key, as above
                    moved = "UPDATE client_deletions SET settled_at = '2020-01-01' WHERE id = :id"
                    connection.execute(sa.text(moved), {"id": id})
                connection.commit()
            assert scene.reconcile() == Reconciliation(0, MANY - 1, 1)

    def test_of_many_rows_costs_one_wait(self, scene: Scene) -> None:
        assert scene.reconcile().settled == MANY
        scene.age()
        with scene.second_connection() as connection:
            connection.execute(sa.text("SELECT 1 FROM clients FOR UPDATE"))
            began = time.monotonic()
            # The soft-deleted have a row; the others have gone.
            assert scene.reconcile() == Reconciliation(0, MANY // 2, MANY // 2)
            assert time.monotonic() - began < MANY // 2  # a second for each would be more


def _be_the_clerk(driver: Any, _: object) -> None:
    driver.execute("SET ROLE clerk")
    driver.commit()


def test_a_row_that_a_policy_lets_nobody_lock_is_none_that_is_gone(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    url = empty_database("postgresql")
    with make_scene(url, empty_kv("memory")) as scene:
        scene.add("acme")
        scene.act(Action.SOFT)
        scene.age()
        scene.cache(status=True)
        with scene.second_connection() as owner:
            for statement in (
                "DROP ROLE IF EXISTS clerk",
                "CREATE ROLE clerk NOSUPERUSER",
                "GRANT USAGE ON SCHEMA public TO clerk",
                "GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk",
                "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO clerk",
                "ALTER TABLE clients ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY reading ON clients FOR SELECT USING (true)",
            ):
                owner.execute(sa.text(statement))
            owner.commit()
            with scene.host.flask.app_context():
                engine = scene.host.db.engine
            engine.dispose()
            sa.event.listen(engine, "connect", _be_the_clerk)
            try:
                assert scene.reconcile() == Reconciliation(0, 0, 1)
                assert scene.raw.get("client:acme") is not None
                assert scene.host.delete("acme").status_code == 200  # repeated: no 503 without end
            finally:
                engine.dispose()
                for statement in (
                    "ALTER TABLE clients DISABLE ROW LEVEL SECURITY",
                    "DROP OWNED BY clerk",
                    "DROP ROLE clerk",
                ):
                    owner.execute(sa.text(statement))
                owner.commit()


@pytest.mark.parametrize("action", [Action.SOFT, Action.HARD])
def test_a_batch_of_very_many_locks_nobody_else(empty_database: Callable[[str], str], action: Action) -> None:
    """MariaDB makes a join of an IN of a thousand values, unless it is told not to."""
    store = MemoryStore()
    ids = [f"c{number:04}" for number in range(1000)]
    others = ["aaa", *(f"o{number:04}" for number in range(2000))]
    with mounting(empty_database("mariadb"), store) as mount:
        host = mount()
        rows = [{"id": id, "name": "x", "status": True} for id in (*ids, *others)]
        table: Any = host.model.__table__
        with host.flask.app_context(), host.db.engine.begin() as connection:
            connection.execute(sa.insert(table), rows)
        with host.flask.app_context():
            service = host.clients.service
            repository: Any = service._repository
            repository.record(
                Change("aaa", Action.SOFT, "tests"), service._entries
            )  # somebody else's, pending
            looked: list[list[Any]] = []

            def look(*event: Any) -> None:
                if "UPDATE clients SET" in event[2] or "DELETE FROM clients" in event[2]:
                    with sa.create_engine(host.db.engine.url, poolclass=sa.NullPool).connect() as other:
                        free = sa.select(table.c.id).with_for_update(skip_locked=True)
                        looked.append(other.scalars(free.where(table.c.id.in_(others[:50]))).all())

            sa.event.listen(host.db.engine, "after_cursor_execute", look)
            assert repository.record_each(
                [Change(id, action, "tests") for id in ids], service._entries
            ).recorded
            assert looked == [sorted(others[:50])]
            ledger = host.model.metadata.tables["client_deletions"]
            with repository.settle(ids) as holding:
                assert len(holding.records) == 1000
                with sa.create_engine(host.db.engine.url, poolclass=sa.NullPool).connect() as other:
                    free = sa.select(ledger.c.client_id).with_for_update(skip_locked=True)
                    assert other.scalars(free.where(ledger.c.client_id == "aaa")).all() == ["aaa"]


def test_two_batches_of_one_process_do_not_wait_for_each_other(
    empty_database: Callable[[str], str],
) -> None:
    with mounting(empty_database("postgresql"), MemoryStore()) as mount:
        host = mount()
        for id in IDS:
            host.add(id=id)
        with host.flask.app_context():
            service, engine = host.clients.service, host.db.engine
            repository: Any = service._repository
            told: list[Any] = []

            def act(*event: Any) -> None:
                if "clients" in event[2] and "FOR UPDATE" in event[2] and not told:
                    told.append("begun")  # while the rows of the first are locked
                    with ThreadPoolExecutor(1) as thread:
                        told.append(thread.submit(other).result(timeout=10))

            def other() -> Any:
                with host.flask.app_context():
                    changes = [Change(id, Action.SOFT, "tests") for id in IDS[6:]]
                    return repository.record_each(changes, service._entries).recorded

            sa.event.listen(engine, "after_cursor_execute", act)
            changes = [Change(id, Action.SOFT, "tests") for id in IDS[:6]]
            assert repository.record_each(changes, service._entries).recorded == {*IDS[:6]}
            assert told == ["begun", {*IDS[6:]}]


SLOW = {
    "postgresql": (
        "CREATE FUNCTION slow(text) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.04); RETURN true; END $$",
        "ALTER TABLE clients ADD CHECK (slow(name)) NOT VALID",
    ),
    "mariadb": ("CREATE TRIGGER slow BEFORE UPDATE ON clients FOR EACH ROW SET @slow = SLEEP(0.04)",),
}
LIMITS = {
    "postgresql": {"options": "-c statement_timeout=1000"},
    "mariadb": {"init_command": "SET max_statement_time=1"},
}


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_many_that_take_longer_than_a_statement_may_are_parted(database_url: str) -> None:
    kind = sa.make_url(database_url).get_backend_name()
    options = {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": LIMITS[kind]}}
    ids = [f"c{number:02}" for number in range(40)]
    with mounting(database_url, MemoryStore()) as mount:
        host = mount(config=options)
        for id in ids:
            host.add(id=id)
        with host.flask.app_context():
            with host.db.engine.begin() as connection:
                for statement in SLOW[kind]:
                    connection.exec_driver_sql(statement)
            told = list(host.clients.service.delete_each(ids, hard=False, actor="tests"))
        assert {each.result for each in told} == {Result.DONE}
        assert {row.status for row in host.rows()} == {False}


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_a_row_of_one_that_is_held_makes_the_many_wait_little(database_url: str) -> None:
    ids = [f"c{number:02}" for number in range(32)]
    db = SQLAlchemy()
    key = sa.Column("client_id", sa.ForeignKey("clients.id", ondelete="CASCADE"))
    notes = db.Table("notes", sa.Column("id", sa.Integer, primary_key=True), key, sa.Column("text", sa.Text))
    with mounting(database_url, MemoryStore()) as mount:
        host = mount(db=db)
        for id in ids:
            host.add(id=id)
        with host.flask.app_context(), host.db.engine.connect() as other:
            other.execute(notes.insert().values(id=1, client_id="c03", text="old"))
            other.commit()
            other.execute(notes.update().values(text="new"))
            began = time.monotonic()
            told = list(host.clients.service.delete_each(ids, hard=True, actor="tests"))
            assert time.monotonic() - began < 4  # of which a second is that one's own
        assert [each.client_id for each in told if each.result is not Result.DONE] == ["c03"]


@pytest.mark.parametrize("invalidated", [True, False])
def test_an_outage_that_the_apps_rule_meets_elsewhere_is_that_clients_alone(
    database_url: str, invalidated: bool
) -> None:
    """Such as one that asks another database, or by a connection of its own."""

    def entries(row: Any) -> dict[str, str]:
        if row.id in broken:
            raise sa.exc.OperationalError("SELECT", {}, Exception(), connection_invalidated=invalidated)
        return {f"client:{row.id}": f"{row.status}"}

    broken, gate = set[str](), Gate(MemoryStore())
    with mounting(database_url, gate) as mount:
        host = mount(entries=entries)
        gate.closed = True
        for id in ("a", "b", "c"):
            host.add(id=id)
            assert host.delete(id).status_code == 503
        gate.closed = False
        broken.add("b")
        with host.flask.app_context():
            assert host.clients.service.reconcile() == Reconciliation(2, 0, 1)
            broken.clear()
            assert host.clients.service.reconcile() == Reconciliation(1, 0, 0)


def test_a_ledger_that_is_locked_for_a_moment_makes_many_wait(empty_database: Callable[[str], str]) -> None:
    """As CREATE INDEX does."""
    with mounting(empty_database("postgresql"), MemoryStore()) as mount:
        host = mount()
        for id in IDS:
            host.add(id=id)
        with host.flask.app_context(), host.db.engine.connect() as other:
            other.exec_driver_sql("LOCK TABLE client_deletions IN SHARE MODE")
            timer = Timer(0.4, other.rollback)
            timer.start()
            told = list(host.clients.service.delete_each(IDS, hard=True, actor="tests"))
            timer.join()
        assert {each.result for each in told} == {Result.DONE}
