"""Each deletion, refusal and outage is one line in the log, with fields; the request's id goes along."""

import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import ClientError, KeyValueStoreError
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.logs import FIELDS

from ..hosts import ADMIN_KEY, Host, client_model
from .test_archive import run
from .test_many import add, delete_each

LIMITED = create_key()
CONFIG = {
    "MYTHIC_CLIENTS_ROUTES": "delete,restore,history,preview,status",
    "MYTHIC_CLIENTS_ADMIN_KEYS": f"tests={digest(ADMIN_KEY)},few={digest(LIMITED)};may=soft",
}
ID = "req-7 of 'shop'"


class Away:
    """A key-value store that confirms nothing, and says nothing of why."""

    def apply(self, **_: Any) -> set[str]:
        raise KeyValueStoreError


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Take what was logged since the last time: level, text and fields of each line."""

    def take() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == "flask_mythic_clients"]
        caplog.clear()
        return [
            {"level": record.levelname, "text": record.getMessage()}
            | {name: getattr(record, name) for name in FIELDS}
            for record in records
        ]

    with caplog.at_level(logging.INFO, "flask_mythic_clients"):
        yield take


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def host(mount: Callable[..., Host], lines: Lines) -> Host:
    host = mount(config=CONFIG)
    host.add(id="acme", name="acme")
    lines()
    return host


def one(lines: Lines, **fields: Any) -> dict[str, Any]:
    """Return the only line, which has these fields and no others."""
    (line,) = lines()
    assert {name: line[name] for name in FIELDS} == dict.fromkeys(FIELDS) | fields
    return line


class TestWhatWasDone:
    def test_each_action_is_a_line_at_info(self, host: Host, lines: Lines) -> None:
        asked = [
            ("delete", "acme", "soft"),
            ("post", "acme/restore", "restore"),
            ("delete", "acme?hard=true", "hard"),
        ]
        for method, path, action in asked:
            assert host.send(method.upper(), path).status_code == 200
            record = host.records("acme")[-1]
            of_client = {"client_id": "acme", "action": action, "actor": "tests", "record_id": record.id}
            line = one(lines, **of_client)
            assert line["level"] == "INFO"
            assert line["text"].endswith(f"client_id=acme action={action} actor=tests record_id={record.id}")

    def test_a_repeat_is_a_line_too(self, host: Host, lines: Lines) -> None:
        host.delete("acme")
        lines()
        assert host.delete("acme").status_code == 200
        line = one(lines, client_id="acme", action="soft", actor="tests")
        assert (line["level"], line["text"][:18]) == ("INFO", "It was so already,")

    def test_so_is_what_a_command_does_or_a_reconcile_finishes(self, host: Host, lines: Lines) -> None:
        assert run(host, "delete", "acme", "--actor", "ada").exit_code == 0
        one(lines, client_id="acme", action="soft", actor="ada", record_id=1)
        with host.flask.app_context():
            service = host.clients.service
            there, service._kv = service._kv, Away()
            assert host.send("POST", "acme/restore").status_code == 503
            service._kv = there
            lines()
            service.reconcile()
        one(lines, client_id="acme", action="restore", actor="tests", record_id=2)

    def test_of_many_each_is_a_line(self, host: Host, store: MemoryStore, lines: Lines) -> None:
        add(host, store, "a", "b", "c")
        delete_each(host, "a", "b", "c")
        assert [line["client_id"] for line in lines()] == ["a", "b", "c"]


class TestWhatWasRefused:
    def test_each_refusal_is_a_line(self, host: Host, lines: Lines) -> None:
        acme: dict[str, Any] = {"client_id": "acme", "actor": "tests"}
        nobody = {"client_id": "nobody", "actor": "tests"}
        refused: list[tuple[str, str, str, dict[str, Any], str]] = [
            (ADMIN_KEY, "DELETE", "nobody", {"status": 404, "action": "soft", **nobody}, "INFO"),
            (ADMIN_KEY, "DELETE", "acme?hard=1", {"status": 400, "action": "delete", **acme}, "INFO"),
            (ADMIN_KEY, "DELETE", "a%0ab", {"status": 400, "action": "soft", "actor": "tests"}, "INFO"),
            ("wrong", "DELETE", "acme?hard=true", {"status": 401, "action": "hard"}, "WARNING"),
            (
                LIMITED,
                "POST",
                "acme/restore",
                {"status": 403, "action": "restore", **acme, "actor": "few"},
                "WARNING",
            ),
            (ADMIN_KEY, "GET", "nobody/deletions", {"status": 404, "action": "history", **nobody}, "INFO"),
        ]
        for key, method, path, fields, level in refused:
            assert host.send(method, path, key=key).status_code == fields["status"]
            line = one(lines, **fields)
            assert line["level"] == level
            assert line["text"].startswith(f"{fields['status']}: ")
            assert "wrong" not in line["text"]
            assert "\n" not in line["text"]

    def test_what_the_database_forbids_is_a_warning(self, mount: Callable[..., Host], lines: Lines) -> None:
        db = SQLAlchemy()
        db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id")))
        host = mount(db=db, model=client_model(db))
        host.add(id="acme", name="acme")
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(sa.insert(db.metadata.tables["orders"]), [{"client_id": "acme"}])
        lines()
        assert host.delete("acme?hard=true").status_code == 409
        line = one(lines, status=409, client_id="acme", action="hard", actor="tests")
        assert line["level"] == "WARNING"
        assert "orders.client_id" in line["text"]


class TestAnOutage:
    @pytest.mark.parametrize("hard", [False, True])
    def test_it_is_an_error_with_the_record_that_is_pending(
        self, host: Host, lines: Lines, hard: bool
    ) -> None:
        with host.flask.app_context():
            host.clients.service._kv = Away()
        path = "acme?hard=true" if hard else "acme"
        action = "hard" if hard else "soft"
        for _ in range(2):
            assert host.delete(path).status_code == 503
            first, *others = lines()
            assert not others
            assert (first["level"], first["status"], first["action"]) == ("ERROR", 503, action)
            assert "()" not in first["text"]
            (record,) = host.records("acme")
            assert record.settled_at is None
            # The repeat has made none: what is pending is the first one's.
            assert first["record_id"] == record.id

    def test_the_first_request_tells_its_record(self, host: Host, lines: Lines) -> None:
        with host.flask.app_context():
            host.clients.service._kv = Away()
        assert host.delete("acme").status_code == 503
        of_record = {"client_id": "acme", "action": "soft", "actor": "tests", "record_id": 1}
        one(lines, status=503, **of_record)

    def test_the_status_tells_why_it_is_not_well(self, host: Host, lines: Lines) -> None:
        with host.flask.app_context():
            host.clients.service._kv = Away()
        assert host.delete("acme").status_code == 503
        lines()
        assert host.send("GET", "deletions/status").status_code == 503
        (line,) = lines()
        assert (line["level"], line["action"], line["actor"]) == ("ERROR", "status", "tests")
        assert line["cause"].startswith("The key-value store did not confirm")


class TestTheRequestsId:
    def test_it_stands_in_the_line_the_record_and_the_answer(self, host: Host, lines: Lines) -> None:
        for method, path in (("DELETE", "acme"), ("POST", "acme/restore"), ("DELETE", "acme?hard=true")):
            answer = host.send(method, path, headers={"X-Request-ID": ID})
            assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, ID)
            assert host.records("acme")[-1].request_id == ID
            (line,) = lines()
            assert line["request_id"] == ID
            assert line["text"].endswith(f" request_id={json.dumps(ID)}")
        exported = [json.loads(line) for line in run(host, "export").stdout.splitlines()]
        assert [record["request_id"] for record in exported] == [ID] * 3

    def test_it_stands_in_the_answer_of_a_refusal_too(self, host: Host, lines: Lines) -> None:
        for key, path, status in (
            ("wrong", "acme", 401),
            (ADMIN_KEY, "nobody", 404),
            (ADMIN_KEY, "a?hard=x", 400),
        ):
            answer = host.send("DELETE", path, key=key, headers={"X-Request-ID": ID})
            assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, ID)
            assert lines()[0]["request_id"] == ID

    @pytest.mark.parametrize("id", ["", "x" * 129, "é", "a\tb"])
    def test_what_is_none_is_left_out(self, host: Host, lines: Lines, id: str) -> None:
        answer = host.delete("acme", headers={"X-Request-ID": id})
        assert answer.status_code == 200
        assert "X-Request-ID" not in answer.headers
        assert host.records("acme")[0].request_id is None
        assert lines()[0]["request_id"] is None

    def test_without_one_there_is_none(self, host: Host) -> None:
        assert "X-Request-ID" not in host.delete("acme").headers


def test_nothing_is_made_for_a_line_that_nobody_reads(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flask_mythic_clients"):
        assert host.delete("acme").status_code == 200
        with host.flask.app_context():
            host.clients.service.reconcile(since=timedelta(1))
    assert [record for record in caplog.records if record.name == "flask_mythic_clients"] == []


def test_what_the_host_gives_every_record_is_kept(host: Host, lines: Lines) -> None:
    made = logging.getLogRecordFactory()

    def factory(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = made(*arguments, **options)
        record.request_id, record.actor = "the host's", "the host"
        return record

    logging.setLogRecordFactory(factory)
    try:
        assert host.delete("nobody").status_code == 404
        assert host.delete("acme?hard=true").status_code == 200
    finally:
        logging.setLogRecordFactory(made)
    assert [(line["request_id"], line["actor"]) for line in lines()] == [("the host's", "tests")] * 2


def test_what_a_hook_of_the_hosts_says_stays_in_its_line(mount: Callable[..., Host], lines: Lines) -> None:
    def hook(*_: Any) -> None:
        raise ClientError("acme", "not now\nFORGED")

    host = mount(columns={"before": hook})
    host.add(id="acme", name="acme")
    assert host.delete("acme").status_code == 409
    assert "not now FORGED" in lines()[-1]["text"]
