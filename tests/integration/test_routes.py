"""The routes that the settings open beside DELETE, byte by byte, on every database."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from openapi_schema_validator import OAS31Validator

from flask_mythic_clients import ChangeRefusedError, MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Fate
from flask_mythic_clients.rights import Route

from ..hosts import ADMIN_KEY, Gate, Host, client_model, contents, mounting
from .test_openapi import OPERATIONS
from .test_wire_contract import BAD_FLAGS, BAD_IDS, HARD, NOT_FOUND, SOFT, check, check_error, parametrize

EVERY = {"MYTHIC_CLIENTS_ROUTES": list(Route)}
REQUESTS = {
    "restore": ("POST", "acme/restore"),
    "history": ("GET", "acme/deletions"),
    "preview": ("GET", "acme/deletion-preview"),
    "status": ("GET", "deletions/status"),
}
RESTORED = b'{"success": true, "restored": true}'
WELL = {"ok": True, "pending": 0, "oldest": None, "overdue": 0, "failed": 0, "last_reconcile": None}


@pytest.fixture
def gate(store: MemoryStore) -> Gate:
    return Gate(store)


@pytest.fixture
def host(database_url: str, gate: Gate, store: MemoryStore) -> Iterator[Host]:
    """A host on every database, with the client `acme` and a row that refers to the client `busy`."""
    db = SQLAlchemy()
    model = client_model(db)
    reference = db.ForeignKey("clients.id")
    orders = db.Table("orders", db.Column("client_id", db.String(255), reference, nullable=False))
    with mounting(database_url, gate) as mount:
        host = mount(db=db, model=model, config=EVERY)
        for id in ("acme", "busy"):
            host.add(id=id, name="Acme")
            store.set(f"client:{id}", "cached", ex=1000)
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(orders.insert().values(client_id="busy"))
        yield host


def read(answer: Any, status: int, *keys: str) -> Any:
    """Return the body of an answer, whose keys have this order."""
    body = json.loads(answer.data)
    check(answer, status, json.dumps(body).encode())
    assert list(body) == list(keys)
    return body


class TestRestore:
    def test_it_takes_a_soft_delete_back_and_may_be_repeated(self, host: Host, store: MemoryStore) -> None:
        check(host.delete("acme"), 200, SOFT)
        check(host.send("POST", "acme/restore"), 200, RESTORED)
        assert [row.status for row in host.rows() if row.id == "acme"] == [True]
        assert json.loads(store.get("client:acme") or "")["status"] is True
        after = contents(host, store, "client:acme")
        check(host.send("POST", "acme/restore"), 200, RESTORED)
        assert contents(host, store, "client:acme") == after
        records = host.records("acme")
        assert [(record.action, record.actor) for record in records] == [
            ("soft", "tests"),
            ("restore", "tests"),
        ]

    def test_a_client_that_is_gone_is_404(self, host: Host) -> None:
        check(host.delete("acme?hard=true"), 200, HARD)
        check(host.send("POST", "acme/restore"), 404, NOT_FOUND)

    @pytest.mark.parametrize("body", [b'{"reason": "x"}', b"{", b"\xff" * 100_000])
    @pytest.mark.parametrize("mimetype", ["application/json", "multipart/form-data; boundary=x", "x"])
    def test_a_body_is_ignored(self, plain: Host, body: bytes, mimetype: str) -> None:
        plain.flask.config["MAX_CONTENT_LENGTH"] = 10
        answer = plain.send("POST", "acme/restore", data=body, headers={"Content-Type": mimetype})
        check(answer, 200, RESTORED)

    def test_without_the_key_value_store_it_is_503_and_finished_by_a_repeat(
        self, host: Host, gate: Gate
    ) -> None:
        check(host.delete("acme"), 200, SOFT)
        gate.closed = True
        answer = host.send("POST", "acme/restore")
        assert "Repeat the request" in check_error(answer, 503, "Service Unavailable")
        assert answer.headers["Retry-After"] == "5"
        gate.closed = False
        check(host.send("POST", "acme/restore"), 200, RESTORED)
        assert all(record.settled_at for record in host.records("acme"))

    def test_what_the_database_forbids_is_409(self, database_url: str, store: MemoryStore) -> None:
        db = SQLAlchemy()
        model = client_model(
            db, __table_args__=(sa.CheckConstraint("name <> 'closed' OR NOT status", name="closed"),)
        )
        with mounting(database_url, store) as mount:
            host = mount(db=db, model=model, config=EVERY)
            host.add(id="acme", name="closed", status=False)
            check_error(host.send("POST", "acme/restore"), 409, "Conflict")
            assert [row.status for row in host.rows()] == [False]


class TestHistory:
    KEYS = ("record", "action", "actor", "reason", "requested_at", "settled_at", "verified_at", "entries")

    def test_it_tells_all_records_the_oldest_first_also_of_a_client_that_is_gone(
        self, host: Host, gate: Gate
    ) -> None:
        host.delete("acme")
        with host.flask.app_context():
            host.clients.service.restore("acme", actor="Ünal", reason="a mistake")
        gate.closed = True
        host.delete("acme?hard=true")
        known = host.records("acme")
        body = read(host.send("GET", "acme/deletions"), 200, "id", "records")
        assert body["id"] == "acme"
        assert [list(record) for record in body["records"]] == [list(self.KEYS)] * 3
        told = [tuple(record[key] for key in self.KEYS[:4]) for record in body["records"]]
        assert told == [
            (known[0].id, "soft", "tests", None),
            (known[1].id, "restore", "Ünal", "a mistake"),
            (known[2].id, "hard", "tests", None),
        ]
        for record, line in zip(known, body["records"], strict=True):
            for name in ("requested_at", "settled_at", "verified_at"):
                time = getattr(record, name)
                assert line[name] == (None if time is None else time.isoformat())
                assert line[name] is None or line[name].endswith("+00:00")
            assert line["entries"] == 1
        assert [record["settled_at"] is None for record in body["records"]] == [False, False, True]

    def test_no_key_and_no_digest_is_told_and_entries_are_counted_by_digests_too(
        self, database_url: str, store: MemoryStore
    ) -> None:
        config = {**EVERY, "MYTHIC_CLIENTS_KEYS_KEPT": 0, "MYTHIC_CLIENTS_VERIFY_AFTER": 0}
        with mounting(database_url, store) as mount:
            host = mount(config=config)
            host.add(id="acme")
            host.delete("acme?hard=true")
            answers = [host.send("GET", "acme/deletions").text]
            for _ in range(2):  # to verify, and then to forget
                host.let_time_pass(3600)
                with host.flask.app_context():
                    host.clients.service.reconcile()
            answers.append(host.send("GET", "acme/deletions").text)
            [record] = host.records("acme")
        assert (record.kv_keys, len(record.kv_digests)) == ((), 1)
        assert [json.loads(answer)["records"][0]["entries"] for answer in answers] == [1, 1]
        assert not any("client:" in answer or record.kv_digests[0] in answer for answer in answers)

    def test_a_client_without_records_is_404(self, host: Host) -> None:
        for id in ("acme", "absent"):
            check(host.send("GET", f"{id}/deletions"), 404, NOT_FOUND)

    def test_times_are_told_in_utc_whatever_the_repositorys_clock_says(self) -> None:
        noon = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=5)))
        rows = MemoryRepository(clock=lambda: noon)
        rows.add("acme")
        app = Flask("host")
        app.config.update(EVERY, MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)})
        MythicClients(app, repository=rows, kv=MemoryStore())
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        app.test_client().delete("/api/v1/clients/acme", headers=headers)
        answer = app.test_client().get("/api/v1/clients/acme/deletions", headers=headers)
        assert answer.get_json()["records"][0]["requested_at"] == noon.astimezone(UTC).isoformat()


class TestPreview:
    KEYS = ("id", "hard", "allowed", "reason", "dependents", "entries")

    @pytest.mark.parametrize(
        ("query", "hard"), [("", False), ("?hard=false", False), ("?hard=true&x=1", True)]
    )
    def test_what_is_allowed(self, host: Host, store: MemoryStore, query: str, hard: bool) -> None:
        before = contents(host, store, "client:acme")
        body = read(host.send("GET", f"acme/deletion-preview{query}"), 200, *self.KEYS)
        assert body == {
            "id": "acme",
            "hard": hard,
            "allowed": True,
            "reason": None,
            "dependents": [],
            "entries": 1,
        }
        assert contents(host, store, "client:acme") == before

    def test_what_a_foreign_key_forbids(self, host: Host, store: MemoryStore) -> None:
        before = contents(host, store, "client:busy")
        body = read(host.send("GET", "busy/deletion-preview?hard=true"), 200, *self.KEYS)
        assert body["allowed"] is False
        assert body["reason"] == check_error(host.delete("busy?hard=true"), 409, "Conflict")
        dependent = {"column": "orders.client_id", "rows": 1, "fate": Fate.FORBIDS.value}
        assert [list(each.items()) for each in body["dependents"]] == [list(dependent.items())]
        assert contents(host, store, "client:busy") == before

    def test_what_the_guard_forbids(self, database_url: str, store: MemoryStore) -> None:
        with mounting(database_url, store) as mount:
            host = mount(config={**EVERY, "MYTHIC_CLIENTS_HARD_DELETE": "deny"})
            host.add(id="acme")
            body = read(host.send("GET", "acme/deletion-preview?hard=true"), 200, *self.KEYS)
            assert (body["allowed"], body["reason"]) == (False, "This service does not allow hard deletes.")
            assert read(host.send("GET", "acme/deletion-preview"), 200, *self.KEYS)["allowed"] is True

    def test_a_client_that_is_not_there_is_404(self, host: Host) -> None:
        check(host.send("GET", "absent/deletion-preview"), 404, NOT_FOUND)

    @parametrize("flag", BAD_FLAGS)
    def test_a_bad_flag_is_400(self, plain: Host, flag: str) -> None:
        answer = plain.send("GET", f"acme/deletion-preview?{flag}")
        assert "'true' or 'false'" in check_error(answer, 400, "Bad Request")

    def test_the_hosts_hook_runs_and_what_it_did_is_undone(
        self, database_url: str, store: MemoryStore
    ) -> None:
        seen: list[str] = []

        def hook(session: Any, row: Any, action: str) -> None:
            seen.append(action)
            row.name = "changed"

        with mounting(database_url, store) as mount:
            host = mount(columns={"before": hook}, config=EVERY)
            host.add(id="acme", name="Acme")
            read(host.send("GET", "acme/deletion-preview?hard=true"), 200, *self.KEYS)
            assert seen == ["hard"]
            assert [(row.name, row.status) for row in host.rows()] == [("Acme", True)]
            assert host.records("acme") == []

    def test_it_is_told_to_the_hosts_code_as_done_by_the_key(self) -> None:
        asked: list[Any] = []

        class Repository(MemoryRepository):
            def preview(self, change: Any, entries: Any) -> Any:
                asked.append(change)
                raise ChangeRefusedError(change.client_id)

        app = Flask("host")
        app.config.update(EVERY, MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)})
        MythicClients(app, repository=Repository(), kv=MemoryStore())
        answer = app.test_client().get(
            "/api/v1/clients/acme/deletion-preview", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
        )
        check_error(answer, 409, "Conflict")
        assert [(change.action, change.actor) for change in asked] == [("soft", "tests")]


class TestStatus:
    KEYS = tuple(WELL)

    def test_it_is_200_while_all_is_well(self, host: Host) -> None:
        check(host.send("GET", "deletions/status"), 200, json.dumps(WELL).encode())
        host.delete("acme")
        assert read(host.send("GET", "deletions/status"), 200, *self.KEYS) == WELL

    def test_what_is_pending_is_503_until_it_is_settled(self, host: Host, gate: Gate) -> None:
        gate.closed = True
        host.delete("acme")
        gate.closed = False
        host.let_time_pass(70)
        answer = host.send("GET", "deletions/status")
        body = read(answer, 503, *self.KEYS)
        assert answer.headers["Retry-After"] == "5"
        assert body == WELL | {"ok": False, "pending": 1, "oldest": body["oldest"]}
        assert type(body["oldest"]) is int
        assert 70 <= body["oldest"] < 80
        with host.flask.app_context():
            host.clients.service.reconcile()
        assert host.send("GET", "deletions/status").status_code == 200

    def test_what_is_overdue_or_has_failed_is_503(self, database_url: str, store: MemoryStore) -> None:
        with mounting(database_url, store) as mount:
            host = mount(config=EVERY)
            host.add(id="acme")
            store.set("client:acme", "cached")
            host.delete("acme")
            host.let_time_pass(370)
            assert read(host.send("GET", "deletions/status"), 503, *self.KEYS)["overdue"] == 1
            store.refuse("client:acme")
            with host.flask.app_context():
                host.clients.service.reconcile()
            assert read(host.send("GET", "deletions/status"), 503, *self.KEYS)["failed"] == 1
            store.refuse()
            with host.flask.app_context():
                host.clients.service.reconcile()
            body = read(host.send("GET", "deletions/status"), 200, *self.KEYS)
            assert type(body["last_reconcile"]) is int
            assert 0 <= body["last_reconcile"] < 60

    def test_without_a_store_it_is_503_and_the_log_says_which(
        self, host: Host, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate.closed = True
        assert read(host.send("GET", "deletions/status"), 503, *self.KEYS) == WELL | {"ok": False}
        gate.closed = False
        with host.flask.app_context():
            host.model.metadata.tables["client_deletions"].drop(host.db.engine)
        body = read(host.send("GET", "deletions/status"), 503, *self.KEYS)
        assert body == {**dict.fromkeys(WELL), "ok": False}
        logged = [record.getMessage() for record in caplog.records]
        assert ["key-value store" in line for line in logged] == [True, False]
        assert "lacks client_deletions" in logged[1]

    def test_it_never_asks_for_the_clients_table_and_needs_none(self, host: Host) -> None:
        host.delete("acme")
        statements: list[str] = []
        with host.flask.app_context():
            sa.event.listen(host.db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
            assert host.send("GET", "deletions/status").status_code == 200
            assert any("client_deletions" in statement for statement in statements)
            assert not any("clients" in statement.lower() for statement in statements)
            host.db.drop_all(bind_key=None)
            host.model.metadata.tables["client_deletions"].create(host.db.engine)
        assert host.send("GET", "deletions/status").status_code == 200

    def test_its_path_is_in_nobodys_way(self, host: Host) -> None:
        """A client may have the id `deletions`, or `status`."""
        host.add(id="deletions")
        host.add(id="status")
        check(host.delete("deletions"), 200, SOFT)
        check(host.send("POST", "deletions/restore"), 200, RESTORED)
        assert read(host.send("GET", "deletions/deletions"), 200, "id", "records")["id"] == "deletions"
        assert host.send("GET", "deletions/deletion-preview").status_code == 200
        check(host.delete("deletions?hard=true"), 200, HARD)
        check(host.delete("status?hard=true"), 200, HARD)
        assert host.send("DELETE", "deletions/status").status_code == 405


@pytest.fixture
def plain(empty_database: Callable[[str], str]) -> Iterator[Host]:
    """A host for what no store has a say in."""
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        host = mount(config=EVERY)
        host.add(id="acme")
        yield host


class TestWhatIsMounted:
    @pytest.mark.parametrize("opened", [[], *([route] for route in Route), list(Route)], ids=str)
    def test_it_is_what_the_settings_say_and_no_more(
        self, empty_database: Callable[[str], str], opened: list[Route]
    ) -> None:
        config = {"MYTHIC_CLIENTS_ROUTES": opened} if opened else {}
        with mounting(empty_database("sqlite"), MemoryStore()) as mount:
            host = mount(config=config)
            host.add(id="acme")
            reached = {
                route
                for route, (method, path) in {**REQUESTS, "delete": ("DELETE", "acme")}.items()
                if host.send(method, path, key=None).status_code == 401
            }
        assert reached == set(opened or ["delete"])

    def test_another_kind_has_its_own(self) -> None:
        app = Flask("host")
        app.config.update(
            MYTHIC_ORGANIZATIONS_ROUTES="status, history", MYTHIC_ORGANIZATIONS_KV_KEYS="o:{id}"
        )
        for name in ("clients", "organizations"):
            MythicClients(app, repository=MemoryRepository(), kv=MemoryStore(), name=name)
        rules = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("mythic_")}
        assert rules == {
            "/api/v1/clients/<client_id>",
            "/api/v1/organizations/deletions/status",
            "/api/v1/organizations/<client_id>/deletions",
        }


class TestEveryRoute:
    @pytest.mark.parametrize("route", REQUESTS)
    def test_401_comes_first(self, plain: Host, route: str) -> None:
        method, path = REQUESTS[route]
        for requested in (
            path,
            f"{path}?hard=1",
            path.replace("acme", "a.b"),
            path.replace("acme", "absent"),
        ):
            for key in (None, "wrong"):
                answer = plain.send(method, requested, key)
                check_error(answer, 401, "Unauthorized")
                assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="clients"')

    @pytest.mark.parametrize("route", ["restore", "history", "preview"])
    @parametrize("id", BAD_IDS)
    def test_a_bad_id_is_400(self, plain: Host, route: str, id: str) -> None:
        method, path = REQUESTS[route]
        answer = plain.send(method, path.replace("acme", id))
        assert "1 to 255 characters" in check_error(answer, 400, "Bad Request")

    @pytest.mark.parametrize("route", ["restore", "history", "status"])
    def test_a_flag_that_it_does_not_have_is_none_of_its_business(self, plain: Host, route: str) -> None:
        plain.delete("acme")
        method, path = REQUESTS[route]
        assert plain.send(method, f"{path}?hard=1").status_code == 200

    @pytest.mark.parametrize("route", REQUESTS)
    @pytest.mark.parametrize("is_set_up", [True, False])
    def test_without_the_database_it_is_503(self, route: str, is_set_up: bool) -> None:
        app, db = Flask("host"), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:////no/such/folder/test.db"
        app.config.update(EVERY, MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)})
        if is_set_up:
            db.init_app(app)
        repository = SQLAlchemyRepository(db)
        host = Host(app, db, repository.model, MythicClients(app, repository=repository, kv=MemoryStore()))
        answer = host.send(*REQUESTS[route])
        assert answer.headers["Retry-After"] == "5"
        if is_set_up and route == "status":
            read(answer, 503, *TestStatus.KEYS)
        else:
            told = check_error(answer, 503, "Service Unavailable")
            assert told.startswith("The database" if is_set_up else "The service is not set up")
        schema = OPERATIONS[Route(route)]["responses"]["503"]["content"]["application/json"]["schema"]
        OAS31Validator(schema).validate(answer.json)

    def test_a_csrf_guard_of_the_hosts_lets_a_restore_pass(self) -> None:
        app = Flask("host")
        app.config.update(EVERY, SECRET_KEY="x", MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)})
        CSRFProtect(app)
        rows = MemoryRepository()
        rows.add("acme", status=False)
        MythicClients(app, repository=rows, kv=MemoryStore())
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        check(app.test_client().post("/api/v1/clients/acme/restore", headers=headers), 200, RESTORED)

    @pytest.mark.parametrize("route", [route for route in REQUESTS if route != "restore"])
    def test_what_is_read_may_be_asked_for_by_head_and_options(self, plain: Host, route: str) -> None:
        plain.delete("acme")
        _, path = REQUESTS[route]
        head = plain.send("HEAD", path)
        assert (head.status_code, head.data, head.content_type) == (200, b"", "application/json")
        options = plain.send("OPTIONS", path, key=None)
        assert (options.status_code, set(options.allow)) == (200, {"GET", "HEAD", "OPTIONS"})
