"""Signals, sent with the app as sender and `record`, the deletion record, when that is settled.

Every kind of client sends the same ones; `record.kind` tells which.

At most once a settlement, and not at all if the process ends just then: for what must not be missed,
read `history`. A receiver that fails is logged and fails nobody else.
"""

import logging
from dataclasses import replace

from blinker import Namespace
from flask import Flask

from .errors import ForeignError
from .model import Action, DeletionRecord

logger = logging.getLogger(__package__)

_signals = Namespace()
client_soft_deleted = _signals.signal("mythic-client-soft-deleted")
client_hard_deleted = _signals.signal("mythic-client-hard-deleted")
client_restored = _signals.signal("mythic-client-restored")

_OF_ACTION = {
    Action.SOFT: client_soft_deleted,
    Action.HARD: client_hard_deleted,
    Action.RESTORE: client_restored,
}


def announce(app: Flask, kind: str, record: DeletionRecord) -> None:
    """Send the signal of a settled record."""
    signal = _OF_ACTION[record.action]
    if signal.is_muted or not signal.receivers:
        return
    record = replace(record, kind=kind)
    # Not `Signal.send`: that lets a receiver's exception through, and turns a finished delete into a 500.
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, record=record)
        except Exception as error:
            logger.error("A receiver of %s failed.", signal.name, exc_info=ForeignError.told(error))
