"""What most databases do, and what a dialect may say otherwise."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from enum import Enum, auto
from operator import attrgetter
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ....entries import EntryRule


class Verdict(Enum):
    """What an error of a driver means for the step."""

    CONFLICT = auto()  # one of two transactions in each other's way was rolled back: take the step again
    REFUSAL = auto()  # a constraint forbids it
    OUTDATED = auto()  # a table or a column is missing
    NO_ANSWER = auto()


class Dialect:
    """READ COMMITTED, row locks, standard SQL."""

    one_statement: ClassVar[bool] = False
    """Whether a statement may change a row and insert what it was, which is a transaction by itself."""
    uuid_is_text: ClassVar[bool] = False
    """Whether SQL writes a UUID as Python does."""
    isolation: ClassVar[str | None] = "READ COMMITTED"
    """What the engine is asked for; None where the transaction is opened by hand."""

    conflicts: ClassVar[frozenset[Any]] = frozenset()
    refusals: ClassVar[frozenset[Any]] = frozenset()
    missing: ClassVar[frozenset[Any]] = frozenset()

    def __init__(self, sqlalchemys: sa.Dialect) -> None:
        self.sqlalchemys = sqlalchemys
        self.plans: WeakKeyDictionary[EntryRule, dict[Any, Any]] = WeakKeyDictionary()

    @contextmanager
    def transaction(self, engine: sa.Engine, *, alone: bool = False) -> Iterator[Session]:
        """Open a session at our isolation, whatever the host's default is; `alone` for a single statement.

        Whatever is raised rolls back: a COMMIT that failed may leave the transaction open, and closing too.
        """
        if self.isolation is not None:
            engine = engine.execution_options(isolation_level="AUTOCOMMIT" if alone else self.isolation)
        with Session(engine, autoflush=False, expire_on_commit=False) as session:
            connection = session.connection()  # now: a wait for the pool must not come after a clock is read
            try:
                self.begin(connection)
                yield session
            except BaseException:
                # A connection that is gone has no transaction.
                with suppress(sa.exc.SQLAlchemyError):
                    self.roll_back(connection)
                with suppress(sa.exc.SQLAlchemyError):
                    session.rollback()
                raise

    def turn(self) -> AbstractContextManager[None]:
        """Let those who write through this process come one by one, where the database cannot queue them."""
        return nullcontext()

    def begin(self, connection: sa.Connection) -> None:
        """Open what the engine's isolation does not."""

    def roll_back(self, connection: sa.Connection) -> None:
        """End what `begin` opened."""

    def lock(self, session: Session, ledger: sa.Table) -> None:
        """Take what must be held before a row is read."""

    def stamp(
        self,
        session: Session,
        ledger: sa.Table,
        where: sa.ColumnElement[bool],
        column: str,
        clock: Callable[[], datetime],
    ) -> list[sa.Row[Any]]:
        """Lock the records, read the clock, stamp them, and return them as they are then."""
        update = sa.update(ledger).where(where).values({column: clock()}).returning(ledger)
        return sorted(session.execute(update), key=attrgetter("id"))

    def same(self, column: sa.Column[Any], key: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Whether the column is this id, to the letter."""
        return column == key

    def json_array(self, *items: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Build a JSON array in SQL; a null makes a null in it."""
        return sa.func.json_array(*items)

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Tell what the driver meant, by psycopg's SQLSTATE, psycopg2's, MariaDB's number or the text."""
        said = getattr(error, "orig", None)
        codes = {getattr(said, "sqlstate", None), getattr(said, "pgcode", None), *getattr(said, "args", ())}
        if codes & self.conflicts:
            return Verdict.CONFLICT
        if isinstance(error, sa.exc.IntegrityError) or codes & self.refusals:
            return Verdict.REFUSAL
        if codes & self.missing:
            return Verdict.OUTDATED
        return Verdict.NO_ANSWER
