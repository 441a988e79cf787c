"""A backlog of pending records, as an outage of the key-value store leaves one; made past the package."""

import json
from datetime import UTC, datetime
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase

from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from .contestants.models import ClientColumns

_BATCH = 1000
TEMPLATES = ["client:{id}", "publishable_key:{publishable_key}"]


class Base(DeclarativeBase):
    """The host's models."""


class Client(ClientColumns, Base):
    """A client that knows the value of one of its entries."""

    def entry_values(self) -> dict[str, str]:
        """Return key → value of the entry that follows from the row."""
        return {f"client:{self.id}": document(self.id, self.status)}


def document(id: str, status: bool) -> str:
    """Return what the entry of a client holds."""
    return json.dumps({"id": id, "status": status})


def repository(engine: sa.Engine) -> SQLAlchemyRepository:
    """Return the package's repository on an engine; its ledger stands in the metadata of `Base`."""
    return SQLAlchemyRepository(engine, Client)


class Backlog:
    """So many records, every second one of a hard delete."""

    def __init__(self, url: sa.URL, redis_url: str, records: int) -> None:
        self._engine = sa.create_engine(url)
        self._redis = redis.Redis.from_url(redis_url, decode_responses=True)
        repository(self._engine)
        self._ledger = Base.metadata.tables["client_deletions"]
        self._ids = [f"b-{number:07d}" for number in range(records)]

    def prepare(self) -> None:
        """Make the tables."""
        Base.metadata.create_all(self._engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()
        self._redis.close()

    def empty(self) -> None:
        """Remove all clients and all records, and leave what the package keeps in Redis itself."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(self._ledger))
            connection.execute(sa.delete(Client))
        for batch in self._batches():
            self._redis.delete(*(key for id in batch for key in _keys(id)))

    def fill(self) -> None:
        """Make the records, the rows of those that are soft-deleted, and the old entries of all."""
        with self._engine.begin() as connection:
            for batch in self._batches():
                soft = [_row(id) for id in batch if not _is_hard(id)]
                if soft:
                    connection.execute(sa.insert(Client), soft)
                connection.execute(sa.insert(self._ledger), list(map(_record, batch)))
        for batch in self._batches():
            self._redis.mset({key: value for id in batch for key, value in _old_entries(id).items()})
        if self._engine.dialect.name == "postgresql":
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM (ANALYZE) clients, client_deletions")

    def unfinished(self) -> list[str]:
        """Return the clients that are still pending, or of which an entry is not as it must be."""
        with self._engine.connect() as connection:
            query = sa.select(self._ledger.c.client_id).where(self._ledger.c.settled_at.is_(None))
            found = list(connection.scalars(query))
        for batch in self._batches():
            values = self._redis.mget([key for id in batch for key in _keys(id)])
            for id, entries in zip(batch, zip(values[::2], values[1::2], strict=True), strict=True):
                if entries != ((None, None) if _is_hard(id) else (document(id, False), id)):
                    found.append(id)
        return sorted(set(found))

    def _batches(self) -> list[list[str]]:
        return [self._ids[start : start + _BATCH] for start in range(0, len(self._ids), _BATCH)]


def _is_hard(id: str) -> bool:
    return int(id.rpartition("-")[2]) % 2 == 0


def _keys(id: str) -> list[str]:
    return [f"client:{id}", f"publishable_key:pk-{id}"]


def _old_entries(id: str) -> dict[str, str]:
    return dict(zip(_keys(id), (document(id, True), id), strict=True))


def _row(id: str) -> dict[str, Any]:
    return {"id": id, "name": id, "publishable_key": f"pk-{id}", "status": False}


def _record(id: str) -> dict[str, Any]:
    return {
        "client_id": id,
        "action": "hard" if _is_hard(id) else "soft",
        "actor": "ops",
        "kv_keys": _keys(id),
        "requested_at": datetime.now(UTC),
    }
