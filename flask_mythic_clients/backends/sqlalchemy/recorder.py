"""Step 1: change the client's row and insert its deletion record, in one transaction.

Planned once for an engine, a rule and an action, then taken. Where SQL can build the keys and nothing of the
host's has to run in Python: one statement where the database can, two elsewhere. Otherwise the unit of work.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session

from ...entries import EntryRule, KeyTemplates
from ...model import Action, Change
from .dialects import Dialect
from .rows import ClientRows

# A parameter must not be named like a column that is written.
_KEY, _CLIENT_ID, _ACTOR, _REQUESTED_AT = "of_key", "of_client_id", "of_actor", "of_requested_at"


class Plan(Protocol):
    """A way to take step 1 for one action."""

    alone: bool
    """Whether it is a single statement, which is a transaction by itself."""

    def take(self, session: Session, key: Any, change: Change, entries: EntryRule) -> bool:
        """Take the step for the row of that key; return False where there is nothing to change."""
        ...


class Recorder:
    """Plans step 1."""

    def __init__(self, rows: ClientRows, ledger: sa.Table) -> None:
        self._rows = rows
        self._ledger = ledger

    def plan(self, dialect: Dialect, change: Change, entries: EntryRule) -> Plan:
        """Return the plan for changes such as this one."""
        plans = dialect.plans.setdefault(entries, {})
        kind = (self, change.action, change.only_if_inactive)
        if (plan := plans.get(kind)) is None:
            plan = plans[kind] = self._make(dialect, change, entries)
        return plan

    def _make(self, dialect: Dialect, change: Change, entries: EntryRule) -> Plan:
        rows, ledger = self._rows, self._ledger
        if (
            not isinstance(entries, KeyTemplates)
            or runs_host_code(rows.mapper, change.action)
            or not all(rows.is_plain(name, dialect) for name in ("id", *entries.columns))
        ):
            return _UnitOfWork(rows, ledger, dialect)
        plain = _OneStatement if dialect.one_statement else _TwoStatements
        return plain(rows, ledger, dialect, change, entries)


class _OneStatement:
    """WITH changed AS (DELETE … or UPDATE … RETURNING …) INSERT … SELECT … FROM changed."""

    alone = True

    def __init__(
        self, rows: ClientRows, ledger: sa.Table, dialect: Dialect, change: Change, templates: KeyTemplates
    ) -> None:
        columns = [rows.column(name) for name in dict.fromkeys(["id", *templates.columns])]
        applies = rows.applies(sa.bindparam(_KEY, type_=rows.key_type), change, dialect)
        changed = _dml(rows, change.action).where(applies).returning(*columns).cte("changed")
        names, values = _values(ledger, change.action, rows.kv_keys(changed, templates, dialect))
        query = sa.select(*values).select_from(changed)
        self._statement = sa.insert(ledger).from_select(names, query).returning(ledger.c.id)

    def take(self, session: Session, key: Any, change: Change, entries: EntryRule) -> bool:  # noqa: ARG002
        """Fulfil `Plan.take`."""
        return session.execute(self._statement, _parameters(key, change)).first() is not None


class _TwoStatements:
    """INSERT … SELECT … FOR UPDATE, which locks the row; then DELETE or UPDATE it.

    Writing first also takes SQLite's write lock at once: a reader that becomes a writer fails.
    """

    alone = False

    def __init__(
        self, rows: ClientRows, ledger: sa.Table, dialect: Dialect, change: Change, templates: KeyTemplates
    ) -> None:
        table = rows.id.table
        applies = rows.applies(sa.bindparam(_KEY, type_=rows.key_type), change, dialect)
        names, values = _values(ledger, change.action, rows.kv_keys(table, templates, dialect))
        query = sa.select(*values).select_from(table).where(applies).with_for_update()
        self._insert = sa.insert(ledger).from_select(names, query)
        self._change = _dml(rows, change.action).where(applies)

    def take(self, session: Session, key: Any, change: Change, entries: EntryRule) -> bool:  # noqa: ARG002
        """Fulfil `Plan.take`."""
        parameters = _parameters(key, change)
        options = {"preserve_rowcount": True}
        inserted: Any = session.execute(self._insert, parameters, execution_options=options)
        if inserted.rowcount == 0:
            return False
        session.execute(self._change, {_KEY: key})
        return True


class _UnitOfWork:
    """Lock and load the row, ask the host's rule, flush."""

    alone = False

    def __init__(self, rows: ClientRows, ledger: sa.Table, dialect: Dialect) -> None:
        self._rows = rows
        self._ledger = ledger
        self._dialect = dialect

    def take(self, session: Session, key: Any, change: Change, entries: EntryRule) -> bool:
        """Fulfil `Plan.take`."""
        rows, ledger = self._rows, self._ledger
        self._dialect.lock(session, ledger)  # before reading, as FOR UPDATE does elsewhere
        client = rows.read(session, [change.client_id], self._dialect, lock="update").get(change.client_id)
        if client is None or not change.applies_to(client):
            return False
        record = {
            "client_id": change.client_id,
            "action": change.action.value,
            "actor": change.actor,
            "requested_at": change.requested_at,
            "kv_keys": list(entries(client)),
        }
        if change.action is not Action.HARD:
            rows.set_active(client.row, change.action is Action.RESTORE)
        elif runs_host_code(rows.mapper, Action.HARD):
            session.delete(client.row)
        else:
            session.execute(_dml(rows, Action.HARD).where(rows.id == key))
        session.flush()
        session.execute(sa.insert(ledger).values(record))
        return True


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


def _dml(rows: ClientRows, action: Action) -> Any:
    table = rows.id.table
    if action is Action.HARD:
        return sa.delete(table)
    return sa.update(table).values({rows.status: action is Action.RESTORE})


def _values(
    ledger: sa.Table, action: Action, kv_keys: sa.ColumnElement[Any]
) -> tuple[list[str], list[sa.ColumnElement[Any]]]:
    """Return what a record has, and the expressions for it in the query that an INSERT reads."""
    values: dict[str, sa.ColumnElement[Any]] = {
        "client_id": sa.bindparam(_CLIENT_ID, type_=sa.String),
        "action": sa.literal(action.value),
        "actor": sa.bindparam(_ACTOR, type_=sa.String),
        "requested_at": sa.bindparam(_REQUESTED_AT, type_=ledger.c.requested_at.type),
        "kv_keys": kv_keys,
    }
    return [*values], [*values.values()]


def _parameters(key: Any, change: Change) -> Mapping[str, Any]:
    return {
        _KEY: key,
        _CLIENT_ID: change.client_id,
        _ACTOR: change.actor,
        _REQUESTED_AT: change.requested_at,
    }
