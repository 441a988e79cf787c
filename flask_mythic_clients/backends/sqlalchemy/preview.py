"""What a change would do: it is done, looked at, and undone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ...entries import EntryRule
from ...errors import ChangeRefusedError, ClientError
from ...model import Action, Change, Client, Dependent, Fate, Preview
from .cascades import raw
from .dialects import Dialect, Verdict
from .recorder import UnitOfWork
from .refusals import referring
from .rows import ClientRows
from .transactions import RefusedError

_SAMPLE = 100


@dataclass(frozen=True)
class _Referring:
    """Rows of a table that refer to the client by one column, and the keys of some of them."""

    column: sa.Column[Any]
    rows: int
    key: Sequence[str]
    some: Sequence[tuple[Any, ...]]

    def fate(self, connection: sa.Connection) -> Fate:
        """Return what has become of them, by those whose keys are known."""
        here = sa.tuple_(*raw(self.column.table, self.key)).in_(self.some)
        counts = sa.select(sa.func.count(), sa.func.count(self.column)).select_from(self.column.table)
        left, linked = connection.execute(counts.where(here)).one()
        return Fate.KEPT if linked else Fate.UNLINKED if left else Fate.REMOVED


class Trial:
    """One change, tried."""

    def __init__(self, rows: ClientRows, ledger: sa.Table, dialect: Dialect, plan: UnitOfWork) -> None:
        self._rows = rows
        self._ledger = ledger
        self._dialect = dialect
        self._plan = plan
        self._seen: Preview | None = None

    def take(self, session: Session, key: Any, change: Change, entries: EntryRule) -> Preview | None:
        """Take the change, to be undone; return what came of it, None where there is no client.

        Raises RefusedError, and what `Plan.take` raises.
        """
        rows, connection = self._rows, session.connection()
        self._dialect.lock(connection, self._ledger)
        client = rows.read(session, [change.client_id], self._dialect).get(change.client_id)
        if client is None:
            return None
        # Not those that are loaded when they are asked for: their model may forbid it.
        unloaded = sa.inspect(client.row).unloaded
        names = [name for name in rows.mapper.columns.keys() if name not in unloaded]  # noqa: SIM118
        columns = {name: getattr(client.row, name) for name in names}
        referring_rows = list(self._referring(connection, client))
        before = tuple(self._dependent(each, Fate.KEPT) for each in referring_rows)
        # A copy of the row: what is undone is loaded anew, and there is no session then.
        copied = replace(client, row=SimpleNamespace(**columns))
        self._seen = Preview(copied, columns, before, tuple(entries(client)))
        recorded = self._plan.take(session, key, change, entries)
        if recorded is None:
            return self._seen
        self._dialect.finish(connection)
        if self._dialect.defers_alone and change.action is Action.HARD and referring(session, rows, client):
            raise RefusedError(Verdict.CONSTRAINT)
        after = tuple(self._dependent(each, each.fate(connection)) for each in referring_rows)
        return replace(self._seen, dependents=after, kv_keys=recorded.record.kv_keys)

    def refused(self, error: ClientError) -> Preview:
        """Return what was seen of a change that is refused; raises the error where nothing was."""
        if self._seen is None:
            raise error
        found = error.columns if isinstance(error, ChangeRefusedError) else ()
        dependents = tuple(
            replace(each, fate=Fate.FORBIDS) if each.column in found else each
            for each in self._seen.dependents
        )
        return replace(self._seen, dependents=dependents, refused=f"{error}")

    def _dependent(self, each: _Referring, fate: Fate) -> Dependent:
        return Dependent(f"{each.column.table.fullname}.{each.column.name}", each.rows, fate)

    def _referring(self, connection: sa.Connection, client: Client) -> Iterator[_Referring]:
        mapper = self._rows.mapper
        clients: Any = mapper.local_table
        for table in clients.metadata.sorted_tables:
            for foreign in table.foreign_keys:
                # By name: `foreign.column` raises where another key names a table the host has not defined.
                if foreign.target_fullname.rpartition(".")[0] != clients.fullname:
                    continue
                value = getattr(client.row, mapper.get_property_by_column(foreign.column).key)
                refers = foreign.parent == value
                count = sa.select(sa.func.count()).select_from(table).where(refers)
                if not (number := connection.scalars(count).one()):
                    continue
                key = [column.name for column in table.primary_key or table.columns]
                some = sa.select(*raw(table, key)).where(refers).limit(_SAMPLE)
                yield _Referring(foreign.parent, number, key, list(map(tuple, connection.execute(some))))
