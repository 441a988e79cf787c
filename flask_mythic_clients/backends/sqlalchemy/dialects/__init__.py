"""What each database does in its own way; a new difference is a method here, never an `if` elsewhere."""

from weakref import WeakKeyDictionary

import sqlalchemy as sa

from ....errors import ConfigurationError
from .mariadb import MariaDB
from .postgresql import PostgreSQL
from .sqlite import SQLite
from .standard import Dialect, Verdict

__all__ = ["Dialect", "Verdict", "dialect_of"]

_DIALECTS: dict[str, type[Dialect]] = {
    "sqlite": SQLite,
    "postgresql": PostgreSQL,
    "mysql": MariaDB,  # as many a URL calls it
    "mariadb": MariaDB,
}
_of_engine: WeakKeyDictionary[sa.Engine, Dialect] = WeakKeyDictionary()


def dialect_of(engine: sa.Engine) -> Dialect:
    """Return the dialect of an engine, always the same object: it keeps a lock and plans."""
    if (known := _of_engine.get(engine)) is not None:
        return known
    name = engine.dialect.name
    if name not in _DIALECTS:
        raise ConfigurationError(f"The order of steps is not proven on {name}; use {', '.join(_DIALECTS)}.")
    return _of_engine.setdefault(engine, _DIALECTS[name](engine.dialect))
