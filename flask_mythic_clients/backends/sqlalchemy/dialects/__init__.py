"""What each database does in its own way; a new difference is a method here, never an `if` elsewhere."""

import os
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from ....errors import ConfigurationError
from .compound import Compound, Compounds
from .direct import BEGIN, COMMIT, COMMIT_AND_BEGIN, ROLLBACK, pipelined
from .mariadb import MariaDB
from .postgresql import PostgreSQL
from .ready import Rows
from .sqlite import SQLite
from .standard import Dialect, Stamp, Verdict
from .turns import Turns

__all__ = [
    "BEGIN",
    "COMMIT",
    "COMMIT_AND_BEGIN",
    "ROLLBACK",
    "Compound",
    "Compounds",
    "Dialect",
    "Rows",
    "Stamp",
    "Verdict",
    "dialect_of",
    "pipelined",
]

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


def _part_from_parent() -> None:
    """Leave to the parent of a fork its connections, and the locks that its threads had."""
    for engine, dialect in _known.items():
        engine.dispose(close=False)
        dialect.turns = Turns()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_part_from_parent)
