"""Both stores of a contestant, seen past it: they are filled for a phase, and looked at behind it."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import sqlalchemy as sa

from .contestants.settings import ACTOR

POPULATION = 10_000
"""Clients that are there all the time, and old records: no index is a single page, no table seems empty."""
_BATCH = 1000


class Tables:
    """A contestant's database, and its entries in the Redis that all share."""

    def __init__(self, metadata: sa.MetaData, database_url: sa.URL, redis_url: str) -> None:
        self.url = database_url
        self._engine = sa.create_engine(database_url)
        self._redis = redis.Redis.from_url(redis_url, decode_responses=True)
        self._metadata = metadata
        self._clients = metadata.tables["clients"]
        self._deletions = metadata.tables.get("client_deletions")

    def prepare(self) -> None:
        """Make the tables, and what is always there."""
        self._metadata.create_all(self._engine)
        self._insert([f"always-{number}" for number in range(POPULATION)])
        if self._deletions is not None:
            old = datetime.now(UTC) - timedelta(days=1)
            record = {"action": "hard", "actor": ACTOR, "kv_keys": [], "requested_at": old, "settled_at": old}
            if "verified_at" in self._deletions.c:
                record["verified_at"] = old
            records = [{"client_id": f"once-{number}", **record} for number in range(POPULATION)]
            with self._engine.begin() as connection:
                connection.execute(sa.insert(self._deletions), records)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()
        self._redis.close()

    def add(self, ids: Sequence[str]) -> None:
        """Insert clients with both of their entries; leave the tables as a vacuum does."""
        self._insert(ids)
        pipeline = self._redis.pipeline(transaction=False)
        for id in ids:
            for key, value in _entries(id).items():
                pipeline.set(key, value)
        pipeline.execute()
        if self._engine.dialect.name == "postgresql":
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM (ANALYZE) " + ", ".join(self._metadata.tables))

    def halves(self, ids: Sequence[str], *, hard: bool) -> list[str]:
        """Return the clients of which a store does not hold what it must after a delete.

        A soft delete leaves the row with a false status, and the entries; a hard one nothing. Where there is
        an outbox, it holds one record of each, and that is settled.
        """
        values = self._redis.mget([key for id in ids for key in _entries(id)]) if ids else []
        found = zip(values[::2], values[1::2], strict=True)
        wrong = self.halves_in_database(ids, hard=hard)
        for id, entries in zip(ids, found, strict=True):
            if entries != ((None, None) if hard else tuple(_entries(id).values())):
                wrong.append(id)
        return sorted(set(wrong))

    def halves_in_database(self, ids: Sequence[str], *, hard: bool) -> list[str]:
        """Return those of which the database alone does not hold what it must."""
        rows = self._read(self._clients.c.id, self._clients.c.status, ids)
        wrong = [id for id in ids if rows.get(id) != (None if hard else [False])]
        if self._deletions is not None:
            c = self._deletions.c
            settled = self._read(c.client_id, c.settled_at, ids)
            wrong += [id for id in ids if len(settled.get(id, ())) != 1 or None in settled[id]]
        return wrong

    def forget(self, ids: Sequence[str]) -> None:
        """Remove the entries of a phase."""
        for start in range(0, len(ids), _BATCH):
            self._redis.delete(*(key for id in ids[start : start + _BATCH] for key in _entries(id)))

    def _insert(self, ids: Sequence[str]) -> None:
        rows = [{"id": id, "name": id, "publishable_key": f"pk-{id}", "status": True} for id in ids]
        with self._engine.begin() as connection:
            for start in range(0, len(rows), _BATCH):
                connection.execute(sa.insert(self._clients), rows[start : start + _BATCH])

    def _read(self, key: Any, value: Any, ids: Sequence[str]) -> dict[str, list[Any]]:
        """Return what the value is in each row of a client."""
        found: dict[str, list[Any]] = {}
        with self._engine.connect() as connection:
            for start in range(0, len(ids), _BATCH):
                query = sa.select(key, value).where(key.in_(ids[start : start + _BATCH]))
                for id, read in connection.execute(query):
                    found.setdefault(id, []).append(read)
        return found


def _entries(id: str) -> dict[str, str]:
    return {f"client:{id}": json.dumps({"id": id, "status": True}), f"publishable_key:pk-{id}": id}
