"""psycopg 3 past SQLAlchemy: half the work for a statement, and several of them in one round trip.

For hosts of whom nobody listens to what SQLAlchemy sends; the others go the general way, and hear all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self, TypeAlias

import sqlalchemy as sa

from .ready import Ready, Rows, is_unheard, translated
from .standard import ISOLATION, connected, undone

BEGIN, COMMIT, ROLLBACK = f"BEGIN ISOLATION LEVEL {ISOLATION}", "COMMIT", "ROLLBACK"
COMMIT_AND_BEGIN = "COMMIT AND CHAIN"


def is_possible(engine: sa.Engine) -> bool:
    """Whether the driver can do it, and nobody would miss what is sent past SQLAlchemy."""
    driver: Any = engine.dialect.dbapi
    if engine.dialect.driver != "psycopg" or not hasattr(driver, "RawCursor"):
        return False
    return is_unheard(engine) and bool(driver.Pipeline.is_supported())


Sent: TypeAlias = str | tuple[Ready, Mapping[str, Any]]
"""What begins or ends a transaction, or a statement and its parameters."""


class Direct:
    """Stands for a connection of which each statement is a transaction by itself."""

    def __init__(self, way: "_Way", ready: Callable[[Any], Ready]) -> None:
        self.send = way.send
        self._ready = ready

    def execute(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Send a statement that is sent often. Raises SQLAlchemy's errors."""
        (rows,) = self.send((self._ready(statement), parameters or {}))
        return rows

    def commit(self) -> None:
        """Do nothing: it is committed."""


@contextmanager
def direct(engine: sa.Engine, ready: Callable[[Any], Ready]) -> Iterator[Direct]:
    """Check a connection out for single statements."""
    with connected(engine) as connection, _Way(connection) as way:
        yield Direct(way, ready)


@contextmanager
def pipelining(connection: sa.Connection, ready: Callable[[Any], Ready]) -> Iterator[Direct]:
    """Let transactions be begun by statements, on a connection that has none; many go in a round trip.

    Its `commit` ends the last one; what is raised rolls back. Sending raises SQLAlchemy's errors. Single
    statements between them go the direct way.
    """
    with _Way(connection) as way, undone(connection):
        connection.begin()  # sends nothing: so that SQLAlchemy ends what is begun here
        yield Direct(way, ready)


class _Way:
    """The driver's connection: it sends no BEGIN of its own meanwhile, and is left as it was."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._dialect: Any = connection.dialect
        driver: Any = connection.connection.driver_connection
        self._driver, self._autocommit = driver, driver.autocommit

    def __enter__(self) -> Self:
        """Raise SQLAlchemy's error where the connection is dead."""
        try:
            self._driver.autocommit = True
        except self._dialect.dbapi.Error as error:
            raise self._translated(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Roll back what is open."""
        try:
            self._driver.rollback()
            self._driver.autocommit = self._autocommit
        except self._dialect.dbapi.Error:
            self._connection.invalidate()

    def send(self, *statements: Sent) -> list[Rows]:
        """Send these in one round trip; return what those gave that are ready."""
        driver, raw = self._driver, self._dialect.dbapi.RawCursor
        try:
            with driver.pipeline() if len(statements) > 1 else nullcontext():
                cursors = [
                    driver.execute(sent, prepare=False)
                    if isinstance(sent, str)
                    # Prepared at once, unless the host has switched that off: not only the fifth time.
                    else raw(driver).execute(sent[0].text, sent[0].values(sent[1]), prepare=True)
                    for sent in statements
                ]
            answered = zip(statements, cursors, strict=True)
            return [sent[0].rows(cursor) for sent, cursor in answered if not isinstance(sent, str)]
        except self._dialect.dbapi.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: Any) -> Any:
        return translated(error, self._connection, self._driver)
