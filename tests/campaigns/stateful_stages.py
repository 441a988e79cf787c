"""The stores a random program runs on, eyes that look behind them, and faults before them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients import KeyValueStoreError, RepositoryError
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository
from flask_mythic_clients.model import Action, DeletionRecord, Holding, Recorded
from flask_mythic_clients.ports import ClientRepository, KeyValueStore, QuickSteps
from tests.hosts import KeyValue, make_host

IDS = ("ada", "bob", "cyd")

# Where a fault may strike, in the order an operation passes them, and at any look at the database.
BEFORE_RECORD, COMMIT, AFTER_RECORD = "before record", "at a commit", "after record"
BEFORE_SETTLE, BEFORE_KV, AFTER_KV = "before settle", "before kv", "after kv"
BEFORE_STAMP, AFTER_STAMP, READ = "before the stamp", "after the stamp", "at a read"
POINTS = (
    *(BEFORE_RECORD, COMMIT, AFTER_RECORD, BEFORE_SETTLE),
    *(BEFORE_KV, AFTER_KV, BEFORE_STAMP, AFTER_STAMP),
)

# What is down until somebody brings it back. A store that times out has done its work: nobody knows.
OUTAGES: Mapping[str, frozenset[str]] = {
    "kv away": frozenset({BEFORE_KV}),
    "kv unknown": frozenset({AFTER_KV}),
    "database away": frozenset({BEFORE_RECORD, BEFORE_SETTLE, READ}),
}


class Crash(BaseException):
    """The process ends here; no `except Exception` sees it."""


@dataclass(frozen=True)
class Fault:
    """A point to fail at, once: as a crash of the process, or as a store that does not answer."""

    point: str
    crash: bool


@dataclass(frozen=True)
class Row:
    """A client's row as the model knows it."""

    id: str
    name: str
    status: bool
    publishable_key: str | None

    @property
    def document(self) -> str:
        """The value of `client:{id}`, as `ClientMixin` writes it."""
        return json.dumps({"id": self.id, "name": self.name, "status": self.status})


class Faults:
    """Decides at each point whether to fail there, and remembers that it did."""

    def __init__(self, figures: Counter[str]) -> None:
        self._figures = figures
        self.armed: Fault | None = None
        self.down: frozenset[str] = frozenset()
        self.hit: str | None = None

    def meet(self, point: str) -> None:
        """Fail here, if that is to happen."""
        armed = self.armed is not None and self.armed.point == point
        if not armed and point not in self.down:
            return
        crash = armed and self.armed is not None and self.armed.crash
        self.hit, self.armed = point, None
        self._figures[f"{'crash' if crash else 'failure' if armed else 'outage'} {point}"] += 1
        if crash:
            raise Crash
        raise KeyValueStoreError if point in (BEFORE_KV, AFTER_KV) else RepositoryError


class FaultyRepository:
    """A repository with a fault before and after every step."""

    def __init__(self, repository: ClientRepository, faults: Faults) -> None:
        self._repository = repository
        self._faults = faults

    def record(self, *args: Any) -> Recorded | None:
        """Fulfil `ports.DeletionSteps.record`."""
        self._faults.meet(BEFORE_RECORD)
        changed = self._repository.record(*args)
        self._faults.meet(AFTER_RECORD)
        return changed

    @contextmanager
    def record_and_settle(self, *args: Any) -> Iterator[Any]:
        """Fulfil `ports.QuickSteps.record_and_settle`, where the repository does."""
        if not isinstance(self._repository, QuickSteps):
            yield None
            return
        self._faults.meet(BEFORE_RECORD)
        with self._repository.record_and_settle(*args) as begun:
            if begun is not None:
                self._faults.meet(AFTER_RECORD)
            if begun is None or begun.holding is None:
                yield begun and begun._replace(settle_alone=partial(self._stamp_alone, begun.settle_alone))
                return
            self._faults.meet(BEFORE_SETTLE)
            yield begun
            self._faults.meet(BEFORE_STAMP)
        self._faults.meet(AFTER_STAMP)

    def settle(self, *args: Any, **options: Any) -> Any:
        """Fulfil `ports.DeletionSteps.settle`."""
        return self._step(self._repository.settle, *args, **options)

    def settle_alone(self, *args: Any) -> DeletionRecord | None:
        """Fulfil `ports.DeletionSteps.settle_alone`."""
        return self._stamp_alone(self._repository.settle_alone, *args)

    def _stamp_alone(self, settle_alone: Callable[..., Any], *args: Any) -> Any:
        self._faults.meet(BEFORE_STAMP)
        settled = settle_alone(*args)
        self._faults.meet(AFTER_STAMP)
        return settled

    def verify(self, *args: Any, **options: Any) -> Any:
        """Fulfil `ports.DeletionSteps.verify`."""
        return self._step(self._repository.verify, *args, **options)

    @contextmanager
    def _step(self, step: Any, *args: Any, **options: Any) -> Iterator[Holding]:
        self._faults.meet(BEFORE_SETTLE)
        with step(*args, **options) as holding:
            yield holding
            self._faults.meet(BEFORE_STAMP)
        self._faults.meet(AFTER_STAMP)

    def __getattr__(self, name: str) -> Any:
        """Find any other method: they all read."""
        self._faults.meet(READ)
        return getattr(self._repository, name)


class FaultyStore:
    """A key-value store with a fault before and after its work, which is told only of committed keys."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, str | bytes]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`."""
        recorded = {key for record in self._stage.records() for key in record.kv_keys}
        # What is overwritten may be in none: a repeated soft delete or restore writes what the row owns.
        assert recorded.issuperset(remove), f"removed, but in no committed record: {set(remove) - recorded}"
        self._stage.faults.meet(BEFORE_KV)
        found = self._stage.store.apply(remove=remove, overwrite=overwrite)
        self._stage.faults.meet(AFTER_KV)
        return found


class Stage:
    """Two stores; what is counted on them; and faults, which spare the eyes and the host."""

    has_model: bool
    repository: ClientRepository
    store: KeyValueStore
    raw: Any

    def __init__(self) -> None:
        self.figures: Counter[str] = Counter()
        self.faults = Faults(self.figures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what was opened."""

    def clear(self) -> None:
        """Empty both stores for the next program."""
        self.faults = Faults(self.figures)

    def restart(self) -> None:
        """Forget what a process that ends forgets."""

    def rows(self) -> dict[str, bool]:
        """Read id → status."""
        raise NotImplementedError

    def records(self) -> list[DeletionRecord]:
        """Read the whole ledger, in the order of its ids."""
        raise NotImplementedError

    def insert(self, row: Row) -> None:
        """Insert a row, as the host does."""
        raise NotImplementedError

    def move_the_clock(self, by: timedelta) -> None:
        """Move the repository's clock forward, or back."""
        raise NotImplementedError

    def entries(self, keys: Sequence[str]) -> dict[str, str]:
        """Read those of the entries that are there."""
        return {key: value for key in keys if (value := self.raw.get(key)) is not None}


class MemoryStage(Stage):
    """Both stores in memory."""

    has_model = False

    def __init__(self, make_store: type[MemoryStore] = MemoryStore) -> None:
        super().__init__()
        self._make_store = make_store

    def clear(self) -> None:
        super().clear()
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._rows = self.repository = MemoryRepository(lambda: self._now)
        self.store = self.raw = self._make_store()

    def rows(self) -> dict[str, bool]:
        return {client.id: client.active for client in self._rows.clients()}

    def records(self) -> list[DeletionRecord]:
        return sorted((r for id in IDS for r in self._rows.history(id)), key=lambda record: record.id)

    def insert(self, row: Row) -> None:
        self._rows.add(row.id, name=row.name, status=row.status, publishable_key=row.publishable_key)

    def move_the_clock(self, by: timedelta) -> None:
        self._now += by


class RealStage(Stage):
    """A database and a key-value store of their own processes; the tables are made once."""

    has_model = True

    def __init__(self, url: str, kv: KeyValue) -> None:
        super().__init__()
        self._url = url
        self.store, self.raw = kv.store, kv.raw

    def __enter__(self) -> Self:
        db = self._db = SQLAlchemy()

        class Client(ClientMixin, db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = "clients"
            publishable_key: Mapped[str | None] = mapped_column(sa.String(64))

        self._stack = ExitStack()
        host = make_host(self._url, self.store, db=db, model=Client)
        self._stack.callback(host.close)
        self._stack.enter_context(host.flask.app_context())
        self._model = Client
        self._clients, self._ledger = Client.__table__, db.metadata.tables["client_deletions"]
        sa.event.listen(db.engine, "commit", self._commit)
        eyes = sa.create_engine(self._url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        self._eyes = self._stack.enter_context(eyes.connect())
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clear(self) -> None:
        super().clear()
        self._eyes.execute(self._clients.delete())
        self._eyes.execute(self._ledger.delete())
        if isinstance(self.raw, MemoryStore):
            self.store = self.raw = MemoryStore()
        else:
            self.raw.flushdb()

    def restart(self) -> None:
        self._db.engine.dispose()
        self.repository = SQLAlchemyRepository(self._db, self._model)

    def rows(self) -> dict[str, bool]:
        found = self._eyes.execute(sa.select(self._clients.c.id, self._clients.c.status))
        return {id: bool(status) for id, status in found.all()}

    def records(self) -> list[DeletionRecord]:
        found = self._eyes.execute(sa.select(self._ledger).order_by(self._ledger.c.id))
        return [_record(row) for row in found.mappings().all()]

    def insert(self, row: Row) -> None:
        self._eyes.execute(self._clients.insert().values(vars(row)))

    def move_the_clock(self, by: timedelta) -> None:
        """Move what was written by the clock the other way: a server's clock is not a test's to move.

        It comes to the same, for the package only ever compares what the clock wrote with what it tells.
        """
        for row in self._eyes.execute(sa.select(self._ledger)).mappings().all():
            times = {name: row[name] - by for name in _TIMES if row[name] is not None}
            self._eyes.execute(self._ledger.update().where(self._ledger.c.id == row["id"]).values(times))

    def entries(self, keys: Sequence[str]) -> dict[str, str]:
        if isinstance(self.raw, MemoryStore):
            return super().entries(keys)
        values: Iterable[str | None] = self.raw.mget(keys) if keys else []
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def _commit(self, _: sa.Connection) -> None:
        try:
            self.faults.meet(COMMIT)
        except RepositoryError:  # as a driver says it
            raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection")) from None


_TIMES = ("requested_at", "settled_at", "verified_at")


def _record(row: Mapping[Any, Any]) -> DeletionRecord:
    keys = tuple(key for key in row["kv_keys"] if key is not None)
    told = {name: row[name] for name in row if name != "digested_at"}
    told |= {name: _utc(row[name]) for name in _TIMES}
    told |= {"action": Action(row["action"]), "kv_keys": keys, "attempts": row["attempts"] or 0}
    return DeletionRecord(**told)


def _utc(time: datetime | None) -> datetime | None:
    return time and (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC))
