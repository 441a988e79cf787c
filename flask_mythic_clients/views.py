"""The routes: each takes a request, calls the service once, answers, and leaves a line in the log."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flask import Blueprint, Response, request

from . import logs, wire
from .auth import Caller, VerifyKey, bearer_auth
from .config import Settings
from .errors import ClientNotFoundError, MythicClientsError, StoreError
from .model import is_client_id, is_request_id
from .rights import Right, Route
from .service import DeletionService

_View = TypeVar("_View", bound=Callable[..., Response])


def create_blueprint(
    kind: str, service: DeletionService, verify_key: VerifyKey, settings: Settings
) -> Blueprint:
    """Return a blueprint with the routes that the settings open, under `{url_prefix}/{kind}`."""
    blueprint = Blueprint(f"mythic_{kind}", __name__, url_prefix=settings.url_prefix)

    def answer(
        asked: Asked, body: wire.Body, challenge: str | None = None, error: MythicClientsError | None = None
    ) -> Response:
        status = wire.code(body)
        if "message" in body:
            # Not what another guard of the host's, which keeps it in the same place, knows as its user.
            caller = auth.current_user() if status != 401 else None
            _log(asked, caller.name if isinstance(caller, Caller) else None, body, error)
        headers = dict(wire.HEADERS)
        if challenge is not None:
            headers["WWW-Authenticate"] = wire.challenge(kind, challenge)
        if status == 503:
            headers["Retry-After"] = str(settings.retry_after)
        if asked.request_id is not None:
            headers[wire.REQUEST_ID] = asked.request_id
        # Not `jsonify`: a host's JSON provider may sort the keys or change the format.
        return Response(json.dumps(body), status, headers)

    def unauthorized(token_sent: bool) -> Response:
        challenge = "invalid_token" if token_sent else ""
        return answer(Asked.by_request(), wire.error(401, wire.UNAUTHORIZED), challenge)

    auth = bearer_auth(verify_key, unauthorized)
    authenticated: Callable[[_View], _View] = auth.login_required

    @authenticated
    def view(client_id: str = "") -> Response:
        asked, caller = Asked.by_request(), auth.current_user()
        if asked.hard is None:
            return answer(asked, wire.error(400, wire.HARD_FLAG))
        right = Right.to(asked.route, hard=asked.hard)
        if right not in caller.may:
            return answer(asked, wire.error(403, wire.FORBIDDEN[right]), "insufficient_scope")
        return answer(asked, _VIEWS[asked.route](service, client_id, asked, caller.name))

    for route in settings.routes:
        method, path = wire.ROUTES[route]
        rule = f"/{kind}{path}".format(id="<client_id>")
        blueprint.add_url_rule(rule, _VIEWS[route].__name__, view, methods=[method])

    # A blueprint's handlers come before the host's, and see the errors of these routes alone.
    @blueprint.errorhandler(MythicClientsError)
    def refuse(error: MythicClientsError) -> Response:
        return answer(Asked.by_request(), wire.refusal(error), error=error)

    return blueprint


@dataclass(frozen=True)
class Asked:
    """What a request asks for; `hard` is None where that flag is none."""

    route: Route
    hard: bool | None
    request_id: str | None

    @classmethod
    def by_request(cls) -> "Asked":
        """Read the request that is going on, which is one of our routes'."""
        route = _ROUTES[f"{request.endpoint}".rpartition(".")[2]]
        # Not `args.get(…, type=bool)`: that reads "false" as true, and a second value not at all.
        flags = tuple(request.args.getlist("hard")) if route in wire.TAKE_HARD else ()
        request_id = request.headers.get(wire.REQUEST_ID)
        if request_id is not None and not is_request_id(request_id):
            request_id = None
        return cls(route, wire.HARD_FLAGS.get(flags), request_id)

    @property
    def action(self) -> str:
        """What it is called in the log and in metrics: `soft`, `hard`, or as its route is."""
        if self.route is not Route.DELETE or self.hard is None:
            return self.route.value
        return "hard" if self.hard else "soft"


def delete_client(service: DeletionService, client_id: str, asked: Asked, actor: str) -> wire.Body:
    """Set the client's status to false, or remove the client for good."""
    delete = service.hard_delete if asked.hard else service.soft_delete
    delete(client_id, actor=actor, request_id=asked.request_id)
    return wire.DELETED[bool(asked.hard)]


def restore_client(service: DeletionService, client_id: str, asked: Asked, actor: str) -> wire.Body:
    """Take a soft delete back."""
    service.restore(client_id, actor=actor, request_id=asked.request_id)
    return wire.RESTORED


def show_history(service: DeletionService, client_id: str, _asked: Asked, _actor: str) -> wire.Body:
    """Tell what was done to the client, also to one that is gone."""
    records = service.history(client_id)
    if not records:
        raise ClientNotFoundError(client_id)
    return wire.history(client_id, records)


def preview_deletion(service: DeletionService, client_id: str, asked: Asked, actor: str) -> wire.Body:
    """Tell what a deletion would do: it is done in the database, and undone."""
    preview = service.preview(client_id, hard=bool(asked.hard), actor=actor)
    return wire.preview(client_id, bool(asked.hard), preview)


def show_status(service: DeletionService, _client_id: str, asked: Asked, actor: str) -> wire.Body:
    """Report the status of deletions, as the command `status` does."""
    health = service.health()
    if not health.ok:
        causes = [health.database_away, health.kv_away, "an audit is needed" if health.needs_audit else None]
        causes.append(f"{health.backlog}" if health.backlog else None)
        logs.tell(
            logging.ERROR,
            "503: Something is pending, failed, overdue or away, or an audit is needed.",
            status=503,
            action=asked.action,
            actor=actor,
            request_id=asked.request_id,
            cause="; ".join(cause for cause in causes if cause),
        )
    return wire.status(health)


_VIEWS: Mapping[Route, Callable[[DeletionService, str, Asked, str], wire.Body]] = {
    Route.DELETE: delete_client,
    Route.RESTORE: restore_client,
    Route.HISTORY: show_history,
    Route.PREVIEW: preview_deletion,
    Route.STATUS: show_status,
}
_ROUTES = {view.__name__: route for route, view in _VIEWS.items()}
_LEVELS = {401: logging.WARNING, 403: logging.WARNING, 409: logging.WARNING, 503: logging.ERROR}


def _log(asked: Asked, actor: str | None, body: wire.Body, error: MythicClientsError | None) -> None:
    """Leave a line for what was refused; what was done, the service tells. Of a 401 it has no client."""
    status = wire.code(body)
    client_id = (request.view_args or {}).get("client_id")
    logs.tell(
        _LEVELS.get(status, logging.INFO),
        f"{status}: {error or body['message']}",
        status=status,
        client_id=client_id if actor is not None and is_client_id(client_id) else None,
        action=asked.action,
        actor=actor,
        record_id=getattr(error, "record_id", None),
        request_id=asked.request_id,
        cause=(error.cause or None) if isinstance(error, StoreError) else None,
    )
