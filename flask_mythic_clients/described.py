"""What the OpenAPI document tells of each route: its words, its examples, and what each field means."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from . import wire
from .errors import ClientInUseError, DatabaseRefusedError, InvalidClientIdError
from .model import (
    CLIENT_ID,
    Action,
    Backlog,
    Client,
    DeletionRecord,
    Dependent,
    Fate,
    Health,
    Preview,
)
from .rights import Route

Schema = dict[str, Any]


@dataclass(frozen=True)
class Described:
    """What is told of a route.

    `done` tells of the 200, `bodies` are its examples, and `fields` tell of theirs. `refused` tells of the
    refusals that not all routes have, each with the message of its example.
    """

    id: str
    summary: str
    description: str
    done: str
    bodies: Mapping[str, wire.Body]
    fields: Mapping[str, Schema]
    refused: Mapping[int, tuple[str, str]] = field(default_factory=dict)


def means(description: str, **schema: Any) -> Schema:
    """Return the schema of a field, with what it means."""
    return {"description": description, **schema}


def object_of(fields: Mapping[str, Schema], body: wire.Body) -> Schema:
    """Return the schema of a body, whose fields are those that it has, in their order."""
    return {
        "type": "object",
        "properties": {name: fields[name] for name in body},
        "required": list(body),
        "additionalProperties": False,
    }


_NUMBER: Schema = {"type": "integer", "minimum": 0}
_NUMBER_OR_NULL: Schema = {"type": ["integer", "null"]}
_TIME: Schema = {"type": "string", "format": "date-time"}
_TIME_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_HOUR = timedelta(hours=1)
_SUCCESS = means("It is done.", const=True)
ID: Schema = {"type": "string", "pattern": f"^{CLIENT_ID.pattern}$"}
"""A client's."""

_NO_ID = ("The id is no client's.", str(InvalidClientIdError("")))
_NO_ID_OR_FLAG = ("The id is no client's, or `hard` is no flag.", str(InvalidClientIdError("")))
_NO_CLIENT = ("There is no such client, and nothing is pending for it.", wire.NOT_FOUND)
_KEPT = str(DatabaseRefusedError(""))
_IN_USE = f"{ClientInUseError('')} Look at orders.client_id."
_KEYS = ("client:acme", "token:acme")
_NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
_HISTORY = wire.history(
    "acme",
    [
        DeletionRecord(1, "acme", Action.SOFT, "ops", _KEYS, _NOON, _NOON, _NOON + _HOUR, reason="unpaid"),
        DeletionRecord(2, "acme", Action.RESTORE, "ops", _KEYS, _NOON + _HOUR),
    ],
)
_ORDERS = Dependent("orders.client_id", 3, Fate.FORBIDS)
_ALLOWED = Preview(Client("acme", True, None), {}, (replace(_ORDERS, fate=Fate.REMOVED),), _KEYS)
_REFUSED = replace(_ALLOWED, dependents=(_ORDERS,), refused=_IN_USE)
_PREVIEWS = {
    "allowed": wire.preview("acme", True, _ALLOWED),
    "refused": wire.preview("acme", True, _REFUSED),
}

ROUTES: Mapping[Route, Described] = {
    Route.DELETE: Described(
        id="delete{}",
        summary="Delete a client",
        description=(
            "Sets the client's status to false, which can be taken back; with `hard=true` removes the client "
            "and all its entries for good. Repeating a request is safe, and finishes what an earlier one "
            "began. A body is not read."
        ),
        done="The client is deleted; with `hard`, for good.",
        bodies={"soft": wire.DELETED[False], "hard": wire.DELETED[True]},
        fields={
            "success": _SUCCESS,
            "deleted": means("The client is deleted.", const=True),
            "hard": means("Whether it is deleted for good.", type="boolean"),
        },
        refused={
            400: _NO_ID_OR_FLAG,
            404: _NO_CLIENT,
            409: (
                "The database, the host's mapping or this service forbids the change; nothing has changed.",
                _IN_USE,
            ),
        },
    ),
    Route.RESTORE: Described(
        id="restore{}",
        summary="Restore a client",
        description=(
            "Takes a soft delete back. That the client is active already is success. Repeating a request is "
            "safe, and finishes what an earlier one began. A body is not read."
        ),
        done="The client is active.",
        bodies={"restored": wire.RESTORED},
        fields={"success": _SUCCESS, "restored": means("The client is active.", const=True)},
        refused={
            400: _NO_ID,
            404: _NO_CLIENT,
            409: ("The database or the host's mapping forbids the change; nothing has changed.", _KEPT),
        },
    ),
    Route.HISTORY: Described(
        id="list{}Deletions",
        summary="Read what was done to a client",
        description="Also of one that is gone. Of its entries it is told how many they were, not their keys.",
        done="All records of the client, the oldest first.",
        bodies={"records": _HISTORY},
        fields={
            "id": means("The client's id.", **ID),
            "records": means(
                "The records, the oldest first.",
                type="array",
                minItems=1,
                items=object_of(
                    {
                        "record": means("The record's id.", type="integer"),
                        "action": means("What was done.", type="string", enum=list(map(str, Action))),
                        "actor": means("Who did it: the name of a key, or of a user.", type="string"),
                        "reason": means("Why, if one was given.", **_TEXT_OR_NULL),
                        "requested_at": means("When it was done in the database.", **_TIME),
                        "settled_at": means(
                            "When the key-value store had it, too; null: pending.", **_TIME_OR_NULL
                        ),
                        "verified_at": means("When that was looked at once more.", **_TIME_OR_NULL),
                        "entries": means("How many entries it was about.", **_NUMBER),
                    },
                    _HISTORY["records"][0],
                ),
            ),
        },
        refused={400: _NO_ID, 404: ("Nothing was ever done to such a client.", wire.NOT_FOUND)},
    ),
    Route.PREVIEW: Described(
        id="preview{}Deletion",
        summary="See what a deletion would do",
        description=(
            "The deletion is done in the database, looked at, and undone: nothing stays. Like the deletion "
            "itself it locks rows, and runs what is the host's: triggers, listeners, a `before=`. The "
            "key-value store is not asked."
        ),
        done="What the deletion would do, or what forbids it.",
        bodies=_PREVIEWS,
        fields={
            "id": means("The client's id.", **ID),
            "hard": means("Whether it was asked about removal for good.", type="boolean"),
            "allowed": means("Whether nothing forbids it.", type="boolean"),
            "reason": means("What forbids it.", **_TEXT_OR_NULL),
            "dependents": means(
                "The rows of other tables that refer to the client.",
                type="array",
                items=object_of(
                    {
                        "column": means("By which column they do, as `table.column`.", type="string"),
                        "rows": means("How many they are.", **_NUMBER),
                        "fate": means("What would become of them.", type="string", enum=list(map(str, Fate))),
                    },
                    _PREVIEWS["refused"]["dependents"][0],
                ),
            ),
            "entries": means("How many entries the client owns.", **_NUMBER),
        },
        refused={
            400: _NO_ID_OR_FLAG,
            404: ("There is no such client.", wire.NOT_FOUND),
            409: ("The database or the host's mapping does not even let it be tried.", _KEPT),
        },
    ),
    Route.STATUS: Described(
        id="get{}DeletionStatus",
        summary="See the status of deletions",
        description="For monitors. Both stores are asked. A request in flight is pending for a moment.",
        done="Nothing is pending, has failed, is overdue or away, and no audit is needed.",
        bodies={"well": wire.status(Health(Backlog(), timedelta(seconds=42), None, None))},
        fields={
            "ok": means("It is well.", const=True),
            "pending": means("How many records the key-value store has not confirmed.", **_NUMBER_OR_NULL),
            "oldest": means("For how many seconds the oldest of them has been pending.", **_NUMBER_OR_NULL),
            "overdue": means("How many should have been verified five minutes ago.", **_NUMBER_OR_NULL),
            "failed": means("How many a `reconcile` has tried in vain.", **_NUMBER_OR_NULL),
            "last_reconcile": means(
                "How many seconds ago the last `reconcile` ended that went all the way, if one is known of.",
                **_NUMBER_OR_NULL,
            ),
        },
    ),
}
