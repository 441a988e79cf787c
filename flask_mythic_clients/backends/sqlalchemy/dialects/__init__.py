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
# One object for an engine, for it keeps locks and plans.
_known: WeakKeyDictionary[sa.Engine, Dialect] = WeakKeyDictionary()


def dialect_of(engine: sa.Engine) -> Dialect:
    """Return the dialect of an engine; raises ConfigurationError where there is none."""
    name = engine.dialect.name
    if name not in _DIALECTS:
        raise ConfigurationError(f"The order of steps is not proven on {name}; use {', '.join(_DIALECTS)}.")
    return _known.get(engine) or _known.setdefault(engine, _DIALECTS[name](engine.dialect))
