"""A host on a real database and a real Redis, with a tap between the service and the store."""

import json
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import cycle
from typing import Any

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, Status
from flask_mythic_clients.model import Action, Reconciliation
from flask_mythic_clients.ports import KeyValueStore
from tests.hosts import Host, KeyValue, make_host

from .test_status_kinds import KINDS

KV_KEYS = ["client:{id}", "publishable_key:{publishable_key}"]
# What stands before our statements on MariaDB: how long each may wait for a row, and for a table.
IN_ONE = "BEGIN NOT ATOMIC "  # begins a compound
BOUNDED = (
    "SET STATEMENT innodb_lock_wait_timeout=1, lock_wait_timeout=1, in_predicate_conversion_threshold=0 FOR "
)
CONFIG = {"MYTHIC_CLIENTS_KV_KEYS": KV_KEYS}
AWAY = RedisStore.from_url("redis://127.0.0.1:1/0", timeout=0.2)  # nobody listens on port 1


class Crash(BaseException):
    """The process ends here; no `except Exception` sees it."""


def crash() -> None:
    """End the process, as far as a test can do that and live."""
    raise Crash


def nothing() -> None:
    """Let pass."""


class Tap:
    """A key-value store with a hook before and after each call; `store` may be exchanged."""

    def __init__(self, store: KeyValueStore) -> None:
        self.store = store
        self.before: Callable[[], None] = nothing
        self.after: Callable[[], None] = nothing
        self.calls = 0

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, str | bytes]) -> set[str]:
        self.calls += 1
        self.before()
        found = self.store.apply(remove=remove, overwrite=overwrite)
        self.after()
        return found


@dataclass(frozen=True)
class Told:
    """How a model tells that its client is active, and by which path step 1 goes; by default as ours does.

    It reads a status by what the tests want to stand there, not by what the package makes of it.
    """

    kind: str = "Boolean"
    path: str = "statement"

    def __str__(self) -> str:
        return f"{self.kind}-{self.path}".replace(" ", "-")

    def map(self, db: SQLAlchemy, table: str = "clients") -> Any:
        """Make a model with a key of its own, whose entry only the host knows."""

        def entry_values(row: Any) -> dict[str, str]:
            return {f"client:{row.id}": document(row.id, self.reads(row.status), row.name)}

        attributes = {"publishable_key": sa.Column(sa.String(64)), "entry_values": entry_values}
        if self.kind != "Boolean":  # which is the mixin's
            attributes["status"] = KINDS[self.kind][0]._copy()
        model = type(table.title(), (ClientMixin, db.Model), {"__tablename__": table, **attributes})
        for event in ("before_update", "before_delete") if self.path == "listeners" else ():
            sa.event.listen(model, event, lambda *_: None)
        return model

    @property
    def status(self) -> str | Status:
        """What the package is told."""
        status = KINDS[self.kind][1]
        return replace(status, column="status") if isinstance(status, Status) else "status"

    def writes(self, active: bool) -> Any:
        """Return the value of an active client, or of a deleted one."""
        _, _, actives, deleted = KINDS[self.kind]
        return actives[0] if active else deleted

    def reads(self, value: Any) -> bool:
        """Whether the value is an active client's; one that is nobody's fails the test."""
        value = value.rstrip() if isinstance(value, str) else value  # PostgreSQL pads CHAR with blanks
        if value == self.writes(True):
            return True
        deleted = self.writes(False)
        assert value == deleted or (isinstance(value, datetime) and isinstance(deleted, datetime)), value
        return False


class WithoutValues(Told):
    """A model that knows no values of its entries: no code of the host's sees a row."""

    def map(self, db: SQLAlchemy, table: str = "clients") -> Any:
        columns = {name: sa.Column(sa.String(64)) for name in ("name", "publishable_key")}
        columns["id"] = sa.Column(sa.String(64), primary_key=True)
        columns["status"] = sa.Column(sa.Boolean, nullable=False, default=True)
        return type("Client", (db.Model,), {"__tablename__": table, **columns})


OURS = Told()
# A sample: a time and a text by both paths, to take turns; and every kind, by the one or the other.
SOME = [Told(kind, path) for kind in ("time", "text") for path in ("statement", "listeners")]
EVERY = [Told(kind, path) for kind, path in zip(KINDS, cycle(("listeners", "statement")), strict=False)]


@dataclass
class Scene:
    """One host, and independent eyes on both of its stores."""

    host: Host
    tap: Tap
    raw: Any
    url: str
    told: Told = OURS

    def add(self, id: str = "acme") -> None:
        """Insert a client, with its entries."""
        self.host.add(id=id, name="Acme", publishable_key=f"pk-{id}", status=self.told.writes(True))
        self.cache(id, status=True)

    def cache(self, id: str = "acme", *, status: bool) -> None:
        """Write the entries as a reader of the row would."""
        self.raw.set(f"client:{id}", document(id, status))
        self.raw.set(f"publishable_key:pk-{id}", id)

    def entries(self, id: str = "acme") -> list[str]:
        """Return the keys that are there."""
        return [key for key in (f"client:{id}", f"publishable_key:pk-{id}") if self.raw.get(key) is not None]

    def status(self, id: str = "acme") -> bool | None:
        """Read the row's status on a connection of its own; None when the row is gone."""
        clients = self.host.model.__table__
        with self.second_connection() as connection:
            row = connection.execute(sa.select(clients.c.status).where(clients.c.id == id)).first()
        return None if row is None else self.told.reads(row.status)

    def act(self, action: Action, id: str = "acme") -> None:
        """Do what the action says, as a host's job would."""
        with self.host.flask.app_context():
            service = self.host.clients.service
            method = {"soft": service.soft_delete, "hard": service.hard_delete, "restore": service.restore}
            method[action](id, actor="tests")

    def reconcile(self) -> Reconciliation:
        """Reconcile, as a host's cron job would."""
        with self.host.flask.app_context():
            return self.host.clients.service.reconcile()

    def pending(self) -> int:
        """Count the pending records."""
        with self.host.flask.app_context():
            return self.host.clients.service.backlog().pending

    def agrees(self, id: str = "acme") -> bool:
        """Whether the key-value store says what the database says, and nothing is left to be done."""
        status = self.status(id)
        if status is None:
            return self.entries(id) == [] and self.pending() == 0
        return bool(self.raw.get(f"client:{id}") == document(id, status)) and self.pending() == 0

    def age(self, seconds: float = 3600) -> None:
        """Let time pass for what is in the ledger."""
        self.host.let_time_pass(seconds)

    @contextmanager
    def second_connection(self) -> Iterator[sa.Connection]:
        """Connect independently of the host, and wait for no lock."""
        with self.engine.connect() as connection:
            yield connection

    @cached_property
    def engine(self) -> sa.Engine:
        """What the eyes see the database through: kept, for a connection to MariaDB takes PyMySQL long."""
        at_once = {"timeout": 0} if self.url.startswith("sqlite") else {}
        return sa.create_engine(self.url, connect_args=at_once)

    @property
    def kind(self) -> str:
        """The database's kind: sqlite, postgresql or mariadb."""
        return sa.make_url(self.url).get_backend_name()


def document(id: str, status: bool, name: str = "Acme") -> str:
    """Return the value of `client:{id}`."""
    return json.dumps({"id": id, "name": name, "status": status})


@contextmanager
def make_scene(
    url: str, kv: KeyValue, told: Told = OURS, *, tapped: bool = True, **options: Any
) -> Iterator[Scene]:
    """Mount the package on a model that tells its status so; without the tap, the store may have a mark."""
    db, tap = SQLAlchemy(), Tap(kv.store)
    options = {"config": CONFIG, **options}
    model, columns = told.map(db), {"status": told.status}
    host = make_host(url, tap if tapped else kv.store, db=db, model=model, columns=columns, **options)  # type: ignore[arg-type]
    scene = Scene(host, tap, kv.raw, url, told)
    try:
        yield scene
    finally:
        scene.engine.dispose()
        host.close()


@contextmanager
def hung_server() -> Iterator[str]:
    """Listen, and never answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
