"""The route: takes a request, calls the service once, answers."""

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from flask import Blueprint, Response, request

from . import wire
from .auth import VerifyKey, bearer_auth
from .errors import MythicClientsError, StoreError
from .service import DeletionService

_View = TypeVar("_View", bound=Callable[..., Response])

logger = logging.getLogger(__package__)


def create_blueprint(
    kind: str, service: DeletionService, verify_key: VerifyKey, url_prefix: str, retry_after: int
) -> Blueprint:
    """Return a blueprint with the one route, `DELETE {url_prefix}/{kind}/<id>`."""
    blueprint = Blueprint(f"mythic_{kind}", __name__, url_prefix=url_prefix)
    auth = bearer_auth(verify_key, partial(_unauthorized, kind))
    authenticated: Callable[[_View], _View] = auth.login_required

    @blueprint.delete(f"/{kind}/<client_id>")
    @authenticated
    def delete_client(client_id: str) -> Response:
        # Not `args.get(…, type=bool)`: that reads "false" as true, and a second value not at all.
        hard = wire.HARD_FLAGS.get(tuple(request.args.getlist("hard")))
        if hard is None:
            return _answer(wire.error(400, wire.HARD_FLAG))
        delete = service.hard_delete if hard else service.soft_delete
        delete(client_id, actor=auth.current_user())
        return _answer(wire.DELETED[hard])

    # A blueprint's handlers come before the host's, and see the errors of this route alone.
    @blueprint.errorhandler(MythicClientsError)
    def refuse(error: MythicClientsError) -> Response:
        body = wire.refusal(error)
        answer = _answer(body)
        if body["code"] == 503:
            cause = error.cause if isinstance(error, StoreError) else ""
            logger.error("503: %s (%s)", error, cause)  # one line: in an outage there are many
            answer.headers["Retry-After"] = str(retry_after)
        return answer

    return blueprint


def _unauthorized(kind: str, token_sent: bool) -> Response:
    answer = _answer(wire.error(401, wire.UNAUTHORIZED))
    answer.headers["WWW-Authenticate"] = wire.challenge(kind, token_sent)
    return answer


def _answer(body: wire.Body) -> Response:
    # Not `jsonify`: a host's JSON provider may sort the keys or change the format.
    return Response(json.dumps(body), body.get("code", 200), wire.NO_STORE, mimetype="application/json")
