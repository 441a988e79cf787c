"""Step 1: change the client's row and insert its deletion record, in one transaction."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session

from ...entries import EntryRule, KeyTemplates
from ...model import Action, Change
from .ledger import Ledger
from .rows import ClientRows


class Recorder:
    """Takes the fewest statements that do all the host expects.

    Where SQL can build the keys and nothing of the host's has to run in Python: one on PostgreSQL, two
    elsewhere. Otherwise the unit of work: lock and load the row, ask the host's rule, flush.
    """

    def __init__(self, rows: ClientRows, ledger: Ledger) -> None:
        self._rows = rows
        self._ledger = ledger

    def is_one_statement(self, action: Action, entries: EntryRule, dialect: sa.Dialect) -> bool:
        """Whether the step is a single statement, which is a transaction by itself."""
        return dialect.name == "postgresql" and self._plain(action, entries, dialect) is not None

    def record(self, session: Session, change: Change, entries: EntryRule) -> bool:
        """Take the step; return False where there is nothing to change."""
        dialect = session.get_bind().dialect
        if self._rows.key_of(change.client_id, dialect) is None:
            return False
        templates = self._plain(change.action, entries, dialect)
        if templates is None:
            return self._by_unit_of_work(session, change, entries)
        if dialect.name == "postgresql":
            return self._by_one_statement(session, change, templates)
        return self._by_two_statements(session, change, templates)

    def _plain(self, action: Action, entries: EntryRule, dialect: sa.Dialect) -> KeyTemplates | None:
        """Return the templates where the step needs SQL alone; otherwise None."""
        if not isinstance(entries, KeyTemplates) or runs_host_code(self._rows.mapper, action):
            return None
        plain = all(self._rows.is_plain(name, dialect) for name in ("id", *entries.columns))
        return entries if plain else None

    def _by_one_statement(self, session: Session, change: Change, templates: KeyTemplates) -> bool:
        """WITH changed AS (DELETE … or UPDATE … RETURNING …) INSERT … SELECT … FROM changed."""
        dialect = session.get_bind().dialect
        columns = [self._rows.column(name) for name in dict.fromkeys(["id", *templates.columns])]
        changed = (
            self._dml(change.action)
            .where(self._rows.applies(change, dialect))
            .returning(*columns)
            .cte("changed")
        )
        insert = self._insert_from(changed, change, templates, dialect)
        return session.execute(insert.returning(self._ledger.table.c.id)).first() is not None

    def _by_two_statements(self, session: Session, change: Change, templates: KeyTemplates) -> bool:
        """INSERT … SELECT … FOR UPDATE, which locks the row; then DELETE or UPDATE it.

        Writing first also takes SQLite's write lock at once: a reader that becomes a writer fails.
        """
        dialect = session.get_bind().dialect
        applies = self._rows.applies(change, dialect)
        insert = self._insert_from(self._rows.id.table, change, templates, dialect, applies)
        inserted: Any = session.execute(insert, execution_options={"preserve_rowcount": True})
        if inserted.rowcount == 0:
            return False
        session.execute(self._dml(change.action).where(applies))
        return True

    def _by_unit_of_work(self, session: Session, change: Change, entries: EntryRule) -> bool:
        dialect = session.get_bind().dialect
        self._ledger.take_write_lock(session)  # before reading, as FOR UPDATE does elsewhere
        client = self._rows.read(session, [change.client_id], lock="update").get(change.client_id)
        if client is None or not change.applies_to(client):
            return False
        record = {**_columns(change), "kv_keys": list(entries(client))}
        if change.action is not Action.HARD:
            self._rows.set_active(client.row, change.action is Action.RESTORE)
        elif runs_host_code(self._rows.mapper, Action.HARD):
            session.delete(client.row)
        else:
            session.execute(
                self._dml(Action.HARD).where(self._rows.id == self._rows.key_of(client.id, dialect))
            )
        session.flush()
        session.execute(sa.insert(self._ledger.table).values(record))
        return True

    def _dml(self, action: Action) -> Any:
        table = self._rows.id.table
        if action is Action.HARD:
            return sa.delete(table)
        return sa.update(table).values({self._rows.status: action is Action.RESTORE})

    def _insert_from(
        self,
        source: sa.FromClause,
        change: Change,
        templates: KeyTemplates,
        dialect: sa.Dialect,
        where: sa.ColumnElement[bool] | None = None,
    ) -> sa.Insert:
        values = _columns(change)
        literals = map(sa.literal, values.values())
        query = sa.select(*literals, self._rows.kv_keys(source, templates, dialect)).select_from(source)
        if where is not None:
            query = query.where(where).with_for_update()
        return sa.insert(self._ledger.table).from_select([*values, "kv_keys"], query)


def _columns(change: Change) -> Mapping[str, Any]:
    return {
        "client_id": change.client_id,
        "action": change.action.value,
        "actor": change.actor,
        "requested_at": change.requested_at,
    }


def runs_host_code(mapper: Mapper[Any], action: Action) -> bool:
    """Whether the ORM has more to do for this model than a statement does: cascades, listeners, and such."""
    if mapper.version_id_col is not None or mapper.polymorphic_on is not None or len(mapper.tables) > 1:
        return True
    events = mapper.dispatch
    if action is not Action.HARD:
        return bool(events.before_update or events.after_update or mapper.validators)
    return bool(events.before_delete or events.after_delete) or any(
        not related.viewonly and (related.cascade.delete or related.secondary is not None)
        for related in mapper.relationships
    )
