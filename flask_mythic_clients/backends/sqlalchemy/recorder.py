"""Step 1: change the client's row and insert its deletion record, in one transaction.

Planned once for an engine, a rule and an action, then taken. Where SQL can build the keys and nothing of the
host's has to run in Python: one statement where the database can, two elsewhere. Otherwise the unit of work.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC
from inspect import isawaitable, iscoroutinefunction, signature
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.orm import RelationshipDirection, RelationshipProperty, Session
from sqlalchemy.orm.exc import StaleDataError

from ...entries import EntryRule, KeyTemplates
from ...errors import ConfigurationError
from ...model import Action, Change, Client, DeletionRecord, Recorded
from .ages import overtaken
from .cascades import Cascades
from .dialects import Compounds, Dialect, Rows
from .ledger import kept_keys
from .rows import ClientRows
from .sessions import Sessions, listens
from .transactions import UndecidedError

# A parameter must not be named like a column that is written.
_KEY, _CLIENT_ID, _ACTOR = "of_key", "of_client_id", "of_actor"
_REASON, _REQUEST_ID = "of_reason", "of_request_id"
_KEYS, _AT = "of_keys", "of_requested_at"


Hook: TypeAlias = Callable[[Session, Any, Action], object]
"""What a host does in step 1's transaction, before a row is changed."""


def check_hook(before: Any) -> Hook | None:
    """Return the host's hook; raises ConfigurationError for what cannot be called as one."""
    if before is None:
        return None
    try:
        fits = not iscoroutinefunction(before) and bool(signature(before).bind(..., ..., ...))
    except ValueError:  # one that cannot be looked into
        fits = callable(before)
    except TypeError:
        fits = False
    if not fits:
        raise ConfigurationError(
            "before= takes a function that is called with a session, a row and an action, and is not async; "
            f"not {before!r}."
        )
    hook: Hook = before
    return hook


class KeptError(Exception):
    """The database let the row be as it was, or the ledger without its record, and raised nothing."""


class TakenAlongError(Exception):
    """Other clients would be removed with this one."""

    def __init__(self, clients: Sequence[str]) -> None:
        super().__init__(clients)
        self.clients = clients


class Unchanged(NamedTuple):
    """Nothing was to be changed, and this was seen after that: first the row, then what is pending."""

    row: Rows
    pending: Rows


class Plan(Protocol):
    """A way to take step 1 for one action."""

    row: sa.Select[Any] | None
    """What the rule for entries needs of a row; None where code of the host's sees that."""

    def begin(self, engine: sa.Engine) -> AbstractContextManager[Any]:
        """Open the transaction that it is taken in."""
        ...

    def take(
        self, transaction: Any, key: Any, change: Change, entries: EntryRule
    ) -> Recorded | Unchanged | None:
        """Take the step for the row of that key; where nothing is to change, None, or what was seen then.

        Raises KeptError and TakenAlongError, to be rolled back, and UndecidedError.
        """
        ...


class Recorder:
    """Plans step 1."""

    def __init__(
        self,
        rows: ClientRows,
        ledger: sa.Table,
        *,
        before: Hook | None,
        sessions: Callable[[], Sessions],
        cascades: Callable[[], Cascades],
    ) -> None:
        self._rows = rows
        self._ledger = ledger
        self._before = before
        self._sessions = sessions
        self._make_cascades = cascades
        self._cascades: WeakKeyDictionary[Dialect, Cascades] = WeakKeyDictionary()

    def plan(self, dialect: Dialect, change: Change, entries: EntryRule) -> Plan:
        """Return the plan for changes such as this one."""
        if change.needs_a_look:
            return self.general(dialect, change)
        plans = dialect.plans.setdefault(entries, {})
        kind = (self, change.action, change.only_if_inactive)
        if (plan := plans.get(kind)) is None:
            plan = plans[kind] = self._make(dialect, change, entries)
        return plan

    def general(self, dialect: Dialect, change: Change) -> "UnitOfWork":
        """Return the plan that fits every change, and leaves the transaction open."""
        needs = (self._rows, self._ledger, dialect, change.action, self._before)
        return dialect.once(
            (self, change.action), lambda: UnitOfWork(*needs, self._sessions(), self.cascades_in(dialect))
        )

    def plan_again(
        self, dialect: Dialect, change: Change, entries: EntryRule, undecided: UndecidedError
    ) -> Plan:
        """Return the plan that fits every change, for this one or for good."""
        plan = self.general(dialect, change)
        if undecided.for_good:
            dialect.plans[entries][self, change.action, change.only_if_inactive] = plan
        return plan

    def has_more_to_do(self, action: Action) -> bool:
        """Whether code of the host's has to run."""
        return self._before is not None or runs_host_code(self._rows, action) or listens(self._sessions())

    def _make(self, dialect: Dialect, change: Change, entries: EntryRule) -> Plan:
        rows = self._rows
        if (
            not isinstance(entries, KeyTemplates)
            or self.has_more_to_do(change.action)
            or not all(rows.is_plain(name, dialect) for name in ("id", *entries.columns))
        ):
            return self.general(dialect, change)
        needs = (rows, self._ledger, dialect, change, entries, self.cascades_in(dialect))
        if dialect.one_statement:
            return OneStatement(*needs)
        two = _TwoStatements(*needs)
        return two if two.compound is None else InOneTrip(two)

    def cascades_in(self, dialect: Dialect) -> Cascades:
        """Return what is known of a database's foreign keys."""
        return self._cascades.get(dialect) or self._cascades.setdefault(dialect, self._make_cascades())


class OneStatement:
    """WITH changed AS (DELETE … or UPDATE …), recorded AS (INSERT … FROM changed) SELECT …, all in one.

    It cannot look at what comes of it. So it is left for good where a trigger or a rule of the host's would
    run, or a cascade may reach another client: it asks before it is first taken, and fails, which changes
    nothing, where a trigger was made since. It is undecided where it saw a row and did not change it: another
    request was first, or a policy forbids it.
    """

    def __init__(
        self,
        rows: ClientRows,
        ledger: sa.Table,
        dialect: Dialect,
        change: Change,
        templates: KeyTemplates,
        cascades: Cascades,
    ) -> None:
        table, action = rows.id.table, change.action
        columns = [rows.column(name) for name in dict.fromkeys(["id", *templates.columns])]
        key = sa.bindparam(_KEY, type_=rows.key_type)
        applies = rows.applies(key, change, dialect)
        changed = dml(rows, action, dialect).where(applies, dialect.step_1).returning(*columns).cte("changed")
        names, values = _values(dialect, action, rows.kv_keys(changed, templates, dialect))
        insert = sa.insert(ledger).from_select(names, sa.select(*values).select_from(changed))
        recorded = insert.returning(*_inserted(ledger)).cte("recorded")
        event = "DELETE" if action is Action.HARD else "UPDATE"
        part: Any = sa.select(sa.literal_column("tableoid").label("part")).select_from(table).where(applies)
        found = sa.select(part.cte("found"))
        # Not a constant, which would be divided by when the statement is planned.
        zero = sa.func.pg_backend_pid(type_=sa.Integer) * 0
        failing = sa.case((dialect.watched(event, table, ledger, found), sa.literal(1) // zero))
        # The snapshot has not the record that is just being inserted.
        alone = ~_others(ledger).exists()
        told = (found.exists().label("seen"), failing.label("failing"), alone.label("alone"))
        # A row also where nothing was recorded. It fails where two were: a table may inherit the clients'.
        always = sa.select(sa.literal_column("1")).subquery("always")
        of_one = recorded.c.id == sa.select(recorded.c.id).scalar_subquery()
        self.statement = sa.select(*_inserted(recorded), *told).select_from(
            always.outerjoin(recorded, of_one)
        )
        self._dialect = dialect
        self._fits = sa.select(dialect.is_table(table) & ~dialect.watched(event, table, ledger))
        self._reaches_clients = cascades.lead_to_clients if action is Action.HARD else lambda _: False
        self.row = rows.columns_of_entries(key, templates, dialect)
        self._asked = False

    def begin(self, engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
        """Fulfil `Plan.begin`."""
        if self._asked:
            return self._dialect.alone(engine)
        return self._dialect.statements(engine, alone=True)

    def take(
        self,
        transaction: sa.Connection,
        key: Any,
        change: Change,
        entries: EntryRule,  # noqa: ARG002
    ) -> Recorded | None:
        """Fulfil `Plan.take`."""
        self.ask(transaction)
        given = self.given(key, change)
        try:
            return self.told(transaction.execute(self.statement, given).one(), change)
        except (sa.exc.NotSupportedError, sa.exc.DataError) as error:  # a rule in the way, or divided by zero
            raise UndecidedError(for_good=True) from error

    def is_direct(self, engine: sa.Engine) -> bool:
        """Whether it can be sent past SQLAlchemy, for now."""
        return self._dialect.is_direct(engine) and bool(self._dialect.ready(self.statement).is_ready)

    def ask(self, connection: sa.Connection) -> None:
        """Raise UndecidedError where it does not fit; the database is asked once."""
        if self._asked:
            return
        if not connection.scalar(self._fits) or self._reaches_clients(connection):
            raise UndecidedError(for_good=True)
        self._asked = True

    def given(self, key: Any, change: Change) -> Mapping[str, Any]:
        """Return the parameters of the statement."""
        return {_KEY: key, **_given(change)}

    def told(self, row: Any, change: Change) -> Recorded | None:
        """Tell what the statement did by the row that it gave."""
        if row.id is not None:
            return Recorded(_record(row, change, self._dialect.aware), row.alone)
        if row.seen:
            raise UndecidedError
        return None


class _TwoStatements:
    """INSERT … SELECT … FOR UPDATE, which locks the row; then DELETE or UPDATE it, and look.

    Writing first also takes SQLite's write lock at once: a reader that becomes a writer fails.
    """

    def __init__(
        self,
        rows: ClientRows,
        ledger: sa.Table,
        dialect: Dialect,
        change: Change,
        templates: KeyTemplates,
        cascades: Cascades,
    ) -> None:
        table, key = rows.id.table, sa.bindparam(_KEY, type_=rows.key_type)
        applies = rows.applies(key, change, dialect)
        names, values = _values(dialect, change.action, rows.kv_keys(table, templates, dialect))
        query = sa.select(*values).select_from(table).where(applies).with_for_update()
        told = _inserted(ledger)
        if removes := change.action is Action.HARD:
            told.append(_alone(ledger, dialect).label("alone"))
        self._insert = sa.insert(ledger).from_select(names, query).returning(*told)
        self.dialect = dialect
        change_row = dml(rows, change.action, dialect).where(applies)
        self._change = change_row.execution_options(preserve_rowcount=True)
        self._look = sa.select(rows.status.column.label("status")).where(dialect.same(rows.id, key))
        self._applies = sa.select(rows.status.column).where(applies)
        self.row = rows.columns_of_entries(key, templates, dialect)
        seen = () if self.row is None else (self.row, _others(ledger).limit(1))
        kept = None if removes else self._applies
        self.compound = dialect.change_in_one(self._insert, self._change, kept, seen)
        self._rows = rows
        self._skips_rows = dialect.skips_rows
        self._cascades = cascades
        self._asked = not removes

    def begin(self, engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
        """Fulfil `Plan.begin`."""
        return self.dialect.statements(engine)

    def take(
        self,
        transaction: sa.Connection,
        key: Any,
        change: Change,
        entries: EntryRule,  # noqa: ARG002
    ) -> Recorded | None:
        """Fulfil `Plan.take`."""
        self.ask(transaction)
        send, of_row = self.dialect.often(transaction).execute, {_KEY: key}
        inserted = send(self._insert, {**of_row, **_given(change)}).first()
        if inserted is None:
            if self._skips_rows and send(self._applies, of_row).first() is not None:
                raise KeptError  # a trigger of the ledger's
            return None
        changed: Any = send(self._change, of_row)
        if change.action is Action.HARD and not self._skips_rows:
            kept = changed.rowcount == 0
        else:
            found = send(self._look, of_row).first()
            is_there = found is not None
            kept = not self._rows.is_as_wished([is_there, is_there and found.status], change.action)
        if kept:
            raise KeptError
        return self.told(inserted, change)

    def ask(self, connection: sa.Connection) -> bool:
        """Raise UndecidedError where it does not fit; the database is asked once: tell whether it was now."""
        if self._asked:
            return False
        if self._cascades.lead_to_clients(connection):
            raise UndecidedError(for_good=True)
        self._asked = True
        return True

    def told(self, inserted: Any, change: Change) -> Recorded:
        """Tell what was done by what was inserted."""
        record = _record(inserted, change, self.dialect.aware)
        return Recorded(record, bool(getattr(inserted, "alone", False)))


class InOneTrip:
    """The two statements, the look and the commit as a compound."""

    def __init__(self, statements: _TwoStatements) -> None:
        self._statements = statements
        self._compound: Any = statements.compound
        self.row = statements.row

    def begin(self, engine: sa.Engine) -> AbstractContextManager[Compounds]:
        """Fulfil `Plan.begin`."""
        return self._statements.dialect.compounds(engine)

    def take(
        self,
        transaction: Compounds,
        key: Any,
        change: Change,
        entries: EntryRule,  # noqa: ARG002
    ) -> Recorded | Unchanged | None:
        """Fulfil `Plan.take`; what was seen it tells where SQL sees all that the rule for entries needs."""
        if self._statements.ask(transaction.connection):
            transaction.connection.rollback()  # a compound begins its own
        inserted, *undone = transaction.send(self._compound, {_KEY: key, **_given(change)})
        if not inserted:
            seen = undone[1:]
            return Unchanged(*seen) if seen else None
        if undone and undone[0].one().kept:
            raise KeptError
        if undone:
            raise UndecidedError(for_good=True)
        return self._statements.told(inserted.one(), change)


class UnitOfWork:
    """Lock and load the row, ask the host's rule, flush, and look."""

    row: sa.Select[Any] | None = None

    def __init__(
        self,
        rows: ClientRows,
        ledger: sa.Table,
        dialect: Dialect,
        action: Action,
        before: Hook | None,
        sessions: Sessions,
        cascades: Cascades,
    ) -> None:
        self._rows = rows
        self._ledger = ledger
        self._dialect = dialect
        self._before = before
        self._sessions = sessions
        self._cascades = cascades
        self._orm_removes = runs_host_code(rows, Action.HARD) or listens(sessions)
        key = sa.bindparam(_KEY, type_=rows.key_type)
        delete = dml(rows, Action.HARD, dialect).where(rows.id == key)
        self._delete = delete.execution_options(preserve_rowcount=True)
        names, values = _values(dialect, action, sa.bindparam(_KEYS, type_=ledger.c.kv_keys.type))
        at = sa.bindparam(_AT, type_=ledger.c.requested_at.type)
        values[names.index("requested_at")] = sa.func.coalesce(at, dialect.began, type_=at.type)
        alone = _alone(ledger, dialect) if action is Action.HARD else sa.false()  # nobody asks
        self._look = sa.select(*rows.looks(action))
        told = [*_inserted(ledger), alone, dialect.goes_on(ledger), *rows.looks(action)]
        self._insert = sa.insert(ledger).values(dict(zip(names, values, strict=True))).returning(*told)

    def begin(self, engine: sa.Engine) -> AbstractContextManager[Session]:
        """Fulfil `Plan.begin`."""
        return self._dialect.transaction(engine, self._sessions)

    def take(self, transaction: Session, key: Any, change: Change, entries: EntryRule) -> Recorded | None:
        """Fulfil `Plan.take`."""
        session, connection = transaction, transaction.connection()
        rows, ledger, dialect = self._rows, self._ledger, self._dialect
        dialect.lock(connection, ledger)  # before reading, as FOR UPDATE does elsewhere
        client = self._locked(session, change)
        if client is None or not change.applies_to(client):
            return None
        if change.needs_a_look and overtaken(connection, dialect, rows=rows, ledger=ledger, changes=[change]):
            return None
        record = {**rows.named(client), **_given(change), _KEYS: list(entries(client))}
        record[_AT] = change.requested_at and change.requested_at.astimezone(UTC)
        removed: list[Any] = []
        if self._orm_removes or self._before is not None:
            sa.event.listen(session, "after_flush", lambda flushed, _: removed.extend(flushed.deleted))
        if self._before is not None and isawaitable(self._before(session, client.row, change.action)):
            raise ConfigurationError("before= returned what is to be awaited, and nobody does: let it act.")
        if change.action is Action.HARD:
            self._remove(session, client, key)
        else:
            rows.set_active(session, client.row, change.action is Action.RESTORE, dialect)
        _flush(session)
        if others := self._cascades.of_objects(removed, client):
            raise TakenAlongError(others)
        recorded = connection.execute(self._insert, record).first()
        if recorded is None:
            raise KeptError
        _, _, _, alone, goes_on, *found = recorded
        if goes_on:
            dialect.finish(connection)
            found = list(connection.execute(self._look, record).one())
        if not rows.is_as_wished(found, change.action):
            raise KeptError
        return Recorded(_record(recorded, change, dialect.aware), bool(alone))

    def _remove(self, session: Session, client: Client, key: Any) -> None:
        _flush(session)  # what the host did before: it may have given other clients another parent
        if others := self._cascades.other_clients(session.connection(), client):
            raise TakenAlongError(others)
        if self._orm_removes:
            session.delete(client.row)
        elif session.connection().execute(self._delete, {_KEY: key}).rowcount > 1:
            raise KeptError  # another table inherits this one, and has a row of that id

    def _locked(self, session: Session, change: Change) -> Client | None:
        """Lock and return the client, None where there is none.

        Raises KeptError where there is one to be changed, and a policy lets nobody lock it: it is seen three
        times beside three locks that do not find it. Once it could just have been made.
        """
        for _ in range(3):
            if client := self._read(session, change, lock="update"):
                return client
            if not self._dialect.hides_rows or not (seen := self._read(session, change)):
                return None
            if not change.applies_to(seen):
                return seen
        raise KeptError

    def _read(self, session: Session, change: Change, lock: Literal["update"] | None = None) -> Client | None:
        id = change.client_id
        return self._rows.read(session, [id], self._dialect, lock).get(id)


def _flush(session: Session) -> None:
    try:
        session.flush()
    except StaleDataError as error:
        raise KeptError from error  # the row is locked: nobody else has changed it
    except sa.exc.SAWarning as error:
        if "expected to delete" not in str(error):
            raise
        raise KeptError from error  # where warnings are errors; elsewhere the look finds it
    except AssertionError as error:
        if "Dependency rule" not in str(error):
            raise  # a listener's of the host's
        raise sa.exc.InvalidRequestError("The key of a dependent row cannot be null.") from error


def runs_host_code(rows: ClientRows, action: Action) -> bool:
    """Whether the ORM has more to do for this model than a statement does: cascades, listeners, and such."""
    mapper = rows.mapper
    mapper.registry.configure(cascade=True)  # a validator listens only then, and a listener may be added then
    if mapper.version_id_col is not None or mapper.polymorphic_on is not None or len(mapper.tables) > 1:
        return True
    of_rows = mapper.class_manager.dispatch
    if not all(map(_is_sqlalchemys, (*of_rows.load, *of_rows.refresh))):
        return True  # the rule for entries sees the row as they leave it
    events = mapper.dispatch
    if action is not Action.HARD:
        status = getattr(rows.model, rows.status.name)  # a validator is a listener, too
        return bool(events.before_update or events.after_update or status.dispatch.set)
    return bool(events.before_delete or events.after_delete) or any(
        not related.viewonly and reaches(related) for related in mapper.relationships
    )


def _is_sqlalchemys(listener: Any) -> bool:
    """Whether it is one that lets SQLAlchemy see changes within a value, and changes none."""
    return getattr(listener, "__module__", "") == "sqlalchemy.ext.mutable"


def reaches(related: RelationshipProperty[Any]) -> bool:
    """Whether the ORM does something to the other rows of a relationship when a client is removed."""
    # Where neither a cascade nor the database looks after the children, it sets their keys to null.
    orphans = related.direction is RelationshipDirection.ONETOMANY and not related.passive_deletes
    return related.cascade.delete or related.secondary is not None or orphans


def dml(rows: ClientRows, action: Action, dialect: Dialect) -> Any:
    """Return the statement that changes rows, without a condition."""
    table = rows.id.table
    if action is Action.HARD:
        return sa.delete(table)
    value = rows.status.value(action is Action.RESTORE, dialect)
    return sa.update(table).values({rows.status.column: value})


def _inserted(source: Any) -> list[sa.ColumnElement[Any]]:
    """Return what a record has that was not known before it was inserted."""
    return [source.c.id, source.c.requested_at, source.c.kv_keys]


def _others(ledger: sa.Table) -> sa.Select[Any]:
    """Return a query for what else is pending for the client of a record."""
    other = ledger.alias("other").c
    client_id = sa.bindparam(_CLIENT_ID, type_=sa.String)
    return sa.select(other.id).where(other.client_id == client_id, other.settled_at.is_(None))


def _alone(ledger: sa.Table, dialect: Dialect) -> sa.ColumnElement[bool]:
    """Return, for what an INSERT is to tell, whether nothing else is pending."""
    # As text, or SQLAlchemy would look for it in the ledger once more.
    own = dialect.sqlalchemys.identifier_preparer.format_table(ledger) + ".id"
    return ~_others(ledger).where(sa.literal_column("other.id") != sa.literal_column(own)).exists()


def _record(row: Any, change: Change, aware: Callable[[Any], Any]) -> DeletionRecord:
    keys = tuple(key for key in kept_keys(row.kv_keys) if key is not None)
    at = aware(row.requested_at)
    of_caller: Any = {"reason": change.reason, "request_id": change.request_id}
    return DeletionRecord(row.id, change.client_id, change.action, change.actor, keys, at, **of_caller)


def _given(change: Change) -> dict[str, Any]:
    """Return what a record has from the change, as parameters of `_values`."""
    of_caller = {_ACTOR: change.actor, _REASON: change.reason, _REQUEST_ID: change.request_id}
    return {_CLIENT_ID: change.client_id, **of_caller}


def _values(
    dialect: Dialect, action: Action, kv_keys: sa.ColumnElement[Any]
) -> tuple[list[str], list[sa.ColumnElement[Any]]]:
    """Return what a record has, and the expressions for it in the query that an INSERT reads."""
    values: dict[str, sa.ColumnElement[Any]] = {
        "client_id": sa.bindparam(_CLIENT_ID, type_=sa.String),
        "action": sa.literal(action.value),
        "actor": sa.bindparam(_ACTOR, type_=sa.String),
        "reason": sa.bindparam(_REASON, type_=sa.String),
        "request_id": sa.bindparam(_REQUEST_ID, type_=sa.String),
        "requested_at": dialect.began,
        "kv_keys": kv_keys,
    }
    return [*values], [*values.values()]
