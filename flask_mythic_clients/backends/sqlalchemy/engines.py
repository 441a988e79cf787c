"""Where the host's engine comes from."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
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


def engines_of(
    db: Database, model: Any, metadata: sa.MetaData
) -> tuple[Callable[[], Mapping[Any, sa.Engine]], Any]:
    """Return a way to the engines of the current app, and the name of the one for tables of that metadata.

    Raises ConfigurationError for what has no engine to give.
    """
    bind_key = metadata.info.get("bind_key")
    if isinstance(db, SQLAlchemy):
        return partial(getattr, db, "engines"), bind_key
    if isinstance(db, sa.Engine):
        return partial(dict, {None: db}), None
    if callable(getattr(db, "get_engine", None)):
        if bind_key is None and hasattr(type(db), "sessionmaker"):
            return partial(_chosen, db, model), None
        return partial(getattr, db, "engines"), bind_key or "default"
    if callable(db) and not isinstance(db, (type, Session, scoped_session, sessionmaker)):
        return partial(_called, db), None
    raise ConfigurationError(
        "db takes your app's object of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite, an Engine, or a function "
        f"that returns one, not {type(db).__name__}."
    )


def address(engine: sa.Engine) -> str:
    """Return where an engine's database is, without the name and the password of a user."""
    url, where = engine.url, engine.url.query
    # Where it is not in the URL's own parts; `options` may name a schema.
    sockets = [f"{where.get(name, '')}" for name in ("host", "port", "unix_socket", "options")]
    name = url.database or ""
    if url.get_backend_name() == "sqlite":
        name = str(Path(name).resolve())  # another process may name it from another folder
    return "|".join([url.get_backend_name(), url.host or "", f"{url.port or ''}", *sockets, name])


def _chosen(db: Any, model: Any) -> Mapping[Any, sa.Engine]:
    """Ask the app's session, which knows engines by its option `binds`."""
    return {None: db.sessionmaker().get_bind(model)}


def _called(function: Callable[[], sa.Engine]) -> Mapping[Any, sa.Engine]:
    engine = function()
    if not isinstance(engine, sa.Engine):
        raise ConfigurationError(f"db: the function returned {type(engine).__name__} in place of an Engine.")
    return {None: engine}
