"""The console at `/`: both stores side by side and live, and switches that make an outage.

All of this is the example's own, and no part of the package: a host that mounts the package has none of
these routes. They take its admin keys.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from flask import Blueprint, Response, render_template, request

from flask_mythic_clients import MythicClients, wire
from flask_mythic_clients.auth import AdminKeys, bearer_auth
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.config import Settings
from flask_mythic_clients.entries import Value, as_bytes, wished
from flask_mythic_clients.errors import KeyValueStoreError, MythicClientsError
from flask_mythic_clients.model import Client as Seen
from flask_mythic_clients.printing import keys as told
from flask_mythic_clients.rights import EVERY_RIGHT, Route

from .models import DEMO_CLIENTS, Client, db
from .stores import EmbeddedValkey, are_ours

CLIENTS_SHOWN = 20
RECORDS_SHOWN = 30
_View: TypeAlias = Callable[[], Response]
_Found: TypeAlias = Mapping[str, bytes | None]
_ALL_RIGHTS = "The console takes a key that may do everything."
_LONGEST_VALUE = 200  # characters

# Nothing from elsewhere, nothing inline, and no frame around it.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_console(
    config: Mapping[str, Any],
    clients: MythicClients,
    store: RedisStore | MemoryStore,
    valkey: EmbeddedValkey | None,
) -> Blueprint:
    """Return the page and what it asks for; with switches, if the key-value store is this process's own."""
    console = Blueprint("console", __name__)
    settings = Settings.from_config(config)
    auth = bearer_auth(AdminKeys(settings.admin_keys), _unauthorized)
    guard: Callable[[_View], _View] = auth.login_required

    def mount(method: str, name: str, act: Callable[[], wire.Body | None]) -> None:
        @guard
        def view() -> Response:
            limited = auth.current_user().may != EVERY_RIGHT
            return _answer(wire.error(403, _ALL_RIGHTS) if limited else act() or {"success": True})

        console.add_url_rule(f"/console/{name}", name, view, methods=[method])

    def state() -> wire.Body:
        switch = {"plugged": valkey.answers, "copied_at": _time(valkey.copied_at)} if valkey else None
        return {"switch": switch, **_stores(clients, store)}

    mount("GET", "state", state)
    mount("POST", "reconcile", lambda: asdict(clients.service.reconcile()))
    if valkey is not None:
        mount("POST", "unplug", valkey.unplug)
        mount("POST", "plug-in", valkey.plug_in)
        mount("POST", "forget", valkey.forget)

    @console.get("/")
    def page() -> Response:
        """Show the page; without a key it tells the demo clients' names alone."""
        html = render_template(
            "console.html",
            api=request.root_path + settings.url_prefix,
            demo_clients=DEMO_CLIENTS,
            restores=Route.RESTORE in settings.routes,
            switches=valkey is not None,
        )
        return Response(html, headers=_HEADERS)

    @console.errorhandler(MythicClientsError)
    def refuse(error: MythicClientsError) -> Response:
        return _answer(wire.refusal(error))

    @console.errorhandler(sa.exc.DBAPIError)
    def database_away(_error: sa.exc.DBAPIError) -> Response:
        return _answer(wire.error(503, "The database did not answer."))

    return console


def _stores(clients: MythicClients, store: RedisStore | MemoryStore) -> wire.Body:
    """Tell what is in both stores, the newest records first."""
    ledger = db.metadata.tables["client_deletions"]
    newest = sa.select(ledger).order_by(ledger.c.id.desc()).limit(RECORDS_SHOWN)
    records = db.session.execute(newest).all()
    first = sa.select(Client).order_by(Client.id).limit(CLIENTS_SHOWN)
    recorded = sa.select(Client).where(Client.id.in_({record.client_id for record in records}))
    rows = {row.id: row for query in (first, recorded) for row in db.session.scalars(query)}
    keys = {id: [*row.entry_values()] for id, row in rows.items()}
    for record in reversed(records):  # of a client that is gone they alone know the keys
        of_client = keys.setdefault(record.client_id, [])
        if isinstance(record.kv_keys, list):  # after some days there are digests
            of_client += [key for key in record.kv_keys if key not in of_client]
    found, away = None, None
    try:
        found = store.read([key for of_client in keys.values() for key in of_client])
    except KeyValueStoreError as error:
        away = str(error)
    return {
        "away": away,
        "pending": clients.service.backlog().pending,
        "clients": [_client(clients, id, rows.get(id), keys[id], found) for id in sorted(keys)],
        "records": list(map(_record, records)),
    }


def _client(
    clients: MythicClients, id: str, row: Client | None, keys: Sequence[str], found: _Found | None
) -> wire.Body:
    known: Mapping[str, Value] = {}
    if row is not None:
        seen = Seen(id, row.status, row)
        known = wished(seen, row.entry_values(), clients.service.soft_delete_entries).known
    return {
        "id": id,
        "name": row.name if row else DEMO_CLIENTS.get(id, ""),
        "row": "gone" if row is None else "active" if row.status else "inactive",
        "entries": [_entry(clients, key, known.get(key), found) for key in keys],
    }


def _entry(clients: MythicClients, key: str, wish: Value | None, found: _Found | None) -> wire.Body:
    """Tell what an entry says, and whether that is as the row is now: `wish`, or else it is to be absent."""
    value = found.get(key) if found else None
    if found is None:
        verdict = "unknown"
    elif key not in found:
        verdict = "absent"
    elif wish is None:
        verdict = "left"
    else:
        verdict = "agrees" if value == as_bytes(wish) else "differs"
    # Keys and values of a store that is not the example's own may be secrets.
    (name,), says = told((key,), None if are_ours() else clients.service.keys_begin), None
    if value is not None and are_ours():
        says = value.decode(errors="replace")[:_LONGEST_VALUE]
    return {"key": name, "value": says, "verdict": verdict}


def _record(record: sa.Row[Any]) -> wire.Body:
    return {
        "record": record.id,
        "client_id": record.client_id,
        "action": record.action,
        "actor": record.actor,
        "requested_at": _time(record.requested_at),
        "settled_at": _time(record.settled_at),
        "verified_at": _time(record.verified_at),
    }


def _time(time: datetime | None) -> str | None:
    if time is not None and time.tzinfo is None:  # SQLite and MariaDB give UTC without saying so
        time = time.replace(tzinfo=UTC)
    return None if time is None else time.isoformat()


def _unauthorized(token_sent: bool) -> Response:
    answer = _answer(wire.error(401, wire.UNAUTHORIZED))
    answer.headers["WWW-Authenticate"] = wire.challenge("console", "invalid_token" if token_sent else "")
    return answer


def _answer(body: wire.Body) -> Response:
    return Response(json.dumps(body), wire.code(body), wire.HEADERS)
