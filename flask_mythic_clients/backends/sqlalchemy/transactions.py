"""Transactions of our own on the host's engine: opened, tried again, errors translated. Knows no client."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ...errors import MythicClientsError, RepositoryError
from .dialects import Dialect, Verdict

_T = TypeVar("_T")
_OUTDATED = "The database lacks a table or a column: run db.create_all() or your migrations."


@dataclass(frozen=True)
class Transactions:
    """Takes steps on an engine, each in a transaction; every step must be safe to repeat.

    A step is taken again after a deadlock or serialization failure, and once on a fresh connection: it may
    be that the first try was committed, and only its answer lost. Every method raises RepositoryError.
    """

    engine: sa.Engine
    dialect: Dialect

    def read(self, query: Callable[[Session], _T]) -> _T:
        """Ask in a transaction, and end it."""
        tries = _Tries()
        while True:
            try:
                with self.dialect.transaction(self.engine) as session:
                    answer = query(session)
                    session.commit()
                    return answer
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                tries.failed(error, self.dialect)

    def write(
        self, step: Callable[[Session], _T], *, alone: bool, refused: Callable[[], MythicClientsError]
    ) -> _T:
        """Take the step and commit; `alone` for a single statement, which is a transaction by itself.

        Raises what `refused` makes where a constraint forbids it.
        """
        tries, dialect = _Tries(), self.dialect
        while True:
            try:
                with dialect.turn(), dialect.transaction(self.engine, alone=alone) as session:
                    done = step(session)
                    session.commit()
                    return done
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                if dialect.verdict(error) is Verdict.REFUSAL:
                    raise refused() from error
                tries.failed(error, dialect)

    @contextmanager
    def hold(self, step: Callable[[Session], _T]) -> Iterator[_T]:
        """Take the step and leave its transaction open for the block; commit at its end."""
        tries, dialect = _Tries(), self.dialect
        while True:
            try:
                with ExitStack() as opened:
                    opened.enter_context(dialect.turn())
                    session = opened.enter_context(dialect.transaction(self.engine))
                    held = step(session)
                    stack = opened.pop_all()  # begun: only now it is the block's to end
                break
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                tries.failed(error, dialect)
        with stack:
            yield held  # what the caller raises is the caller's
            try:
                session.commit()
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                raise _translated(error, dialect) from error


class _Tries:
    """How often a step may still be taken again."""

    left = 4
    reconnected = False

    def failed(self, error: sa.exc.SQLAlchemyError, dialect: Dialect) -> None:
        """Pause before another try, or raise the error translated."""
        if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated and not self.reconnected:
            self.reconnected = True  # a dead connection of the pool, which is empty now
        elif dialect.verdict(error) is not Verdict.CONFLICT or not self.left:
            raise _translated(error, dialect) from error
        self.left -= 1
        time.sleep(random.uniform(0, 0.02))


def _translated(error: sa.exc.SQLAlchemyError, dialect: Dialect) -> RepositoryError:
    return RepositoryError(_OUTDATED if dialect.verdict(error) is Verdict.OUTDATED else None)
