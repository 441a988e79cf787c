"""What people are told: what to pass instead, what the driver said, and nothing that moves their cursor."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import click.testing
import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import ConfigurationError, InvalidClientIdError, KeyValueStoreError, MythicClients
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from tests.hosts import Gate, Host, KeyValue, client_model, contents, mounting

from .scene import AWAY, Scene, make_scene

URL = "redis://:s3cret@cache/0"
TITLE = "\x1b]0;x\x07"  # renames the terminal's window


class TestAWrongArgument:
    """It is refused where it is passed, by a message that names the right one."""

    def test_a_url_is_no_redis_client(self) -> None:
        with pytest.raises(ConfigurationError, match=r"RedisStore\.from_url") as refused:
            RedisStore(URL)  # type: ignore[arg-type]
        assert "s3cret" not in str(refused.value)

    def test_a_url_is_no_key_value_store(self) -> None:
        with pytest.raises(ConfigurationError, match=r"kv= takes a KeyValueStore.*str") as refused:
            MythicClients(repository=MemoryRepository(), kv=URL)  # type: ignore[arg-type]
        assert "s3cret" not in str(refused.value)

    @pytest.mark.parametrize("wrong", ["x", None, MemoryStore()])
    def test_what_records_nothing_is_no_repository(self, wrong: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"repository= takes a ClientRepository"):
            MythicClients(repository=wrong, kv=MemoryStore())

    def test_a_session_is_no_flask_sqlalchemy(self) -> None:
        db = SQLAlchemy()
        model: Any = type("Client", (ClientMixin, db.Model), {})
        with pytest.raises(ConfigurationError, match=r"db takes your app.s object of Flask-SQLAlchemy"):
            SQLAlchemyRepository(db.session, model)  # type: ignore[arg-type]

    @pytest.mark.parametrize("wrong", [dict, "Client", 7])
    def test_what_is_not_mapped_is_no_model(self, wrong: Any) -> None:
        with pytest.raises(ConfigurationError, match="is no model: pass the class"):
            SQLAlchemyRepository(SQLAlchemy(), wrong)

    @pytest.mark.parametrize("option", ["id", "status"])
    def test_a_column_that_the_model_lacks_is_named_beside_those_it_has(self, option: str) -> None:
        db = SQLAlchemy()
        fit = {"id": "id, name, status", "status": "status"}[option]
        expected = f"Client has no column 'wrong': pass {option}=… with one of {fit}."
        with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
            SQLAlchemyRepository(db, client_model(db), **{option: "wrong"})

    def test_a_column_that_only_a_template_names_is_named_beside_those_the_model_has(self) -> None:
        repository = SQLAlchemyRepository(SQLAlchemy())
        expected = "names {wrong}, but Client has no such column; it has id, name, status."
        with pytest.raises(ConfigurationError, match=re.escape(expected)):
            repository.check_columns(["name", "wrong"])

    def test_an_app_without_init_app_has_no_service(self) -> None:
        clients = MythicClients(repository=MemoryRepository(), kv=MemoryStore())
        with Flask("other").app_context(), pytest.raises(ConfigurationError, match=r"init_app\(app\)"):
            clients.service  # noqa: B018 - reading it is the act

    @pytest.mark.parametrize("wrong", [1, None, b"acme", ["acme"], True])
    def test_an_id_that_is_no_text_is_no_clients(self, wrong: Any) -> None:
        app = Flask("host")
        clients = MythicClients(app, repository=MemoryRepository(), kv=MemoryStore())
        with app.app_context():
            for method in (clients.service.soft_delete, clients.service.hard_delete, clients.service.restore):
                with pytest.raises(InvalidClientIdError):
                    method(wrong, actor="x")
            with pytest.raises(InvalidClientIdError):
                clients.service.history(wrong)


class TestARedisCluster:
    """Its exception is no RedisError."""

    def test_a_cluster_that_cannot_be_reached_did_not_confirm(self) -> None:
        error = redis.exceptions.RedisClusterException("No reachable node")

        class Cluster:
            def pipeline(self) -> Any: ...

            def get_primaries(self) -> Any: ...

            def keyslot(self, key: str) -> int:
                raise error

        with pytest.raises(KeyValueStoreError) as raised:
            RedisStore(Cluster()).apply(remove=["client:a"], overwrite={})  # type: ignore[arg-type]
        assert raised.value.cause == "redis.exceptions.RedisClusterException"


class TestAHostileTenant:
    """Its name holds an escape sequence and a line that looks like another answer."""

    NAME = f"{TITLE}\nacme: removed for good\t\x9b2J"

    @pytest.fixture
    def host(self, empty_database: Callable[[str], str]) -> Iterator[Host]:
        with mounting(empty_database("sqlite"), MemoryStore()) as mount:
            host = mount(config={"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "name:{name}"]})
            host.add(id="acme", name=self.NAME)
            yield host

    @pytest.mark.parametrize("hard", [[], ["--hard"]])
    def test_a_dry_run_prints_name_and_keys_escaped_each_in_one_line(
        self, host: Host, hard: list[str]
    ) -> None:
        result = _run(host, "delete", "--dry-run", "--show-row", "--show-keys", *hard, "acme")
        assert result.exit_code == 0
        _is_harmless(result.output)
        lines = [line for line in result.stdout.splitlines() if "removed for good" in line]
        assert [line.split()[0] for line in lines] == ["name:", "entry"]
        assert all(r"\x1b]0;x\x07\n" in line for line in lines)

    def test_its_history_prints_keys_escaped_in_one_line(self, host: Host) -> None:
        assert host.delete("acme").status_code == 200
        result = _run(host, "history", "--show-keys", "acme")
        assert result.exit_code == 0
        _is_harmless(result.output)
        head, line = result.stdout.splitlines()
        assert line.count("\t") == head.count("\t")
        assert r"name:\x1b]0;x\x07\n" in line

    def test_a_list_prints_an_id_that_no_request_can_name_escaped(self, host: Host) -> None:
        host.add(id=f"{TITLE}\n", name="")
        result = _run(host, "list")
        _is_harmless(result.output)
        assert len(result.stdout.splitlines()) == 3

    @pytest.mark.parametrize("command", [["delete"], ["delete", "--dry-run"], ["restore"], ["history"]])
    def test_an_argument_that_is_no_id_is_not_printed_raw(self, host: Host, command: list[str]) -> None:
        before = contents(host, MemoryStore())
        result = _run(host, *command, f"a{TITLE}")
        assert result.exit_code == 1
        assert contents(host, MemoryStore()) == before
        _is_harmless(result.output)


class TestAStoreThatDidNotConfirm:
    """The command says what the driver said, in a line."""

    @pytest.fixture
    def scene(
        self, empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
    ) -> Iterator[Scene]:
        with make_scene(empty_database("sqlite"), empty_kv("either")) as scene:
            scene.add()
            yield scene

    @pytest.mark.parametrize("command", [["delete", "acme"], ["reconcile"]])
    def test_the_drivers_own_word_is_shown(self, scene: Scene, command: list[str]) -> None:
        scene.tap.store = AWAY
        _run(scene.host, "delete", "acme")
        result = _run(scene.host, *command)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "127.0.0.1:1" in result.stderr

    def test_of_a_cause_only_the_first_line_is_shown(self, scene: Scene) -> None:
        def fail() -> None:
            raise KeyValueStoreError from RuntimeError("the first line\nthe second line")

        scene.tap.before = fail
        result = _run(scene.host, "delete", "acme")
        assert "(the first line)" in result.stderr
        assert "second" not in result.stderr

    def test_without_a_cause_none_is_shown(self, scene: Scene) -> None:
        gate = Gate(scene.tap.store)
        gate.closed, scene.tap.store = True, gate
        result = _run(scene.host, "delete", "acme")
        assert result.exit_code == 3
        assert "None" not in result.stderr


def test_a_database_that_is_not_known_is_a_503_that_the_log_explains(
    empty_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flask_mythic_clients.backends.sqlalchemy.dialects._DIALECTS", {})
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        answer = mount().delete("acme")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "not proven on sqlite" not in answer.text
    assert [record.getMessage() for record in caplog.records if "not proven on sqlite" in record.getMessage()]


def test_an_engine_that_renames_schemas_is_a_503_that_the_log_explains(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tables may be there under both names, with other clients."""
    options = {"execution_options": {"schema_translate_map": {"elsewhere": None}}}
    with mounting(database_url, MemoryStore()) as mount:
        host = mount(config={"SQLALCHEMY_ENGINE_OPTIONS": options})
        host.add(id="acme", name="Acme")
        for query in ("", "?hard=true"):
            assert host.delete(f"acme{query}").status_code == 503
        assert "schema_translate_map" in caplog.text
        assert [row.status for row in host.rows()] == [True]


def test_mysql_is_not_taken_for_mariadb(database_by: Callable[[str], str]) -> None:
    with mounting(database_by("mysql+pymysql"), MemoryStore()) as mount:
        host = mount()
        host.add(id="acme", name="Acme")  # by then SQLAlchemy has asked the server what it is
        with host.flask.app_context():
            dialect = host.db.engine.dialect
            dialect.is_mariadb = False
            with pytest.raises(ConfigurationError, match="not proven on MySQL"):
                host.clients.service.soft_delete("acme", actor="tests")
        assert [row.status for row in host.rows()] == [True]


DRIVERS = ["sqlite", "postgresql+psycopg", "postgresql+psycopg2", "mariadb+pymysql", "mariadb+mysqldb"]


@pytest.mark.parametrize("driver", DRIVERS)
class TestADatabaseThatIsOutOfDate:
    """What is missing is named beside its repair, whatever the driver calls the error."""

    @pytest.fixture
    def scene(
        self, driver: str, database_by: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
    ) -> Iterator[Scene]:
        with make_scene(database_by(driver), empty_kv("memory")) as scene:
            scene.add()
            yield scene

    @pytest.mark.parametrize("command", ["status", "delete acme"])
    @pytest.mark.parametrize(
        ("change", "missing"),
        [
            ("DROP TABLE client_deletions", "client_deletions"),
            ("ALTER TABLE client_deletions RENAME COLUMN requested_at TO asked_at", "requested_at"),
        ],
    )
    def test_it_is_told(self, scene: Scene, command: str, change: str, missing: str) -> None:
        with scene.second_connection() as connection:
            connection.execute(sa.text(change))
            connection.commit()
        result = _run(scene.host, *command.split())
        assert result.exit_code == (1 if command == "status" else 3)
        assert "make it as your app makes its tables, or migrate" in result.stderr
        assert missing in result.stderr
        assert scene.status() is True

    def test_another_error_is_not_taken_for_it(self, scene: Scene) -> None:
        wrong = "SELECT json('{')" if scene.kind == "sqlite" else "SELECT nobody_knows_it()"

        def do_execute(cursor: Any, *_: object) -> None:
            cursor.execute(wrong)  # not `scene`: SQLAlchemy keeps this function in a cache

        with scene.host.flask.app_context():
            sa.event.listen(scene.host.db.engine, "do_execute", do_execute)
        result = _run(scene.host, "delete", "acme")
        assert result.exit_code == 3
        assert "this is no outage" in result.stderr
        assert "migrate" not in result.stderr


def _run(host: Host, *arguments: str) -> click.testing.Result:
    return host.flask.test_cli_runner().invoke(args=["mythic-clients", *arguments])


def _is_harmless(output: str) -> None:
    assert [c for c in output if not c.isprintable() and c not in "\n\t"] == []
