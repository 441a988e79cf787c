"""Step 1 for many clients in one transaction: few statements, however many they are."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ...entries import KeyTemplates
from ...model import Action, Batch, Change, Client
from .ages import overtaken
from .cascades import Cascades
from .dialects import AT_ONCE, Dialect, Verdict
from .recorder import KeptError, dml
from .rows import ClientRows
from .transactions import UndecidedError

_PRUNED = 5000


class Bulk:
    """Locks rows that nobody holds, inserts their records, changes the rows, and looks.

    Where the host's mapping has more to do, a row that is to be changed is left to be changed alone. In the
    database nothing of the host's may run either: that is looked for at the end once more, when nobody can
    make a trigger any more.
    """

    def __init__(
        self,
        rows: ClientRows,
        ledger: sa.Table,
        dialect: Dialect,
        action: Action,
        templates: KeyTemplates | None,
        cascades: Cascades,
        *,
        each_alone: bool,
    ) -> None:
        self._each_alone = each_alone
        self._rows = rows
        self._ledger = ledger
        self._dialect = dialect
        self._action = action
        self._templates = templates
        self._cascades = cascades
        named, table = rows.named_by_keys(dialect), rows.id.table
        found = rows.all_of(sa.select(*rows.brief(templates.columns if templates else ())))
        found = found.where(named, dialect.step_1)
        self._lock = found.with_for_update(of=rows.mapper.tables, skip_locked=True)
        self._there = sa.select(rows.id.label("id")).where(named)
        change = dml(rows, action, dialect).where(named, dialect.step_1_of_many)
        self._change = change.execution_options(preserve_rowcount=True, **{AT_ONCE: True})
        active = rows.status.active(dialect)
        left = {Action.HARD: sa.true(), Action.SOFT: active, Action.RESTORE: ~active}[action]
        kept = sa.exists().select_from(table).where(named, left)
        written = ("client_id", "action", "actor", "reason", "request_id", "requested_at", "kv_keys")
        insert = sa.insert(ledger).from_select(written, dialect.records_given)
        self._insert = insert.execution_options(preserve_rowcount=True)
        event = "DELETE" if action is Action.HARD else "UPDATE"
        parts: Any = sa.select(sa.literal_column("tableoid")).select_from(table).where(named)
        watched = dialect.watched(event, table, ledger, parts) if dialect.one_statement else None
        self._before = None if watched is None else sa.select(watched)
        self._after = sa.select(kept, sa.false() if watched is None else watched)

    def take(self, connection: sa.Connection, changes: Sequence[Change]) -> Batch:
        """Take the step; raises KeptError and UndecidedError, to be rolled back, for one of them."""
        rows, dialect = self._rows, self._dialect
        dialect.lock(connection, self._ledger)
        removes = self._action is Action.HARD and not self._each_alone
        if removes and self._cascades.lead_to_clients(connection):
            raise UndecidedError(for_good=True)
        keys = rows.keys_of([change.client_id for change in changes], dialect)
        locked = map(rows.client, connection.execute(self._lock, {"of_keys": [*keys.values()]}).all())
        clients = {client.id: client for client in locked if client.id in keys}
        missing = {client_id: key for client_id, key in keys.items() if client_id not in clients}
        held = self._held(connection, missing)
        others_first = overtaken(connection, dialect, rows=rows, ledger=self._ledger, changes=changes)
        changes = [change for change in changes if change.client_id not in others_first]
        applying = {
            c.client_id for c in changes if c.client_id in clients and c.applies_to(clients[c.client_id])
        }
        alone = frozenset(applying if self._each_alone else ())
        changed = [keys[client_id] for client_id in applying - alone]
        left = held | alone
        taken = [c for c in changes if c.client_id in applying or c.requested_at is not None]
        taken = [change for change in taken if change.client_id not in left]
        if not taken:
            return Batch(frozenset(), held, alone)
        self._record(connection, taken, clients)
        if changed:
            self._take_all(connection, {"of_keys": changed})
        return Batch(frozenset(change.client_id for change in taken), held, alone)

    def _take_all(self, connection: sa.Connection, of_changed: Mapping[str, Any]) -> None:
        if self._before is not None and connection.scalar(self._before, of_changed):
            raise UndecidedError(for_good=True)
        try:
            changed = connection.execute(self._change, of_changed).rowcount
        except sa.exc.SQLAlchemyError as error:
            if self._dialect.verdict(error) is not Verdict.BUSY:
                raise
            # All of its rows are locked: it waits for others that it only comes across, as MariaDB does.
            raise KeptError from error
        kept, watched = connection.execute(self._after, of_changed).one()
        if kept or changed != len(of_changed["of_keys"]):
            raise KeptError
        if watched:
            raise UndecidedError(for_good=True)

    def _held(self, connection: sa.Connection, missing: Mapping[str, Any]) -> frozenset[str]:
        """Return those that have a row, and no lock was had on it."""
        if not missing or not self._dialect.locks_rows:
            return frozenset()
        there = connection.execute(self._there, {"of_keys": [*missing.values()]})
        return frozenset({self._rows.id_of(id) for (id,) in there} & missing.keys())

    def _record(
        self, connection: sa.Connection, changes: Sequence[Change], clients: Mapping[str, Client]
    ) -> None:
        written = [
            {
                "client_id": change.client_id,
                "action": change.action.value,
                "actor": change.actor,
                "reason": change.reason,
                "request_id": change.request_id,
                "requested_at": change.requested_at and f"{change.requested_at.astimezone(UTC):{_TIME}}",
                "kv_keys": json.dumps(self._keys(change, clients)),
            }
            for change in changes
        ]
        inserted = connection.execute(self._insert, {"of_records": json.dumps(written)})
        if inserted.rowcount != len(changes):
            raise KeptError

    def _keys(self, change: Change, clients: Mapping[str, Client]) -> list[str]:
        if self._templates is None:
            return []
        client = clients.get(change.client_id)
        keys = self._templates.keys(client) if client else self._templates.keys_of_id(change.client_id)
        return list(dict.fromkeys(keys))


_TIME = "%Y-%m-%d %H:%M:%S.%f"


def prune(
    connection: sa.Connection,
    dialect: Dialect,
    *,
    rows: ClientRows,
    ledger: sa.Table,
    verified_before: datetime | None,
    kept: timedelta,
    after: int | None,
) -> tuple[int, int | None]:
    """Fulfil `ports.Archive.prune`."""
    dialect.lock(connection, ledger)
    dialect.by_index(connection)
    c = ledger.c
    old = sa.select(c.id, c.client_id).where(c.verified_at <= dialect.ago(kept)).order_by(c.id).limit(_PRUNED)
    if verified_before is not None:
        old = old.where(c.verified_at < verified_before)
    if after is not None:
        old = old.where(c.id > after)
    found = connection.execute(old).all()
    if not found:
        return 0, None
    client_ids = list({client_id for _, client_id in found})
    of_these = dialect.among(c.client_id, "of_client_ids")
    newest = sa.select(sa.func.max(c.id)).where(of_these).group_by(c.client_id)
    last = set(connection.scalars(newest, {"of_client_ids": client_ids}))
    keys = rows.keys_of({client_id for id, client_id in found if id in last}, dialect)
    there = sa.select(rows.id).where(rows.named_by_keys(dialect))
    living = {rows.id_of(id) for id in connection.scalars(there, {"of_keys": [*keys.values()]}).all()}
    ids = [id for id, client_id in found if not (id in last and client_id in living)]
    deleted = sa.delete(ledger).where(dialect.among(c.id, "of_ids"), dialect.step_2)
    if ids:
        connection.execute(deleted, {"of_ids": ids})
    return len(ids), found[-1].id
