"""Since when clients are inactive."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from ...model import Action, Inactive
from .dialects import Dialect
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
        found |= _recorded_since(connection, dialect, ledger, list(found), for_at_least)
    return [
        Inactive(client_id, None if expired is None else bool(expired), for_at_least)
        for client_id, expired in found.items()
    ]


def seen_otherwise(
    connection: sa.Connection,
    dialect: Dialect,
    *,
    rows: ClientRows,
    ledger: sa.Table,
    seen: Sequence[Inactive],
) -> set[str]:
    """Return who of these, whose rows are locked, is not inactive in the way in which it was seen."""
    if not seen:
        return set()
    duration, keys = seen[0].for_at_least, rows.keys_of([each.client_id for each in seen], dialect)
    if rows.status.is_time:
        query = _inactive(dialect, rows, duration).where(rows.named_by_keys(dialect))
        told: Any = connection.execute(query, {"of_keys": [*keys.values()]}).all()
        now: Mapping[str, Any] = {rows.id_of(id): expired for id, expired in told}
    else:
        now = _recorded_since(connection, dialect, ledger, list(keys), duration)
    return {each.client_id for each in seen if now.get(each.client_id) != each.expired}


def _inactive(dialect: Dialect, rows: ClientRows, duration: timedelta) -> sa.Select[Any]:
    """Return a query for who is inactive, and whether for so long if the status tells."""
    since: Any = sa.null()
    if rows.status.is_time:
        since = rows.status.column <= dialect.ago_as(rows.status.column.type, duration)
    return rows.all_of(sa.select(rows.id, since)).where(~rows.status.active(dialect))


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
