"""The route: error → status. The only place that decides a status code."""

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Response, request

from .auth import VerifyKey, bearer_auth
from .errors import (
    ClientError,
    ClientNotFoundError,
    ConstraintError,
    HardDeleteRefusedError,
    InvalidClientIdError,
    StoreError,
)
from .service import DeletionService

_HARD_FLAG = "The query parameter 'hard' must be 'true' or 'false', and given once at the most."

_View = TypeVar("_View", bound=Callable[..., Response])

logger = logging.getLogger(__package__)


def create_blueprint(
    service: DeletionService, verify_key: VerifyKey, url_prefix: str, retry_after: int
) -> Blueprint:
    """Return a blueprint with the one route, `DELETE {url_prefix}/clients/<id>`."""
    blueprint = Blueprint("mythic_clients", __name__, url_prefix=url_prefix)
    auth = bearer_auth(verify_key, _unauthorized)
    authenticated: Callable[[_View], _View] = auth.login_required

    @blueprint.delete("/clients/<client_id>")
    @authenticated
    def delete_client(client_id: str) -> Response:
        hard = _hard_flag()
        if hard is None:
            return _error(400, "Bad Request", _HARD_FLAG)
        delete = service.hard_delete if hard else service.soft_delete
        delete(client_id, actor=auth.current_user())
        return _answer(200, {"success": True, "deleted": True, "hard": hard})

    # A blueprint's handlers come before the host's, and see the errors of this route alone.
    @blueprint.errorhandler(InvalidClientIdError)
    def bad_request(error: InvalidClientIdError) -> Response:
        return _error(400, "Bad Request", str(error))

    @blueprint.errorhandler(ClientNotFoundError)
    def not_found(_: ClientNotFoundError) -> Response:
        return _error(404, "Not Found", "The requested resource was not found")

    @blueprint.errorhandler(ConstraintError)
    @blueprint.errorhandler(HardDeleteRefusedError)
    def conflict(error: ClientError) -> Response:
        return _error(409, "Conflict", str(error))

    @blueprint.errorhandler(StoreError)
    def unavailable(error: StoreError) -> Response:
        logger.error("503: %s (%s)", error, error.cause)  # one line: in an outage there are many
        message = f"{error} Repeat the request: that is safe, and finishes what was begun."
        answer = _error(503, "Service Unavailable", message)
        answer.headers["Retry-After"] = str(retry_after)
        return answer

    return blueprint


def _hard_flag() -> bool | None:
    """Return the flag of the request; None where it is not one the contract knows."""
    # Not `args.get(…, type=bool)`: that reads "false" as true, and a second value not at all.
    match request.args.getlist("hard"):
        case [] | ["false"]:
            return False
        case ["true"]:
            return True
        case _:
            return None


def _unauthorized(token_sent: bool) -> Response:
    answer = _error(401, "Unauthorized", "Authentication required. Please provide a valid API token")
    challenge = 'Bearer realm="clients"'
    if token_sent:
        challenge += ', error="invalid_token"'  # RFC 6750, 3.1: only where a token was sent
    answer.headers["WWW-Authenticate"] = challenge
    return answer


def _error(status: int, error: str, message: str) -> Response:
    return _answer(status, {"error": error, "message": message, "code": status})


def _answer(status: int, body: dict[str, Any]) -> Response:
    # Not `jsonify`: a host's JSON provider may sort the keys or change the format.
    answer = Response(json.dumps(body), status, mimetype="application/json")
    answer.headers["Cache-Control"] = "no-store"
    return answer
