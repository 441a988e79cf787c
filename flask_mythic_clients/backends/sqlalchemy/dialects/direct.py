"""psycopg 3 past SQLAlchemy: half the work for a statement, and several of them in one round trip.

For hosts of whom nobody listens to what SQLAlchemy sends; the others go the general way, and hear all.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from types import SimpleNamespace
from typing import Any, Self, TypeAlias

import sqlalchemy as sa

from .standard import ISOLATION, undone

BEGIN, ROLLBACK = f"BEGIN ISOLATION LEVEL {ISOLATION}", "ROLLBACK"
COMMIT_AND_BEGIN = "COMMIT AND CHAIN"
_OF_ENGINES = (
    *("begin", "commit", "rollback", "before_execute", "after_execute"),
    *("before_cursor_execute", "after_cursor_execute"),
)
_OF_DIALECTS = ("do_execute", "do_execute_no_params", "handle_error")


def is_unheard(engine: sa.Engine) -> bool:
    """Whether the driver can be used past SQLAlchemy, and nobody would miss what is sent so."""
    if engine.dialect.driver != "psycopg" or engine.logger.isEnabledFor(logging.INFO):
        return False
    heard = [getattr(engine.dispatch, name) for name in _OF_ENGINES]
    heard += [getattr(engine.dialect.dispatch, name) for name in _OF_DIALECTS]
    driver: Any = engine.dialect.dbapi
    return not any(heard) and hasattr(driver, "RawCursor") and bool(driver.Pipeline.is_supported())


class Rows(list[Any]):
    """What a statement gave, as SQLAlchemy's result has it."""

    def all(self) -> Sequence[Any]:
        """Return all rows."""
        return self

    def first(self) -> Any:
        """Return the first row, None where there is none."""
        return self[0] if self else None

    def one(self) -> Any:
        """Return the only row."""
        (row,) = self
        return row


class Ready:
    """A statement as the driver takes it: its text made once, its values as SQLAlchemy would give them."""

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        # With the server's own parameters: the driver reads the text of a long statement anew each time.
        numbered: Any = copy(dialect)
        numbered.paramstyle, numbered.positional = "numeric_dollar", True
        compiled = statement.compile(dialect=numbered)
        driver: Any = dialect.dbapi
        self._cursor, self._text = driver.RawCursor, str(compiled)
        self.is_ready = not compiled.insert_prefetch and not compiled.update_prefetch
        """Whether no value of it is to be computed in Python each time."""
        binds = {name: compiled.binds[name] for name in compiled.positiontup}
        self._given = {name: _converter(bind.type, "bind", dialect) for name, bind in binds.items()}
        self._values = self._converted(
            {name: bind.effective_value for name, bind in binds.items() if not bind.required}
        )
        self._columns = list(statement.exported_columns)
        self._names = [f"{column.key}" for column in self._columns]
        self._dialect = dialect
        self._read: list[_Converter] | None = None

    def send(self, driver: Any, given: Mapping[str, Any]) -> Any:
        """Return the driver's cursor."""
        values = self._values | self._converted(given)
        in_order = [values[name] for name in self._given]
        # Prepared at once, unless the host has switched that off: the driver would wait for the fifth time.
        return self._cursor(driver).execute(self._text, in_order, prepare=True)

    def rows(self, cursor: Any) -> Rows:
        """Read the rows."""
        if self._read is None:
            oids = [described[1] for described in cursor.description]
            self._read = [
                _converter(column.type, "result", self._dialect, oid)
                for column, oid in zip(self._columns, oids, strict=True)
            ]
        try:
            return Rows(map(self._row, cursor.fetchall()))
        except (LookupError, TypeError, ValueError):  # which quote the value
            raise sa.exc.InvalidRequestError("A column holds what the model cannot read.") from None

    def _row(self, values: Sequence[Any]) -> SimpleNamespace:
        columns = zip(self._names, self._read or (), values, strict=True)
        return SimpleNamespace(
            **{name: value if read is None else read(value) for name, read, value in columns}
        )

    def _converted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value if (convert := self._given[name]) is None else convert(value)
            for name, value in given.items()
        }


_Converter: TypeAlias = Callable[[Any], Any] | None


def _converter(type_: Any, way: str, dialect: sa.Dialect, *oid: Any) -> _Converter:
    """Return what SQLAlchemy does to a type's values on the way to the driver, or back; None: nothing."""
    convert: _Converter = getattr(type_.dialect_impl(dialect), f"{way}_processor")(dialect, *oid)
    return convert


Sent: TypeAlias = str | tuple[Ready, Mapping[str, Any]]
"""What begins or ends a transaction, or a statement and its parameters."""
Send: TypeAlias = Callable[..., list[Rows]]
"""Sends statements in one round trip; returns what those gave that are ready."""


class Direct:
    """Stands for a connection of which each statement is a transaction by itself."""

    def __init__(self, way: "_Way", ready: Callable[[Any], Ready]) -> None:
        self._way = way
        self._ready = ready

    def execute(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Send a statement that is sent often. Raises SQLAlchemy's errors."""
        (rows,) = self._way.send((self._ready(statement), parameters or {}))
        return rows

    def commit(self) -> None:
        """Do nothing: it is committed."""


@contextmanager
def direct(engine: sa.Engine, ready: Callable[[Any], Ready]) -> Iterator[Direct]:
    """Check a connection out for single statements."""
    with engine.connect() as connection, _Way(connection) as way:
        yield Direct(way, ready)


@contextmanager
def pipelined(engine: sa.Engine) -> Iterator[tuple[sa.Connection, Send]]:
    """Check a connection out for transactions that are begun by statements, many in a round trip.

    Its `commit` ends the last one; what is raised rolls back. Sending raises SQLAlchemy's errors.
    """
    with engine.connect() as connection, _Way(connection) as way, undone(connection):
        connection.begin()  # sends nothing: so that SQLAlchemy ends what is begun here
        yield connection, way.send


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
        driver = self._driver
        try:
            with driver.pipeline() if len(statements) > 1 else nullcontext():
                cursors = [
                    driver.execute(sent, prepare=False)
                    if isinstance(sent, str)
                    else sent[0].send(driver, sent[1])
                    for sent in statements
                ]
            answered = zip(statements, cursors, strict=True)
            return [sent[0].rows(cursor) for sent, cursor in answered if not isinstance(sent, str)]
        except self._dialect.dbapi.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: Any) -> Any:
        """Return SQLAlchemy's error for the driver's, without a statement and its values."""
        if lost := self._dialect.is_disconnect(error, self._driver, None):
            self._connection.invalidate(error)
        base = self._dialect.dbapi.Error
        return sa.exc.DBAPIError.instance(
            "", None, error, base, hide_parameters=True, connection_invalidated=lost, dialect=self._dialect
        )
