"""Since when clients are inactive, and whether a change that was decided on before still fits."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from ...model import Action, Change, Inactive, is_client_id
from .dialects import Dialect
from .ledger import recorded
from .rows import ClientRows

_PAGE = 1000


def inactive(
    connection: sa.Connection,
    dialect: Dialect,
    *,
    rows: ClientRows,
    ledger: sa.Table,
    for_at_least: timedelta,
    after: Inactive | None,
) -> list[Inactive]:
    """Fulfil `ports.BulkSteps.inactive`."""
    dialect.by_index(connection)
    query = _inactive(dialect, rows, for_at_least).order_by(rows.id).limit(_PAGE)
    if after is not None:
        query = query.where(rows.id > rows.key_of(after.client_id, dialect))
    found = {rows.id_of(id): expired for id, expired in connection.execute(query).all()}
    if not rows.status.is_time:
        # Of another id there is no record, and the ledger's column need not be able to hold it.
        ids = list(filter(is_client_id, found))
        found |= _recorded_since(connection, dialect, ledger, ids, for_at_least)
    return [
        Inactive(client_id, None if expired is None else bool(expired), for_at_least)
        for client_id, expired in found.items()
    ]


def overtaken(
    connection: sa.Connection,
    dialect: Dialect,
    *,
    rows: ClientRows,
    ledger: sa.Table,
    changes: Sequence[Change],
) -> set[str]:
    """Return for whom others were first, now that the rows are locked.

    Who is not inactive any more in the way in which it was seen; and of whom that very change is recorded.
    """
    seen = [change.seen for change in changes if change.seen is not None]
    again = {(c.client_id, c.action, c.requested_at) for c in changes if c.requested_at is not None}
    left = set[str]()
    if seen:
        now = _expired(connection, dialect, rows=rows, ledger=ledger, seen=seen)
        left |= {each.client_id for each in seen if now.get(each.client_id) != each.expired}
    if again:
        there = recorded(connection, dialect, ledger, {client_id for client_id, _, _ in again})
        left |= {client_id for client_id, _, _ in again & there}
    return left


def _expired(
    connection: sa.Connection,
    dialect: Dialect,
    *,
    rows: ClientRows,
    ledger: sa.Table,
    seen: Sequence[Inactive],
) -> Mapping[str, Any]:
    """Return what is known of these now; nothing of who is active, or of unknown age."""
    duration, keys = seen[0].for_at_least, rows.keys_of([each.client_id for each in seen], dialect)
    if not rows.status.is_time:
        return _recorded_since(connection, dialect, ledger, list(keys), duration)
    query = _inactive(dialect, rows, duration).where(rows.named_by_keys(dialect))
    told = connection.execute(query, {"of_keys": [*keys.values()]}).all()
    return {rows.id_of(id): expired for id, expired in told}


def _inactive(dialect: Dialect, rows: ClientRows, duration: timedelta) -> sa.Select[Any]:
    """Return a query for who is inactive, and whether for so long if the status tells."""
    since: Any = sa.null()
    if rows.status.is_time:
        since = rows.status.column <= dialect.ago_as(rows.status.column.type, duration)
    # A unique column may be NULL, and such a row is no client.
    query = rows.all_of(sa.select(rows.id, since)).where(rows.id.is_not(None))
    return query.where(~rows.status.active(dialect))


def _recorded_since(
    connection: sa.Connection,
    dialect: Dialect,
    ledger: sa.Table,
    client_ids: Collection[str],
    duration: timedelta,
) -> dict[str, bool]:
    """Return for whom a soft delete is what was recorded last, and whether it was settled so long ago."""
    c = ledger.c
    of_these = dialect.among(c.client_id, "of_client_ids")
    newest = sa.select(sa.func.max(c.id)).where(of_these).group_by(c.client_id)
    expired = sa.and_(c.settled_at.is_not(None), c.settled_at <= dialect.ago(duration))
    # Where that is no soft delete, somebody else has made it inactive since.
    query = sa.select(c.client_id, expired).where(c.id.in_(newest), c.action == Action.SOFT.value)
    return {id: bool(old) for id, old in connection.execute(query, {"of_client_ids": client_ids}).all()}
