"""Transactions of our own on the host's engine: opened, tried again, errors judged. Knows no client."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ...errors import BusyError, ForeignError, RepositoryError, StatementTimeoutError
from ...ports import Begun
from .dialects import Dialect, Verdict

_T = TypeVar("_T")
Begin: TypeAlias = Callable[[sa.Engine], AbstractContextManager[Any]]
"""Opens a session, or a connection, in a transaction of our own."""
_LASTING = {Verdict.BUSY, Verdict.TOO_LONG, Verdict.AWAY}
_REFUSALS = {Verdict.CONSTRAINT, Verdict.REFUSED, Verdict.MAPPING}


class UndecidedError(Exception):
    """What was sent cannot tell what happened; a more general way can, and finds done what was done."""

    def __init__(self, *, for_good: bool = False) -> None:
        super().__init__()
        self.for_good = for_good


class RefusedError(Exception):
    """The database or the mapping forbids the step, which has been rolled back."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(frozen=True)
class Transactions:
    """Takes steps on an engine, each in a transaction; every step must be safe to repeat.

    A step is taken again after a deadlock or serialization failure, and once on a fresh connection: it may
    be that the first try was committed, and only its answer lost. Every method raises RepositoryError.
    """

    engine: sa.Engine
    dialect: Dialect
    tables: Sequence[Any]
    """Those that the steps need, to name what the database lacks of them."""

    def read(self, query: Callable[[Session, Dialect], _T]) -> _T:
        """Ask in a transaction, and end it."""
        return self._ended(self.dialect.transaction, query)

    def ask(self, query: Callable[[sa.Connection, Dialect], _T], *, alone: bool = False) -> _T:
        """Do the same without a session; `alone` for a single statement that is sent often."""
        return self._ended(self.dialect.alone if alone else self.dialect.statements, query)

    def write(self, step: Callable[[Any], _T], client_id: str, begin: Begin, *, undo: bool = False) -> _T:
        """Take the step in a transaction, and commit, or `undo` it.

        Raises RefusedError where something forbids it.
        """
        with ExitStack() as turn:
            self._take_turn([client_id] if client_id else [], turn)
            tries = _Tries()
            while True:
                try:
                    with self.refusals(), begin(self.engine) as transaction:
                        done = step(transaction)
                        if undo:
                            raise _UndoneError  # as each database undoes what has failed
                        transaction.commit()
                        return done
                except _UndoneError:
                    return done
                except sa.exc.SQLAlchemyError as error:
                    self._failed(tries, error)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Raise RefusedError for what forbids a step, and other errors as they are."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            if (verdict := self.dialect.verdict(error)) in _REFUSALS:
                raise RefusedError(verdict) from self._told(error)
            raise

    @contextmanager
    def hold(self, step: Callable[[Session, Dialect], _T], client_ids: Collection[str]) -> Iterator[_T]:
        """Take the step and leave its transaction open for the block; commit at its end."""
        dialect = self.dialect
        with ExitStack() as stack:
            self._take_turn(client_ids, stack)
            tries = _Tries()
            while True:
                try:
                    with ExitStack() as opened:
                        session = opened.enter_context(dialect.transaction(self.engine))
                        held = step(session, dialect)
                        stack.push(opened.pop_all())  # begun: only now it is the block's to end
                    break
                except sa.exc.SQLAlchemyError as error:
                    self._failed(tries, error)
            with self._outages(session.connection()):
                yield held
            self._commit(session)

    @contextmanager
    def at_once(
        self,
        begin: Callable[[sa.Engine, Dialect], AbstractContextManager[tuple[Any, Begun]]],
        client_id: str,
        *,
        knows: bool,
    ) -> Iterator[Begun | None]:
        """Do what `write` and `hold` do, by one call, and leave the transaction open for the block.

        Yields None where that does not go well: the two find out why. It may have been committed until there.
        `knows` tells that an error nobody knows cannot be the way's own: it is raised, not tried again.
        """
        dialect = self.dialect
        with ExitStack() as turn, ExitStack() as stack:
            self._take_turn([client_id], turn)
            transaction: Any = None
            begun: Begun | None = None
            try:
                transaction, begun = stack.enter_context(begin(self.engine, dialect))
            except sa.exc.SQLAlchemyError as error:
                # They would wait as long again, or be told the same; but not on a fresh connection.
                lasting = _LASTING | {Verdict.UNKNOWN} if knows else _LASTING
                if dialect.verdict(error) in lasting and not _was_dead(error):
                    raise self._translated(error) from self._told(error)
            except UndecidedError:
                pass
            if begun is None:
                stack.close()
            if begun is None or begun.holding is None:
                turn.close()  # nothing is held that others would wait for
            with self._outages(transaction):
                yield begun
            if begun is not None:
                self._commit(transaction)

    def _take_turn(self, client_ids: Collection[str], stack: ExitStack) -> None:
        """Take the turn of one client, or of the whole database if that locks as a whole; many take none."""
        if not self.dialect.locks_rows:
            self.dialect.turns.take("", stack)
        elif len(client_ids) == 1:
            self.dialect.turns.take(next(iter(client_ids)), stack)

    @contextmanager
    def _outages(self, transaction: Any) -> Iterator[None]:
        """Translate what the host's code raises where our connection died under it; all else is the caller's.

        It may have asked by the row's session, whose connection that is.
        """
        try:
            yield
        except sa.exc.DBAPIError as error:
            if not getattr(transaction, "invalidated", False):
                raise
            raise self._translated(error) from self._told(error)

    def _commit(self, transaction: Session | sa.Connection) -> None:
        try:
            transaction.commit()
        except sa.exc.SQLAlchemyError as error:
            raise self._translated(error) from self._told(error)

    def _ended(self, begin: Begin, query: Callable[[Any, Dialect], _T]) -> _T:
        tries = _Tries()
        while True:
            try:
                with begin(self.engine) as transaction:
                    answer = query(transaction, self.dialect)
                    transaction.commit()
                    return answer
            except sa.exc.SQLAlchemyError as error:
                self._failed(tries, error)

    def _failed(self, tries: "_Tries", error: sa.exc.SQLAlchemyError) -> None:
        """Pause before another try, or raise the error translated."""
        if _was_dead(error) and not tries.reconnected:
            tries.reconnected = True
        elif self.dialect.verdict(error) is not Verdict.CONFLICT or not tries.left:
            raise self._translated(error) from self._told(error)
        tries.left -= 1
        time.sleep(random.uniform(0, 0.02))

    def _told(self, error: sa.exc.SQLAlchemyError) -> ForeignError:
        """Tell an error by its class and code; by its text only where there was no connection yet."""
        said = getattr(error, "orig", None)
        if said is None:
            return ForeignError.told(error)
        code, url = self.dialect.code(said), self.engine.url
        if getattr(error, "while_connecting", False):
            where = f"{url.host}:{url.port}" if url.host else ""
            return ForeignError.told(said, where, " ".join(str(said).split()))
        return ForeignError.told(said, code or "")

    def _translated(self, error: sa.exc.SQLAlchemyError) -> RepositoryError:
        verdict = self.dialect.verdict(error)
        if verdict is Verdict.BUSY:
            return BusyError()
        if verdict is Verdict.TOO_LONG:
            return StatementTimeoutError()
        if verdict is not Verdict.OUTDATED:
            return RepositoryError(_MESSAGES.get(verdict))
        lacks = ""
        with suppress(sa.exc.SQLAlchemyError):
            lacks = ", ".join(missing(self.engine, self.tables))
        lacks = lacks or "a table or a column"
        return RepositoryError(
            f"The database lacks {lacks}: make it as your app makes its tables, or migrate."
        )


class _UndoneError(Exception):
    """Nothing is wrong: it was only tried."""


class _Tries:
    """How often a step may still be taken again."""

    left = 4
    reconnected = False


def _was_dead(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the connection that the pool gave was dead; now that is empty, and gives a fresh one.

    Not where the driver's time is out: the database hangs, and would be waited for once more.
    """
    is_dead = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    return is_dead and "timed out" not in f"{getattr(error, 'orig', '')}"


_MESSAGES = {
    Verdict.CONFLICT: "Other transactions were in the way of this one in the database, at each try.",
    # Away, and whatever is not known to be an answer: the default.
    **dict.fromkeys(
        (*_REFUSALS, Verdict.UNKNOWN),
        "The database, or the mapping, refused this for a reason that is not known here: this is no outage, "
        "and repeating it may not help.",
    ),
}


def missing(bind: sa.Engine | sa.Connection, tables: Sequence[Any]) -> Iterator[str]:
    """Yield the tables, and the columns as `table.column`, that the models have and the database lacks."""
    inspector = sa.inspect(bind)
    for table in tables:
        if not inspector.has_table(table.name, table.schema):
            yield f"{table}"
            continue
        there = {column["name"] for column in inspector.get_columns(table.name, table.schema)}
        yield from (f"{table}.{column.name}" for column in table.columns if column.name not in there)
