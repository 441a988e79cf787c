"""Sessions of our own, and of the host's class: with its listeners, in our transaction."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ...errors import ConfigurationError

Bind: TypeAlias = sa.Engine | sa.Connection
Sessions: TypeAlias = Callable[[Bind | None], Session]
"""Makes a session on an engine or a connection; on None one that writes nowhere."""
HostSession: TypeAlias = sessionmaker[Any] | scoped_session[Any] | type[Session]

_OURS: dict[str, Any] = {"autoflush": False, "expire_on_commit": False}
_LISTENED = (
    *("before_flush", "after_flush", "after_flush_postexec", "before_commit", "after_commit"),
    *("persistent_to_deleted", "after_begin", "loaded_as_persistent"),
)


plain: Sessions = partial(Session, **_OURS)
"""Makes a session that is nobody's."""


def sessions_of(db: Any, session: HostSession | None) -> Callable[[], Sessions]:
    """Return a way to the current app's sessions: those of `session=`, or else of `db`, or else plain ones.

    Raises ConfigurationError for what makes no sessions.
    """
    if session is None and isinstance(db, SQLAlchemy):
        session = db.session
    if isinstance(session, scoped_session):
        session = session.session_factory
    if session is None:
        return partial(_lites, db)
    if not isinstance(session, sessionmaker) and not (
        isinstance(session, type) and issubclass(session, Session)
    ):
        raise ConfigurationError(
            "session= takes what makes the sessions of your app: a sessionmaker, a scoped_session, or a "
            f"class derived from Session, not {type(session).__name__}."
        )
    return lambda: partial(_hosts, session)


def _lites(db: Any) -> Sessions:
    factory = getattr(db, "sessionmaker", None)
    return partial(_hosts, factory) if factory is not None else plain


def _hosts(factory: Callable[..., Session], bind: Bind | None) -> Session:
    """Make a session of the host's, which reaches the engine of `bind` through that alone.

    A session may choose its engine by itself, as Flask-SQLAlchemy's does, and would leave our transaction.
    """
    session = factory(bind=bind, **_OURS)
    if bind is None:
        return session
    choose = session.get_bind

    def get_bind(mapper: Any = None, *, clause: Any = None, **options: Any) -> Bind:
        if mapper is None and not isinstance(clause, (sa.Table, sa.UpdateBase)):
            return bind
        chosen = choose(mapper, clause=clause, **options)
        return bind if chosen.engine.url == bind.engine.url else chosen

    session.get_bind = get_bind  # type: ignore[method-assign]
    return session


def listens(sessions: Sessions) -> bool:
    """Whether something of the host's listens to what these sessions write."""
    with sessions(None) as session:
        return any(getattr(session.dispatch, name) for name in _LISTENED)
