"""What each database does in its own way; a new difference is a method here, never an `if` elsewhere."""

from weakref import WeakKeyDictionary

import sqlalchemy as sa

from ....errors import ConfigurationError
from .mariadb import MariaDB
from .postgresql import PostgreSQL
from .sqlite import SQLite
from .standard import Dialect, Verdict

__all__ = ["KNOWN", "Dialect", "Verdict", "dialect_of"]

_DIALECTS: dict[str, type[Dialect]] = {
    "sqlite": SQLite,
    "postgresql": PostgreSQL,
    "mysql": MariaDB,  # as many a URL calls it
    "mariadb": MariaDB,
}
KNOWN: WeakKeyDictionary[sa.Engine, Dialect] = WeakKeyDictionary()
"""The dialects of the engines that were seen: one object each, for it keeps locks and plans."""


def dialect_of(engine: sa.Engine) -> Dialect:
    """Return the dialect of an engine, and make it known; raises ConfigurationError where there is none."""
    name = engine.dialect.name
    if name not in _DIALECTS:
        raise ConfigurationError(f"The order of steps is not proven on {name}; use {', '.join(_DIALECTS)}.")
    return KNOWN.setdefault(engine, _DIALECTS[name](engine.dialect))
