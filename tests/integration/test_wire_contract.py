"""The wire contract, byte by byte: users have it in production."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from threading import Thread
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository

from ..hosts import ADMIN_KEY, Host, KeyValue, contents, mounting

SOFT = b'{"success": true, "deleted": true, "hard": false}'
HARD = b'{"success": true, "deleted": true, "hard": true}'
UNAUTHORIZED = (
    b'{"error": "Unauthorized", '
    b'"message": "Authentication required. Please provide a valid API token", "code": 401}'
)
NOT_FOUND = b'{"error": "Not Found", "message": "The requested resource was not found", "code": 404}'
NO_TOKEN = 'Bearer realm="clients"'
WRONG_TOKEN = 'Bearer realm="clients", error="invalid_token"'

LONGEST = "a" * 255
BAD_IDS = {
    "256 characters": "a" * 256,
    "space": "a%20b",
    "plus": "a+b",
    "dot": "a.b",
    "umlaut": "%C3%A4",
    "not utf-8": "%ff",
    "newline at the end": "acme%0A",
    "newline alone": "%0A",
    "carriage return": "acme%0D",
    "null byte": "acme%00",
    "single quote": "'",
    "double quote": "%22",
    "sql": "acme'%20OR%20'1'='1",
    "emoji": "%F0%9F%98%80",
    "arabic digit": "%D9%A3",
    "encoded twice": "acme%250A",
    "glob": "*",
}
BAD_FLAGS = {
    "1": "hard=1",
    "capital": "hard=True",
    "capitals": "hard=TRUE",
    "empty": "hard=",
    "no value": "hard",
    "space after": "hard=true%20",
    "space before": "hard=+true",
    "newline after": "hard=true%0A",
    "null byte": "hard=true%00",
    "twice": "hard=true&hard=true",
    "both": "hard=false&hard=true",
    "twice false": "hard=false&hard=false",
    "list": "hard=true,true",
    "semicolon": "hard=true;hard=true",
    "quoted": "hard=%22true%22",
    "yes": "hard=yes",
    "null": "hard=null",
}
TOKENLESS: dict[str, str | None] = {
    "no header": None,
    "empty": "",
    "scheme alone": "Bearer",
    "scheme and spaces": "Bearer     ",
    "basic": "Basic dGVzdHM6dGVzdHM=",
    "basic that is no base64": "Basic %%%",
    "digest": 'Digest username="tests", realm="clients"',
    "another scheme": f"Token {ADMIN_KEY}",
    "key alone": ADMIN_KEY,
    "no space": f"Bearer{ADMIN_KEY}",
    "colon": f"Bearer:{ADMIN_KEY}",
}
WRONG_TOKENS = {
    "unknown": "Bearer mythic_0123456789",
    "extra character": f"Bearer {ADMIN_KEY}x",
    "cut short": f"Bearer {ADMIN_KEY[:-1]}",
    "upper case": f"Bearer {ADMIN_KEY.upper()}",
    "its digest": f"Bearer {digest(ADMIN_KEY)}",
    "its name": "Bearer tests",
    "twice": f"Bearer {ADMIN_KEY} {ADMIN_KEY}",
    "list": f"Bearer {ADMIN_KEY}, Bearer {ADMIN_KEY}",
    "quoted": f'Bearer "{ADMIN_KEY}"',
    "latin-1": "Bearer schl\xfcssel",
    # What a WSGI server makes of utf-8 bytes.
    "utf-8": f"Bearer {'schlüssel-😀'.encode().decode('latin-1')}",
    "100 kB": f"Bearer {'a' * 100_000}",
    "equals sign": f"Bearer {ADMIN_KEY}=",
    "parameter": f"Bearer token={ADMIN_KEY}",
    "equals signs alone": "Bearer ==",
}
REFUSED = [
    *((id, "", f"Bearer {ADMIN_KEY}", 400) for id in BAD_IDS.values()),
    *(("acme", f"?{flag}", f"Bearer {ADMIN_KEY}", 400) for flag in BAD_FLAGS.values()),
    *(("acme", "?hard=true", value, 401) for value in (*TOKENLESS.values(), *WRONG_TOKENS.values())),
    ("absent", "", f"Bearer {ADMIN_KEY}", 404),
    ("absent", "?hard=true", f"Bearer {ADMIN_KEY}", 404),
    # One client, one id: MariaDB's usual collations take these for `acme`.
    ("Acme", "", f"Bearer {ADMIN_KEY}", 404),
    ("Acme", "?hard=true", f"Bearer {ADMIN_KEY}", 404),
]


def parametrize(name: str, cases: dict[str, Any]) -> pytest.MarkDecorator:
    """Run a test on every value, called by its name."""
    return pytest.mark.parametrize(name, list(cases.values()), ids=list(cases))


def check(answer: Any, status: int, body: bytes) -> None:
    """Compare an answer to the contract: status, body and the headers that all answers have."""
    assert (answer.status_code, answer.data) == (status, body)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"


def check_error(answer: Any, status: int, error: str) -> str:
    """Compare an error with a free message to the contract; return the message."""
    message = json.loads(answer.data)["message"]
    check(answer, status, json.dumps({"error": error, "message": message, "code": status}).encode())
    assert isinstance(message, str)
    return message


def add_acme(host: Host, raw: Any) -> None:
    """Make the client `acme`, with its entry."""
    host.add(id="acme", name="Acme")
    raw.set("client:acme", '{"id": "acme", "name": "Acme", "status": true}', ex=1000)


@pytest.fixture
def mount() -> Iterator[Callable[..., Host]]:
    """Make hosts that are closed after the test."""
    with mounting() as mount:
        yield mount


@pytest.fixture
def host(database_url: str, kv: KeyValue, mount: Callable[..., Host]) -> Host:
    """A host on every database and every key-value store, with the client `acme`."""
    host = mount(database_url, kv.store)
    add_acme(host, kv.raw)
    return host


class TestEveryPairOfStores:
    """The rows of the contract's table; pytest-flask's `client` sends."""

    @pytest.fixture
    def app(self, host: Host) -> Flask:
        return host.flask

    @pytest.fixture
    def delete(self, client: FlaskClient) -> Callable[[str], Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
        return lambda path: client.delete(f"/api/v1/clients/{path}", headers=headers)

    def test_a_soft_delete_may_be_repeated(
        self, delete: Callable[[str], Any], host: Host, kv: KeyValue
    ) -> None:
        check(delete("acme"), 200, SOFT)
        after = contents(host, kv.raw, "client:acme")
        assert [(row.id, row.status) for row in host.rows()] == [("acme", False)]
        assert json.loads(kv.raw.get("client:acme")) == {"id": "acme", "name": "Acme", "status": False}
        assert 900 < kv.raw.ttl("client:acme") <= 1000
        check(delete("acme"), 200, SOFT)
        check(delete("acme?hard=false"), 200, SOFT)
        assert contents(host, kv.raw, "client:acme") == after
        assert [record.action for record in host.records("acme")] == ["soft"]

    def test_a_hard_delete_is_200_once_and_404_after(
        self, delete: Callable[[str], Any], host: Host, kv: KeyValue
    ) -> None:
        check(delete("acme?hard=true"), 200, HARD)
        after = contents(host, kv.raw, "client:acme")
        assert host.rows() == []
        assert kv.raw.get("client:acme") is None
        check(delete("acme?hard=true"), 404, NOT_FOUND)
        check(delete("acme"), 404, NOT_FOUND)
        assert contents(host, kv.raw, "client:acme") == after

    def test_a_hard_delete_follows_a_soft_one(
        self, delete: Callable[[str], Any], host: Host, kv: KeyValue
    ) -> None:
        check(delete("acme"), 200, SOFT)
        check(delete("acme?hard=true"), 200, HARD)
        assert host.rows() == []
        assert kv.raw.get("client:acme") is None
        records = host.records("acme")
        assert [(record.action, record.actor) for record in records] == [("soft", "tests"), ("hard", "tests")]
        assert all(record.settled_at for record in records)

    def test_ids_of_255_characters_of_every_kind_are_accepted(
        self, delete: Callable[[str], Any], host: Host, kv: KeyValue
    ) -> None:
        for id in (LONGEST, "-", "_", "0", "azAZ09_-"):
            host.add(id=id)
            kv.raw.set(f"client:{id}", "value")
            check(delete(id), 200, SOFT)
            check(delete(f"{id}?hard=true"), 200, HARD)
            assert kv.raw.get(f"client:{id}") is None

    def test_a_deletion_leaves_other_clients_alone(
        self, delete: Callable[[str], Any], host: Host, kv: KeyValue
    ) -> None:
        host.add(id="acme-2")
        kv.raw.set("client:acme-2", "value")
        check(delete("acme?hard=true"), 200, HARD)
        assert [(row.id, row.status) for row in host.rows()] == [("acme-2", True)]
        assert kv.raw.get("client:acme-2") == "value"


class TestRefusals:
    """Not pytest-flask's `app`: it lets `g`, which holds the actor, leak between requests."""

    def test_a_refusal_changes_nothing_in_either_store(self, host: Host, kv: KeyValue) -> None:
        before = contents(host, kv.raw, "client:acme")
        for id, query, authorization, status in REFUSED:
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = host.delete(f"{id}{query}", key=None, headers=headers)
            assert (answer.status_code, id, query, authorization) == (status, id, query, authorization)
        assert contents(host, kv.raw, "client:acme") == before

    @pytest.mark.parametrize(
        ("guard", "says"), [("deny", "does not allow"), ("after-soft-delete", "delete without hard=true")]
    )
    def test_the_guard_is_409_and_changes_nothing(
        self, database_url: str, kv: KeyValue, mount: Callable[..., Host], guard: str, says: str
    ) -> None:
        host = mount(database_url, kv.store, config={"MYTHIC_CLIENTS_HARD_DELETE": guard})
        add_acme(host, kv.raw)
        before = contents(host, kv.raw, "client:acme")
        assert says in check_error(host.delete("acme?hard=true"), 409, "Conflict")
        check(host.delete("absent?hard=true"), 404, NOT_FOUND)
        assert contents(host, kv.raw, "client:acme") == before

    @pytest.mark.parametrize(("guard", "status"), [("deny", 409), ("after-soft-delete", 200)])
    def test_the_guard_is_asked_again_after_a_soft_delete(
        self, database_url: str, kv: KeyValue, mount: Callable[..., Host], guard: str, status: int
    ) -> None:
        host = mount(database_url, kv.store, config={"MYTHIC_CLIENTS_HARD_DELETE": guard})
        add_acme(host, kv.raw)
        check(host.delete("acme"), 200, SOFT)
        assert host.delete("acme?hard=true").status_code == status
        assert (kv.raw.get("client:acme") is None) is (status == 200)

    def test_a_foreign_key_is_409_and_changes_nothing(
        self, database_url: str, kv: KeyValue, mount: Callable[..., Host]
    ) -> None:
        db = SQLAlchemy()
        model: Any = type("Client", (ClientMixin, db.Model), {"__tablename__": "clients"})
        orders = db.Table(
            "orders", db.Column("client_id", db.String(255), db.ForeignKey("clients.id"), nullable=False)
        )
        host = mount(database_url, kv.store, db=db, model=model)
        add_acme(host, kv.raw)
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(orders.insert().values(client_id="acme"))
        before = contents(host, kv.raw, "client:acme")
        assert "foreign key" in check_error(host.delete("acme?hard=true"), 409, "Conflict")
        assert contents(host, kv.raw, "client:acme") == before
        check(host.delete("acme"), 200, SOFT)


@pytest.fixture
def plain_host(empty_database: Callable[[str], str], mount: Callable[..., Host]) -> Host:
    """A host for what no store has a say in."""
    host = mount(empty_database("sqlite"), MemoryStore())
    host.add(id="acme")
    return host


class TestRequests:
    @parametrize("id", BAD_IDS)
    def test_a_bad_id_is_400(self, plain_host: Host, id: str) -> None:
        for path in (id, f"{id}?hard=true", f"{id}?hard=1"):
            check_error(plain_host.delete(path), 400, "Bad Request")
        assert "1 to 255 characters" in check_error(plain_host.delete(id), 400, "Bad Request")

    @parametrize("flag", BAD_FLAGS)
    def test_a_bad_flag_is_400(self, plain_host: Host, flag: str) -> None:
        message = check_error(plain_host.delete(f"acme?{flag}"), 400, "Bad Request")
        assert "'true' or 'false'" in message
        # The request is refused before anybody looks for the client.
        check_error(plain_host.delete(f"absent?{flag}"), 400, "Bad Request")

    @pytest.mark.parametrize("query", ["", "?", "?hard=false", "?HARD=true", "?hard[]=true", "?force=1&x"])
    def test_a_delete_is_soft_unless_hard_is_true(self, plain_host: Host, query: str) -> None:
        check(plain_host.delete(f"acme{query}"), 200, SOFT)
        assert [row.status for row in plain_host.rows()] == [False]

    @pytest.mark.parametrize("query", ["?hard=true", "?x=1&hard=true&hard2=false", "?%68ard=%74rue"])
    def test_a_delete_is_hard_whatever_else_the_query_holds(self, plain_host: Host, query: str) -> None:
        check(plain_host.delete(f"acme{query}"), 200, HARD)

    @pytest.mark.parametrize("body", [b'{"hard": true}', b"{", b"hard=true", b"\xff" * 1_000_000])
    @pytest.mark.parametrize("mimetype", ["application/json", "application/x-www-form-urlencoded", "x"])
    def test_a_body_is_ignored(self, plain_host: Host, body: bytes, mimetype: str) -> None:
        headers = {"Content-Type": mimetype}
        check(plain_host.delete("acme", data=body, headers=headers), 200, SOFT)

    def test_a_body_over_the_hosts_limit_is_ignored_too(self, plain_host: Host) -> None:
        plain_host.flask.config["MAX_CONTENT_LENGTH"] = 10
        check(plain_host.delete("acme", data=b"x" * 100), 200, SOFT)

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
    def test_the_scheme_is_read_as_rfc_7235_has_it(self, plain_host: Host, scheme: str) -> None:
        headers = {"Authorization": f"{scheme} {ADMIN_KEY}"}
        check(plain_host.delete("acme", key=None, headers=headers), 200, SOFT)


class TestUnauthorized:
    PATHS = ("acme", "acme?hard=true", "acme?hard=1", "absent", "absent?hard=true", "a.b", "acme%0A")

    def check(self, host: Host, authorization: str | None, challenge: str) -> None:
        """Send the header to every kind of path: who has no key learns nothing else."""
        headers = {} if authorization is None else {"Authorization": authorization}
        for path in self.PATHS:
            answer = host.delete(path, key=None, headers=headers)
            check(answer, 401, UNAUTHORIZED)
            assert answer.headers.getlist("WWW-Authenticate") == [challenge]

    @parametrize("authorization", TOKENLESS)
    def test_without_a_token_the_challenge_names_no_error(
        self, plain_host: Host, authorization: str | None
    ) -> None:
        self.check(plain_host, authorization, NO_TOKEN)

    @pytest.mark.parametrize("authorization", ["Basic \xe4", "Basic dGVzdHM6\xc3\xa4"])
    def test_credentials_that_are_no_ascii_are_refused(self, plain_host: Host, authorization: str) -> None:
        # Werkzeug's parser of Basic credentials raises on them.
        self.check(plain_host, authorization, NO_TOKEN)

    @parametrize("authorization", WRONG_TOKENS)
    def test_a_wrong_token_is_named_invalid(self, plain_host: Host, authorization: str) -> None:
        self.check(plain_host, authorization, WRONG_TOKEN)

    def test_a_request_without_a_key_does_not_inherit_the_last_ones(self, plain_host: Host) -> None:
        client = plain_host.flask.test_client()
        assert plain_host.delete("acme").status_code == 200
        check(client.delete("/api/v1/clients/acme"), 401, UNAUTHORIZED)

    @pytest.mark.parametrize("place", ["query", "cookie", "header", "basic"])
    def test_a_key_elsewhere_is_no_key(self, plain_host: Host, place: str) -> None:
        client = plain_host.flask.test_client()
        client.set_cookie("Authorization", f"Bearer {ADMIN_KEY}")
        options: dict[str, Any] = {
            "query": {"query_string": {"access_token": ADMIN_KEY}},
            "cookie": {},
            "header": {"headers": {"X-Api-Key": ADMIN_KEY}},
            "basic": {"auth": ("tests", ADMIN_KEY)},
        }
        check(client.delete("/api/v1/clients/acme", **options[place]), 401, UNAUTHORIZED)


@pytest.fixture
def closed_port() -> int:
    """A port that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestUnavailable:
    @pytest.mark.parametrize(("path", "body"), [("acme", SOFT), ("acme?hard=true", HARD)])
    def test_without_the_key_value_store_the_delete_stays_pending_until_it_is_repeated(
        self,
        host: Host,
        kv: KeyValue,
        closed_port: int,
        mount: Callable[..., Host],
        path: str,
        body: bytes,
    ) -> None:
        url = host.flask.config["SQLALCHEMY_DATABASE_URI"]
        cut_off = mount(url, RedisStore.from_url(f"redis://127.0.0.1:{closed_port}"))
        for _ in range(2):
            answer = cut_off.delete(path)
            message = check_error(answer, 503, "Service Unavailable")
            assert "key-value store" in message
            assert "Repeat the request" in message
            assert answer.headers["Retry-After"] == "5"
        assert [record.settled_at for record in host.records("acme")] == [None]
        check(host.delete(path), 200, body)
        assert [record.settled_at is None for record in host.records("acme")] == [False]
        left = kv.raw.get("client:acme")
        assert left is None if body is HARD else json.loads(left)["status"] is False

    def test_retry_after_is_what_the_host_configured(
        self, empty_database: Callable[[str], str], closed_port: int, mount: Callable[..., Host]
    ) -> None:
        store = RedisStore.from_url(f"redis://127.0.0.1:{closed_port}")
        host = mount(empty_database("sqlite"), store, config={"MYTHIC_CLIENTS_RETRY_AFTER": 42})
        host.add(id="acme")
        assert host.delete("acme").headers.getlist("Retry-After") == ["42"]

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite:////no/such/folder/test.db",
            "postgresql+psycopg://postgres@127.0.0.1:{port}/test",
            "mariadb+pymysql://root@127.0.0.1:{port}/test",
        ],
    )
    @pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
    def test_without_the_database_it_is_503_and_no_entry_is_touched(
        self, closed_port: int, url: str, path: str
    ) -> None:
        db, store = SQLAlchemy(), MemoryStore()
        app = Flask("host")
        app.config["SQLALCHEMY_DATABASE_URI"] = url.format(port=closed_port)
        app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {"tests": digest(ADMIN_KEY)}
        db.init_app(app)
        repository = SQLAlchemyRepository(db)
        clients = MythicClients(app, repository=repository, kv=store)
        host = Host(app, db, repository.model, clients)
        store.set("client:acme", "value")
        answer = host.delete(path)
        assert "database" in check_error(answer, 503, "Service Unavailable")
        assert answer.headers["Retry-After"] == "5"
        assert store.get("client:acme") == "value"
        # Neither the key nor the id is looked at by a store.
        check(host.delete(path, key="wrong"), 401, UNAUTHORIZED)
        check_error(host.delete("a.b"), 400, "Bad Request")


class _QuietHandler(WSGIRequestHandler):
    def log(self, *_: Any) -> None: ...


class TestOverASocket:
    """What a server really sends; not pytest-flask's `live_server`.

    That one forks, and another process has another memory store; it also wants a session-wide app.
    """

    @pytest.fixture
    def address(self, host: Host) -> Iterator[tuple[str, int]]:
        server = make_server("127.0.0.1", 0, host.flask, request_handler=_QuietHandler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield ("127.0.0.1", server.port)
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.fixture
    def send(self, address: tuple[str, int]) -> Callable[..., tuple[HTTPResponse, bytes]]:
        def send(path: str, headers: dict[str, Any], body: bytes = b"") -> tuple[HTTPResponse, bytes]:
            with closing(HTTPConnection(*address, timeout=10)) as connection:
                connection.request("DELETE", f"/api/v1/clients/{path}", body, headers)
                response = connection.getresponse()
                return response, response.read()

        return send

    def test_every_answer_is_the_contracts_to_the_byte(
        self, send: Callable[..., tuple[HTTPResponse, bytes]]
    ) -> None:
        key = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
        cases: list[tuple[str, dict[str, Any], bytes, str, bytes | None]] = [
            ("acme", {}, b"", "401 UNAUTHORIZED", UNAUTHORIZED),
            ("acme", {"Authorization": "Bearer"}, b"", "401 UNAUTHORIZED", UNAUTHORIZED),
            ("acme", {"Authorization": b"Bearer   "}, b"", "401 UNAUTHORIZED", UNAUTHORIZED),
            ("acme", {"Authorization": b"Bearer \xfc"}, b"", "401 UNAUTHORIZED", UNAUTHORIZED),
            ("acme", {"Authorization": "Bearer ü".encode()}, b"", "401 UNAUTHORIZED", UNAUTHORIZED),
            ("acme%0A", {}, b"", "401 UNAUTHORIZED", UNAUTHORIZED),
            ("acme%0A", key, b"", "400 BAD REQUEST", None),
            ("acme?hard=1", key, b"", "400 BAD REQUEST", None),
            ("absent", key, b"", "404 NOT FOUND", NOT_FOUND),
            ("acme", key, b"", "200 OK", SOFT),
            # No more: Werkzeug's server hangs up on what is sent after it has answered.
            ("acme", key, b"x" * 20_000, "200 OK", SOFT),
            ("acme?hard=true", key, b'{"hard": false}', "200 OK", HARD),
            ("acme?hard=true", key, b"", "404 NOT FOUND", NOT_FOUND),
        ]
        for path, headers, sent, status, body in cases:
            response, received = send(path, headers, sent)
            assert (f"{response.status} {response.reason}", path) == (status, path)
            assert body is None or received == body
            assert response.getheader("Content-Type") == "application/json"
            assert response.getheader("Cache-Control") == "no-store"
            assert response.getheader("Content-Length") == f"{len(received)}"
            challenged = response.getheader("WWW-Authenticate")
            token_sent = headers.get("Authorization", b"").strip() not in ("Bearer", b"Bearer", b"")
            expected = WRONG_TOKEN if token_sent else NO_TOKEN
            assert challenged == (expected if response.status == 401 else None)

    def test_a_chunked_body_is_ignored(self, address: tuple[str, int]) -> None:
        with closing(HTTPConnection(*address, timeout=10)) as connection:
            headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
            chunks = iter([b'{"hard":', b"true}"])
            connection.request("DELETE", "/api/v1/clients/acme", chunks, headers, encode_chunked=True)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, SOFT)
