"""SQLite: one writer at a time, so the write lock comes first and writers take turns."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ....errors import RepositoryError
from .standard import Dialect, Verdict

_TURN_SECONDS = 5


class SQLite(Dialect):
    """Its own lock is polled: some who wait for it never get it while others come and go."""

    isolation = "SERIALIZABLE"  # it has no other

    def __init__(self, sqlalchemys: sa.Dialect) -> None:
        super().__init__(sqlalchemys)
        self._lock = Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Fulfil `Dialect.turn`."""
        if not self._lock.acquire(timeout=_TURN_SECONDS):
            raise RepositoryError("Another writer has held the database for too long.")
        try:
            yield
        finally:
            self._lock.release()

    def lock(self, session: Session, ledger: sa.Table) -> None:
        """Fulfil `Dialect.lock`: a reader that becomes a writer fails."""
        session.execute(sa.update(ledger).where(ledger.c.id == 0).values(actor=""))  # no such

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Fulfil `Dialect.verdict`: it has words for it, and no codes."""
        verdict = super().verdict(error)
        words = ("no such table", "no such column", "has no column named")
        if verdict is Verdict.NO_ANSWER and any(some in str(getattr(error, "orig", "")) for some in words):
            return Verdict.OUTDATED
        return verdict
