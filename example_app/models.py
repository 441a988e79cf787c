"""The example's table, and what is done at its first start."""

import random
import time

import redis
import sqlalchemy as sa
from flask import current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin

db = SQLAlchemy()

# The first is the example at /docs.
DEMO_CLIENTS = {"acme": "Acme"} | {f"demo-{number}": f"Demo client {number}" for number in (1, 2, 3)}
_TRIES = 20


class Client(ClientMixin, db.Model):  # type: ignore[name-defined, misc] # made at run time
    """A tenant of the example; owns the entries `client:{id}` and `publishable_key:{publishable_key}`."""

    __tablename__ = "clients"

    publishable_key: Mapped[str] = mapped_column(sa.String(255), unique=True)

    def entry_values(self) -> dict[str, str]:
        """Return the client's document, and its id by its publishable key."""
        return super().entry_values() | {f"publishable_key:{self.publishable_key}": self.id}


def prepare_tables(cache: "redis.Redis | MemoryStore") -> None:
    """Create the tables where they are missing, and with them the demo clients.

    Many workers may start at once: one is the quickest, the others find its work on their next try.
    """
    first = False
    for attempt in range(_TRIES):
        try:
            first = first or not sa.inspect(db.engine).has_table(Client.__tablename__)
            db.create_all()
            if first:
                _add_demo_clients(cache)
            db.session.remove()
            db.engine.dispose()  # under `gunicorn --preload` a fork comes next: no connection may outlive it
            return
        except sa.exc.DBAPIError:
            db.session.rollback()
            if attempt == _TRIES - 1:
                raise
            time.sleep(random.uniform(0.05, 0.2))


def _add_demo_clients(cache: "redis.Redis | MemoryStore") -> None:
    if db.session.scalar(sa.select(sa.func.count()).select_from(Client)):
        return
    clients = [
        Client(id=id, name=name, publishable_key=f"pk_{id.replace('-', '_')}")
        for id, name in DEMO_CLIENTS.items()
    ]
    db.session.add_all(clients)
    # Of many workers one comes past this. The entries go before the commit: until then nobody can delete a
    # client, whose entry would be written after that.
    db.session.flush()
    try:
        for client in clients:
            for key, value in client.entry_values().items():
                cache.set(key, value)
    except redis.RedisError:
        current_app.logger.warning("The demo clients have no entries yet: the key-value store is away.")
    db.session.commit()
