"""What happens between the two steps: an id comes back, a connection dies, the host commits on the pool."""

import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import object_session

from flask_mythic_clients import KeyValueStoreError, StoreError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.model import Action
from tests.campaigns.proxy import Proxy
from tests.hosts import Gate, Host, KeyValue, mounting

from .scene import AWAY, CONFIG, Scene, crash, document, make_scene


class TestAnIdThatComesBackBeforeItsDeleteIsSettled:
    """The entries may be the old client's, for its delete has not reached the key-value store."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def gate(self, store: MemoryStore) -> Gate:
        return Gate(store)

    @pytest.fixture
    def host(self, gate: Gate, store: MemoryStore, empty_database: Callable[[str], str]) -> Iterator[Host]:
        """Client `acme`, with an entry whose value follows from the row and one only the host knows."""

        def entries(row: Any) -> dict[str, str | None]:
            return {f"client:{row.id}": f"{row.name} {row.status}", f"session:{row.id}": None}

        with mounting(empty_database("sqlite"), gate) as mount:
            host = mount(entries=entries)
            host.add(id="acme", name="old")
            store.set("client:acme", "old True")
            store.set("session:acme", "of the old")
            yield host

    def test_an_entry_only_the_host_knows_is_removed_and_a_known_one_overwritten(
        self, host: Host, gate: Gate, store: MemoryStore
    ) -> None:
        gate.closed = True
        assert host.delete("acme?hard=true").status_code == 503
        host.add(id="acme", name="new")
        gate.closed = False
        with host.flask.app_context():
            done = host.clients.service.reconcile()
        assert (done.settled, done.failed) == (1, 0)
        assert (store.get("client:acme"), store.get("session:acme")) == ("new True", None)
        assert [(row.name, row.status) for row in host.rows()] == [("new", True)]

    def test_once_settled_an_entry_of_the_new_client_is_its_own(
        self, host: Host, gate: Gate, store: MemoryStore
    ) -> None:
        assert host.delete("acme?hard=true").status_code == 200
        host.add(id="acme", name="new")
        store.set("session:acme", "of the new")
        with host.flask.app_context():
            assert host.clients.service.reconcile().settled == 0
        assert store.get("session:acme") == "of the new"

    def test_after_a_soft_delete_an_entry_only_the_host_knows_is_left_alone(
        self, host: Host, gate: Gate, store: MemoryStore
    ) -> None:
        gate.closed = True
        assert host.delete("acme").status_code == 503
        gate.closed = False
        with host.flask.app_context():
            assert host.clients.service.reconcile().settled == 1
        assert (store.get("client:acme"), store.get("session:acme")) == ("old False", "of the old")


class TestAConnectionThatDiesWhileTheKeyValueStoreFails:
    """Both stores are gone at the worst moment: the records held, nothing confirmed."""

    @pytest.fixture(params=["postgresql", "mariadb"])
    def scene(
        self,
        request: pytest.FixtureRequest,
        empty_database: Callable[[str], str],
        empty_kv: Callable[[str], KeyValue],
    ) -> Iterator[Scene]:
        with make_scene(empty_database(request.param), empty_kv("either")) as scene:
            scene.add()
            yield scene

    @pytest.mark.parametrize("action", [Action.SOFT, Action.HARD])
    def test_it_is_a_503_and_what_is_pending_is_finished_later(self, scene: Scene, action: Action) -> None:
        def fail() -> None:
            _end_other_connections(scene)
            raise KeyValueStoreError

        scene.tap.before = fail
        path = "acme?hard=true" if action is Action.HARD else "acme"
        for turn in (1, 2):
            assert scene.host.delete(path).status_code == 503
            assert (scene.tap.calls, scene.pending()) == (turn, 1)
        with pytest.raises(StoreError):
            scene.reconcile()
        assert scene.pending() == 1
        scene.tap.before = lambda: None
        done = scene.reconcile()
        assert (done.settled, done.failed) == (1, 0)
        assert scene.status() is (None if action is Action.HARD else False)
        assert scene.agrees()

    def test_a_connection_that_dies_after_the_store_confirmed_leaves_the_record_pending(
        self, scene: Scene
    ) -> None:
        scene.tap.after = lambda: _end_other_connections(scene)
        assert scene.host.delete("acme").status_code == 503
        with pytest.raises(StoreError):
            scene.reconcile()
        assert scene.pending() == 1
        scene.tap.after = lambda: None
        assert scene.host.delete("acme").status_code == 200
        assert scene.agrees()


_OTHERS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = 'test' AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = 'test' AND id <> connection_id()",
}
_END = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}


def _end_other_connections(scene: Scene) -> None:
    """End every connection to the database but the one that does it, and wait until they are gone."""
    with scene.second_connection() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        others = sa.text(_OTHERS[scene.kind])
        found = list(connection.scalars(others))
        assert found  # those who hold the records
        for number in found:
            connection.execute(sa.text(_END[scene.kind].format(number)))
        deadline = time.monotonic() + 10
        while list(connection.scalars(others)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _never_rolls_back() -> dict[str, bool]:
    """Return the option by which no rollback reaches a connection in AUTOCOMMIT, where SQLAlchemy has it."""
    name = "skip_autocommit_rollback"
    return {name: True} if name in inspect.signature(DefaultDialect.__init__).parameters else {}


class TestAHostInAutocommit:
    """Its pool has one connection, which the package gives back as it was: with nothing open."""

    @pytest.fixture
    def scene(self, database_url: str, empty_kv: Callable[[str], KeyValue]) -> Iterator[Scene]:
        options = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
        config = {**CONFIG, "SQLALCHEMY_ENGINE_OPTIONS": {**options, **_never_rolls_back()}}
        with make_scene(database_url, empty_kv("either"), config=config) as scene:
            scene.add()
            yield scene

    @pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
    def test_a_commit_of_the_hosts_stamps_no_record_that_the_store_did_not_confirm(
        self, scene: Scene, path: str
    ) -> None:
        store, scene.tap.store = scene.tap.store, AWAY
        assert scene.host.delete(path).status_code == 503
        scene.host.add(id="other", name="Other")  # and commit, on the same connection
        assert scene.pending() == 1
        assert scene.agrees() is False
        scene.tap.store = store
        assert scene.host.delete(path).status_code == 200
        assert scene.agrees()

    def test_a_step_1_that_fails_halfway_is_not_committed_by_the_host(self, scene: Scene) -> None:
        sa.event.listen(scene.host.model, "after_update", lambda *_: crash())
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - it is scene.Crash, through Flask
            scene.host.delete("acme")
        assert raised.typename == "Crash"
        scene.host.add(id="other", name="Other")
        assert (scene.status(), scene.pending()) == (True, 0)
        assert scene.raw.get("client:acme") == document("acme", status=True)

    @pytest.mark.parametrize(
        "method", ["soft_delete", "reconcile", "history", "preview", "backlog", "clients"]
    )
    def test_after_a_call_that_changed_or_only_read_a_write_of_the_hosts_is_committed_at_once(
        self, scene: Scene, method: str
    ) -> None:
        arguments = {"soft_delete": {"actor": "tests"}, "preview": {"hard": True}}
        ids = ["acme"] if method in ("soft_delete", "history", "preview") else []
        with scene.host.flask.app_context():
            found = getattr(scene.host.clients.service, method)(*ids, **arguments.get(method, {}))
            if method == "clients":
                list(found)
            with scene.host.db.engine.connect() as connection:
                connection.execute(sa.text("UPDATE clients SET name = 'seen'"))
                with scene.second_connection() as other:
                    assert other.scalar(sa.text("SELECT name FROM clients")) == "seen"


class TestADatabaseThatIsOutdated:
    """An upgrade without its migration is an outage that names the repair."""

    @pytest.fixture
    def scene(self, database_url: str, empty_kv: Callable[[str], KeyValue]) -> Iterator[Scene]:
        with make_scene(database_url, empty_kv("either")) as scene:
            scene.add()
            yield scene

    @pytest.mark.parametrize(
        "statement",
        ["DROP TABLE client_deletions", "ALTER TABLE client_deletions RENAME COLUMN actor TO by_whom"],
        ids=["no-table", "no-column"],
    )
    @pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
    def test_a_delete_is_a_503_that_names_the_table_and_the_fix_and_changes_nothing(
        self, scene: Scene, statement: str, path: str
    ) -> None:
        with scene.host.flask.app_context(), scene.host.db.engine.begin() as connection:
            connection.execute(sa.text(statement))
        answer = scene.host.delete(path)
        assert answer.status_code == 503
        message = json.loads(answer.data)["message"]
        assert "client_deletions" in message
        assert "make it as your app makes its tables, or migrate" in message
        assert scene.status() is True
        assert len(scene.entries()) == 2

    def test_any_other_outage_does_not_send_for_migrations(self, scene: Scene) -> None:
        scene.tap.store = AWAY
        assert "migrate" not in json.loads(scene.host.delete("acme").data)["message"]


READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET default_transaction_read_only = on",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


def test_a_database_that_is_read_only_as_after_a_failover_is_an_outage(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    """It is no refusal, which says that nothing has changed: something may be pending."""
    with make_scene(database_url, empty_kv("either")) as scene:
        scene.add()
        scene.tap.store, store = AWAY, scene.tap.store
        assert scene.host.delete("acme?hard=true").status_code == 503
        scene.tap.store = store
        with scene.host.flask.app_context():
            engine = scene.host.db.engine
        statement = READ_ONLY[engine.dialect.name]

        @sa.event.listens_for(engine, "connect")
        def make_read_only(driver: Any, _: Any) -> None:
            cursor = driver.cursor()
            cursor.execute(statement)
            cursor.close()
            if engine.dialect.name == "postgresql":
                driver.commit()

        engine.dispose()
        for path in ("acme", "acme?hard=true"):
            answer = scene.host.delete(path)
            assert answer.status_code == 503
            assert "did not answer or did not confirm" in answer.json["message"]
        sa.event.remove(engine, "connect", make_read_only)
        engine.dispose()
        assert scene.host.delete("acme?hard=true").status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
def test_a_rule_for_entries_whose_connection_dies_under_it_is_an_outage(
    database_url: str, empty_kv: Callable[[str], KeyValue], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It may ask by the row's session; then what SQLAlchemy raises has the parameters, a token perhaps."""
    dies = False

    def entries(row: Any) -> dict[str, str | None]:
        session = object_session(row)
        assert session is not None
        asked = sa.text("SELECT :token")
        session.connection()
        if dies:
            _end_other_connections(scene)
        session.execute(asked, {"token": "s3cret"})
        return {f"client:{row.id}": "known"}

    with make_scene(database_url, empty_kv("either"), entries=entries, config={}) as scene:
        scene.add()
        scene.tap.store, store = AWAY, scene.tap.store
        assert scene.host.delete("acme").status_code == 503  # so that something is pending
        scene.tap.store, dies = store, True
        answer = scene.host.delete(path)
        assert (answer.status_code, answer.json["error"]) == (503, "Service Unavailable")
        assert "s3cret" not in caplog.text
        dies = False
        assert scene.host.delete(path).status_code == 200


def test_a_stamp_that_others_overtake_twice_is_no_refusal(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    """A statement sees no record that was made while it ran; when that is looked for it may be settled."""
    with make_scene(empty_database("postgresql"), empty_kv("either")) as scene:
        scene.add()
        assert scene.host.delete("acme").status_code == 200
        with scene.host.flask.app_context():
            engine, service = scene.host.db.engine, scene.host.clients.service
        columns = "client_id, action, actor, kv_keys, requested_at"
        meanwhile: list[str] = []

        def in_its_way(*event: Any) -> None:
            statement = event[2].lstrip()
            if statement.startswith("UPDATE client_deletions") and not meanwhile:
                meanwhile.append("recorded")
                other(f"INSERT INTO client_deletions ({columns}) SELECT {columns} FROM client_deletions")
            elif statement.startswith("SELECT client_deletions.id") and meanwhile == ["recorded"]:
                meanwhile.append("settled")
                other("UPDATE client_deletions SET settled_at = now() WHERE settled_at IS NULL")

        def other(statement: str) -> None:
            with scene.second_connection() as connection:
                connection.execute(sa.text(statement))
                connection.commit()

        sa.event.listen(engine, "after_cursor_execute", in_its_way)
        with scene.host.flask.app_context(), service._repository.settle(["acme"]) as holding:
            assert holding.records == ()
        assert meanwhile == ["recorded", "settled"]


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_a_batch_whose_commit_is_not_answered_is_finished(
    database_url: str, empty_kv: Callable[[str], KeyValue], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_scene(database_url, empty_kv("either")) as scene:
        scene.add()
        scene.cache(status=True)
        assert scene.host.delete("acme").status_code == 200
        scene.host.let_time_pass(3600)
        with scene.host.flask.app_context():
            service, dialect = scene.host.clients.service, scene.host.db.engine.dialect
            repository, commit = service._repository, dialect.do_commit
            lost: list[str] = []

            def unanswered(connection: Any) -> None:
                commit(connection)
                if not lost:
                    lost.append("answer")
                    _end_other_connections(scene)
                    connection.cursor().execute("SELECT 1")

            record_each = repository.record_each

            def recorded(*given: Any) -> Any:
                monkeypatch.setattr(dialect, "do_commit", unanswered)
                return record_each(*given)

            monkeypatch.setattr(repository, "record_each", recorded)
            told = list(service.purge(older_than=timedelta(minutes=1), actor="tests"))
        assert lost
        assert told == []  # whose it is nobody knows, but it is finished
        assert scene.status() is None
        assert scene.entries() == []
        assert scene.pending() == 0


def test_a_statement_that_was_prepared_before_a_migration_is_prepared_anew(
    empty_database: Callable[[str], str],
) -> None:
    url = empty_database("postgresql")
    with mounting(url, MemoryStore()) as mount:
        options = {"pool_size": 1, "max_overflow": 0, "connect_args": {"prepare_threshold": 0}}
        config = {"SQLALCHEMY_ENGINE_OPTIONS": options}
        host = mount(columns={"before": lambda session, row, action: None}, config=config)
        for id in ("before", "after"):
            host.add(id=id)
        assert host.delete("before").status_code == 200
        with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE clients ALTER COLUMN name TYPE text")
        assert host.delete("after").status_code == 200


def test_a_database_that_hangs_is_waited_for_once(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    seconds = 2.0
    url = sa.make_url(empty_database("mariadb"))
    with closing(Proxy(url.render_as_string(hide_password=False))) as proxy:
        options = {"connect_args": {"connect_timeout": 5, "read_timeout": seconds}}
        config = {**CONFIG, "SQLALCHEMY_ENGINE_OPTIONS": options}
        with make_scene(proxy.url, empty_kv("either"), config=config) as scene:
            scene.add()
            proxy.hang()
            began = time.monotonic()
            assert scene.host.delete("acme").status_code == 503
            took = time.monotonic() - began
            proxy.passing()
            assert seconds <= took < 1.9 * seconds
            assert scene.host.delete("acme").status_code == 200
