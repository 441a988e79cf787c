"""One line in the log for each deletion, refusal and outage: as text, and as fields for programs."""

import json
import logging
from collections.abc import Collection
from typing import Any

from .model import Action, Change, DeletionRecord

logger = logging.getLogger(__package__)

FIELDS = ("status", "client_id", "action", "actor", "record_id", "request_id", "cause")
"""What a line has as attributes of its LogRecord; None where there is none."""

_NAMED = 5
_DONE = {
    Action.SOFT: "Soft-deleted, in both stores.",
    Action.HARD: "Removed for good, from both stores.",
    Action.RESTORE: "Restored, in both stores.",
}


def settled(record: DeletionRecord) -> None:
    """Tell that both stores have confirmed, whoever finished it: a request, a command or a reconcile."""
    if not logger.isEnabledFor(logging.INFO):
        return  # of very many, at a purge
    of_record = {"actor": record.actor, "record_id": record.id, "request_id": record.request_id}
    tell(
        logging.INFO,
        _DONE[record.action],
        client_id=record.client_id,
        action=record.action.value,
        **of_record,
    )


def nothing_to_do(change: Change) -> None:
    """Tell that the client already was as wished."""
    of_caller = {"actor": change.actor, "request_id": change.request_id}
    tell(
        logging.INFO,
        "It was so already, and its entries are written again.",
        client_id=change.client_id,
        action=change.action.value,
        **of_caller,
    )


def refused(client_ids: Collection[str], error: BaseException) -> None:
    """Log each client of whom the store refused entries; without a traceback, for all would be the same."""
    for client_id in sorted(client_ids):
        logger.error("Client %s could not be reconciled: %s", client_id, error)


def failed(client_ids: Collection[str], error: BaseException) -> None:
    """Log each client for whom the app's code failed."""
    for client_id in sorted(client_ids):
        logger.error("Client %s could not be reconciled.", client_id, exc_info=error)


def left_to_others(client_ids: Collection[str]) -> None:
    """Log how many clients other transactions hold, and some of them."""
    if client_ids:
        logger.warning(
            "Clients left, for another transaction holds them: %d, %s first.",
            len(client_ids),
            ", ".join(sorted(client_ids)[:_NAMED]),
        )


def tell(level: int, what: str, **fields: Any) -> None:
    """Write a line: what there is to tell, and the fields that are not None; the status begins it."""
    if not logger.isEnabledFor(level):
        return
    told = {name: fields.get(name) for name in FIELDS}
    fields_told = (f"{name}={_quoted(told[name])}" for name in FIELDS[1:] if told[name] not in (None, ""))
    text = " ".join((*what.split(), *fields_told))  # in one line, whatever the host's own errors say
    # Not by `extra=`: that raises where a factory of the host's has given the record such an attribute.
    record = logger.makeRecord(logger.name, level, __file__, 0, text, (), None, "tell")
    record.__dict__.update(
        {name: value for name, value in told.items() if value is not None or not hasattr(record, name)}
    )
    logger.handle(record)


def _quoted(value: object) -> str:
    text = f"{value}"
    return text if text.isalnum() or text.translate(_PLAIN).isalnum() else json.dumps(text)


_PLAIN = str.maketrans(dict.fromkeys("_-.:@/+", "a"))
