"""The wire contract: each route's path, and each answer's status, error, message and body.

Read by the views and the OpenAPI document.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, TypeAlias

from .errors import (
    ClientError,
    ClientNotFoundError,
    InvalidActorError,
    InvalidClientIdError,
    InvalidReasonError,
    InvalidRequestIdError,
    MythicClientsError,
    StoreError,
)
from .model import DeletionRecord, Health, Preview
from .rights import Right, Route

Body: TypeAlias = dict[str, Any]

ROUTES: Mapping[Route, tuple[str, str]] = {
    Route.DELETE: ("DELETE", "/{id}"),
    Route.RESTORE: ("POST", "/{id}/restore"),
    Route.HISTORY: ("GET", "/{id}/deletions"),
    Route.PREVIEW: ("GET", "/{id}/deletion-preview"),
    Route.STATUS: ("GET", "/deletions/status"),
}
"""Route → its method, and its path after the kind of client."""

REQUEST_ID = "X-Request-ID"
"""The header by which a caller names a request; the answer has it, too."""
HEADERS: Mapping[str, str] = {"Content-Type": "application/json", "Cache-Control": "no-store"}
"""What every answer has."""
UNAUTHORIZED = "Authentication required. Please provide a valid API token"
DELETED = {hard: {"success": True, "deleted": True, "hard": hard} for hard in (False, True)}
"""Whether it was a hard delete → the body of the 200."""
RESTORED: Body = {"success": True, "restored": True}

FORBIDDEN: Mapping[Right, str] = {
    Right.SOFT: "This key may not soft-delete clients.",
    Right.HARD: "This key may not remove clients for good.",
    Right.RESTORE: "This key may not restore clients.",
    Right.HISTORY: "This key may not read the history of clients.",
    Right.PREVIEW: "This key may not preview deletions.",
    Right.STATUS: "This key may not read the status of deletions.",
}
NOT_FOUND = "The requested resource was not found"
TAKE_HARD = frozenset({Route.DELETE, Route.PREVIEW})
"""The routes that have a query parameter `hard`."""
HARD_FLAGS: Mapping[tuple[str, ...], bool] = {(): False, ("false",): False, ("true",): True}
"""All values of the query parameter `hard`, in their order → what they mean."""
HARD_FLAG = "The query parameter 'hard' must be 'true' or 'false', and given once at the most."
MISCONFIGURED = "The service is not set up for its stores; its log tells more."
REPEAT = "Repeat the request: that is safe, and finishes what was begun."


def challenge(kind: str, error: str = "") -> str:
    """Return the header of a 401 or 403; an error stands in it where a token was sent (RFC 6750, 3.1)."""
    return f'Bearer realm="{kind}"' + (f', error="{error}"' if error else "")


def code(body: Body) -> int:
    """Return an answer's status: an error has it in its body; a bad status of deletions is a 503."""
    status: int = body.get("code", 200 if body.get("ok", True) else 503)
    return status


def error(status: int, message: str) -> Body:
    """Return the body of an error; its name is the status's phrase (RFC 9110)."""
    return {"error": HTTPStatus(status).phrase, "message": message, "code": status}


def refusal(raised: MythicClientsError) -> Body:
    """Return the body that tells of an error of ours."""
    match raised:
        case InvalidClientIdError() | InvalidActorError() | InvalidReasonError() | InvalidRequestIdError():
            return error(400, str(raised))
        case ClientNotFoundError():
            return error(404, NOT_FOUND)
        case ClientError():  # of a `before=`, too
            return error(409, str(raised))
        case StoreError():
            return error(503, f"{raised} {REPEAT}")
    return error(503, MISCONFIGURED)


def history(client_id: str, records: Sequence[DeletionRecord]) -> Body:
    """Return the body that tells what was done to a client; of its entries only how many they were."""
    return {"id": client_id, "records": list(map(_record, records))}


def preview(client_id: str, hard: bool, preview: Preview) -> Body:
    """Return the body that tells what a deletion would do; without row and keys, which may be secrets."""
    return {
        "id": client_id,
        "hard": hard,
        "allowed": preview.refused is None,
        "reason": preview.refused,
        "dependents": [
            {"column": each.column, "rows": each.rows, "fate": str(each.fate)} for each in preview.dependents
        ],
        "entries": len(preview.kv_keys),
    }


def status(health: Health) -> Body:
    """Return the body that tells the status of deletions; what is not known, for a store is away, is None."""
    backlog = health.backlog
    return {
        "ok": health.ok,
        "pending": None if backlog is None else backlog.pending,
        "oldest": None if backlog is None else _seconds(backlog.oldest),
        "overdue": None if backlog is None else backlog.overdue,
        "failed": None if backlog is None else backlog.failed,
        "last_reconcile": _seconds(health.last_reconcile),
    }


def _record(record: DeletionRecord) -> Body:
    return {
        "record": record.id,
        "action": str(record.action),
        "actor": record.actor,
        "reason": record.reason,
        "requested_at": _time(record.requested_at),
        "settled_at": _time(record.settled_at),
        "verified_at": _time(record.verified_at),
        "entries": len(record.digests),
    }


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()


def _seconds(duration: timedelta | None) -> int | None:
    return None if duration is None else round(duration.total_seconds())
