"""The OpenAPI document says what the route does, and nothing else."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask_sqlalchemy import SQLAlchemy
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from flask_mythic_clients import openapi_document, views, wire
from flask_mythic_clients.backends.memory import MemoryStore

from ..hosts import Gate, Host, client_model, mounting

OPERATION = openapi_document()["paths"]["/api/v1/clients/{id}"]["delete"]
RESPONSES = OPERATION["responses"]


@pytest.fixture
def gate() -> Gate:
    return Gate(MemoryStore())


@pytest.fixture
def host(empty_database: Callable[[str], str], gate: Gate) -> Iterator[Host]:
    """A host with the clients `acme` and `busy`; rows of another table refer to the latter."""
    db = SQLAlchemy()
    model = client_model(db)
    reference = db.ForeignKey("clients.id")
    orders = db.Table("orders", db.Column("client_id", db.String(255), reference, nullable=False))
    with mounting(empty_database("sqlite"), gate) as mount:
        host = mount(db=db, model=model)
        host.add(id="acme")
        host.add(id="busy")
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(orders.insert().values(client_id="busy"))
        yield host


@pytest.fixture
def answers(host: Host, gate: Gate) -> dict[str, list[Any]]:
    """What the route answers, by status: every kind of answer once."""
    requests: list[tuple[str, dict[str, Any]]] = [
        *(("acme", {}), ("acme?hard=false", {}), ("acme?hard=true", {}), ("acme?hard=true", {})),
        *(("a.b", {}), ("busy?hard=1", {}), ("busy?hard=true", {})),
        *(("busy", {"key": None}), ("busy", {"key": "wrong"})),
    ]
    given = [host.delete(path, **options) for path, options in requests]
    gate.closed = True
    given.append(host.delete("busy"))
    by_status: dict[str, list[Any]] = {}
    for answer in given:
        by_status.setdefault(str(answer.status_code), []).append(answer)
    return by_status


def test_it_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(openapi_document()).validate()


def test_the_documented_statuses_are_those_of_the_view(answers: dict[str, list[Any]]) -> None:
    source = Path(views.__file__).read_text() + Path(wire.__file__).read_text()
    assert set(RESPONSES) == set(answers) == {"200", *re.findall(r"\berror\((\d{3}),", source)}


def test_every_answer_has_the_documented_body(answers: dict[str, list[Any]]) -> None:
    for status, given in answers.items():
        schema = RESPONSES[status]["content"]["application/json"]["schema"]
        for answer in given:
            OAS31Validator(schema).validate(answer.json)
            assert list(answer.json) == list(schema["properties"])
            # Nothing looser would do: a body without a key, with one more, with another value.
            for body in (
                *({name: answer.json[name] for name in answer.json if name != left} for left in answer.json),
                {**answer.json, "more": 1},
                {**answer.json, next(iter(answer.json)): "another"},
            ):
                assert not OAS31Validator(schema).is_valid(body)


def test_every_answer_has_the_documented_headers_and_no_other(answers: dict[str, list[Any]]) -> None:
    of_http = {"Content-Type", "Content-Length"}
    for status, given in answers.items():
        headers = RESPONSES[status]["headers"]
        for answer in given:
            assert set(answer.headers.keys()) - of_http == set(headers)
            for name, header in headers.items():
                text = answer.headers[name]
                value = int(text) if header["schema"].get("type") == "integer" else text
                OAS31Validator(header["schema"]).validate(value)


def test_every_documented_example_is_an_answer(answers: dict[str, list[Any]]) -> None:
    for status, response in RESPONSES.items():
        examples = response["content"]["application/json"]["examples"].values()
        given = [answer.data.decode() for answer in answers[status]]
        assert {json.dumps(example["value"]) for example in examples} <= set(given)


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


def test_the_path_is_where_the_route_is_mounted(empty_database: Callable[[str], str]) -> None:
    prefix = "/internal/v2"
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        host = mount(config={"MYTHIC_CLIENTS_URL_PREFIX": prefix})
        [rule] = [rule for rule in host.flask.url_map.iter_rules() if "DELETE" in (rule.methods or ())]
    assert list(openapi_document(prefix)["paths"]) == [re.sub(r"<\w+>", "{id}", rule.rule)]


def test_a_host_may_change_its_copy() -> None:
    openapi_document()["info"]["title"] = "Another"
    openapi_document()["paths"].clear()
    assert openapi_document()["info"]["title"] == "Clients"
    assert openapi_document()["paths"]


def _is_documented(parameter: str, value: str) -> bool:
    [schema] = [known["schema"] for known in OPERATION["parameters"] if known["name"] == parameter]
    return bool(OAS31Validator(schema).is_valid(value))
