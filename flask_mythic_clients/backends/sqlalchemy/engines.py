"""Where the host's engine comes from."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ...errors import ConfigurationError


class NamedEngines(Protocol):
    """Flask-SQLAlchemy-Lite's object, of which nothing is imported."""

    @property
    def engines(self) -> Mapping[str, sa.Engine]:
        """The engines of the current app, by their names."""
        ...


Database: TypeAlias = SQLAlchemy | NamedEngines | sa.Engine | Callable[[], sa.Engine]
"""Flask-SQLAlchemy, Flask-SQLAlchemy-Lite, an engine, or a function that returns one."""


def engines_of(db: Database, metadata: sa.MetaData) -> tuple[Callable[[], Mapping[Any, sa.Engine]], Any]:
    """Return a way to the engines of the current app, and the name of the one for tables of that metadata.

    Raises ConfigurationError for what has no engine to give.
    """
    bind_key = metadata.info.get("bind_key")
    if isinstance(db, SQLAlchemy):
        return partial(getattr, db, "engines"), bind_key
    if isinstance(db, sa.Engine):
        return partial(dict, {None: db}), None
    if callable(getattr(db, "get_engine", None)):
        return partial(getattr, db, "engines"), bind_key or "default"
    if callable(db) and not isinstance(db, (type, Session, scoped_session, sessionmaker)):
        return partial(_called, db), None
    raise ConfigurationError(
        "Pass the Flask-SQLAlchemy object of your app, or Flask-SQLAlchemy-Lite's, an Engine, or a function "
        f"that returns one, not {type(db).__name__}."
    )


def _called(function: Callable[[], sa.Engine]) -> Mapping[Any, sa.Engine]:
    engine = function()
    if not isinstance(engine, sa.Engine):
        raise ConfigurationError(f"The function passed for an Engine returned {type(engine).__name__}.")
    return {None: engine}
