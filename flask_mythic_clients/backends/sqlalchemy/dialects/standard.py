"""What most databases do, and what a dialect may say otherwise."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, timedelta
from enum import Enum, auto
from operator import attrgetter, methodcaller
from typing import Any, ClassVar, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ....entries import EntryRule
from ....model import Finding
from ..sessions import Sessions, plain
from .compound import Compound, Compounds
from .turns import Turns

# How long a row that another holds is waited for, in seconds; whoever waits longer gets a 503. Each who waits
# holds a connection of the host's pool, which is everybody's.
WAIT = 1
ISOLATION = "READ COMMITTED"
AT_ONCE = "mythic_at_once"
"""An option of a statement that has nothing to wait for."""

_T = TypeVar("_T")
Stamp: TypeAlias = Callable[[sa.Connection, Mapping[str, Any]], Sequence[sa.Row[Any]]]
"""Stamps records, named by these parameters, in a transaction."""
StampHeld: TypeAlias = Callable[[sa.Connection, Sequence[int]], Mapping[int, Any]]


@contextmanager
def connected(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Check a connection out; that it breaks when it goes back is no failure, for all is ended by then."""
    try:
        connection = engine.connect()
    except sa.exc.SQLAlchemyError as error:
        error.while_connecting = True  # type: ignore[attr-defined]
        raise
    try:
        yield connection
    finally:
        try:
            connection.close()
        except sa.exc.SQLAlchemyError:
            with suppress(sa.exc.SQLAlchemyError):
                connection.close()  # without the transaction that could not be rolled back


@contextmanager
def undone(transaction: Session | sa.Connection) -> Iterator[None]:
    """Roll back whatever is raised."""
    try:
        yield
    except BaseException:
        # A COMMIT that failed may leave the transaction open; a connection that is gone has none.
        with suppress(sa.exc.SQLAlchemyError):
            transaction.rollback()
        raise


class Verdict(Enum):
    """What an error means for the step in which it came."""

    CONFLICT = auto()  # one of two transactions in each other's way was rolled back: take the step again
    BUSY = auto()  # another transaction held something for too long
    OUTDATED = auto()  # a table or a column is missing
    TOO_LONG = auto()  # the statement took longer than its user may
    AWAY = auto()  # no connection, or a server that can do nothing for anybody
    CONSTRAINT = auto()  # a constraint forbids it
    REFUSED = auto()  # a trigger, a rule or a policy forbids it
    KEPT = auto()  # a trigger, a rule or a policy let the row be as it was, and said nothing
    MAPPING = auto()  # the host's mapping forbids it
    UNKNOWN = auto()


class Dialect:
    """READ COMMITTED, row locks, standard SQL."""

    one_statement: ClassVar[bool] = False
    """Whether a statement may change a row and insert what it was, which is a transaction by itself."""
    skips_rows: ClassVar[bool] = False
    """Whether a trigger can make a statement leave a row out, or put a row back, without an error."""
    hides_rows: ClassVar[bool] = False
    """Whether a policy can hide from a lock a row that a plain read finds."""
    defers_alone: ClassVar[bool] = False
    """Whether what is deferred to the commit cannot be asked for before."""
    uuid_is_text: ClassVar[bool] = False
    """Whether SQL writes a UUID as Python does."""
    sorts_nulls: ClassVar[bool] = False
    """Whether the order of an index is found only where its columns that are all null are named, too."""
    began: ClassVar[sa.ColumnElement[Any]]
    """The database's time when the statement began."""
    random: ClassVar[sa.ColumnElement[Any]] = sa.func.random()
    """A number that is another for each row."""
    now: ClassVar[sa.ColumnElement[Any]]
    """The database's time when this is computed."""
    aware: ClassVar[Any] = staticmethod(methodcaller("replace", tzinfo=UTC))
    """Makes a time that was read an aware one, in UTC; most keep it in UTC, without its zone."""
    step_1: ClassVar[sa.ColumnElement[bool]] = sa.true()
    """A condition that is true, and sets what holds for the rest of step 1's transaction."""
    step_1_of_many: ClassVar[sa.ColumnElement[bool]] = sa.true()
    """The same for the change of many clients at once."""
    step_2: ClassVar[sa.ColumnElement[bool]] = sa.true()
    """The same for step 2's, and that of verify."""
    durable: ClassVar[sa.Select[Any] | None] = None
    """A query whose commit waits until all before it is as durable as a step 1; None where there is none."""
    records_given: ClassVar[Any]
    """A query for records to insert, out of the parameter `of_records`, a JSON array of objects.

    It yields client_id, action, actor, reason, request_id, requested_at and kv_keys. In the objects a time is
    in UTC, or null, which is the statement's; the keys are JSON in a string.
    """
    verdicts: ClassVar[dict[Any, Verdict]] = {}
    """The codes that are known, or their first two letters, and what they mean."""

    grants: ClassVar[bool] = True
    """Whether its users have rights."""
    oldest: ClassVar[tuple[int, ...]] = ()
    """The oldest version of the database that is tried."""

    locks_rows: ClassVar[bool] = True
    """Whether writers stand in each other's way only at one client, not everywhere."""

    def __init__(self, sqlalchemys: sa.Dialect) -> None:
        self.sqlalchemys = sqlalchemys
        self.plans: dict[EntryRule, dict[Any, Any]] = {}
        self.turns = Turns()
        self._made: dict[Any, Any] = {}
        self.ledgers: dict[str, str] = {}
        """The names of the ledgers there, and of the tables whose clients they record."""

    @contextmanager
    def transaction(self, engine: sa.Engine, sessions: Sessions = plain) -> Iterator[Session]:
        """Open a session at our isolation, whatever the host's default is.

        Whatever is raised rolls back.
        """
        with self._connected(engine) as connection, sessions(connection) as session, undone(session):
            yield session

    @contextmanager
    def statements(self, engine: sa.Engine, *, alone: bool = False) -> Iterator[sa.Connection]:
        """Do the same without a session; `alone` for a single statement, a transaction by itself."""
        with self._connected(engine, "AUTOCOMMIT" if alone else ISOLATION) as connection, undone(connection):
            yield connection

    def again(self, connection: sa.Connection) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Begin another transaction on a connection of `transaction` or `statements`, one committed."""
        return nullcontext()

    def alone(self, engine: sa.Engine) -> AbstractContextManager[Any]:
        """Open a connection, or what stands for one, for single statements that are sent often."""
        return self.statements(engine, alone=self.one_statement)

    def often(self, connection: sa.Connection) -> Any:
        """Return a connection, or what stands for it where statements that are sent often are cheaper so."""
        return connection

    def compounds(self, engine: sa.Engine) -> AbstractContextManager[Compounds]:
        """Open what stands for a connection, for compounds; asked where there is one."""
        raise NotImplementedError

    def change_in_one(
        self,
        insert: Any,  # noqa: ARG002
        change: Any,  # noqa: ARG002
        kept: sa.Select[Any] | None,  # noqa: ARG002
        seen: Sequence[sa.Select[Any]],  # noqa: ARG002
    ) -> Compound | None:
        """Return a compound that inserts a record, changes the row if there is one, and commits.

        It gives what was inserted; after that, where it has rolled back, whether that is because the row is
        `kept` as it was. `kept` is a query that finds it so; None: the number of rows tells. Where there was
        nothing to insert, it gives at the end what is `seen` then. None where there is no such compound.
        """
        return None

    def settle_in_one(
        self,
        ledger: sa.Table,  # noqa: ARG002
        of_client: sa.ColumnElement[bool],  # noqa: ARG002
        row: sa.Select[Any] | None,  # noqa: ARG002
    ) -> Compound | None:
        """Return a compound that begins, locks and stamps what is pending for a client, and reads its `row`.

        It gives what it locked, the records, and the row. None where there is none.
        """
        return None

    @contextmanager
    def _connected(self, engine: sa.Engine, isolation: Any = ISOLATION) -> Iterator[sa.Connection]:
        with connected(engine) as connection:
            yield connection.execution_options(isolation_level=isolation)

    def lock(self, connection: sa.Connection, ledger: sa.Table) -> None:
        """Take what must be held before a row is read."""

    def by_index(self, connection: sa.Connection) -> None:
        """Let no query of this transaction read a whole table: each of ours has its index."""

    def once(self, name: Any, make: Callable[[], _T]) -> _T:
        """Return what was made the first time: most statements cost more to make than to send."""
        if name not in self._made:
            self._made[name] = make()
        made: _T = self._made[name]
        return made

    def stamping(self, ledger: sa.Table, where: sa.ColumnElement[bool], column: str) -> Any:
        """Return the statement that does it, where there is one."""
        return sa.update(ledger).where(where, self.step_2).values({column: self.now}).returning(ledger)

    def ready(self, statement: Any) -> Any:
        """Return a statement that is sent often as the driver takes it; asked where `is_direct`."""
        raise NotImplementedError

    def is_direct(self, engine: sa.Engine) -> bool:  # noqa: ARG002
        """Whether an engine's driver may be used past SQLAlchemy, for now."""
        return False

    def stamp(self, ledger: sa.Table, where: sa.ColumnElement[bool], column: str) -> Stamp:
        """Make a step that locks records, stamps them with the time, and returns them as they are then."""
        update = self.stamping(ledger, where, column)

        def step(connection: sa.Connection, parameters: Any) -> Sequence[sa.Row[Any]]:
            return sorted(connection.execute(update, parameters).all(), key=attrgetter("id"))

        return step

    def stamp_held(self, ledger: sa.Table, column: str) -> StampHeld:
        """Make a step that stamps records by their ids, locked ones, and returns the times by id."""
        held = self.among(ledger.c.id, "of_ids")
        update = sa.update(ledger).where(held, self.step_2).values({column: self.now})
        stamped = update.returning(ledger.c.id, ledger.c[column])
        return lambda connection, ids: dict(map(tuple, connection.execute(stamped, {"of_ids": ids}).all()))

    def stamp_one(self, ledger: sa.Table, id: Any, where: sa.ColumnElement[bool]) -> Stamp:
        """Make a step that stamps a record as settled which is not held, and returns the time; or no row."""
        update = sa.update(ledger).where(ledger.c.id == id, where, self.step_2).values(settled_at=self.now)
        stamped = update.returning(ledger.c.settled_at)
        return lambda connection, parameters: connection.execute(stamped, parameters).all()

    def time_for(self, type_: Any) -> sa.ColumnElement[Any]:  # noqa: ARG002
        """Return the database's time as a column of the host's keeps it: in UTC, without a zone."""
        return self.now

    def ago(self, duration: timedelta) -> sa.ColumnElement[Any]:
        """Return the database's time when the statement began, less a duration."""
        raise NotImplementedError

    def ago_as(self, type_: Any, duration: timedelta) -> sa.ColumnElement[Any]:  # noqa: ARG002
        """Return that as a column of the host's keeps it: as `time_for` does."""
        return self.ago(duration)

    def is_table(self, table: Any) -> sa.ColumnElement[bool]:
        """Whether that is a table, not a view; asked where `one_statement` is true."""
        raise NotImplementedError

    def watched(
        self, event: str, table: Any, ledger: Any, row: sa.Select[Any] | None = None
    ) -> sa.ColumnElement[bool]:
        """Whether a trigger or a rule of the host's runs where a row is deleted or updated, and recorded.

        `row` finds the table in which the row really is. Asked where `one_statement` is true.
        """
        raise NotImplementedError

    def goes_on(self, ledger: Any) -> sa.ColumnElement[bool]:  # noqa: ARG002
        """Whether a trigger or a rule may act after the change: at the record, or at the commit."""
        return sa.false()

    def finish(self, connection: sa.Connection) -> None:
        """Let the database do now what it would do only at the commit."""

    def among(self, column: sa.Column[Any], name: str, type_: Any = None) -> sa.ColumnElement[bool]:
        """Whether the column, of a plain type, is one of the values of that parameter."""
        return column.in_(sa.bindparam(name, type_=type_, expanding=True))

    def holdable(self, connection: sa.Connection, column: sa.Column[Any], values: list[Any]) -> list[Any]:  # noqa: ARG002
        """Return those of the values that the column could hold; comparing it to others may raise."""
        return values

    def same(self, column: sa.Column[Any], key: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Whether the column is this id, to the letter."""
        return column == key

    def json_array(self, *items: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Build a JSON array in SQL; a null makes a null in it."""
        return sa.func.json_array(*items)

    def partitions(self, connection: sa.Connection) -> Collection[str]:  # noqa: ARG002
        """Return the names of tables that are parts of others, and have what those have."""
        return ()

    def sees_all(self, connection: sa.Connection) -> bool:  # noqa: ARG002
        """Whether the catalogue shows also those tables to which the user has no right."""
        return True

    def hides(self, connection: sa.Connection, table: Any) -> bool:
        """Whether there may be rows that the table does not show to the user: a view, or a policy."""
        return table.name in sa.inspect(connection).get_view_names(table.schema)

    def unsafe(self, connection: sa.Connection, tables: Sequence[Any]) -> Iterator[Finding]:  # noqa: ARG002
        """Yield what of the server, or of the tables, keeps no promise."""
        return iter(())

    def name_of(self, table: Any) -> str:
        """Return a table's name as it stands in SQL."""
        return self.sqlalchemys.identifier_preparer.format_table(table)

    def code(self, said: Any) -> Any:
        """Return the driver's code of an error, which holds no value of a client; None where it has none."""
        raise NotImplementedError

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Tell what an error means, by the driver's code and SQLAlchemy's class."""
        if not isinstance(error, sa.exc.DBAPIError):
            return Verdict.AWAY if isinstance(error, sa.exc.TimeoutError) else Verdict.MAPPING
        code = self.code(error.orig)
        if (known := self.verdicts.get(code) or self.verdicts.get(str(code)[:2])) is not None:
            return known
        # Neither a code nor a statement: no server has said that, for the connection could not be made.
        if error.connection_invalidated or (code is None and error.statement is None):
            return Verdict.AWAY
        return Verdict.CONSTRAINT if isinstance(error, sa.exc.IntegrityError) else Verdict.UNKNOWN
