"""The campaign's host under gunicorn, the load on it, and eyes on both of its stores that are not its own."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from flask_mythic_clients.auth import digest

from ..hosts import ADMIN_KEY
from .host import KINDS, LEDGERS, db, document, kind_of

ROOT = Path(__file__).parents[2]
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
# What the wire contract allows for a delete of a client that was there once.
DOCUMENTED = {
    200: {"success", "deleted", "hard"},
    404: {"error", "message", "code"},
    503: {"error", "message", "code"},
}


@dataclass(frozen=True)
class Answer:
    """What came back for a request; `status` is None where the connection broke or nothing came in time."""

    client_id: str
    action: str
    status: int | None
    seconds: float
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def is_documented(self) -> bool:
        """Whether the wire contract knows this answer; a broken connection is none."""
        if self.status not in DOCUMENTED:
            return False
        body = json.loads(self.body)
        if self.action == "restore":  # the campaign's own route
            return True
        return (
            set(body) == DOCUMENTED[self.status]
            and self.headers["Content-Type"] == "application/json"
            and self.headers["Cache-Control"] == "no-store"
            and ("Retry-After" in self.headers) == (self.status == 503)
        )


@dataclass
class Served:
    """A running host."""

    port: int
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def send(
        self,
        action: str,
        client_id: str,
        *,
        connection: http.client.HTTPConnection | None = None,
        timeout: float = 30,
        **headers: str,
    ) -> Answer:
        """Send `soft`, `hard` or `restore` for a client; on the connection given, or on one of its own."""
        method, path = {
            "soft": ("DELETE", f"/api/v1/{kind_of(client_id)}/{client_id}"),
            "hard": ("DELETE", f"/api/v1/{kind_of(client_id)}/{client_id}?hard=true"),
            "restore": ("POST", f"/restore/{client_id}"),
            "reconcile": ("POST", f"/reconcile/{kind_of(client_id)}"),  # all clients of that one's kind
        }[action]
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        began = time.monotonic()
        try:
            own.request(method, path, headers=HEADERS | headers)
            answer = own.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            own.close()
            return Answer(client_id, action, None, time.monotonic() - began)
        finally:
            if connection is None:
                own.close()
        return Answer(
            client_id, action, answer.status, time.monotonic() - began, body, dict(answer.getheaders())
        )

    def call(self, method: str, path: str) -> dict[str, Any]:
        """Call another route of the host, such as `GET /pid` or `POST /die/50`; raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    def wait_until_up(self, seconds: float = 20) -> float:
        """Wait until the host answers; return how long that took."""
        began = time.monotonic()
        while True:
            try:
                self.call("GET", "/pid")
                return time.monotonic() - began
            except (OSError, http.client.HTTPException, ValueError):
                if time.monotonic() - began > seconds:
                    raise
                time.sleep(0.01)

    def command(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a command of the package in a process of its own, beside the server."""
        command = [
            sys.executable,
            "-m",
            "flask",
            "--app",
            "tests.campaigns.host",
            "mythic-clients",
            *arguments,
        ]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def reconcile(self) -> "dict[str, int]":
        """Run `reconcile` in a process of its own to its end; return what it did."""
        command = self.command("reconcile", "--json")
        out, err = finish(command)
        assert command.returncode == 0, err
        done: dict[str, int] = json.loads(out)
        return done


@contextmanager
def serve(database_url: str, redis_url: str, *, threads: int = 32, **environment: str) -> Iterator[Served]:
    """Serve the host under gunicorn, in one worker process that is replaced when it dies."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MYTHIC_", "FLASK_"))
    }
    full = inherited | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "ADMIN_KEY_DIGEST": digest(ADMIN_KEY),
        **environment,
    }
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        options = ["--preload", "--workers", "1", "--threads", f"{threads}", "--log-level", "critical"]
        options += ["--bind", f"fd://{listening.fileno()}", "--no-control-socket"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "tests.campaigns.host:create_app()"],
            cwd=ROOT,
            env=full,
            pass_fds=[listening.fileno()],
        )
        served = Served(listening.getsockname()[1], process, full)
        try:
            served.wait_until_up()
            yield served
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Load:
    """Connections that send without a pause until told to stop; `plan` names what each sends next."""

    def __init__(
        self, served: Served, connections: int, plan: Callable[[], tuple[str, str] | None], **options: Any
    ) -> None:
        self.answers: list[Answer] = []
        self._served = served
        self._plan = plan
        self._options = options
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until the plan is at its end, or the load was told to stop."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=30)
        try:
            while not self._stop.is_set() and (step := self._plan()) is not None:
                self.answers.append(self._served.send(*step, connection=connection, **self._options))
        finally:
            connection.close()

    def statuses(self) -> "Counter[int | None]":
        """Count the answers by status."""
        return Counter(answer.status for answer in self.answers)

    def undocumented(self) -> list[Answer]:
        """Return the answers that the wire contract does not know; broken connections are no answers."""
        return [a for a in self.answers if a.status is not None and not a.is_documented()]


def finish(process: "subprocess.Popen[str]", seconds: float = 300) -> tuple[str, str]:
    """Wait for a process to end, and return its output; one that does not end is killed."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that the share of all values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _by_kind(ids: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Give each kind that there is, with its clients."""
    return ((kind, list(those)) for kind, those in groupby(sorted(ids, key=kind_of), kind_of))


class Eyes:
    """Both stores, seen past the host: it makes the tables and the clients, and compares what is there."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self.urls = database_url, redis_url
        timeout = {"timeout": 30} if database_url.startswith("sqlite") else {}
        self.engine = sa.create_engine(database_url, pool_pre_ping=True, connect_args=timeout)
        self.redis = redis.Redis.from_url(redis_url, decode_responses=True)
        self.clients = {kind: db.metadata.tables[kind] for kind in KINDS}
        self.ledgers = {kind: db.metadata.tables[LEDGERS[kind]] for kind in KINDS}
        self.ledger = sa.union_all(*map(sa.select, self.ledgers.values())).subquery()  # for the eyes alone
        self.ids: list[str] = []
        self.kinds: set[str] = set()  # of which there were clients

    def prepare(self) -> None:
        """Make the tables."""
        db.metadata.create_all(self.engine)

    def close(self) -> None:
        """Give the connections back."""
        self.redis.close()
        self.engine.dispose()

    def add(self, ids: Sequence[str], *, status: bool = True) -> None:
        """Insert clients, with both of their entries."""
        self.kinds.update(map(kind_of, ids))
        with self.engine.begin() as connection:
            for kind, those in _by_kind(ids):
                row = {"name": "", "status": KINDS[kind].writes(status)}
                rows = [{"id": id, "publishable_key": f"pk-{id}", **row} for id in those]
                connection.execute(sa.insert(self.clients[kind]), rows)
        pipeline = self.redis.pipeline(transaction=False)
        for id in ids:
            pipeline.set(f"client:{id}", document(id, status))
            pipeline.set(f"publishable_key:pk-{id}", id)
        pipeline.execute()
        self.ids += ids

    def leave(self, ids: Sequence[str], action: str, **times: datetime) -> None:
        """Add clients that are soft- or hard-deleted and recorded, while their entries are old.

        So an outage of the key-value store leaves them; with `settled_at`, so does a slow reader.
        """
        self.add(ids)
        for kind, those in _by_kind(ids):
            rows = [
                {
                    "client_id": id,
                    "action": action,
                    "actor": "campaign",
                    "kv_keys": [f"client:{id}", f"publishable_key:pk-{id}"],
                    "requested_at": datetime.now(UTC),
                    **times,
                }
                for id in those
            ]
            clients = self.clients[kind]
            off = sa.update(clients).values(status=KINDS[kind].writes(False))
            change: Any = sa.delete(clients) if action == "hard" else off
            with self.engine.begin() as connection:
                connection.execute(change.where(clients.c.id.in_(those)))
                connection.execute(sa.insert(self.ledgers[kind]), rows)

    def statuses(self) -> dict[str, bool]:
        """Return id → status of the rows that are there."""
        with self.engine.connect() as connection:
            return {
                id: KINDS[kind].reads(status)
                for kind in self.kinds
                for id, status in connection.execute(sa.select(self.clients[kind].c["id", "status"]))
            }

    def rows(self) -> int:
        """Count the rows that are there."""
        with self.engine.connect() as connection:
            counts = [sa.select(sa.func.count()).select_from(table) for table in self.clients.values()]
            return sum(int(connection.scalar(count) or 0) for count in counts)

    def pending(self) -> int:
        """Count the pending records."""
        with self.engine.connect() as connection:
            count = sa.select(sa.func.count()).where(self.ledger.c.settled_at.is_(None))
            return int(connection.scalar(count) or 0)

    def records(self) -> "Counter[tuple[str, str]]":
        """Count the deletion records by client and action."""
        with self.engine.connect() as connection:
            query = sa.select(self.ledger.c.client_id, self.ledger.c.action)
            return Counter((id, action) for id, action in connection.execute(query))

    def half_deleted(self) -> list[str]:
        """Return the clients of which the stores tell different things."""
        statuses = self.statuses()
        documents = self.redis.mget([f"client:{id}" for id in self.ids])
        keys = self.redis.mget([f"publishable_key:pk-{id}" for id in self.ids])
        found = []
        for id, told, key in zip(self.ids, documents, keys, strict=True):
            agrees = (
                (told, key) == (None, None)
                if id not in statuses
                else (told, key) == (document(id, statuses[id]), id)
            )
            if not agrees:
                found.append(id)
        return found
