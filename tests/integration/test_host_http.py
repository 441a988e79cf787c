"""What a request does to the rest of the host's app: nothing; and what that app can do to a request."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from flask import Flask, Response, abort, jsonify
from flask.json.provider import DefaultJSONProvider
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import KeyValueStoreError, StoreError
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin

from ..hosts import ADMIN_KEY, Host, make_host

ANSWERS = {
    "acme": (200, ["success", "deleted", "hard"]),
    "acme?hard=true": (200, ["success", "deleted", "hard"]),
    "absent": (404, ["error", "message", "code"]),
    "a.b": (400, ["error", "message", "code"]),
    "acme?hard=1": (400, ["error", "message", "code"]),
    "away": (503, ["error", "message", "code"]),
    "referred?hard=true": (409, ["error", "message", "code"]),
}
OF_OTHER_ROUTES = {
    ("POST", "referred/restore"): (200, ["success", "restored"]),
    ("POST", "away/restore"): (503, ["error", "message", "code"]),
    ("GET", "away/deletions"): (200, ["id", "records"]),
    ("GET", "absent/deletions"): (404, ["error", "message", "code"]),
    ("GET", "away/deletion-preview"): (200, ["id", "hard", "allowed", "reason", "dependents", "entries"]),
    ("GET", "away/deletion-preview?hard=1"): (400, ["error", "message", "code"]),
    ("GET", "deletions/status"): (503, ["ok", "pending", "oldest", "overdue", "failed", "last_reconcile"]),
}


class Away(MemoryStore):
    """A store that does not answer where the client `away` is concerned."""

    def apply(self, **work: Any) -> set[str]:
        if "client:away" in [*work["remove"], *work["overwrite"]]:
            raise KeyValueStoreError
        return super().apply(**work)


@pytest.fixture
def host(empty_database: Callable[[str], str]) -> Iterator[Host]:
    """A host whose clients make the package give every one of its answers."""
    config = {
        "MYTHIC_CLIENTS_HARD_DELETE": "after-soft-delete",
        "MYTHIC_CLIENTS_ROUTES": "delete,restore,history,preview,status",
        "MYTHIC_CLIENTS_ADMIN_KEYS": {
            "tests": digest(ADMIN_KEY),
            "limited": {"digest": digest("limited"), "may": ["status"]},
        },
    }
    with closing(make_host(empty_database("sqlite"), Away(), config=config)) as host:
        host.add(id="acme", status=False)
        host.add(id="away")
        host.add(id="referred")
        yield host


def check_answers(host: Host) -> None:
    """Every answer is the contract's: status, type, keys and their order."""
    answers = {("DELETE", path): answer for path, answer in ANSWERS.items()}
    for (method, path), (status, keys) in {**answers, **OF_OTHER_ROUTES}.items():
        answer = host.send(method, path)
        assert (answer.status_code, path) == (status, path)
        assert list(json.loads(answer.data)) == keys
        assert answer.content_type == "application/json"
    for key, status, error in ((None, 401, "Unauthorized"), ("limited", 403, "Forbidden")):
        answer = host.delete("acme", key=key)
        assert (answer.status_code, answer.json["error"]) == (status, error)


class TestAnswersAreIndependentOf:
    @pytest.mark.parametrize("error", [400, 401, 404, 405, 409, 500, 503, Exception, StoreError])
    def test_the_hosts_error_handlers(self, host: Host, error: Any) -> None:
        host.flask.register_error_handler(error, lambda error: ("the host's", 418))
        check_answers(host)

    @pytest.mark.parametrize(
        "config",
        [
            {"TESTING": True},
            {"DEBUG": True},
            {"PROPAGATE_EXCEPTIONS": True},
            {"TRAP_HTTP_EXCEPTIONS": True, "TRAP_BAD_REQUEST_ERRORS": True},
        ],
        ids=str,
    )
    def test_the_hosts_mode(self, host: Host, config: dict[str, Any]) -> None:
        host.flask.config.update(config)
        check_answers(host)

    def test_the_hosts_json_provider(self, host: Host) -> None:
        class Provider(DefaultJSONProvider):
            sort_keys = True
            compact = False
            mimetype = "application/vnd.host+json"

            def dumps(self, obj: Any, **options: Any) -> str:
                return f")]}}',\n{super().dumps(obj, indent=8, **options)}"

        host.flask.json = Provider(host.flask)
        check_answers(host)
        assert host.delete("referred").data == b'{"success": true, "deleted": true, "hard": false}'

    def test_the_hosts_response_class(self, host: Host) -> None:
        class Page(Response):
            default_mimetype = "text/html"

        host.flask.response_class = Page
        check_answers(host)


class TestTheRestOfTheApp:
    @pytest.fixture
    def app(self, host: Host) -> Flask:
        @host.flask.get("/api/v1/clients")
        def index() -> Response:
            return jsonify(b="host", a="index")

        @host.flask.get("/api/v1/clients/<int:number>")
        def by_number(number: int) -> str:
            return f"host: number {number}"

        @host.flask.get("/api/v1/clients/<name>")
        def by_name(name: str) -> str:
            return f"host: {name}"

        @host.flask.delete("/api/v1/clients/<name>/orders")
        def orders(name: str) -> str:
            return f"host: orders of {name}"

        @host.flask.route("/abort/<int:code>", methods=["DELETE"])
        def raising(code: int) -> str:
            if code == 500:
                raise KeyValueStoreError
            abort(code)

        return host.flask

    def test_routes_beside_ours_are_the_hosts(self, app: Flask) -> None:
        client = app.test_client()
        assert client.get("/api/v1/clients").data == b'{"a":"index","b":"host"}\n'
        assert client.get("/api/v1/clients/acme").text == "host: acme"
        assert client.get("/api/v1/clients/7").text == "host: number 7"
        assert client.delete("/api/v1/clients/acme/orders").text == "host: orders of acme"

    def test_our_route_is_found_beside_a_converter_of_the_hosts(self, app: Flask, host: Host) -> None:
        host.add(id="7")
        assert host.delete("7").status_code == 200

    @pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/client/acme", "/api/v1/clients/"])
    def test_a_404_elsewhere_is_the_hosts(self, app: Flask, path: str) -> None:
        answer = app.test_client().delete(path)
        assert (answer.status_code, answer.mimetype) == (404, "text/html")

    def test_routing_errors_go_to_the_hosts_handlers(self, app: Flask) -> None:
        for code in (404, 405):
            app.register_error_handler(code, lambda error: (f"the host's {error.code}", error.code))
        assert app.test_client().delete("/api/v1/client/acme").text == "the host's 404"
        assert app.test_client().post("/api/v1/clients/acme").text == "the host's 405"

    @pytest.mark.parametrize("path", ["/api/v1/clients/acme/", "/api/v1/clients/a%2Fb", "/api/v1/clients//"])
    def test_an_id_with_a_slash_is_no_path_of_ours(self, app: Flask, path: str) -> None:
        answer = app.test_client().delete(path, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        assert (answer.status_code, answer.mimetype) == (404, "text/html")

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
    def test_a_405_is_the_hosts(self, app: Flask, method: str) -> None:
        answer = app.test_client().open("/api/v1/clients/acme", method=method)
        assert (answer.status_code, answer.mimetype) == (405, "text/html")
        assert set(answer.allow) == {"DELETE", "GET", "HEAD", "OPTIONS"}

    @pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 500, 503])
    def test_errors_of_the_hosts_views_are_its_own(self, app: Flask, code: int) -> None:
        app.config["PROPAGATE_EXCEPTIONS"] = False
        answer = app.test_client().delete(f"/abort/{code}")
        # A store's error in a view of the host's is no answer of ours.
        assert (answer.status_code, answer.mimetype) == (code, "text/html")
        assert "Cache-Control" not in answer.headers
        assert "WWW-Authenticate" not in answer.headers

    def test_options_need_no_key(self, app: Flask) -> None:
        answer = app.test_client().options("/api/v1/clients/acme")
        assert (answer.status_code, "DELETE" in answer.allow) == (200, True)

    def test_the_hosts_hooks_see_our_route(self, app: Flask, host: Host) -> None:
        seen: list[Any] = []
        app.before_request(lambda: seen.append("before"))
        app.teardown_request(lambda error: seen.append(error))

        @app.after_request
        def after(response: Response) -> Response:
            response.headers["X-Host"] = f"saw {response.status_code}"
            return response

        for path, (status, _) in ANSWERS.items():
            assert host.delete(path).headers["X-Host"] == f"saw {status}"
        assert seen == ["before", None] * len(ANSWERS)

    def test_the_host_may_answer_before_us(self, app: Flask, host: Host) -> None:
        app.before_request(lambda: ("maintenance", 503))
        assert host.delete("acme").text == "maintenance"

    def test_an_error_of_the_hosts_rule_is_the_hosts_500(
        self, empty_database: Callable[[str], str], host: Host
    ) -> None:
        def entries(row: Any) -> Any:
            raise LookupError(row.id)

        failing = make_host(host.flask.config["SQLALCHEMY_DATABASE_URI"], MemoryStore(), entries=entries)
        with closing(failing):
            failing.flask.register_error_handler(LookupError, lambda error: (f"the host's: {error}", 500))
            assert failing.delete("away").text == "the host's: away"
            assert [row.status for row in failing.rows() if row.id == "away"] == [True]
            assert failing.records("away") == []


class TestTheHostsSession:
    @pytest.fixture
    def pending(self, database_url: str) -> Iterator[tuple[Host, list[Any]]]:
        """A host that adds, changes and deletes objects in its session before every request."""
        db = SQLAlchemy()
        model: Any = type("Client", (ClientMixin, db.Model), {"__tablename__": "clients"})
        with closing(make_host(database_url, MemoryStore(), db=db, model=model)) as host:
            for id in ("acme", "changed", "deleted"):
                host.add(id=id, name="stored")
            seen: list[Any] = []

            @host.flask.before_request
            def prepare() -> None:
                # To load opens a transaction of the host's, which stays open during the DELETE.
                changed, deleted = (db.session.get(model, id) for id in ("changed", "deleted"))
                db.session.add(model(id="added"))
                changed.name = "changed"
                db.session.delete(deleted)

            @host.flask.after_request
            def look(response: Response) -> Response:
                session = db.session()
                seen.append(
                    [{row.id for row in rows} for rows in (session.new, session.dirty, session.deleted)]
                )
                return response

            yield host, seen

    @pytest.mark.parametrize("path", ["acme", "acme?hard=true", "absent", "a.b"])
    def test_what_is_pending_in_it_stays_pending(self, pending: tuple[Host, list[Any]], path: str) -> None:
        host, seen = pending
        host.delete(path)
        assert seen == [[{"added"}, {"changed"}, {"deleted"}]]
        assert {row.id: row.name for row in host.rows() if row.id != "acme"} == {
            "changed": "stored",
            "deleted": "stored",
        }

    def test_the_host_may_commit_it_after_the_delete(self, pending: tuple[Host, list[Any]]) -> None:
        host, _ = pending

        @host.flask.after_request
        def commit(response: Response) -> Response:
            host.db.session.commit()
            return response

        assert host.delete("acme?hard=true").status_code == 200
        assert {row.id: row.name for row in host.rows()} == {"added": "", "changed": "changed"}

    def test_the_host_may_roll_it_back_after_the_delete(self, pending: tuple[Host, list[Any]]) -> None:
        host, _ = pending

        @host.flask.after_request
        def roll_back(response: Response) -> Response:
            host.db.session.rollback()
            return response

        assert host.delete("acme?hard=true").status_code == 200
        assert {row.id: row.name for row in host.rows()} == {"changed": "stored", "deleted": "stored"}
        assert [record.settled_at is None for record in host.records("acme")] == [False]
