"""The wire contract's answers: each status, error and message, read by the views and the OpenAPI document."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeAlias

from .errors import (
    ChangeRefusedError,
    ClientNotFoundError,
    ConfigurationError,
    InvalidClientIdError,
    InvalidReasonError,
    MythicClientsError,
    StoreError,
)

Body: TypeAlias = dict[str, Any]

NO_STORE: Mapping[str, str] = {"Cache-Control": "no-store"}
UNAUTHORIZED = "Authentication required. Please provide a valid API token"
DELETED = {hard: {"success": True, "deleted": True, "hard": hard} for hard in (False, True)}
"""Whether it was a hard delete → the body of the 200."""

NOT_FOUND = "The requested resource was not found"
HARD_FLAGS: Mapping[tuple[str, ...], bool] = {(): False, ("false",): False, ("true",): True}
"""All values of the query parameter `hard`, in their order → what they mean."""
HARD_FLAG = "The query parameter 'hard' must be 'true' or 'false', and given once at the most."
MISCONFIGURED = "The service is not set up for its stores; its log tells more."
REPEAT = "Repeat the request: that is safe, and finishes what was begun."


def challenge(kind: str, token_sent: bool) -> str:
    """Return the header of a 401; an error stands in it only where a token was sent (RFC 6750, 3.1)."""
    return f'Bearer realm="{kind}"' + (', error="invalid_token"' if token_sent else "")


def error(status: int, message: str) -> Body:
    """Return the body of an error; its name is the status's phrase (RFC 9110)."""
    return {"error": HTTPStatus(status).phrase, "message": message, "code": status}


def refusal(raised: MythicClientsError) -> Body:
    """Return the body that tells of an error of ours."""
    match raised:
        case InvalidClientIdError() | InvalidReasonError():
            return error(400, str(raised))
        case ClientNotFoundError():
            return error(404, NOT_FOUND)
        case ChangeRefusedError():
            return error(409, str(raised))
        case StoreError():
            return error(503, f"{raised} {REPEAT}")
        case ConfigurationError():
            return error(503, MISCONFIGURED)
    raise raised
