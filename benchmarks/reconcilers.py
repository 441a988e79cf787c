"""Those who settle a backlog, each in a process of its own: this package, and bare SQL with a pipeline.

`python -m benchmarks.reconcilers NAME PAGE` reads DATABASE_URL and REDIS_URL, and prints what it took.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis
import sqlalchemy as sa

from . import processes
from .backlog import TEMPLATES, document, repository

PACKAGE, BARE = "package", "bare"
_SECONDS = 600


@dataclass(frozen=True)
class Took:
    """Seconds, without the start of the process; its resident memory before, and at its peak."""

    seconds: float
    cpu: float
    records: int
    before_mb: float
    peak_mb: float


def run(name: str, page: int, url: sa.URL, redis_url: str) -> Took:
    """Let one settle all that is pending, in a new process."""
    environment = {"DATABASE_URL": url.render_as_string(hide_password=False), "REDIS_URL": redis_url}
    pipe = subprocess.PIPE
    arguments = ("-m", __name__, name, f"{page}")
    with processes.python(*arguments, environment=environment, stdout=pipe, text=True) as process:
        told, _ = process.communicate(timeout=_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{name} has failed.")
    return Took(**json.loads(told))


def _package(url: sa.URL, redis_url: str, page: int) -> Callable[[], int]:  # noqa: ARG001 # it has its own
    from flask import Flask

    from flask_mythic_clients import MythicClients
    from flask_mythic_clients.backends.redis import RedisStore
    from flask_mythic_clients.options import seldom_collected

    app = Flask("host")
    app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {"ops": "sha256:" + "0" * 64}
    app.config["MYTHIC_CLIENTS_KV_KEYS"] = TEMPLATES
    clients = MythicClients(
        app, repository=repository(sa.create_engine(url)), kv=RedisStore.from_url(redis_url)
    )

    def reconcile() -> int:
        with app.app_context(), seldom_collected():  # as by the command
            return clients.service.reconcile().settled

    return reconcile


def _bare(url: sa.URL, redis_url: str, page: int) -> Callable[[], int]:
    connection, sql = _postgresql(url) if url.get_backend_name() == "postgresql" else _mariadb(url)
    store = redis.Redis.from_url(redis_url)
    store.ping()

    def settle() -> int:
        done = 0
        while records := _page(connection, sql, store, page):
            done += records
        return done

    return settle


def _page(connection: Any, sql: "_Sql", store: redis.Redis, page: int) -> int:
    """Hold, stamp and read a page, bring its entries in line, commit; return how many records it had."""
    cursor = connection.cursor()
    cursor.execute(_PENDING, (page,))
    records = cursor.fetchall()
    if not records:
        connection.rollback()
        return 0
    ids, client_ids = ([record[column] for record in records] for column in (0, 1))
    cursor.execute(*sql.of("UPDATE client_deletions SET settled_at = {now} WHERE id", ids))
    cursor.execute(*sql.of("SELECT id, status FROM clients WHERE id", client_ids))
    rows = dict(cursor.fetchall())
    pipeline = store.pipeline(transaction=False)
    for _, id, _, keys in records:
        if id in rows:
            pipeline.set(f"client:{id}", document(id, bool(rows[id])), xx=True, keepttl=True)
        else:
            pipeline.unlink(*(keys if isinstance(keys, list) else json.loads(keys)))
    pipeline.execute()
    connection.commit()
    return len(records)


_PENDING = """
SELECT id, client_id, action, kv_keys FROM client_deletions
WHERE digested_at IS NULL AND verified_at IS NULL AND settled_at IS NULL ORDER BY id LIMIT %s FOR UPDATE
"""


@dataclass(frozen=True)
class _Sql:
    """How a database says "now", and "one of these"."""

    now: str
    is_array: bool

    def of(self, statement: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
        """Return a statement about these, and its parameters."""
        told = statement.format(now=self.now)
        if self.is_array:
            return f"{told} = ANY(%s)", (list(values),)
        return f"{told} IN ({', '.join(['%s'] * len(values))})", tuple(values)


def _postgresql(url: sa.URL) -> tuple[Any, _Sql]:
    import psycopg

    conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(conninfo), _Sql("clock_timestamp()", is_array=True)


def _mariadb(url: sa.URL) -> tuple[Any, _Sql]:
    import pymysql

    where = {"host": url.host, "port": url.port, "user": url.username, "database": url.database}
    return pymysql.connect(**where, charset="utf8mb4"), _Sql("utc_timestamp(6)", is_array=False)  # type: ignore[arg-type]


def main() -> None:
    """Settle, and print what it took."""
    name, page = sys.argv[1], int(sys.argv[2])
    url = sa.make_url(os.environ["DATABASE_URL"])
    settle = {PACKAGE: _package, BARE: _bare}[name](url, os.environ["REDIS_URL"], page)
    before, cpu, began = processes.memory_mb(os.getpid()), time.process_time(), time.perf_counter()
    records = settle()
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    peak = processes.memory_mb(os.getpid(), peak=True)
    print(json.dumps(asdict(Took(seconds, used, records, before, peak))))


if __name__ == "__main__":
    main()
