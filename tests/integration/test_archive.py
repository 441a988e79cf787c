"""The ledger as a whole: exported, taken again after a real backup was restored, and pruned."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click.testing
import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.model import DeletionRecord, Result

from ..hosts import Host, client_model
from .test_many import DAY, WAYS, M, P, S, actions, add, delete_each, entries, meanwhile, purge

MANY = [f"c{number:05}" for number in range(10_000)]
DUMPS = {P: ("pg_dump", "psql"), M: ("mariadb-dump", "mariadb"), S: (None, None)}


NAMES = ("replayed", "failed", "held", "unrecorded", "one_by_one")
RECORD: dict[str, Any] = {
    **{"kind": "clients", "client_id": "a", "action": "hard", "actor": "ops", "reason": None},
    "requested_at": "2026-01-01T00:00:00+00:00",
}


class Backup:
    """A copy of a database, made and restored by the database's own tools."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = sa.make_url(url)
        self._file = folder / "backup"
        self._kind = self._url.get_backend_name()
        for tool in filter(None, DUMPS[self._kind]):
            if _program(tool) is None:
                pytest.skip(f"{tool} is not installed: its Debian package is the client's of that database.")

    def take(self) -> None:
        if self._kind == S:
            shutil.copy(self._url.database or "", self._file)
            return
        clean = ["--clean"] if self._kind == P else []
        with self._file.open("wb") as file:
            subprocess.run([*self._command(0), *clean], stdout=file, check=True, env=self._env())

    def restore(self) -> None:
        if self._kind == S:
            shutil.copy(self._file, self._url.database or "")
            return
        with self._file.open("rb") as file:
            quiet = ["--quiet", "--output", os.devnull] if self._kind == P else []
            subprocess.run([*self._command(1), *quiet], stdin=file, check=True, env=self._env())

    def _command(self, which: int) -> list[str]:
        url, program = self._url, _program(f"{DUMPS[self._kind][which]}") or ""
        at = ["--host", f"{url.host}", "--port", f"{url.port}", "--user" if self._kind == M else "--username"]
        return [program, *at, f"{url.username}", f"{url.database}"]

    def _env(self) -> dict[str, str]:
        password = f"{self._url.password or ''}"
        return {**os.environ, "PGPASSWORD": password, "MYSQL_PWD": password}


def _program(name: str) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = (shutil.which(name, path=f"{folder}") for folder in folders)
    return next(filter(None, found), None) or shutil.which(name)


def run(host: Host, *arguments: str, given: str | None = None) -> click.testing.Result:
    return host.flask.test_cli_runner().invoke(args=["mythic-clients", *arguments], input=given)


def export(host: Host, *arguments: str) -> str:
    result = run(host, "export", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def replay(host: Host, exported: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(host, "replay", "-", "--json", given=exported).stdout)
    return told


def forget(host: Host, days: float) -> int:
    with host.flask.app_context():
        return sum(host.clients.service.forget(older_than=timedelta(days=days)))


def reconciled(host: Host) -> None:
    with host.flask.app_context():
        assert host.clients.service.reconcile().failed == 0


class TestReplay:
    def test_of_ten_thousand_deletions_after_a_backup_none_comes_back(
        self, mount: Callable[..., Host], store: MemoryStore, database_url: str, tmp_path: Path
    ) -> None:
        host, backup = mount(), Backup(database_url, tmp_path)
        add(host, store, *MANY, "other", "soft", "back", "anew", "early", "asked")
        delete_each(host, "early")
        add(host, store, "early")  # made anew before the backup was taken
        host.close()
        backup.take()
        delete_each(host, *MANY)
        delete_each(host, "soft", "back", hard=False)
        host.delete("asked?hard=true", headers={"X-Request-ID": "r-7"})
        with host.flask.app_context():
            host.clients.service.restore("back", actor="ada", reason="a mistake")
        exported = export(host)
        before = host.records(MANY[5])[0]
        host.close()
        backup.restore()
        assert len(host.rows()) == len(MANY) + 6
        for id in MANY[::7]:
            store.set(f"client:{id}", "back again")  # the store has an older copy, too
        assert replay(host, exported)["replayed"] == len(MANY) + 4
        assert {row.id: row.status for row in host.rows()} == {
            "other": True, "soft": False, "back": True, "anew": True, "early": True
        }  # fmt: skip
        assert entries(store) == {"other", "soft", "back", "anew", "early"}
        after = host.records(MANY[5])[0]
        assert (after.requested_at, after.actor) == (before.requested_at, before.actor)
        assert after.reason == "replayed: why"
        assert after.settled_at is not None
        assert after.settled_at > before.settled_at
        assert [record.request_id for record in host.records("asked")] == ["r-7"]
        assert [record.action for record in host.records("back")] == ["soft", "restore"]
        assert [record.reason for record in host.records("back")] == ["replayed: why", "replayed: a mistake"]
        assert replay(host, exported) == dict.fromkeys(NAMES, 0)
        reconciled(host)

    def test_who_was_removed_and_made_anew_and_soft_deleted_ends_as_it_was(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        add(host, store, "a")
        delete_each(host, "a")
        add(host, store, "a")
        delete_each(host, "a", hard=False)
        exported = export(host)
        with host.flask.app_context(), host.db.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM client_deletions")
        # Removed: what was made anew after the backup is not in it.
        assert replay(host, exported)["replayed"] == 2
        assert [record.action for record in host.records("a")] == ["hard", "soft"]
        assert host.rows() == []
        assert entries(store) == set()

    @pytest.mark.parametrize("way", WAYS)
    def test_a_time_of_another_zone_is_the_same_time(
        self, mount: Callable[..., Host], store: MemoryStore, way: str
    ) -> None:
        host = mount(columns=WAYS[way][0])
        add(host, store, "a")
        line = json.dumps(RECORD | {"requested_at": "2026-01-01T02:00:00+02:00"})
        assert replay(host, line)["replayed"] == 1
        (record,) = host.records("a")
        assert record.requested_at == datetime(2026, 1, 1, tzinfo=UTC)
        add(host, store, "a")  # made anew
        assert replay(host, line) == dict.fromkeys(NAMES, 0)
        assert [row.id for row in host.rows()] == ["a"]
        for since, number in (("2026-01-01T01:59:59+02:00", 1), ("2026-01-01T02:00:01+02:00", 0)):
            assert len(export(host, "--since", since).splitlines()) == number

    @pytest.mark.parametrize("way", ["in_bulk", "alone"])
    def test_two_at_once_record_each_deletion_once_and_who_is_made_anew_stays(
        self, mount: Callable[..., Host], store: MemoryStore, way: str
    ) -> None:
        given, call = WAYS[way]
        host = mount(columns=given)
        add(host, store, "a", "b")
        delete_each(host, "a", "b")
        exported = export(host)
        ledger = host.model.metadata.tables["client_deletions"]
        with host.flask.app_context(), host.db.engine.begin() as connection:
            connection.execute(ledger.delete())  # as an older backup has it
        add(host, store, "a", "b")

        def other() -> None:
            assert replay(host, exported)["replayed"] == 2
            add(host, store, "a")

        with meanwhile(host, "lacking" if way == "in_bulk" else call, other):
            assert replay(host, exported)["failed"] == 0
        assert [row.id for row in host.rows()] == ["a"]
        assert [actions(host, id) for id in ("a", "b")] == [[("hard", "replayed: why", True)]] * 2
        reconciled(host)
        assert entries(store) == {"a"}

    def test_one_that_is_refused_leaves_what_came_after_it_and_a_second_run_goes_on(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        orders = db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id")))
        host = mount(db=db, model=client_model(db))
        add(host, store, "a", "b")
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(sa.insert(orders), [{"client_id": "a"}])
        steps = [("a", "soft"), ("a", "hard"), ("b", "hard"), ("a", "soft")]
        lines = [
            RECORD | {"client_id": id, "action": action, "requested_at": f"2026-01-01T00:00:0{second}+00:00"}
            for second, (id, action) in enumerate(steps)
        ]
        exported = "\n".join(map(json.dumps, lines))
        told = run(host, "replay", "-", given=exported)
        assert told.exit_code == 1
        assert "a: Other rows refer" in told.stderr
        assert {row.id: row.status for row in host.rows()} == {"a": False}
        assert [record.action for record in host.records("a")] == ["soft"]
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(sa.delete(orders))
        assert replay(host, exported)["replayed"] == 2
        assert host.rows() == []

    def test_models_whose_rows_the_orm_removes_are_replayed_too(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        model = client_model(db)
        for event in ("before_update", "before_delete"):
            sa.event.listen(model, event, lambda *_: None)
        host = mount(db=db, model=model)
        add(host, store, "hard", "soft", "both")
        delete_each(host, "hard")
        delete_each(host, "soft", "both", hard=False)
        delete_each(host, "both")
        exported = export(host)
        with host.flask.app_context(), host.db.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM client_deletions")
        add(host, store, "hard", "both")
        assert replay(host, exported)["replayed"] == 4
        assert {row.id: row.status for row in host.rows()} == {"soft": False}
        assert [record.action for record in host.records("both")] == ["soft", "hard"]
        assert json.loads(exported.splitlines()[0])["requested_at"] == (
            host.records("hard")[0].requested_at.isoformat()
        )

    @pytest.mark.parametrize(
        "line",
        [
            *("{", "[]", "7", "null", '{"kind": "clients"}'),
            json.dumps(RECORD | {"client_id": "no id"}),
            json.dumps(RECORD | {"action": "gone"}),
            json.dumps(RECORD | {"requested_at": "2026-01-01T00:00:00"}),
            json.dumps(RECORD | {"requested_at": 7}),
            json.dumps(RECORD | {"actor": None}),
            json.dumps(RECORD | {"reason": 7}),
            json.dumps(RECORD | {"request_id": "a\nb"}),
            json.dumps(RECORD | {"kind": "shops"}),
        ],
    )
    def test_a_file_that_is_broken_is_refused_before_anything_is_done(
        self, mount: Callable[..., Host], store: MemoryStore, tmp_path: Path, line: str
    ) -> None:
        host = mount()
        add(host, store, "first")
        delete_each(host, "first")
        exported = export(host)
        add(host, store, "first")
        with host.flask.app_context(), host.db.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM client_deletions")
        (tmp_path / "file").write_text(exported + line)
        result = run(host, "replay", str(tmp_path / "file"))
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Line 2" in result.stderr
        assert [row.id for row in host.rows()] == ["first"]

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_file_that_is_no_text_is_refused(
        self, mount: Callable[..., Host], store: MemoryStore, tmp_path: Path, number: int
    ) -> None:
        host = mount()
        add(host, store, "a")
        line = json.dumps(RECORD).encode()
        (tmp_path / "file").write_bytes((line + b"\n") * (number - 1) + line.replace(b"ops", b"\xff"))
        result = run(host, "replay", str(tmp_path / "file"))
        assert (result.exit_code, f"Line {number}: it is no record" in result.stderr) == (2, True)
        assert [row.id for row in host.rows()] == ["a"]

    def test_whoever_asked_is_taken(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        host = mount()
        add(host, store, "a")
        actor = "Dr.\tWho\u00a0" + "x" * 600
        assert replay(host, json.dumps(RECORD | {"actor": actor}))["replayed"] == 1
        assert host.records("a")[0].actor == actor


class TestExport:
    def test_it_has_digests_and_no_key_and_begins_where_it_is_told(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        model = client_model(db, token=sa.Column(sa.String(40)))
        host = mount(db=db, model=model, config={"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "token:{token}"]})
        add(host, store, "old", token="s3cret")
        delete_each(host, "old")
        host.let_time_pass(DAY)
        add(host, store, "new", token="s3cret2")
        delete_each(host, "new")
        lines = [json.loads(line) for line in export(host).splitlines()]
        assert [line["client_id"] for line in lines] == ["old", "new"]
        assert "s3cret" not in export(host)
        assert [len(line["kv_digests"]) for line in lines] == [2, 2]
        since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        assert [json.loads(line)["client_id"] for line in export(host, "--since", since).splitlines()] == [
            "new"
        ]
        assert run(host, "export", "--since", "yesterday").exit_code == 2


class TestForget:
    @pytest.fixture
    def host(self, mount: Callable[..., Host]) -> Host:
        return mount(config={"MYTHIC_CLIENTS_VERIFY_AFTER": 0})

    def test_old_verified_records_go_but_not_the_newest_of_a_client_with_a_row(
        self, host: Host, store: MemoryStore
    ) -> None:
        add(host, store, "gone", "inactive", "anew", "young", "back")
        delete_each(host, "inactive", "back", hard=False)
        delete_each(host, "gone", "anew")
        with host.flask.app_context():
            host.clients.service.restore("inactive", actor="tests")
        delete_each(host, "inactive", hard=False)
        add(host, store, "anew")
        reconciled(host)
        host.let_time_pass(401 * DAY)
        delete_each(host, "young")
        reconciled(host)
        assert forget(host, 402) == 0
        assert forget(host, 400) == 3
        left = {id: len(host.records(id)) for id in ("gone", "inactive", "anew", "young", "back")}
        assert left == {"gone": 0, "inactive": 1, "anew": 1, "young": 1, "back": 1}
        assert host.records("inactive")[0].action == "soft"
        assert purge(host, 30) == {"inactive": Result.DONE, "back": Result.DONE}  # their age is still known

    def test_what_is_not_verified_or_newer_than_the_mark_stays(self, host: Host, store: MemoryStore) -> None:
        add(host, store, "pending", "settled")
        delete_each(host, "settled")
        host.let_time_pass(401 * DAY)
        assert forget(host, 400) == 0  # not verified, and no mark
        reconciled(host)
        host.let_time_pass(401 * DAY)
        (mark,) = [key for key in store._entries if key.endswith(":mark")]
        value = store.get(mark)
        for year in (2001, 2999):  # one of the future was set by a clock that ran ahead
            store.set(mark, f"{year}-01-01T00:00:00+00:00 {year}-01-01T00:00:01+00:00")
            assert forget(host, 400) == 0
        store.set(mark, value or "")
        assert forget(host, 400) == 1

    def test_a_forgotten_removal_is_replayed_upon_nobody(self, host: Host, store: MemoryStore) -> None:
        add(host, store, "a")
        delete_each(host, "a")
        reconciled(host)
        exported = export(host)
        add(host, store, "a")  # made anew, and in the backup
        host.let_time_pass(401 * DAY)
        assert forget(host, 400) == 0
        moved = host.records("a")[0].requested_at.isoformat()
        told = json.loads(exported) | {"requested_at": moved}
        assert replay(host, json.dumps(told))["replayed"] == 0
        assert [row.id for row in host.rows()] == ["a"]

    def test_many_are_pruned_page_by_page(
        self, host: Host, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flask_mythic_clients.backends.sqlalchemy.bulk._PRUNED", 300)
        add(host, store, *MANY[:1000], "soft")
        delete_each(host, "soft", hard=False)
        delete_each(host, *MANY[:1000])
        reconciled(host)
        host.let_time_pass(401 * DAY)
        with host.flask.app_context():
            pages = list(host.clients.service.forget(older_than=timedelta(days=400)))
        assert sum(pages) == 1000
        assert len(pages) == 4
        assert run(host, "forget", "--older-than", "400d", "--json").stdout.strip() == '{"forgotten": 0}'


def test_the_records_that_are_read_are_all_of_them_in_their_order(
    mount: Callable[..., Host], store: MemoryStore
) -> None:
    host = mount()
    add(host, store, *MANY[:1203])
    delete_each(host, *MANY[:1203])
    with host.flask.app_context():
        found: list[DeletionRecord] = list(host.clients.service.records())
    assert [record.client_id for record in found] == MANY[:1203]
    assert {record.kind for record in found} == {"clients"}
    assert len(entries(store)) == 0
    assert actions(host, MANY[0]) == [("hard", "why", True)]
