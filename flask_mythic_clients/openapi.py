"""The wire contract as an OpenAPI document, for hosts that publish one."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import timedelta
from typing import Any

from . import described, wire
from .config import CLIENTS, Settings, check_kind, check_routes
from .described import Described, Schema, means, object_of
from .errors import KeyValueStoreError
from .model import Backlog, Health
from .rights import Right, Route


def openapi_document(
    url_prefix: str = Settings.url_prefix, name: str = CLIENTS, routes: Sequence[str] | str = Settings.routes
) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document of the routes; each call makes a new one, to be merged or changed.

    `url_prefix` is where the app mounts the routes, `name` the kind of client, and `routes` those that it
    opens, as in its settings. What the host answers itself is not told: a path that is no route's (an id with
    a slash in it), and another method.
    """
    kind = check_kind(name)
    words = kind.replace("_", " ")
    paths: dict[str, dict[str, Any]] = {}
    for route in check_routes("routes=", routes):
        method, path = wire.ROUTES[route]
        paths[f"{url_prefix}/{kind}{path}"] = {method.lower(): _operation(route, kind)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": words.capitalize(),
            "summary": f"Delete {words}: reversible by default, permanent on demand.",
            "version": "1.0.0",
        },
        "tags": [{"name": kind, "description": f"The deletion of {words}."}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "adminKey": {"type": "http", "scheme": "bearer", "description": "An admin key."}
            }
        },
    }


def _operation(route: Route, kind: str) -> dict[str, Any]:
    told = described.ROUTES[route]
    # An operation's id is unique in a document, also where two kinds are merged into one.
    of_kind = "".join(map(str.capitalize, kind.split("_"))) if kind != CLIENTS else "Client"
    answers = {200: _response(told.done, told.fields, told.bodies), 401: _unauthorized(kind)}
    answers[403] = _forbidden(kind, wire.FORBIDDEN[Right.to(route, hard=True)])
    answers |= {status: _error(status, *refused) for status, refused in told.refused.items()}
    answers[503] = _unavailable(told) if route is Route.STATUS else _error(503, *_AWAY, _RETRY)
    operation = {
        "operationId": told.id.format(of_kind),
        "tags": [kind],
        "summary": told.summary,
        "description": told.description,
        "security": [{"adminKey": []}],
        "parameters": [
            *([_ID] if "{id}" in wire.ROUTES[route][1] else []),
            *([_HARD] if route in wire.TAKE_HARD else []),
            _REQUEST_ID,
        ],
        "responses": {f"{status}": answers[status] for status in sorted(answers)},
    }
    return deepcopy(operation)  # the caller may change it


def _unauthorized(kind: str) -> Schema:
    challenge = _header({"type": "string", "pattern": f"^{wire.challenge(kind)}"})
    told = "No key or a wrong key. This is checked before anything else."
    return _error(401, told, wire.UNAUTHORIZED, {"WWW-Authenticate": challenge})


def _forbidden(kind: str, message: str) -> Schema:
    challenge = _header({"const": wire.challenge(kind, "insufficient_scope")})
    told = "The key may not do this. No store was asked."
    return _error(403, told, message, {"WWW-Authenticate": challenge})


def _unavailable(told: Described) -> Schema:
    """Return the 503 of the status of deletions: that, or the error of an app that is not set up."""
    backlog = Backlog(pending=2, oldest=timedelta(minutes=7))
    not_well = wire.status(Health(backlog, timedelta(hours=1), None, None))
    error = _error(503, "", wire.MISCONFIGURED, _RETRY)
    fields = {**told.fields, "ok": means("It is not well.", const=False)}
    answer = _response(
        "Something is pending, has failed, is overdue, or a store is away: then its numbers are null.",
        fields,
        {"pending": not_well},
        _RETRY,
    )
    content, misconfigured = answer["content"]["application/json"], error["content"]["application/json"]
    content["schema"] = {"anyOf": [content["schema"], misconfigured["schema"]]}
    content["examples"] |= misconfigured["examples"]
    return answer


def _error(status: int, description: str, message: str, headers: Schema | None = None) -> Schema:
    body = wire.error(status, message)
    fields = {
        "error": means("The name of the status.", const=body["error"]),
        "message": means("What is wrong, for people.", type="string"),
        "code": means("The status.", const=body["code"]),
    }
    return _response(description, fields, {"error": body}, headers)


def _response(
    description: str,
    fields: Mapping[str, Schema],
    bodies: Mapping[str, wire.Body],
    headers: Schema | None = None,
) -> Schema:
    content = {
        "schema": object_of(fields, next(iter(bodies.values()))),
        "examples": {name: {"value": body} for name, body in bodies.items()},
    }
    return {
        "description": description,
        "headers": {"Cache-Control": _header({"const": "no-store"}), **_SENT_BACK, **(headers or {})},
        "content": {"application/json": content},
    }


def _header(schema: Schema) -> Schema:
    return {"required": True, "schema": schema}


_ID: Schema = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The client's id.",
    "schema": described.ID,
    "example": "acme",
}
_HARD: Schema = {
    "name": "hard",
    "in": "query",
    "description": "Whether to remove the client for good. Given once at the most.",
    "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
}
_REQUEST_ID: Schema = {
    "name": wire.REQUEST_ID,
    "in": "header",
    "description": (
        "What the caller calls this request: 1 to 128 printable characters of ASCII. It stands in the "
        "answer, in the log and in the record of what was done; another text is not taken, and no error."
    ),
    "schema": {"type": "string"},
    "example": "4f1c9a",
}
_SENT_BACK: Schema = {
    wire.REQUEST_ID: {"description": "That of the request.", "schema": {"type": "string"}, "required": False}
}
_RETRY = {"Retry-After": _header({"type": "integer", "minimum": 0})}
_AWAY = (
    "A store did not answer. What was begun is finished when the request is repeated.",
    f"{KeyValueStoreError()} {wire.REPEAT}",
)
