"""The practical limit with the guarantee: a WSGI callable on psycopg, the outbox in one statement.

Row and record change in a transaction of one statement; the entries follow; a stamp says so, which waits for
no disk, since one that is lost is only made again.
"""

import json
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import psycopg
import redis
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase

from .. import wire
from .models import ClientColumns, DeletionColumns
from .settings import ACTOR, Settings


class Base(DeclarativeBase):
    """The tables, which this contestant itself reaches by SQL alone."""


class Client(ClientColumns, Base):
    """A client."""


class Deletion(DeletionColumns, Base):
    """Its record."""


METADATA = Base.metadata
PREFIX = "/api/v1/clients/"
PHRASES = {200: "200 OK", 401: "401 Unauthorized", 404: "404 Not Found"}

RECORD = """
WITH changed AS ({change} RETURNING id, publishable_key)
INSERT INTO client_deletions (client_id, action, actor, kv_keys, requested_at)
SELECT id, '{action}', {actor},
       json_build_array('client:' || id, 'publishable_key:' || publishable_key), statement_timestamp()
FROM changed RETURNING id, kv_keys
"""
CHANGES = {
    True: "DELETE FROM clients WHERE id = {id}",
    False: "UPDATE clients SET status = false WHERE id = {id} AND status",
}
STAMP = """
UPDATE client_deletions SET settled_at = clock_timestamp()
WHERE id = {record} AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL
"""
LEFT = """
SELECT id, kv_keys FROM client_deletions WHERE client_id = %s AND action = 'hard' AND settled_at IS NULL
"""


def step_1(hard: bool, id: str, actor: str) -> str:
    """Return the statement that changes a row and records it, with these parameters written in."""
    action = "hard" if hard else "soft"
    return RECORD.format(change=CHANGES[hard].format(id=id), action=action, actor=actor)


def create_app() -> Callable[..., Iterable[bytes]]:
    """Return the app."""
    return _Bare(Settings.from_environment())


class _Bare:
    """One connection a thread, each statement a transaction by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = make_url(settings.database_url).set(drivername="postgresql")
        self._conninfo = url.render_as_string(hide_password=False)
        self._store = redis.Redis.from_url(settings.redis_url)
        self._of_thread = threading.local()
        self._steps = {hard: step_1(hard, "%s", "%s") for hard in (False, True)}
        self._stamp = STAMP.format(record="%s")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        status, body = self._serve(environ)
        sent = json.dumps(body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", f"{len(sent)}")]
        headers += wire.NO_STORE.items()
        if status == 401:
            headers.append(("WWW-Authenticate", 'Bearer realm="clients"'))
        start_response(PHRASES[status], headers)
        return [sent]

    def _serve(self, environ: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer" or not self._settings.is_admin(key):
            return 401, wire.UNAUTHORIZED
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "DELETE" or not path.startswith(PREFIX):
            return 404, wire.NOT_FOUND
        hard = parse_qs(environ["QUERY_STRING"]).get("hard") == ["true"]
        if not self._delete(path.removeprefix(PREFIX), hard):
            return 404, wire.NOT_FOUND
        return 200, wire.DELETED[hard]

    def _delete(self, client_id: str, hard: bool) -> bool:
        connection = self._connection()
        records = connection.execute(self._steps[hard], (client_id, ACTOR)).fetchall()
        if not records and hard:  # what an earlier request left
            records = connection.execute(LEFT, (client_id,)).fetchall()
        if not records and not hard:  # it already was
            found = connection.execute("SELECT 1 FROM clients WHERE id = %s", (client_id,)).fetchone()
            return found is not None
        for record, keys in records:
            if hard:
                self._store.delete(*keys)
            connection.execute(self._stamp, (record,))
        return bool(records)

    def _connection(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] | None = getattr(self._of_thread, "connection", None)
        if connection is None or connection.closed:
            connection = self._of_thread.connection = psycopg.connect(self._conninfo, autocommit=True)
        return connection
