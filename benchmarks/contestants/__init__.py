"""The contestants: each a module beside this one, with `create_app()` and the METADATA of its tables."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

EVERYWHERE = frozenset({"postgresql", "mariadb", "sqlite"})
POSTGRESQL = frozenset({"postgresql"})
BASE = "by_hand"
"""Whom all others are compared with."""


@dataclass(frozen=True)
class Contestant:
    """One way to write the route; `told` is its line in the legend."""

    name: str
    told: str
    kind: Literal["ours", "sure", "unsure", "floor"]
    """Whose it is, and whether it finishes after a crash what it has begun."""
    databases: frozenset[str] = EVERYWHERE
    server: Literal["gunicorn", "uvicorn"] = "gunicorn"
    changes_stores: bool = True

    @property
    def factory(self) -> str:
        """Return where a server finds the app: `module:function`."""
        return f"{__name__}.{self.name}:create_app"

    @property
    def metadata(self) -> Any:
        """Return the tables that it needs; none where it changes no store."""
        return import_module(f"{__name__}.{self.name}").METADATA


ALL = (
    Contestant("package", "this package, key templates", "ours"),
    Contestant("general", "this package, an entries= function (the unit of work)", "ours"),
    Contestant(BASE, "Flask, ORM, redis-py", "unsure"),
    Contestant("outbox_by_hand", "the same with an outbox row and a second commit", "sure"),
    Contestant(
        "async_no_guarantee", "FastAPI, asyncpg, redis.asyncio", "unsure", POSTGRESQL, server="uvicorn"
    ),
    Contestant("bare", "WSGI, psycopg, the outbox in one statement", "sure", POSTGRESQL),
    Contestant("empty", "a Flask route that does nothing", "floor", POSTGRESQL, changes_stores=False),
)
