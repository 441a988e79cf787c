"""How it stands, in the text that Prometheus reads."""

import time
from collections.abc import Iterator
from datetime import timedelta

from .model import Health

_NAME = "mythic_deletions"


def exposition(kind: str, health: Health) -> str:
    """Return the metrics of a kind of client, each a gauge; what is not known is left out.

    Times are seconds since 1970 by the clock of this machine, so that they do not grow old in a file.
    """
    lines = []
    for name, means, value in _gauges(health):
        if value is not None:
            lines += [f"# HELP {_NAME}_{name} {means}", f"# TYPE {_NAME}_{name} gauge"]
            lines += [f'{_NAME}_{name}{{kind="{kind}"}} {int(value)}']
    return "\n".join(lines) + "\n"


def _gauges(health: Health) -> Iterator[tuple[str, str, int | None]]:
    backlog = health.backlog
    what = "Whether nothing is pending, has failed, is overdue or away, and no audit is needed."
    yield "ok", what, int(health.ok)
    what = "Whether the key-value store has lost too much to be repaired."
    yield "needs_audit", what, health.needs_audit
    yield "database_up", "Whether the database answers.", int(health.database_away is None)
    yield "kv_up", "Whether the key-value store answers.", int(health.kv_away is None)
    if backlog is not None:
        yield "pending", "Records that the key-value store has not confirmed.", backlog.pending
        yield "due", "Records that are to be verified.", backlog.due
        yield "overdue", "Records that have been due for over five minutes.", backlog.overdue
        yield "failed", "Records that a reconcile tried in vain.", backlog.failed
        oldest = "When the oldest pending record was asked for; none where nothing is pending."
        yield "oldest_pending_timestamp_seconds", oldest, _since(backlog.oldest)
    ended = "When the last reconcile ended that went all the way; none where the store keeps no mark."
    yield "last_reconcile_timestamp_seconds", ended, _since(health.last_reconcile)


def _since(age: timedelta | None) -> int | None:
    return None if age is None else round(time.time() - age.total_seconds())
