"""Statements as a driver takes them, compiled once by SQLAlchemy, and what it answers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from operator import itemgetter
from typing import Any, TypeAlias

import sqlalchemy as sa

_Converter: TypeAlias = Callable[[Any], Any] | None
Slot: TypeAlias = tuple[str | None, _Converter, Any]
"""The name of a parameter, and what is done to its value; or None, and a value that is always the same."""


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


def _writing_out(compiler: Any) -> Any:
    """Return a compiler that writes constants into the text: as parameters they cost their way each time."""

    def visit_bindparam(self: Any, bind: Any, **options: Any) -> Any:
        given = {**options, "literal_binds": True} if _is_plain(bind) else options
        return compiler.visit_bindparam(self, bind, **given)

    return type("Compiler", (compiler,), {"visit_bindparam": visit_bindparam})


_PLAIN = {sa.String, sa.Integer, sa.Boolean}  # not a type of the host's: it may write values in its own way


def _is_plain(bind: Any) -> bool:
    """Whether its value is always the same, and every database reads it alike."""
    if bind.required or bind.expanding or type(bind.type) not in _PLAIN:
        return False
    value = bind.effective_value
    return isinstance(value, int) or (isinstance(value, str) and not {*value} & {*"'%\\\0"})


class Ready:
    """A statement as the driver takes it: its text made once, its values as SQLAlchemy would give them."""

    def __init__(self, statement: Any, dialect: sa.Dialect, paramstyle: Any, *, heard: bool = False) -> None:
        """`paramstyle` is one with positions, of SQLAlchemy's.

        What is `heard` by the host's instrumentation has all values as parameters, beginnings of keys too.
        """
        styled: Any = copy(dialect)
        styled.paramstyle, styled.positional = paramstyle, True
        if not heard:
            styled.statement_compiler = _writing_out(styled.statement_compiler)
        compiled: Any = statement.compile(dialect=styled)
        self.text = str(compiled)
        self.is_ready = not compiled.insert_prefetch and not compiled.update_prefetch
        """Whether no value of it is to be computed in Python each time."""
        self.slots = [_slot(compiled.binds[name], name, dialect) for name in compiled.positiontup]
        self._columns = list(getattr(statement, "exported_columns", ()))
        named = {f"{column.key}": property(itemgetter(at)) for at, column in enumerate(self._columns)}
        self._row: Any = type("Row", (tuple,), {"__slots__": (), **named})
        self._dialect = dialect
        self._read: list[_Converter] | None = None

    def values(self, given: Mapping[str, Any]) -> Sequence[Any]:
        """Return what the driver takes for these parameters; others may be among them."""
        return filled(self.slots, given)

    def _as_read(self, values: Sequence[Any]) -> list[Any]:
        columns = zip(self._read or (), values, strict=True)
        return [value if read is None else read(value) for read, value in columns]

    def rows(self, cursor: Any) -> Rows:
        """Read the rows that a cursor of the driver's has."""
        if self._read is None:
            oids = [described[1] for described in cursor.description]
            self._read = [
                _converter(column.type, "result", self._dialect, oid)
                for column, oid in zip(self._columns, oids, strict=True)
            ]
        try:
            return Rows(map(self._row, map(self._as_read, cursor.fetchall())))
        except (LookupError, TypeError, ValueError):  # which quote the value
            raise sa.exc.InvalidRequestError("A column holds what the model cannot read.") from None


_OF_ENGINES = (
    *("begin", "commit", "rollback", "before_execute", "after_execute"),
    *("before_cursor_execute", "after_cursor_execute"),
)
_OF_DIALECTS = ("do_execute", "do_execute_no_params", "handle_error")


def is_unheard(engine: sa.Engine) -> bool:
    """Whether nobody listens to what SQLAlchemy sends, so that nobody misses what is sent past it."""
    if engine.logger.isEnabledFor(logging.INFO):
        return False
    heard = [getattr(engine.dispatch, name) for name in _OF_ENGINES]
    heard += [getattr(engine.dialect.dispatch, name) for name in _OF_DIALECTS]
    return not any(heard)


class Often:
    """Stands for a connection to send what is sent often: past SQLAlchemy, compiled once."""

    def __init__(self, connection: sa.Connection, ready: Callable[[Any], Ready]) -> None:
        if not connection.in_transaction():
            connection.begin()  # sends nothing: so that SQLAlchemy ends what the driver begins
        self._connection = connection
        self._ready = ready
        self._driver: Any = connection.connection.driver_connection

    def execute(self, statement: Any, parameters: Mapping[str, Any]) -> Any:
        """Send a statement. Raises SQLAlchemy's errors."""
        ready = self._ready(statement)
        if not ready.is_ready:
            return self._connection.execute(statement, parameters)
        dbapi: Any = self._connection.dialect.dbapi
        try:
            cursor = self._driver.execute(ready.text, ready.values(parameters))
            return ready.rows(cursor) if cursor.description else Rows()
        except dbapi.Error as error:
            raise translated(error, self._connection, self._driver) from error

    def commit(self) -> None:
        """Commit what was sent."""
        self._connection.commit()


def filled(slots: Sequence[Slot], given: Mapping[str, Any]) -> Sequence[Any]:
    """Return the values in the order of the slots."""
    return [
        fixed if name is None else given[name] if convert is None else convert(given[name])
        for name, convert, fixed in slots
    ]


def _slot(bind: Any, name: str, dialect: sa.Dialect) -> Slot:
    convert = _converter(bind.type, "bind", dialect)
    if bind.required:
        return name, convert, None
    return None, None, bind.effective_value if convert is None else convert(bind.effective_value)


def _converter(type_: Any, way: str, dialect: sa.Dialect, *oid: Any) -> _Converter:
    """Return what SQLAlchemy does to a type's values on the way to the driver, or back; None: nothing."""
    convert: _Converter = getattr(type_.dialect_impl(dialect), f"{way}_processor")(dialect, *oid)
    return convert


def translated(error: Any, connection: sa.Connection, driver: Any) -> Any:
    """Return SQLAlchemy's error for the driver's, without a statement and its values."""
    dialect: Any = connection.dialect
    if lost := dialect.is_disconnect(error, driver, None):
        connection.invalidate(error)
    base = dialect.dbapi.Error
    return sa.exc.DBAPIError.instance(
        "", None, error, base, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    )
