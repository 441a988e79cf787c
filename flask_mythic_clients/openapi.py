"""The wire contract as an OpenAPI document, for hosts that publish one."""

from typing import Any

from . import wire
from .config import CLIENTS, Settings, check_kind
from .errors import ClientInUseError, InvalidClientIdError, KeyValueStoreError
from .model import CLIENT_ID

_TRUE, _BOOLEAN, _TEXT = {"const": True}, {"type": "boolean"}, {"type": "string"}


def openapi_document(url_prefix: str = Settings.url_prefix, name: str = CLIENTS) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document of the route; each call makes a new one, to be merged or changed.

    `url_prefix` is where the app mounts the route, `name` the kind of client. What the host answers itself is
    not told: a path that is not the route's (an id with a slash in it), and another method.
    """
    kind = check_kind(name)
    words = kind.replace("_", " ")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": words.capitalize(),
            "summary": f"Delete {words}: reversible by default, permanent on demand.",
            "version": "1.0.0",
        },
        "paths": {f"{url_prefix}/{kind}/{{id}}": {"delete": _operation(kind)}},
        "components": {
            "securitySchemes": {
                "adminKey": {"type": "http", "scheme": "bearer", "description": "An admin key."}
            }
        },
    }


def _operation(kind: str) -> dict[str, Any]:
    # An operation's id is unique in a document, also where two kinds are merged into one.
    of_kind = "".join(map(str.capitalize, kind.split("_"))) if kind != CLIENTS else "Client"
    return {
        "operationId": f"delete{of_kind}",
        "summary": "Delete a client",
        "description": (
            "Sets the client's status to false, which can be taken back; with `hard=true` removes the client "
            "and all its entries for good. Repeating a request is safe, and finishes what an earlier one "
            "began. A body is not read."
        ),
        "security": [{"adminKey": []}],
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "The client's id.",
                "schema": {"type": "string", "pattern": f"^{CLIENT_ID.pattern}$"},
                "example": "acme",
            },
            {
                "name": "hard",
                "in": "query",
                "description": "Whether to remove the client for good. Given once at the most.",
                "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
            },
        ],
        "responses": {
            "200": _deleted(),
            "400": _error(400, "The id is no client's, or `hard` is no flag.", str(InvalidClientIdError(""))),
            "401": _error(
                401,
                "No key or a wrong key. This is checked before anything else.",
                wire.UNAUTHORIZED,
                {
                    "WWW-Authenticate": _header(
                        {**_TEXT, "pattern": f"^{wire.challenge(kind, token_sent=False)}"}
                    )
                },
            ),
            "404": _error(
                404,
                "There is no such client, and nothing is pending for it.",
                wire.NOT_FOUND,
            ),
            "409": _error(
                409,
                "The database, the host's mapping or this service forbids the change; nothing has changed.",
                f"{ClientInUseError('')} Look at orders.client_id.",
            ),
            "503": _error(
                503,
                "A store did not answer. What was begun is finished when the request is repeated.",
                f"{KeyValueStoreError()} {wire.REPEAT}",
                {"Retry-After": _header({"type": "integer", "minimum": 0})},
            ),
        },
    }


def _deleted() -> dict[str, Any]:
    examples = {name: {"value": wire.DELETED[hard]} for name, hard in (("soft", False), ("hard", True))}
    properties = {"success": _TRUE, "deleted": _TRUE, "hard": _BOOLEAN}
    return _response("The client is deleted; with `hard`, for good.", properties, examples, {})


def _error(
    status: int, description: str, message: str, headers: dict[str, Any] | None = None
) -> dict[str, Any]:
    body = wire.error(status, message)
    properties = {name: {"const": value} for name, value in body.items()} | {"message": _TEXT}
    examples = {"error": {"value": body}}
    return _response(description, properties, examples, headers or {})


def _response(
    description: str, properties: dict[str, Any], examples: dict[str, Any], headers: dict[str, Any]
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "description": description,
        "headers": {"Cache-Control": _header({"const": "no-store"}), **headers},
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


def _header(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "schema": schema}
