"""The commands: data on stdout, messages on stderr, and an exit code for each outcome."""

import gc
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import click.testing
import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients.auth import AdminKeys, digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from flask_mythic_clients.config import Settings
from flask_mythic_clients.model import Outcome
from flask_mythic_clients.printing import Counted
from tests.hosts import Gate, Host, contents, mounting

KEYS = ("client:acme", "publishable_key:pk-acme")
DONE, REFUSED, USAGE, NO_ANSWER = 0, 1, 2, 3

# Such a runner shows on stdout what is typed, and asks for ever where nobody types.
typing_needs_click_8_2 = pytest.mark.skipif(
    "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters,
    reason="before 8.2 click's runner does not type as a terminal does",
)


@pytest.fixture
def store() -> MemoryStore:
    """The entries of the clients."""
    return MemoryStore()


@pytest.fixture
def gate(store: MemoryStore) -> Gate:
    """The way to the entries."""
    return Gate(store)


@pytest.fixture
def mount(tmp_path: Path, gate: Gate) -> Iterator[Callable[..., Host]]:
    """Mount the package on clients with orders, which forbid removal, and notes, which go with it."""

    def mount_on(**config: Any) -> Host:
        db = SQLAlchemy()

        class Client(ClientMixin, db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "clients"
            publishable_key: Mapped[str | None] = mapped_column(sa.String(64))

        client_id = "client_id", sa.String(255)
        sa.Table("orders", db.metadata, sa.Column(*client_id, sa.ForeignKey("clients.id")))
        sa.Table("notes", db.metadata, sa.Column(*client_id, sa.ForeignKey("clients.id", ondelete="CASCADE")))
        templates = ["client:{id}", "publishable_key:{publishable_key}"]
        config = {"MYTHIC_CLIENTS_KV_KEYS": templates, **config}
        return mounted(db=db, model=Client, config=config)

    with mounting(f"sqlite:///{tmp_path / 'test.db'}", gate) as mounted:
        yield mount_on


@pytest.fixture
def host(mount: Callable[..., Host], store: MemoryStore) -> Host:
    """Client `acme` with both its entries."""
    host = mount()
    _add(host, store, "acme")
    return host


@pytest.fixture
def plain(tmp_path: Path, store: MemoryStore) -> Iterator[Host]:
    """Client `acme`, on a store that has a mark."""
    with mounting(f"sqlite:///{tmp_path / 'test.db'}", store) as mounted:
        host = mounted()
        host.add(id="acme")
        yield host


def _drop_all(host: Host) -> None:
    with host.flask.app_context(), host.db.engine.begin() as connection:
        host.db.metadata.drop_all(connection)


def _add(host: Host, store: MemoryStore, id: str) -> None:
    host.add(id=id, name="Acme", publishable_key=f"pk-{id}")
    store.set(f"client:{id}", "{}")
    store.set(f"publishable_key:pk-{id}", id)


def _refer(host: Host, table: str, rows: int = 1) -> None:
    with host.flask.app_context(), host.db.engine.begin() as connection:
        values = [{"client_id": "acme"}] * rows
        connection.execute(sa.insert(host.db.metadata.tables[table]), values)


def _run(host: Host, *arguments: str, typed: str | None = None) -> click.testing.Result:
    runner = host.flask.test_cli_runner(env={"LOGNAME": "ada"})
    return runner.invoke(args=["mythic-clients", *arguments], input=typed)


def _status(host: Host) -> bool | None:
    return {row.id: row.status for row in host.rows()}.get("acme")


class TestCreateKey:
    """It needs no database."""

    def test_the_key_is_printed_once_and_its_entry_is_accepted(self, host: Host) -> None:
        result = _run(host, "create-key", "ops")
        key, entry = result.stdout.splitlines()
        assert result.exit_code == DONE
        assert result.output.count(key) == 1
        assert "once" in result.stderr
        assert key not in result.stderr
        name, _, value = entry.partition("=")
        settings = Settings.from_config({name: value})
        assert AdminKeys(settings.admin_keys)(key) == "ops"

    def test_json_holds_name_key_and_digest(self, host: Host) -> None:
        result = _run(host, "create-key", "ops", "--json")
        made = json.loads(result.stdout)
        assert list(made) == ["name", "key", "digest"]
        assert (made["name"], made["digest"]) == ("ops", digest(made["key"]))
        assert (result.exit_code, result.stderr) == (DONE, "")
        Settings.from_config({"MYTHIC_CLIENTS_ADMIN_KEYS": {made["name"]: made["digest"]}})

    def test_with_may_the_entry_is_that_of_a_limited_key_and_stands_a_shell(self, host: Host) -> None:
        result = _run(host, "create-key", "ci", "--may", "restore+soft")
        key, entry = result.stdout.splitlines()
        [word] = shlex.split(
            entry
        )  # unquoted, a shell would end the command at the `;`: a key without limits
        assert word == f"MYTHIC_CLIENTS_ADMIN_KEYS=ci={digest(key)};may=soft+restore"
        for printed in (word, entry):  # where nobody takes the quotes off, too
            name, _, value = printed.partition("=")
            keys = AdminKeys(Settings.from_config({name: value}).admin_keys)
            assert keys(key) == ("ci", {"soft", "restore"})

    def test_json_holds_what_the_key_may(self, host: Host) -> None:
        result = _run(host, "create-key", "ci", "--may", "status", "--json")
        made = json.loads(result.stdout)
        assert list(made) == ["name", "key", "digest", "may"]
        assert made["may"] == ["status"]
        entry = {"digest": made["digest"], "may": made["may"]}
        Settings.from_config({"MYTHIC_CLIENTS_ADMIN_KEYS": {made["name"]: entry}})

    @pytest.mark.parametrize("may", ["", "+", "all", "soft+", "soft,hard", "Soft"])
    def test_rights_that_there_are_not_are_wrong_usage_and_make_no_key(self, host: Host, may: str) -> None:
        result = _run(host, "create-key", "ci", "--may", may)
        assert (result.exit_code, result.stdout) == (USAGE, "")
        assert "soft, hard, restore, history, preview, status" in result.stderr

    @pytest.mark.parametrize("name", ["", "a b", "a=b", "a,b", "é"])
    def test_what_is_no_name_is_wrong_usage_and_makes_no_key(self, host: Host, name: str) -> None:
        result = _run(host, "create-key", name)
        assert (result.exit_code, result.stdout) == (USAGE, "")
        assert "1 to 64 letters" in result.stderr


class TestDelete:
    """Soft, and with --hard for good."""

    def test_it_is_soft_and_the_actor_is_the_user(self, host: Host) -> None:
        result = _run(host, "delete", "acme")
        assert (result.exit_code, result.stdout) == (DONE, "")
        assert "acme: soft-deleted" in result.stderr
        assert _status(host) is False
        assert host.records("acme")[0].actor == "cli:ada"

    def test_a_user_without_a_name_is_just_the_cli(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        def getuser() -> str:
            raise KeyError("getpwuid(): uid not found: 4711")

        monkeypatch.setattr("getpass.getuser", getuser)
        assert _run(host, "delete", "acme").exit_code == DONE
        assert host.records("acme")[0].actor == "cli"

    @typing_needs_click_8_2
    def test_hard_needs_the_id_typed(self, host: Host, store: MemoryStore) -> None:
        result = _run(host, "delete", "--hard", "acme", typed="acme\n")
        assert (result.exit_code, result.stdout) == (DONE, "")
        assert "type its id" in result.stderr
        assert _status(host) is None
        assert [store.get(key) for key in KEYS] == [None, None]

    @typing_needs_click_8_2
    @pytest.mark.parametrize("typed", ["y\n", "yes\n", "Acme\n", "acme2\n", None, ""])
    def test_another_id_or_none_removes_nothing(self, host: Host, store: MemoryStore, typed: str) -> None:
        before = contents(host, store, *KEYS)
        result = _run(host, "delete", "--hard", "acme", typed=typed)
        assert result.exit_code == REFUSED
        assert contents(host, store, *KEYS) == before

    def test_yes_does_not_ask(self, host: Host) -> None:
        result = _run(host, "delete", "--hard", "--yes", "acme")
        assert (result.exit_code, result.stdout) == (DONE, "")
        assert "type" not in result.stderr
        assert _status(host) is None

    def test_each_id_is_asked_for_and_one_that_fails_stops_no_other(
        self, host: Host, store: MemoryStore
    ) -> None:
        for id in ("b", "c"):
            _add(host, store, id)
        result = _run(host, "delete", "--hard", "acme", "b", "c", typed="acme\nwrong\nc\n")
        assert result.exit_code == REFUSED
        assert "b: not removed" in result.stderr
        assert [row.id for row in host.rows()] == ["b"]

    @pytest.mark.parametrize("bad", ["nobody", "not.an.id"])
    def test_an_unknown_or_impossible_id_is_refused_and_the_others_are_done(
        self, host: Host, bad: str
    ) -> None:
        result = _run(host, "delete", bad, "acme")
        assert (result.exit_code, result.stdout) == (REFUSED, "")
        assert f"{bad}: " in result.stderr
        assert "acme: soft-deleted" in result.stderr
        assert _status(host) is False

    def test_the_worst_outcome_is_the_exit_code(self, host: Host, gate: Gate) -> None:
        gate.closed = True
        assert _run(host, "delete", "acme", "nobody").exit_code == NO_ANSWER

    def test_a_store_that_is_away_names_the_repair(self, host: Host, gate: Gate, store: MemoryStore) -> None:
        gate.closed = True
        result = _run(host, "delete", "--hard", "--yes", "acme")
        assert (result.exit_code, result.stdout) == (NO_ANSWER, "")
        assert "reconcile" in result.stderr
        gate.closed = False
        assert _run(host, "reconcile").exit_code == DONE
        assert [store.get(key) for key in KEYS] == [None, None]

    @pytest.mark.parametrize("command", [["reconcile"], ["purge", "--older-than", "1d"]])
    def test_long_work_is_collected_seldom_and_all_else_as_before(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, command: list[str]
    ) -> None:
        before, seen = gc.get_threshold(), set()

        def look(*_: object, **__: object) -> list[Any]:
            seen.add(gc.get_threshold())
            return []

        for read in ("pending", "inactive"):
            monkeypatch.setattr(SQLAlchemyRepository, read, look)
        assert _run(host, *command).exit_code == DONE
        assert seen == {(*before[:2], 10 * before[2])}
        assert gc.get_threshold() == before

    def test_a_row_that_others_refer_to_is_refused(self, host: Host) -> None:
        _refer(host, "orders")
        result = _run(host, "delete", "--hard", "--yes", "acme")
        assert result.exit_code == REFUSED
        assert "foreign key" in result.stderr
        assert _status(host) is True

    @pytest.mark.parametrize("arguments", [[], ["--json", "acme"], ["--wrong", "acme"]])
    def test_wrong_usage_changes_nothing(self, host: Host, arguments: list[str]) -> None:
        assert _run(host, "delete", *arguments).exit_code == USAGE
        assert _status(host) is True


class TestDryRun:
    """It prints what would be met, and changes nothing."""

    @pytest.mark.parametrize("hard", [True, False])
    def test_it_names_row_dependents_and_the_very_keys_and_changes_nothing(
        self, host: Host, store: MemoryStore, gate: Gate, hard: bool
    ) -> None:
        _refer(host, "notes", rows=3)
        before = contents(host, store, *KEYS)
        gate.closed = True  # not even asked
        flag = ["--hard"] if hard else []
        result = _run(host, "delete", "--dry-run", "--show-keys", "--show-row", "--json", *flag, "acme")
        assert (result.exit_code, result.stderr) == (DONE, "")
        shown = json.loads(result.stdout)
        assert list(shown) == ["id", "hard", "refused", "dependents", "entries", "kv_keys", "row"]
        assert (shown["id"], shown["hard"], shown["refused"], shown["entries"]) == ("acme", hard, None, 2)
        row = {"id": "acme", "name": "Acme", "status": True, "publishable_key": "pk-acme"}
        assert shown["row"] == row
        fate = "removed" if hard else "kept"
        assert shown["dependents"] == [{"column": "notes.client_id", "rows": 3, "fate": fate}]
        assert contents(host, store, *KEYS) == before
        gate.closed = False
        assert _run(host, "delete", "--yes", *flag, "acme").exit_code == DONE
        assert list(host.records("acme")[0].kv_keys) == shown["kv_keys"] == list(KEYS)

    def test_a_key_of_a_null_column_is_in_neither(self, host: Host) -> None:
        host.add(id="bare", name="")
        shown = json.loads(
            _run(host, "delete", "--dry-run", "--show-keys", "--json", "--hard", "bare").stdout
        )
        _run(host, "delete", "--hard", "--yes", "bare")
        assert shown["kv_keys"] == list(host.records("bare")[0].kv_keys) == ["client:bare"]

    def test_where_a_soft_delete_removes_the_entries_it_says_so(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount(MYTHIC_CLIENTS_SOFT_DELETE_ENTRIES="remove")
        _add(host, store, "acme")
        shown = _run(host, "delete", "--dry-run", "--show-keys", "acme").stdout
        assert [f"  entry {key}: would be removed" in shown for key in KEYS] == [True, True]
        _run(host, "delete", "acme")
        assert [store.get(key) for key in KEYS] == [None, None]

    @pytest.mark.parametrize(
        ("flags", "lines"),
        [
            (
                ["--hard"],
                [
                    "would be removed",
                    "notes.client_id, 1 row: would be removed",
                    "entries: 2; each would be removed",
                ],
            ),
            (
                [],
                [
                    "status would be false",
                    "notes.client_id, 1 row: would stay as they are",
                    "entries: 2; each would be rewritten where its value is known",
                ],
            ),
            (
                ["--hard", "--show-keys", "--show-row"],
                [
                    "would be removed",
                    *("publishable_key: pk-acme", "id: acme", "name: Acme", "status: True"),
                    "notes.client_id, 1 row: would be removed",
                    *(f"entry {key}: would be removed" for key in KEYS),
                ],
            ),
        ],
        ids=["hard", "soft", "all"],
    )
    def test_people_get_the_same_in_words_on_stdout(
        self, host: Host, flags: list[str], lines: list[str]
    ) -> None:
        _refer(host, "notes", rows=1)
        result = _run(host, "delete", "--dry-run", *flags, "acme")
        assert (result.exit_code, result.stderr) == (DONE, "")
        first, *others = lines
        assert result.stdout.splitlines() == [f"client acme: {first}", *(f"  {line}" for line in others)]

    def test_what_would_be_refused_is_told_with_the_columns_that_forbid_it(
        self, host: Host, store: MemoryStore
    ) -> None:
        _refer(host, "orders", rows=2)
        before = contents(host, store, *KEYS)
        result = _run(host, "delete", "--dry-run", "--hard", "acme")
        assert (result.exit_code, result.stderr) == (REFUSED, "")
        assert result.stdout.splitlines() == [
            "client acme: would be refused: orders.client_id, 2 rows",
            "  orders.client_id, 2 rows: forbid it",
            "  entries: 2; each would be left as it is",
        ]
        shown = json.loads(_run(host, "delete", "--dry-run", "--hard", "--json", "acme").stdout)
        assert shown["dependents"] == [{"column": "orders.client_id", "rows": 2, "fate": "forbids it"}]
        assert contents(host, store, *KEYS) == before
        deed = _run(host, "delete", "--hard", "--yes", "acme")
        assert (deed.exit_code, deed.stderr) == (REFUSED, f"Error: acme: {shown['refused']}\n")

    def test_the_hosts_listeners_are_called_as_in_the_deed(self, host: Host) -> None:
        called = []
        for event in ("before_delete", "before_update"):
            sa.event.listen(host.model, event, lambda *_: called.append(1))
        for number, flag in enumerate(([], ["--hard"]), 1):
            assert _run(host, "delete", "--dry-run", *flag, "acme").exit_code == DONE
            assert len(called) == number
        assert _status(host) is True

    def test_each_id_is_a_line_of_json_and_one_that_fails_stops_no_other(
        self, host: Host, store: MemoryStore
    ) -> None:
        _add(host, store, "b")
        result = _run(host, "delete", "--dry-run", "--json", "acme", "nobody", "b")
        assert result.exit_code == REFUSED
        assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["acme", "b"]
        assert "nobody: " in result.stderr

    def test_the_guard_answers_as_it_would_and_a_soft_delete_is_not_its_concern(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount(MYTHIC_CLIENTS_HARD_DELETE="deny")
        _add(host, store, "acme")
        result = _run(host, "delete", "--dry-run", "--hard", "acme")
        assert (result.exit_code, result.stderr) == (REFUSED, "")
        assert "client acme: would be refused: This service does not allow hard deletes." in result.stdout
        assert _run(host, "delete", "--dry-run", "acme").exit_code == DONE
        assert _run(host, "delete", "--hard", "--yes", "acme").exit_code == REFUSED
        assert _status(host) is True


class TestManyAtOnce:
    """Ids from a file, and purges: a result on stdout, what failed with its cause, and how many."""

    def test_the_clients_of_a_file_are_deleted(self, host: Host, store: MemoryStore, tmp_path: Path) -> None:
        _add(host, store, "b")
        (tmp_path / "ids").write_text("acme\n\n  b  \nnobody\n")
        result = _run(host, "delete", "--from-file", str(tmp_path / "ids"))
        assert result.exit_code == REFUSED
        first, second, third = result.stdout.splitlines()
        assert (first, second) == ("acme\tdone", "b\tdone")
        assert third.startswith("nobody\tfailed\tThere is no such client")
        assert result.stderr.splitlines()[-1] == "done 2, failed 1, held 0, unrecorded 0"
        result = _run(host, "delete", "--hard", "--yes", "--from-file", "-", "--json", typed="acme\nb\n")
        assert result.exit_code == DONE
        told = json.loads(result.stdout)
        assert (told["done"], [each["client_id"] for each in told["results"]]) == (2, ["acme", "b"])
        assert host.rows() == []

    def test_a_file_may_begin_as_windows_writes_it_and_what_is_no_utf_8_is_told(
        self, host: Host, store: MemoryStore, tmp_path: Path
    ) -> None:
        _add(host, store, "b")
        (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfacme\r\nb\xff\r\nb\r\n")
        result = _run(host, "delete", "--from-file", str(tmp_path / "ids"))
        assert result.exit_code == REFUSED
        first, second, third = result.stdout.splitlines()
        assert (first, third) == ("acme\tdone", "b\tdone")
        assert "\tfailed\tA client id is a text" in second

    def test_a_file_is_not_asked_about_and_stands_in_place_of_ids(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_text("acme")
        for wrong in (
            ["delete"],
            ["delete", "acme", "--from-file", str(file)],
            ["delete", "--hard", "--from-file", str(file)],
            ["delete", "--from-file", str(tmp_path / "none")],
        ):
            assert _run(host, *wrong).exit_code == USAGE
        assert _run(host, "delete", "--dry-run", "--from-file", str(file)).exit_code == DONE
        assert _status(host) is True

    def test_a_purge_names_what_cannot_go_and_counts_the_rest(self, host: Host, store: MemoryStore) -> None:
        _add(host, store, "b")
        _add(host, store, "active")
        _refer(host, "orders")
        _run(host, "delete", "acme", "b")
        host.add(id="unknown", status=False)
        assert _run(host, "purge", "--older-than", "1h", "--json").stdout.strip() == (
            '{"removed": 0, "failed": 0, "held": 0, "unrecorded": 1, "one_by_one": 0}'
        )
        would = _run(host, "purge", "--older-than", "0s", "--dry-run")
        assert (would.exit_code, would.stdout.split()) == (DONE, ["acme", "b"])
        result = _run(host, "purge", "--older-than", "0s", "--actor", "cron", "--reason", "old")
        assert result.exit_code == REFUSED
        assert "acme: " in result.stderr
        assert "orders.client_id" in result.stderr
        assert result.stdout == "removed 1, failed 1, held 0, unrecorded 1\n"
        record = json.loads(_run(host, "history", "b", "--json").stdout)[-1]
        assert (record["action"], record["actor"], record["reason"]) == ("hard", "cron", "old")
        assert {row.id for row in host.rows()} == {"acme", "active", "unknown"}

    def test_the_summary_says_where_clients_went_one_by_one(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        _add(host, store, "a")
        sa.event.listen(host.model, "before_delete", lambda *_: None)
        _run(host, "delete", "a")
        result = _run(host, "purge", "--older-than", "0s")
        assert result.stdout.startswith("removed 1, failed 0, held 0, unrecorded 0; 1 one by one, for ")
        assert host.rows() == []

    def test_a_bar_goes_to_a_terminal_alone(
        self, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcomes = [Outcome("a"), Outcome("b", alone=True)]
        for terminal in (False, True):
            monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
            counted = Counted(outcomes, 2)
            assert list(counted) == outcomes
            assert counted.counts("done")["one_by_one"] == 1
            assert bool(capsys.readouterr().err) is terminal

    def test_an_outage_is_told_with_what_was_done_until_then(self, host: Host, gate: Gate) -> None:
        gate.closed = True
        _run(host, "delete", "acme")
        result = _run(host, "delete", "--from-file", "-", typed="acme\n")
        assert result.exit_code == NO_ANSWER
        assert "done 0, failed 0" in result.stderr

    def test_one_that_is_stopped_by_hand_tells_so(
        self, host: Host, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopped(**_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(gate, "apply", stopped)
        result = _run(host, "delete", "--from-file", "-", typed="acme\n")
        assert result.exit_code == REFUSED
        assert "goes on" in result.stderr
        assert "done 0" in result.stderr


class TestRestore:
    """It takes soft deletes back."""

    def test_one_that_fails_stops_no_other(self, host: Host) -> None:
        _run(host, "delete", "acme")
        result = _run(host, "restore", "nobody", "acme")
        assert (result.exit_code, result.stdout) == (REFUSED, "")
        assert "acme: active." in result.stderr
        assert _status(host) is True
        assert host.records("acme")[1].actor == "cli:ada"

    def test_without_an_answer_it_is_3(self, host: Host, gate: Gate) -> None:
        _run(host, "delete", "acme")
        gate.closed = True
        assert _run(host, "restore", "acme").exit_code == NO_ANSWER


class TestReconcileAndStatus:
    """For cron, and for monitors."""

    def test_status_tells_what_is_pending_and_how_to_repair_it(self, host: Host, gate: Gate) -> None:
        result = _run(host, "status")
        nothing = "pending 0, oldest -, due 0, overdue 0, failed 0, last reconcile -\n"
        assert (result.exit_code, result.stdout, result.stderr) == (DONE, nothing, "")
        gate.closed = True
        _run(host, "delete", "acme")
        gate.closed = False
        host.let_time_pass(70)
        result = _run(host, "status")
        assert result.exit_code == REFUSED
        assert re.match(r"pending 1, oldest 7\d, due 0,", result.stdout)
        assert result.stderr == "To repair, and to be run every minute: flask mythic-clients reconcile\n"

    def test_status_as_json(self, host: Host, gate: Gate) -> None:
        counts = {"pending": 0, "oldest": None, "due": 0, "overdue": 0, "failed": 0}
        stores = {"database": True, "kv": True, "needs_audit": False}
        well = {"ok": True, **counts, "last_reconcile": None, **stores}
        assert json.loads(_run(host, "status", "--json").stdout) == well
        gate.closed = True
        _run(host, "delete", "acme")
        result = _run(host, "status", "--json")
        shown = json.loads(result.stdout)
        assert (result.exit_code, list(shown)) == (REFUSED, list(well))
        away = {"kv": False, "needs_audit": None}
        assert shown == well | {"ok": False, "pending": 1, "oldest": shown["oldest"], **away}
        assert 0 <= shown["oldest"] < 60

    def test_status_tells_what_is_overdue_and_when_a_reconcile_ended(self, plain: Host) -> None:
        host = plain
        _run(host, "delete", "acme")
        host.let_time_pass(70)
        assert _run(host, "status").exit_code == DONE  # to be verified, and that is no fault yet
        assert json.loads(_run(host, "status", "--json").stdout)["due"] == 1
        host.let_time_pass(300)
        result = _run(host, "status", "--json")
        shown = json.loads(result.stdout)
        assert (result.exit_code, shown["due"], shown["overdue"], shown["ok"]) == (REFUSED, 1, 1, False)
        assert "flask mythic-clients reconcile" in result.stderr
        assert _run(host, "reconcile").exit_code == DONE
        result = _run(host, "status", "--json")
        shown = json.loads(result.stdout)
        assert (result.exit_code, shown["due"]) == (DONE, 0)
        assert 0 <= shown["last_reconcile"] < 60

    def test_status_counts_what_has_failed(self, plain: Host, store: MemoryStore) -> None:
        host = plain
        _run(host, "delete", "acme")
        host.let_time_pass(70)
        store.refuse("client:acme")
        assert _run(host, "reconcile").exit_code == REFUSED
        result = _run(host, "status", "--json")
        assert (result.exit_code, json.loads(result.stdout)["failed"]) == (REFUSED, 1)
        assert "pending --failed" in result.stderr
        store.refuse()
        assert _run(host, "reconcile").exit_code == DONE
        assert _run(host, "status").exit_code == DONE

    def test_status_without_the_database_is_1_and_tells_so(self, host: Host) -> None:
        _drop_all(host)
        result = _run(host, "status", "--json")
        shown = json.loads(result.stdout)
        assert (result.exit_code, shown["database"], shown["kv"]) == (REFUSED, False, True)
        assert (shown["ok"], shown["pending"], shown["last_reconcile"]) == (False, None, None)
        assert "The database is away: The database lacks client_deletions" in result.stderr

    @pytest.mark.parametrize(("since", "exit_code"), [("2h", DONE), ("0s", DONE), ("2", USAGE), ("h", USAGE)])
    def test_reconcile_since_takes_a_number_and_a_unit(self, host: Host, since: str, exit_code: int) -> None:
        result = _run(host, "reconcile", "--since", since)
        assert result.exit_code == exit_code
        assert ("write a number and d, h, m or s, such as 2h" in result.stderr) is (exit_code == USAGE)

    def test_reconcile_settles_and_says_so(self, host: Host, gate: Gate) -> None:
        gate.closed = True
        _run(host, "delete", "acme")
        gate.closed = False
        result = _run(host, "reconcile")
        assert (result.exit_code, result.stdout) == (DONE, "settled 1, verified 0, failed 0\n")
        result = _run(host, "reconcile", "--json")
        assert json.loads(result.stdout) == {"settled": 0, "verified": 0, "failed": 0, "blind": False}

    def test_reconcile_without_an_answer_is_3_and_loses_nothing(self, host: Host, gate: Gate) -> None:
        gate.closed = True
        _run(host, "delete", "acme")
        result = _run(host, "reconcile", "--json")
        assert (result.exit_code, result.stdout) == (NO_ANSWER, "")
        assert "key-value store" in result.stderr
        assert _run(host, "status").exit_code == REFUSED

    def test_reconcile_that_had_to_leave_a_client_is_1(self, tmp_path: Path) -> None:
        def entries(row: Any) -> dict[str, None]:
            if not row.status:
                raise LookupError(row.id)
            return {f"client:{row.id}": None}

        with mounting(f"sqlite:///{tmp_path / 'test.db'}", MemoryStore()) as mounted:
            host = mounted(entries=entries)
            host.add(id="acme")
            _run(host, "delete", "acme")
            result = _run(host, "reconcile", "--json")
            assert result.exit_code == REFUSED
            assert json.loads(result.stdout) == {"settled": 0, "verified": 0, "failed": 1, "blind": False}


class TestReading:
    """Lists for people, and for programs."""

    def test_list_prints_id_and_status(self, host: Host, store: MemoryStore) -> None:
        _add(host, store, "b")
        _run(host, "delete", "b")
        assert _run(host, "list").stdout == "id\tstatus\nacme\tTrue\nb\tFalse\n"
        shown = json.loads(_run(host, "list", "--json").stdout)
        assert shown == [{"id": "acme", "status": True}, {"id": "b", "status": False}]

    def test_the_inactive_alone_are_listed_if_that_is_asked(self, host: Host, store: MemoryStore) -> None:
        _add(host, store, "b")
        _run(host, "delete", "b")
        assert _run(host, "list", "--inactive").stdout == "id\tstatus\nb\tFalse\n"

    def test_on_a_terminal_columns_stand_below_each_other_and_fit(
        self, host: Host, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flask_mythic_clients.printing.is_terminal", lambda: True)
        _add(host, store, "a-longer-id")
        assert _run(host, "list").stdout.splitlines() == [
            "id           status",
            "a-longer-id  True",
            "acme         True",
        ]
        _run(host, "delete", "acme")
        head, record, keys = _run(host, "history", "acme").stdout.splitlines()
        assert head.split() == ["id", "action", "actor", "requested_at", "settled_at", "verified_at"]
        assert re.fullmatch(r"\d+   soft    cli:ada  [-\d]{10} [:\d]{8}  [-\d]{10} [:\d]{8}  -", record)
        assert keys == "    kv keys: client:… publishable_key:…"
        assert max(map(len, (head, record, keys))) <= 100
        for name in ("action", "actor", "requested_at"):
            at = head.index(name)
            assert record[at - 2 : at] == "  "
            assert record[at] != " "

    def test_a_check_prints_a_line_for_each_finding_and_fails_only_for_what_breaks(
        self, mount: Callable[..., Host], gate: Gate
    ) -> None:
        lines = re.compile(r"^(\w+): (publishable_key:|[^:]+)", re.MULTILINE)
        errors = _run(mount(), "check")
        assert errors.exit_code == REFUSED
        # Its column is not unique; and the gate keeps no mark.
        assert lines.findall(errors.stdout) == [("error", "publishable_key:"), ("note", "key-value store")]
        host = mount(MYTHIC_CLIENTS_KV_KEYS="client:{id}")
        note = _run(host, "check")
        assert note.exit_code == DONE
        assert lines.findall(note.stdout) == [("note", "key-value store")]
        gate.closed = True
        error = _run(host, "check")
        assert error.exit_code == REFUSED
        assert error.stdout.startswith("error: key-value store: ")
        (told,) = json.loads(_run(host, "check", "--json").stdout)
        assert list(told) == ["subject", "problem", "fix", "breaks"]
        assert (told["subject"], told["breaks"]) == ("key-value store", True)

    def test_a_check_that_finds_nothing_says_so(self, plain: Host) -> None:
        assert _run(plain, "reconcile").exit_code == DONE
        result = _run(plain, "check")
        assert (result.exit_code, result.stdout) == (DONE, "")
        assert "Nothing" in result.stderr
        assert _run(plain, "check", "--json").stdout == "[]\n"

    def test_the_version_is_that_of_the_package(self, host: Host) -> None:
        assert _run(host, "--version").stdout == f"flask-mythic-clients {version('flask-mythic-clients')}\n"

    def test_lists_of_nothing_are_empty_and_no_error(
        self, mount: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = mount()
        for terminal, command in product((False, True), (["list"], ["history", "nobody"])):
            monkeypatch.setattr(
                "flask_mythic_clients.printing.is_terminal", lambda terminal=terminal: terminal
            )
            result = _run(host, *command)
            assert (result.exit_code, result.stdout) == (DONE, "")
            assert json.loads(_run(host, *command, "--json").stdout) == []

    def test_the_history_of_a_client_that_is_gone_is_told(self, host: Host) -> None:
        _run(host, "delete", "acme")
        _run(host, "delete", "--hard", "--yes", "acme")
        soft, hard = json.loads(_run(host, "history", "acme", "--json").stdout)
        assert list(soft) == [
            *("id", "client_id", "action", "actor", "kv_keys"),
            *("requested_at", "settled_at", "verified_at", "attempts", "last_error", "kv_digests", "reason"),
            *("kind", "request_id"),
        ]
        assert (soft["action"], hard["action"]) == ("soft", "hard")
        assert hard["kv_keys"] == ["client:…", "publishable_key:…"]
        assert json.loads(_run(host, "history", "acme", "--json", "--show-keys").stdout)[1] == hard | {
            "kv_keys": list(KEYS)
        }
        assert hard["verified_at"] is None
        names, *lines = _run(host, "history", "acme").stdout.splitlines()
        assert names.split("\t") == list(soft)
        assert lines[1].split("\t")[2:5] == ["hard", "cli:ada", "client:… publishable_key:…"]

    def test_who_did_it_and_why_is_what_the_options_say(self, host: Host) -> None:
        steps = (["delete"], ["restore"], ["delete", "--hard", "--yes"])
        for number, step in enumerate(steps):
            given = ["--actor", f"Zoë {number}", "--reason", f"Ticket {number}: it's 100 %"]
            assert _run(host, *step, "acme", *given).exit_code == DONE
        records = json.loads(_run(host, "history", "acme", "--json").stdout)
        told = [(record["actor"], record["reason"]) for record in records]
        assert told == [(f"Zoë {number}", f"Ticket {number}: it's 100 %") for number in range(3)]

    @pytest.mark.parametrize("option", ["--actor", "--reason"])
    @pytest.mark.parametrize("wrong", ["", "x" * 501, "two\nlines", "\x1b[2J"])
    def test_what_the_ledger_does_not_take_is_wrong_usage(self, host: Host, option: str, wrong: str) -> None:
        for command in (["delete"], ["delete", "--hard", "--yes"], ["restore"]):
            result = _run(host, *command, "acme", option, wrong)
            assert (result.exit_code, result.stdout) == (USAGE, "")
            assert "500" in result.stderr
            assert "\x1b" not in result.stderr
        assert _status(host) is True

    def test_a_receipt_tells_what_can_be_proven_of_a_removal(self, host: Host) -> None:
        _run(host, "delete", "acme")
        none = _run(host, "history", "acme", "--receipt")
        assert (none.exit_code, none.stdout) == (REFUSED, "")
        assert "no removal for good" in none.stderr
        _run(host, "delete", "--hard", "--yes", "acme", "--actor", "ada", "--reason", "Art. 17")
        result = _run(host, "history", "acme", "--receipt", "--json")
        (told,) = json.loads(result.stdout)
        assert result.exit_code == DONE
        assert (told["client"], told["removed_by"], told["reason"]) == ("acme", "ada", "Art. 17")
        assert told["asked_for"] <= told["confirmed_by_both_stores"]
        assert told["verified"] is None
        assert told["entries"] == 2
        assert told["sha256_of_their_names"] == [sha256(key.encode()).hexdigest() for key in KEYS]
        people = _run(host, "history", "acme", "--receipt").stdout
        assert "removed by: ada" in people
        assert "pk-acme" not in people

    def test_a_client_is_shown_with_its_entries_and_records_also_when_it_is_gone(
        self, plain: Host, store: MemoryStore
    ) -> None:
        store.set("client:acme", "stale")
        shown = json.loads(_run(plain, "show", "acme", "--json", "--show-keys").stdout)
        assert (shown["id"], shown["status"], shown["records"]) == ("acme", True, [])
        assert shown["entries"] == [{"key": "client:acme", "there": True, "in_line": False}]
        _run(plain, "restore", "acme")  # which writes it again
        assert "entry client:…: there, in line" in _run(plain, "show", "acme").stdout
        _run(plain, "delete", "--hard", "--yes", "acme")
        gone = _run(plain, "show", "acme", "--json")
        told = json.loads(gone.stdout)
        assert (gone.exit_code, told["status"]) == (DONE, None)
        assert told["entries"] == [{"key": "client:…", "there": False, "in_line": True}]
        assert [record["action"] for record in told["records"]] == ["hard"]
        store.set("client:acme", "back again")
        assert "NOT in line" in _run(plain, "show", "acme").stdout
        nobody = _run(plain, "show", "nobody")
        assert (nobody.exit_code, nobody.stdout) == (REFUSED, "client nobody: has no row\nrecords: 0\n")

    def test_of_a_store_that_cannot_be_read_nobody_can_tell(self, host: Host) -> None:
        assert "entry client:…: nobody can tell\n" in _run(host, "show", "acme").stdout

    def test_what_is_pending_is_told_with_what_was_in_its_way(
        self, host: Host, gate: Gate, store: MemoryStore
    ) -> None:
        gate.closed = True
        _run(host, "delete", "acme")
        (told,) = json.loads(_run(host, "pending", "--json").stdout)
        assert list(told) == ["id", "action", "requested_at", "settled_at", "attempts", "last_error"]
        assert (told["id"], told["attempts"], told["settled_at"]) == ("acme", 0, None)
        assert json.loads(_run(host, "pending", "--failed", "--json").stdout) == []
        gate.closed = False
        store.refuse("client:acme")
        assert _run(host, "reconcile").exit_code == REFUSED
        failed = _run(host, "pending", "--failed")
        assert failed.exit_code == DONE
        names, line = failed.stdout.splitlines()
        assert names.split("\t")[4] == "attempts"
        assert line.split("\t")[4] == "1"

    def test_the_history_of_an_impossible_id_is_refused(self, host: Host) -> None:
        assert _run(host, "history", "no.id").exit_code == REFUSED

    @pytest.mark.parametrize(
        "command",
        [["list"], ["history", "acme"], ["reconcile"], ["delete", "acme"], ["restore", "acme"]],
    )
    def test_without_the_database_every_command_is_3(self, host: Host, command: list[str]) -> None:
        _drop_all(host)
        result = _run(host, *command)
        assert (result.exit_code, result.stdout) == (NO_ANSWER, "")
        assert "database" in result.stderr
