"""Step 1, and the beginning of step 2, on one connection."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ...entries import EntryRule
from ...model import Action, Change, Client, DeletionRecord, Holding, Recorded
from ...ports import Begun
from .dialects import (
    BEGIN,
    COMMIT,
    COMMIT_AND_BEGIN,
    ROLLBACK,
    Compound,
    Compounds,
    Dialect,
    Direct,
    Rows,
    Sent,
    connected,
    pipelining,
)
from .ledger import Ledger
from .recorder import OneStatement, Plan, Unchanged
from .rows import ClientRows
from .sessions import plain
from .transactions import UndecidedError


class BothSteps:
    """Takes both, one after the other, or several statements of them in one round trip."""

    def __init__(self, rows: ClientRows, ledger: Ledger) -> None:
        self._rows = rows
        self._ledger = ledger

    @contextmanager
    def in_turn(
        self,
        engine: sa.Engine,
        dialect: Dialect,
        *,
        plan: Plan,
        key: Any,
        change: Change,
        entries: EntryRule,
        refusals: Callable[[], AbstractContextManager[None]],
        is_direct: bool,
    ) -> Iterator[tuple[Any, Begun]]:
        """Take step 1, and begin step 2 where it is needed, one after the other.

        What step 1 is refused is raised through `refusals`. `is_direct` lets step 2 go past SQLAlchemy.
        """
        settle = self._settle_in_one(dialect, plan)
        with plan.begin(engine) as transaction:
            connection = _connection(transaction)
            with refusals():
                taken = plan.take(transaction, key, change, entries)
                transaction.commit()
            if isinstance(transaction, Session):
                transaction.close()
            if settle is not None:
                yield from self._in_one_trip(connection, dialect, key, change, taken, settle)
            elif is_direct:
                step_2 = self._step_2(dialect, plan, key, change)
                with pipelining(connection, dialect.ready) as direct:
                    yield from self._go_on(connection, direct, dialect, change, _recorded(taken), step_2)
            else:
                yield from self._by_statements(connection, dialect, plan, key, change, _recorded(taken))

    def _in_one_trip(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        key: Any,
        change: Change,
        taken: Recorded | Unchanged | None,
        settle: Compound,
    ) -> Iterator[tuple[Any, Begun]]:
        """Begin step 2 by a compound, where it is needed."""
        compounds, recorded = Compounds(connection), _recorded(taken)
        settle_alone = partial(self._settle_alone, connection, compounds, dialect)
        if isinstance(taken, Unchanged) and not taken.pending:
            yield compounds, Begun(None, Holding((), self._clients(taken.row)), settle_alone)
        elif recorded is not None and recorded.skips_hold:
            yield compounds, Begun(recorded, None, settle_alone)
        else:
            given = {"of_client_id": change.client_id, "of_key": key}
            _, stamped, *found = compounds.send(settle, given)
            records = self._ledger.records(dialect, stamped)
            with self._holding(connection, dialect, change, records, found) as holding:
                yield connection, Begun(recorded, holding, settle_alone)

    def _by_statements(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        plan: Plan,
        key: Any,
        change: Change,
        recorded: Recorded | None,
    ) -> Iterator[tuple[Any, Begun]]:
        """Begin step 2 in another transaction, where it is needed."""
        often = dialect.often(connection)
        settle_alone = partial(self._settle_alone, connection, often, dialect)
        if recorded is None and dialect.durable is not None:
            connection.execute(dialect.durable)
            connection.commit()
        with dialect.again(connection):
            if recorded is not None and recorded.skips_hold:
                yield often, Begun(recorded, None, settle_alone)
                return
            records = self._ledger.settle(often, dialect, [change.client_id], wait=True)
            found = [] if plan.row is None else [often.execute(plan.row, {"of_key": key}).all()]
            with self._holding(connection, dialect, change, records, found) as holding:
                yield connection, Begun(recorded, holding, settle_alone)

    @contextmanager
    def pipelined(
        self, engine: sa.Engine, dialect: Dialect, *, plan: OneStatement, key: Any, change: Change
    ) -> Iterator[tuple[Any, Begun]]:
        """Take step 1, and begin step 2 where it is needed, in few round trips."""
        step_1 = (dialect.ready(plan.statement), plan.given(key, change))
        step_2 = self._step_2(dialect, plan, key, change)
        with connected(engine) as connection, pipelining(connection, dialect.ready) as direct:
            plan.ask(connection)
            begun: list[Rows] = []
            if change.action is Action.HARD:
                (told,) = direct.send(step_1)
            else:
                told, *begun = direct.send(BEGIN, step_1, COMMIT_AND_BEGIN, *step_2)
            recorded = plan.told(told.one(), change)
            yield from self._go_on(connection, direct, dialect, change, recorded, step_2, begun)

    def _step_2(self, dialect: Dialect, plan: Plan, key: Any, change: Change) -> Sequence[Sent]:
        """Return the statements that stamp what is pending for the client, and read its row if SQL can."""
        stamp = dialect.once((self, "settling"), lambda: self._ledger.settling(dialect))
        statements = [(dialect.ready(stamp), {"of_client_id": change.client_id})]
        if plan.row is not None:
            statements.append((dialect.ready(plan.row), {"of_key": key}))
        return statements

    def _go_on(
        self,
        connection: sa.Connection,
        direct: Direct,
        dialect: Dialect,
        change: Change,
        recorded: Recorded | None,
        step_2: Sequence[Sent],
        begun: Sequence[Rows] = (),
    ) -> Iterator[tuple[Any, Begun]]:
        """Begin step 2 where it is needed; `begun` is what it gave if it has been begun with step 1."""
        settle_alone = partial(self._settle_alone, connection, direct, dialect)
        if recorded is None:
            # Nothing stamped: COMMIT, for at a ROLLBACK the driver forgets what it has prepared.
            first = [ROLLBACK if begun[0] else COMMIT] if begun else []
            durable = dialect.ready(dialect.durable), dict[str, Any]()
            left = dialect.ready(self._ledger.one_pending), {"of_client_id": change.client_id}
            _, *found, pending = direct.send(*first, BEGIN, durable, COMMIT, *step_2[1:], left)
            if not pending:
                if found:  # read first: a removal before that would be pending
                    yield direct, Begun(None, Holding((), self._clients(found[0])), settle_alone)
                    return
                with self._holding(connection, dialect, change, (), ()) as holding:
                    yield direct, Begun(None, holding, settle_alone)
                return
            begun = ()
        elif recorded.skips_hold:
            yield direct, Begun(recorded, None, settle_alone)
            return
        stamped, *found = begun or direct.send(BEGIN, *step_2)
        records = self._ledger.records(dialect, stamped)
        if not records:  # another was first, or a record is newer than the statement that stamps
            records = self._ledger.settle(connection, dialect, [change.client_id], wait=True)
            found = direct.send(*step_2[1:])
        with self._holding(connection, dialect, change, records, found) as holding:
            yield connection, Begun(recorded, holding, settle_alone)

    def _settle_alone(
        self, connection: sa.Connection, lone: Any, dialect: Dialect, record: DeletionRecord
    ) -> DeletionRecord | None:
        """Stamp it by `lone`, which is the connection or stands for it; None also where that fails.

        Then it is settled like the rest, on a fresh connection, which tells what is wrong if that lasts.
        """
        try:
            return self._ledger.settle_alone(lone, dialect, record)
        except sa.exc.SQLAlchemyError:
            with suppress(sa.exc.SQLAlchemyError):
                connection.rollback()
            return None

    def _settle_in_one(self, dialect: Dialect, plan: Plan) -> Compound | None:
        settle = partial(dialect.settle_in_one, self._ledger.table, self._ledger.of_client, plan.row)
        return dialect.once((self, plan), settle)

    @contextmanager
    def _holding(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        change: Change,
        records: Sequence[DeletionRecord],
        found: Sequence[Sequence[Any]],
    ) -> Iterator[Holding]:
        """Yield what is held: the records, and the client by the row that was `found`, or else loaded here.

        Raises UndecidedError where the client is gone and its removal is pending, but not held.
        """
        if found:
            yield self._held(connection, dialect, change, records, self._clients(found[0]))
            return
        with plain(connection) as session:
            clients = self._rows.read(session, [change.client_id], dialect)
            yield self._held(connection, dialect, change, records, clients)

    def _held(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        change: Change,
        records: Sequence[DeletionRecord],
        clients: Mapping[str, Client],
    ) -> Holding:
        # A hard delete without a condition saw before the look at what is pending that there was no row.
        saw_none = change.action is Action.HARD and not change.only_if_inactive
        if not clients and not records and not saw_none and dialect.locks_rows:
            of_client = {"of_client_id": change.client_id}
            if connection.execute(self._ledger.one_pending, of_client).first() is not None:
                raise UndecidedError
        return Holding(tuple(records), clients)

    def _clients(self, found: Sequence[Any]) -> dict[str, Client]:
        return {client.id: client for client in map(self._rows.client, found)}


def _recorded(taken: Recorded | Unchanged | None) -> Recorded | None:
    return taken if isinstance(taken, Recorded) else None


def _connection(transaction: Session | sa.Connection | Compounds) -> sa.Connection:
    if isinstance(transaction, Session):
        return transaction.connection()
    return transaction.connection if isinstance(transaction, Compounds) else transaction
