"""What each database does in its own way; a new difference is a method here, never an `if` elsewhere."""

import os
from importlib import import_module
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from ....errors import ConfigurationError
from .compound import Compound, Compounds
from .direct import BEGIN, COMMIT, COMMIT_AND_BEGIN, ROLLBACK, Direct, Sent, pipelining
from .ready import Rows
from .standard import AT_ONCE, Dialect, Stamp, Verdict, connected
from .turns import Turns

__all__ = [
    "AT_ONCE",
    "BEGIN",
    "COMMIT",
    "COMMIT_AND_BEGIN",
    "ROLLBACK",
    "Compound",
    "Compounds",
    "Dialect",
    "Direct",
    "Rows",
    "Sent",
    "Stamp",
    "Verdict",
    "connected",
    "dialect_of",
    "pipelining",
]

# Loaded when first asked for: SQLAlchemy's part for a database takes time, and megabytes.
_DIALECTS = {
    "sqlite": ("sqlite", "SQLite"),
    "postgresql": ("postgresql", "PostgreSQL"),
    "mysql": ("mariadb", "MariaDB"),  # as many a URL calls it
    "mariadb": ("mariadb", "MariaDB"),
}
# One object for an engine, for it keeps locks and plans.
_known: WeakKeyDictionary[sa.Engine, Dialect] = WeakKeyDictionary()


def dialect_of(engine: sa.Engine) -> Dialect:
    """Return the dialect of an engine; raises ConfigurationError where there is none."""
    if (known := _known.get(engine)) is not None:
        return known
    name = engine.dialect.name
    if name not in _DIALECTS:
        raise ConfigurationError(f"The order of steps is not proven on {name}; use {', '.join(_DIALECTS)}.")
    if engine.get_execution_options().get("schema_translate_map"):
        # Statements made ready would go to the tables as the models name them: another tenant's.
        raise ConfigurationError(
            "The engine has a schema_translate_map, which is not followed here: give the models their "
            "schema, or its connections a search_path or a default database."
        )
    module, class_name = _DIALECTS[name]
    made: Dialect = getattr(import_module(f".{module}", __name__), class_name)(engine.dialect)
    return _known.setdefault(engine, made)


def _part_from_parent() -> None:
    """Leave to the parent of a fork its connections, and the locks that its threads had."""
    for engine, dialect in _known.items():
        engine.dispose(close=False)
        dialect.turns = Turns()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_part_from_parent)
