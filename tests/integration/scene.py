"""A host on a real database and a real Redis, with a tap between the service and the store."""

import json
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin
from flask_mythic_clients.model import Action, Reconciliation
from flask_mythic_clients.ports import KeyValueStore
from tests.hosts import Host, KeyValue, make_host

KV_KEYS = ["client:{id}", "publishable_key:{publishable_key}"]
# What stands before our statements on MariaDB: how long each may wait for a row, and for a table.
BOUNDED = "SET STATEMENT innodb_lock_wait_timeout=1, lock_wait_timeout=1 FOR "
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


@dataclass
class Scene:
    """One host, and independent eyes on both of its stores."""

    host: Host
    tap: Tap
    raw: Any
    url: str

    def add(self, id: str = "acme") -> None:
        """Insert a client, with its entries."""
        self.host.add(id=id, name="Acme", publishable_key=f"pk-{id}")
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
        with self.second_connection() as connection:
            found = connection.scalar(sa.text("SELECT status FROM clients WHERE id = :id"), {"id": id})
        return None if found is None else bool(found)

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
        at_once = {"timeout": 0} if self.url.startswith("sqlite") else {}
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, connect_args=at_once)
        with engine.connect() as connection:
            yield connection

    @property
    def kind(self) -> str:
        """The database's kind: sqlite, postgresql or mariadb."""
        return sa.make_url(self.url).get_backend_name()


def document(id: str, status: bool) -> str:
    """Return the value of `client:{id}`."""
    return json.dumps({"id": id, "name": "Acme", "status": status})


@contextmanager
def make_scene(url: str, kv: KeyValue, **options: Any) -> Iterator[Scene]:
    """Mount the package on a model with a key of its own, whose entry only the host knows."""
    db = SQLAlchemy()

    class Client(ClientMixin, db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "clients"
        publishable_key: Mapped[str | None] = mapped_column(sa.String(64))

    tap = Tap(kv.store)
    options = {"config": CONFIG, **options}
    host = make_host(url, tap, db=db, model=Client, **options)
    try:
        yield Scene(host, tap, kv.raw, url)
    finally:
        host.close()


@contextmanager
def hung_server() -> Iterator[str]:
    """Listen, and never answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
