"""The OpenAPI document says what the routes do, and nothing else."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask_sqlalchemy import SQLAlchemy
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from flask_mythic_clients import ConfigurationError, openapi_document, views, wire
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.rights import Route

from ..hosts import ADMIN_KEY, Gate, Host, client_model, mounting

DOCUMENT = openapi_document(routes=list(Route))
OPERATIONS: dict[Route, Any] = {
    route: DOCUMENT["paths"][f"/api/v1/clients{path}"][method.lower()]
    for route, (method, path) in wire.ROUTES.items()
}
OPERATION = OPERATIONS[Route.DELETE]
# What is asked for, in this order; what needs more than a path stands beside it.
REQUESTS: list[tuple[Route, str, dict[str, Any]]] = [
    *((Route.DELETE, path, {}) for path in ("acme", "acme?hard=false")),
    *((Route.RESTORE, path, {}) for path in ("acme", "acme", "absent", "a.b", "closed")),
    *((Route.PREVIEW, path, {}) for path in ("acme", "acme?hard=true", "busy?hard=true", "absent", "a.b")),
    *((Route.PREVIEW, path, {}) for path in ("acme?hard=1",)),
    *((Route.HISTORY, path, {}) for path in ("acme", "absent", "a.b")),
    (Route.STATUS, "", {}),
    *((Route.DELETE, path, {}) for path in ("acme?hard=true", "acme?hard=true", "a.b", "busy?hard=1")),
    *((Route.DELETE, path, {}) for path in ("busy?hard=true",)),
    *((route, "busy", {"key": key}) for route in Route for key in (None, "wrong", "limited")),
    *((route, "busy?hard=true", {"key": "limited"}) for route in Route),
]
NOT_MET = {(Route.PREVIEW, "409")}
"""What a database of the tests does not do; `test_routes.py` has it from a repository that does."""


@pytest.fixture
def gate() -> Gate:
    return Gate(MemoryStore())


@pytest.fixture
def host(empty_database: Callable[[str], str], gate: Gate) -> Iterator[Host]:
    """A host with the clients `acme`, `busy`, to which rows refer, and `closed`, which nobody may restore."""
    db = SQLAlchemy()
    model = client_model(
        db, __table_args__=(db.CheckConstraint("name <> 'closed' OR NOT status", name="closed"),)
    )
    reference = db.ForeignKey("clients.id")
    orders = db.Table("orders", db.Column("client_id", db.String(255), reference, nullable=False))
    limited = {"digest": digest("limited"), "may": ["soft"]}
    config = {
        "MYTHIC_CLIENTS_ROUTES": list(Route),
        "MYTHIC_CLIENTS_ADMIN_KEYS": {"tests": digest(ADMIN_KEY), "limited": limited},
    }
    with mounting(empty_database("sqlite"), gate) as mount:
        host = mount(db=db, model=model, config=config)
        host.add(id="acme")
        host.add(id="busy")
        host.add(id="closed", name="closed", status=False)
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(orders.insert().values(client_id="busy"))
        yield host


def send(host: Host, route: Route, path: str, **options: Any) -> Any:
    """Ask for a route, of the client and with the query that the path has."""
    id, mark, query = path.partition("?")
    method, template = wire.ROUTES[route]
    return host.send(method, template.format(id=id).removeprefix("/") + mark + query, **options)


Answers = dict[tuple[Route, str], list[Any]]


@pytest.fixture
def answers(host: Host, gate: Gate) -> Answers:
    """What the routes answer, by route and status: every kind of answer once."""
    found: Answers = {}

    def ask(route: Route, path: str, **options: Any) -> None:
        answer = send(host, route, path, **options)
        found.setdefault((route, str(answer.status_code)), []).append(answer)

    for route, path, options in REQUESTS:
        ask(route, path, **options)
    gate.closed = True
    for route in (Route.DELETE, Route.RESTORE):
        ask(route, "busy")
    ask(Route.STATUS, "")
    with host.flask.app_context():
        host.db.drop_all()
    for route in (Route.HISTORY, Route.PREVIEW, Route.STATUS):
        ask(route, "busy")
    return found


def response(route: Route, status: str) -> Any:
    """Return what the document tells of an answer."""
    return OPERATIONS[route]["responses"][status]


def content(route: Route, status: str) -> Any:
    """Return what the document tells of the body of an answer."""
    return response(route, status)["content"]["application/json"]


def test_it_is_valid_openapi() -> None:
    for document in (
        openapi_document(),
        DOCUMENT,
        openapi_document(name="organizations", routes=list(Route)),
    ):
        OpenAPIV31SpecValidator(document).validate()


def test_the_documented_statuses_are_those_of_the_views(answers: Answers) -> None:
    documented = {
        (route, status) for route, operation in OPERATIONS.items() for status in operation["responses"]
    }
    assert documented == set(answers) | NOT_MET
    source = Path(views.__file__).read_text() + Path(wire.__file__).read_text()
    assert {status for _, status in documented} == {"200", *re.findall(r"\berror\((\d{3}),", source)}


def test_every_answer_has_the_documented_body(answers: Answers) -> None:
    for (route, status), given in answers.items():
        schema = content(route, status)["schema"]
        for answer in given:
            OAS31Validator(schema).validate(answer.json)
            fits = [
                each for each in schema.get("anyOf", [schema]) if OAS31Validator(each).is_valid(answer.json)
            ]
            assert [list(each["properties"]) for each in fits] == [list(answer.json)]
            # Nothing looser would do: a body without a key, with one more, with another value.
            for body in (
                *({name: answer.json[name] for name in answer.json if name != left} for left in answer.json),
                {**answer.json, "more": 1},
                {**answer.json, next(iter(answer.json)): "an.other"},
            ):
                assert not OAS31Validator(schema).is_valid(body)


def test_every_answer_has_the_documented_headers_and_no_other(answers: Answers) -> None:
    of_http = {"Content-Type", "Content-Length"}
    for (route, status), given in answers.items():
        documented = response(route, status)["headers"]
        assert [name for name, header in documented.items() if not header["required"]] == ["X-Request-ID"]
        headers = {name: header for name, header in documented.items() if header["required"]}
        for answer in given:
            assert set(answer.headers.keys()) - of_http == set(headers)
            for name, header in headers.items():
                text = answer.headers[name]
                value = int(text) if header["schema"].get("type") == "integer" else text
                OAS31Validator(header["schema"]).validate(value)


def test_every_documented_example_is_one_of_its_schema() -> None:
    for route, operation in OPERATIONS.items():
        for status in operation["responses"]:
            told = content(route, status)
            assert told["examples"]
            for example in told["examples"].values():
                OAS31Validator(told["schema"]).validate(example["value"])


def test_every_documented_example_of_a_deletion_is_an_answer(answers: Answers) -> None:
    for status in OPERATION["responses"]:
        examples = content(Route.DELETE, status)["examples"].values()
        given = [answer.data.decode() for answer in answers[Route.DELETE, status]]
        assert {json.dumps(example["value"]) for example in examples} <= set(given)


def test_every_field_of_every_body_is_described() -> None:
    described = list(fields(DOCUMENT["paths"]))
    assert {"success", "restored", "verified_at", "fate", "last_reconcile", "message"} <= {
        name for name, _ in described
    }
    assert [name for name, schema in described if not schema.get("description")] == []


def fields(told: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of every object that is described in it."""
    if isinstance(told, dict) and told.get("type") == "object":
        yield from told["properties"].items()
    for each in told.values() if isinstance(told, dict) else told if isinstance(told, list) else ():
        yield from fields(each)


def test_every_operation_has_a_tag_that_is_described_and_an_id_of_its_own() -> None:
    documents = (DOCUMENT, openapi_document(name="organizations", routes=list(Route)))
    ids = []
    for document, kind in zip(documents, ("clients", "organizations"), strict=True):
        assert [tag["name"] for tag in document["tags"] if tag["description"]] == [kind]
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        assert [operation["tags"] for operation in operations] == [[kind]] * len(Route)
        assert all(operation["summary"] and operation["description"] for operation in operations)
        ids += [operation["operationId"] for operation in operations]
    assert len(set(ids)) == 2 * len(Route)


@pytest.mark.parametrize(
    "routes", [["delete"], ["status", "restore"], "preview,history", list(Route)], ids=str
)
def test_it_has_the_routes_that_are_opened_and_no_other(
    empty_database: Callable[[str], str], routes: Any
) -> None:
    prefix = "/internal/v2"
    config = {"MYTHIC_CLIENTS_URL_PREFIX": prefix, "MYTHIC_CLIENTS_ROUTES": routes}
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        rules = [
            rule for rule in mount(config=config).flask.url_map.iter_rules() if rule.endpoint != "static"
        ]
    mounted = {
        re.sub(r"<\w+>", "{id}", rule.rule): {
            method.lower() for method in rule.methods or () if method not in ("HEAD", "OPTIONS")
        }
        for rule in rules
    }
    paths = openapi_document(prefix, routes=routes)["paths"]
    assert {path: set(operations) for path, operations in paths.items()} == mounted


@pytest.mark.parametrize("routes", [None, [], "", ["drop"], ["delete", "delete"]])
def test_routes_that_there_are_not_are_refused(routes: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^routes= must be a list of some of delete, restore, hist"):
        openapi_document(routes=routes)


@pytest.mark.parametrize(("id", "status"), [("-_azAZ09", "404"), ("a" * 255, "404")])
def test_an_id_of_the_documented_pattern_is_an_id(host: Host, id: str, status: str) -> None:
    assert _is_documented("id", id)
    assert str(host.delete(id).status_code) == status


@pytest.mark.parametrize("id", ["a" * 256, "a.b", "ä", "a b", "a:b"])
def test_an_id_not_of_the_documented_pattern_is_400(host: Host, id: str) -> None:
    assert not _is_documented("id", id)
    assert host.delete(id).status_code == 400


@pytest.mark.parametrize("flag", ["true", "false", "True", "1", "", "yes"])
def test_a_flag_is_400_unless_it_is_documented(host: Host, flag: str) -> None:
    assert (host.delete(f"absent?hard={flag}").status_code == 404) is _is_documented("hard", flag)


def test_a_host_may_change_its_copy() -> None:
    openapi_document()["info"]["title"] = "Another"
    copy = openapi_document()["paths"].popitem()[1]["delete"]
    copy["responses"]["404"]["headers"]["Cache-Control"]["schema"].clear()
    copy["parameters"].clear()
    openapi_document()["paths"].clear()
    assert openapi_document()["info"]["title"] == "Clients"
    assert openapi_document()["paths"] == {
        path: told for path, told in DOCUMENT["paths"].items() if "delete" in told
    }


def _is_documented(parameter: str, value: str) -> bool:
    [schema] = [known["schema"] for known in OPERATION["parameters"] if known["name"] == parameter]
    return bool(OAS31Validator(schema).is_valid(value))
