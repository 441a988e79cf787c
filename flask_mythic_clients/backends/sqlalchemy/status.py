"""How a row says that its client is active."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from ...errors import ConfigurationError
from .dialects import Dialect

# A Boolean of such a name is true where the client is gone.
_INVERTED = re.compile(
    r"(^|_)(deleted|removed|disabled|deactivated|banned|archived|hidden|blocked|suspended|inactive|closed|revoked"
    r"|locked|trashed)$"
)


@dataclass(frozen=True)
class Status:
    """A column of any type, and the values by which it tells a deleted client from an active one.

    A client is deleted where the value is `deleted`, and active elsewhere, also at NULL; a restore writes
    `active`. Values are those of the model: text, a number, a bool, a member of an enum.
    """

    column: str
    active: Any = field(repr=False)
    deleted: Any = field(repr=False)


class StatusColumn(Protocol):
    """Reads and writes the status of a row."""

    @property
    def name(self) -> str:
        """The attribute of the model."""
        ...

    @property
    def column(self) -> sa.Column[Any]:
        """The column of its table."""
        ...

    is_time: ClassVar[bool]
    """Whether it tells since when a client is inactive."""

    def is_active(self, value: Any) -> bool:
        """Whether a client whose row has that value is active."""
        ...

    def active(self, dialect: Dialect) -> sa.ColumnElement[bool]:
        """Return the same in SQL; never null."""
        ...

    def value(self, active: bool, dialect: Dialect) -> Any:
        """Return what to write: a value of the model, or an expression that yields one."""
        ...


@dataclass(frozen=True)
class _Boolean:
    """True is active; NULL is not."""

    is_time: ClassVar[bool] = False
    name: str
    column: sa.Column[Any]

    def is_active(self, value: Any) -> bool:
        return bool(value)

    def active(self, dialect: Dialect) -> sa.ColumnElement[bool]:  # noqa: ARG002
        return self.column.is_(True)

    def value(self, active: bool, dialect: Dialect) -> Any:  # noqa: ARG002
        return active


@dataclass(frozen=True)
class _Timestamp:
    """NULL is active; else it is the time of the deletion, by the database's clock."""

    is_time: ClassVar[bool] = True
    name: str
    column: sa.Column[Any]

    def is_active(self, value: Any) -> bool:
        return value is None

    def active(self, dialect: Dialect) -> sa.ColumnElement[bool]:  # noqa: ARG002
        return self.column.is_(None)

    def value(self, active: bool, dialect: Dialect) -> Any:
        return None if active else dialect.time_for(self.column.type)


@dataclass(frozen=True)
class _Values:
    """As `Status` tells."""

    is_time: ClassVar[bool] = False
    name: str
    column: sa.Column[Any]
    values: Status

    def is_active(self, value: Any) -> bool:
        # PostgreSQL pads CHAR with blanks.
        value = value.rstrip() if isinstance(self.column.type, sa.CHAR) and value is not None else value
        return bool(value != self.values.deleted)

    def active(self, dialect: Dialect) -> sa.ColumnElement[bool]:
        if self.values.deleted is None:
            return self.column.is_not(None)
        deleted = dialect.same(self.column, sa.literal(self.values.deleted, self.column.type))
        return self.column.is_(None) | ~deleted

    def value(self, active: bool, dialect: Dialect) -> Any:  # noqa: ARG002
        return self.values.active if active else self.values.deleted


def status_column(mapper: Mapper[Any], status: str | Status) -> StatusColumn:
    """Return what `status=` means for a model.

    Raises ConfigurationError, with the columns that would do, for one that cannot tell an active client, or
    would tell the opposite.
    """
    model = mapper.class_.__name__
    if not isinstance(status, (str, Status)):
        raise ConfigurationError(f"status= takes the name of a column or a Status(…), not {status!r}.")
    name = status if isinstance(status, str) else status.column
    if name not in mapper.columns:
        raise ConfigurationError(
            f"{model} has no column {name!r}: pass status=… with one of {_candidates(mapper)}."
        )
    column = mapper.columns[name]
    if isinstance(status, Status):
        _check_values(model, column, status)
        return _Values(name, column, status)
    if isinstance(column.type, sa.Boolean):
        if _INVERTED.search(name):
            raise ConfigurationError(
                f"{model}.{name} is true where the client is gone, but true is active: write "
                f"status=Status({name!r}, active=False, deleted=True)."
            )
        return _Boolean(name, column)
    if _is_time(column):
        if column.nullable:
            return _Timestamp(name, column)
        raise ConfigurationError(
            f"{model}.{name} is a time that cannot be null, but null is active: pass status=… with one of "
            f"{_candidates(mapper)}."
        )
    raise ConfigurationError(
        f"{model}.{name} is no Boolean column and no time: pass status=… with one of {_candidates(mapper)}, "
        f"or say which values mean what, status=Status({name!r}, active=…, deleted=…)."
    )


def _is_time(column: sa.Column[Any]) -> bool:
    type_ = column.type.impl if isinstance(column.type, sa.TypeDecorator) else column.type
    return isinstance(type_, sa.DateTime)


def _candidates(mapper: Mapper[Any]) -> str:
    fit = [
        name
        for name, column in mapper.columns.items()
        if (isinstance(column.type, sa.Boolean) and not _INVERTED.search(name))
        or (_is_time(column) and column.nullable)
    ]
    return ", ".join(fit) or "… none of its columns: it has no Boolean and no nullable time"


def _check_values(model: str, column: sa.Column[Any], status: Status) -> None:
    for option, value in (("active", status.active), ("deleted", status.deleted)):
        if value is None and not column.nullable:
            raise ConfigurationError(f"{model}.{status.column} cannot be null: pass {option}=… with a value.")
        if value is not None and not _fits(column.type, value):
            raise ConfigurationError(
                f"{model}.{status.column} takes no {option}={value!r}: pass a value as the model has it."
            )
    if status.active == status.deleted:
        raise ConfigurationError(f"{model}.{status.column}: active= and deleted= are the same value.")


def _fits(type_: Any, value: Any) -> bool:
    if isinstance(type_, sa.Enum):
        return value in (list(type_.enum_class) if type_.enum_class else type_.enums)
    if isinstance(type_, sa.TypeDecorator):
        return True  # the host's own: what it tells is the database's side of it
    try:
        expected = type_.python_type
    except NotImplementedError:
        return True
    return isinstance(value, expected) and isinstance(value, bool) is (expected is bool)
