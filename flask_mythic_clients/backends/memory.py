"""Both stores in this process: for tests of a host, and for trying things out.

Held to the same contracts as the real ones. Another process does not see them.
"""

import random
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Condition, Lock
from types import SimpleNamespace
from typing import Any

from ..entries import EntryRule, Value
from ..errors import DatabaseRefusedError, EntriesRefusedError
from ..leases import LEASE_SECONDS, get_or_fill, lease_of
from ..model import (
    OVERDUE,
    Action,
    Backlog,
    Batch,
    Change,
    Client,
    DeletionRecord,
    Holding,
    Inactive,
    Mark,
    Preview,
    Recorded,
)

_PAGE = 100


class MemoryStore:
    """A key-value store in a dictionary."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[str, tuple[Value, float | None]] = {}
        self._refused: set[str] = set()

    def __repr__(self) -> str:
        return f"<MemoryStore of {len(self._entries)} entries>"

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`."""
        with self._lock:
            for key in (*remove, *overwrite):
                self._entries.pop(lease_of(key), None)
            refused = self._refused.intersection([*remove, *overwrite])
            for key, value in overwrite.items():
                if key not in refused and (entry := self._alive(key)) is not None:
                    self._entries[key] = (value, entry[1])
            found = set()
            for key in remove:
                if key not in refused and self._alive(key) is not None:
                    del self._entries[key]
                    found.add(key)
            if refused:
                raise EntriesRefusedError(keys=refused, removed=found)
            return found

    def fetch(self, key: str, load: Callable[[], Value | None], *, expire: float) -> bytes | None:
        """Do what `RedisStore.fetch` does."""
        return get_or_fill(self, key, load, expire)

    def find(self, key: str) -> bytes | None:
        """Fulfil `leases.Leases.find`."""
        value = self.get(key)
        return value.encode() if isinstance(value, str) else value

    def read(self, keys: Collection[str]) -> dict[str, bytes | None]:
        """Fulfil `ports.ReadableStore.read`."""
        found = {key: self.find(key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def scan(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Fulfil `ports.ScannableStore.scan`, in one page."""
        pattern = re.compile(".*".join(map(re.escape, texts)), re.DOTALL)
        with self._lock:
            found = [key for key in [*self._entries] if pattern.fullmatch(key) and self._alive(key)]
        yield found

    def lease(self, key: str) -> str | None:
        """Fulfil `leases.Leases.lease`."""
        with self._lock:
            if self._alive(lease_of(key)) is not None:
                return None
            token = secrets.token_hex(8)
            self._entries[lease_of(key)] = (token, time.monotonic() + LEASE_SECONDS)
            return token

    def fill(self, key: str, token: str, value: Value | None, expire: float) -> None:
        """Fulfil `leases.Leases.fill`."""
        with self._lock:
            held = self._alive(lease_of(key))
            if held is None or held[0] != token:
                return
            del self._entries[lease_of(key)]
            if value is not None and self._alive(key) is None:
                self._entries[key] = (value, time.monotonic() + expire)

    def read_mark(self, name: str) -> Mark | None:
        """Fulfil `ports.RememberingStore.read_mark`."""
        text = self.get(f"{name}:mark")
        return None if text is None else Mark.read(text)

    def open_run(self, name: str) -> "MemoryRun":
        """Fulfil `ports.RememberingStore.open_run`."""
        return MemoryRun(self, name)

    def refuse(self, *keys: str) -> None:
        """Refuse from now on what is to be done to these keys, and to no others."""
        with self._lock:
            self._refused = set(keys)

    def replace(self, key: str, old: Value, new: Value, move_to: str | None = None) -> bool:
        """Give an entry another value, and a key, in one step; return False where it had not the old one."""
        with self._lock:
            entry = self._alive(key)
            if entry is None or entry[0] != old:
                return False
            del self._entries[key]
            self._entries[move_to or key] = (new, None)
            return True

    def flush(self) -> None:
        """Lose all entries."""
        with self._lock:
            self._entries.clear()

    def get(self, key: str) -> Value | None:
        """Return the entry's value, or None."""
        with self._lock:
            entry = self._alive(key)
            return None if entry is None else entry[0]

    def set(self, key: str, value: Value, ex: float | None = None) -> None:
        """Make or replace an entry, which expires after `ex` seconds if that is given."""
        with self._lock:
            self._entries[key] = (value, None if ex is None else time.monotonic() + ex)

    def ttl(self, key: str) -> int:
        """Return the seconds an entry has left: -1 without an end, -2 without an entry, as Redis does."""
        with self._lock:
            entry = self._alive(key)
            if entry is None:
                return -2
            return -1 if entry[1] is None else round(entry[1] - time.monotonic())

    def _alive(self, key: str) -> tuple[Value, float | None] | None:
        entry = self._entries.get(key)
        if entry is not None and entry[1] is not None and entry[1] <= time.monotonic():
            del self._entries[key]
            return None
        return entry


class MemoryRun:
    """Fulfils `ports.Run`."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store, self._name = store, name
        self._key = f"{name}:run:{secrets.token_hex(8)}"
        self._pages, self._refused = 0, False
        store.set(self._key, "0")  # first: where the store is set back in between, this is gone
        self.mark = store.read_mark(name)

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `Run.apply`."""
        self._pages += 1
        try:
            found = self._store.apply(remove=remove, overwrite=overwrite)
        except EntriesRefusedError:
            self._refused = True
            raise
        self._store.replace(self._key, f"{self._pages - 1}", f"{self._pages}")
        return found

    def close(self, mark: Mark) -> bool:
        """Fulfil `Run.close`."""
        counted, at = f"{self._pages}", f"{self._name}:mark"
        return not self._refused and self._store.replace(self._key, counted, f"{mark}", move_to=at)


class MemoryRepository:
    """Rows and ledger in this process; `clock` tells the time, aware, in UTC."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._changed = Condition()  # guards all below
        self._rows: dict[str, SimpleNamespace] = {}
        self._records: dict[int, DeletionRecord] = {}
        self._held: set[str] = set()
        self._rows_held: set[str] = set()  # by whom step 1 is kept waiting, too
        self._kept: set[str] = set()

    def add(self, id: str, *, status: bool = True, **columns: Any) -> None:
        """Add or replace a client."""
        with self._changed:
            self._rows[id] = SimpleNamespace(id=id, status=status, **columns)

    def keep(self, id: str) -> None:
        """Let this client's row be as it is, as a trigger of a database may: every change is refused."""
        with self._changed:
            self._kept.add(id)

    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        """Fulfil `ports.DeletionSteps.record`."""
        with self._changed:
            self._changed.wait_for(lambda: change.client_id not in self._rows_held)
            client = self._clients([change.client_id]).get(change.client_id)
            if self._is_overtaken(change):
                return None
            applies = client is not None and change.applies_to(client)
            if not applies and change.requested_at is None:
                return None
            record = DeletionRecord(
                id=next(reversed(self._records), 0) + 1,
                client_id=change.client_id,
                action=change.action,
                actor=change.actor,
                kv_keys=tuple(entries(client)) if client else (),
                requested_at=change.requested_at or self._clock(),
                reason=change.reason,
                request_id=change.request_id,
            )
            if applies:
                self._change(change)
                self._look(change)
            pending = [other for other in self._of([change.client_id]) if other.settled_at is None]
            self._records[record.id] = record
            return Recorded(record, alone=not pending)

    def record_each(self, changes: Sequence[Change], entries: EntryRule) -> Batch | None:
        """Fulfil `ports.BulkSteps.record_each`."""
        recorded, held = set(), set()
        with self._changed:
            if any(change.client_id in self._kept for change in changes):
                return None
            for change in changes:
                if change.client_id in self._rows_held:
                    held.add(change.client_id)
                elif self.record(change, entries) is not None:
                    recorded.add(change.client_id)
        return Batch(frozenset(recorded), frozenset(held))

    def inactive(self, *, for_at_least: timedelta, after: Inactive | None) -> Sequence[Inactive]:
        """Fulfil `ports.BulkSteps.inactive`."""
        with self._changed:
            ids = sorted(id for id, row in self._rows.items() if not row.status)
            ids = [id for id in ids if after is None or id > after.client_id][:_PAGE]
            return [Inactive(id, self._expired(id, for_at_least), for_at_least) for id in ids]

    def _expired(self, client_id: str, duration: timedelta) -> bool | None:
        """Whether the last of a client's records is a soft delete, settled so long ago; None for another."""
        records = self._of([client_id])
        if not records or records[-1].action is not Action.SOFT:
            return None
        settled_at = records[-1].settled_at
        return settled_at is not None and settled_at <= self._clock() - duration

    def _is_overtaken(self, change: Change) -> bool:
        """Whether the client is not inactive any more as it was seen, or that very change is recorded."""
        seen, at = change.seen, change.requested_at
        if seen is not None and self._expired(seen.client_id, seen.for_at_least) != seen.expired:
            return True
        recorded = self._of([change.client_id])
        return at is not None and (change.action, at) in {
            (each.action, each.requested_at) for each in recorded
        }

    def records(self, *, since: datetime | None, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.Archive.records`."""
        with self._changed:
            found = [record for record in self._records.values() if after is None or record.id > after.id]
        return [record for record in found if since is None or record.requested_at >= since][:_PAGE]

    def lacking(self, records: Sequence[DeletionRecord]) -> Sequence[DeletionRecord]:
        """Fulfil `ports.Archive.lacking`."""
        with self._changed:
            there = {(r.client_id, r.action, r.requested_at) for r in self._records.values()}
        return [r for r in records if (r.client_id, r.action, r.requested_at) not in there]

    def prune(
        self, *, verified_before: datetime | None, kept: timedelta, after: int | None
    ) -> tuple[int, int | None]:
        """Fulfil `ports.Archive.prune`, all at once."""
        with self._changed:
            until = self._clock() - kept
            newest = {record.client_id: record.id for record in self._records.values()}
            old = [
                record.id
                for record in self._records.values()
                if record.verified_at is not None
                and record.verified_at <= until
                and (verified_before is None or record.verified_at < verified_before)
                and not (record.client_id in self._rows and newest[record.client_id] == record.id)
            ]
            if after is not None or not old:
                return 0, None
            for id in old:
                del self._records[id]
            return len(old), old[-1]

    def make_durable(self) -> None:
        """Fulfil `ports.DeletionSteps.make_durable`: nothing here survives anything."""

    @contextmanager
    def settle(self, client_ids: Collection[str], *, wait: bool = True) -> Iterator[Holding]:
        """Fulfil `ports.DeletionSteps.settle`."""
        with self._hold(client_ids, wait) as held:
            yield from self._stamping(held, "settled_at", lambda each, _: each.settled_at is None)

    def settle_alone(self, record: DeletionRecord) -> DeletionRecord | None:
        """Fulfil `ports.DeletionSteps.settle_alone`."""
        with self._changed:
            if record.client_id in self._held or self._records.get(record.id) != record:
                return None
            if any(_may_write(other, record) for other in self._of([record.client_id]) if other != record):
                return None
            settled = self._records[record.id] = replace(record, settled_at=self._clock())
            return settled

    @contextmanager
    def verify(
        self, client_ids: Collection[str], *, settled_for: timedelta, wait: bool = True
    ) -> Iterator[Holding]:
        """Fulfil `ports.DeletionSteps.verify`."""
        with self._hold(client_ids, wait, rows=True) as held:
            yield from self._stamping(held, "verified_at", lambda each, at: _is_due(each, at - settled_for))

    def note_failure(self, client_ids: Collection[str], error: str) -> None:
        """Fulfil `ports.DeletionSteps.note_failure`."""
        with self._changed:
            for record in self._of(client_ids):
                if record.verified_at is None:
                    noted = replace(record, attempts=record.attempts + 1, last_error=error[:255])
                    self._records[record.id] = noted

    def forget_keys(self, *, verified_before: datetime | None, kept: timedelta) -> int:
        """Fulfil `ports.DeletionSteps.forget_keys`."""
        with self._changed:
            until = self._clock() - kept
            old = [record for record in self._records.values() if _is_old(record, until, verified_before)]
            for record in old:
                self._records[record.id] = replace(record, kv_keys=(), kv_digests=record.digests)
            return len(old)

    @contextmanager
    def hold(self, client_ids: Collection[str], *, wait: bool = True) -> Iterator[Holding]:
        """Fulfil `ports.DeletionSteps.hold`."""
        with self._hold(client_ids, wait, rows=True) as held:
            for holding in self._stamping(held, "", lambda *_: False):
                yield replace(holding, left=frozenset(client_ids) - frozenset(held))

    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.pending`."""
        with self._changed:
            found = [record for record in self._records.values() if record.settled_at is None]
        return [record for record in found if after is None or record.id > after.id][:_PAGE]

    def due(self, *, settled_for: timedelta, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.due`."""
        with self._changed:
            before = self._clock() - settled_for
            found = [record for record in self._records.values() if _is_due(record, before)]
        found.sort(key=_age)
        return [record for record in found if after is None or _age(record) > _age(after)][:_PAGE]

    def done(
        self, *, since: datetime | None, before: datetime, after: DeletionRecord | None
    ) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.done`."""
        with self._changed:
            found = [record for record in self._records.values() if _is_done(record, since, before)]
        return [record for record in found if after is None or record.id > after.id][:_PAGE]

    def has_forgotten(self, *, since: datetime) -> bool:
        """Fulfil `ports.DeletionLedger.has_forgotten`."""
        with self._changed:
            forgotten = [record.verified_at for record in self._records.values() if record.kv_digests]
        return any(at is not None and at >= since for at in forgotten)

    def history(self, client_id: str) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        with self._changed:
            return self._of([client_id])

    def backlog(self, *, settled_for: timedelta) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        with self._changed:
            now, records = self._clock(), list(self._records.values())
        ages = [now - record.requested_at for record in records if record.settled_at is None]
        due = [record for record in records if _is_due(record, now - settled_for)]
        overdue = [record for record in due if _is_due(record, now - settled_for - OVERDUE)]
        failed = [each for each in records if each.attempts and (each.settled_at is None or each in due)]
        return Backlog(len(ages), max(ages, default=None), len(due), len(overdue), len(failed))

    def now(self) -> datetime:
        """Fulfil `ports.DeletionLedger.now`."""
        return self._clock()

    def address(self) -> str:
        """Fulfil `ports.DeletionLedger.address`: there is no other."""
        return "memory"

    def clients(self) -> Sequence[Client]:
        """Fulfil `ports.ClientDirectory.clients`."""
        with self._changed:
            return list(self._clients(sorted(self._rows)).values())

    def sample(self, number: int) -> Sequence[Client]:
        """Fulfil `ports.AuditedRepository.sample`."""
        clients = self.clients()
        return random.sample(clients, min(number, len(clients)))

    def fitting(self, column: str, texts: Collection[str]) -> Collection[str]:  # noqa: ARG002
        """Fulfil `ports.AuditedRepository.fitting`: rows here may carry anything."""
        return texts

    def owners(self, columns: Sequence[str], among: Collection[str]) -> set[tuple[str | None, ...]]:
        """Fulfil `ports.AuditedRepository.owners`."""
        with self._changed:
            values = [[getattr(row, column) for column in columns] for row in self._rows.values()]
        rows = {tuple(None if value is None else f"{value}" for value in each) for each in values}
        return {row for row in rows if row[0] in among}

    def preview(self, change: Change, entries: EntryRule) -> Preview | None:
        """Fulfil `ports.ClientDirectory.preview`."""
        with self._changed:
            client = self._clients([change.client_id]).get(change.client_id)
            kept = change.client_id in self._kept
        if client is None:
            return None
        refused = DatabaseRefusedError.__doc__ if kept and change.applies_to(client) else None
        return Preview(client, vars(client.row), (), tuple(entries(client)), refused)

    def check_columns(self, names: Collection[str]) -> None:
        """Accept every name: rows here may carry any column."""

    def _change(self, change: Change) -> None:
        if change.client_id in self._kept:
            return
        if change.action is Action.HARD:
            del self._rows[change.client_id]
        else:
            self._rows[change.client_id].status = change.action is Action.RESTORE

    def _look(self, change: Change) -> None:
        """Refuse a change that was not made."""
        row, wished = self._rows.get(change.client_id), change.action is Action.RESTORE
        if row is not None and (change.action is Action.HARD or row.status is not wished):
            raise DatabaseRefusedError(change.client_id)

    @contextmanager
    def _hold(
        self, client_ids: Collection[str], wait: bool, *, rows: bool = False
    ) -> Iterator[Collection[str]]:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._held.isdisjoint(client_ids))
            held = set(client_ids) - self._held
            self._held |= held
            self._rows_held |= held if rows else set()
        try:
            yield held
        finally:
            with self._changed:
                self._held -= held
                self._rows_held -= held
                self._changed.notify_all()

    def _stamping(
        self, client_ids: Collection[str], column: str, which: Callable[[DeletionRecord, datetime], bool]
    ) -> Iterator[Holding]:
        with self._changed:  # all at one moment: or a client may be gone, and its removal not yet recorded
            at, clients = self._clock(), self._clients(client_ids)
            stamp: dict[str, Any] = {column: at}
            stamped = [replace(each, **stamp) for each in self._of(client_ids) if which(each, at)]
        yield Holding(tuple(stamped), clients)
        with self._changed:
            self._records.update((record.id, record) for record in stamped)

    def _of(self, client_ids: Collection[str]) -> list[DeletionRecord]:
        return [record for record in self._records.values() if record.client_id in client_ids]

    def _clients(self, client_ids: Collection[str]) -> dict[str, Client]:
        """Copy rows, so that a client is as it was read whatever happens to the row later."""
        rows = {id: copy(self._rows[id]) for id in client_ids if id in self._rows}
        return {id: Client(id, row.status, row) for id, row in rows.items()}


def _is_due(record: DeletionRecord, settled_before: datetime) -> bool:
    """Whether a record was settled up to then and is not verified."""
    return (
        record.settled_at is not None and record.settled_at <= settled_before and record.verified_at is None
    )


def _may_write(other: DeletionRecord, since: DeletionRecord) -> bool:
    """Whether who settles the one was, or is, at it after the other one was asked for."""
    return other.settled_at is None or other.settled_at >= since.requested_at


def _is_old(record: DeletionRecord, until: datetime, before: datetime | None) -> bool:
    """Whether a record that has its keys was verified up to a time, and before another."""
    at = record.verified_at
    return bool(record.kv_keys) and at is not None and at <= until and (before is None or at < before)


def _is_done(record: DeletionRecord, since: datetime | None, before: datetime) -> bool:
    """Whether a record that has its keys was verified, or else settled, within that time."""
    latest = record.verified_at or record.settled_at
    if not record.kv_keys or latest is None:
        return False
    return latest < before and (since is None or latest >= since)


def _age(record: DeletionRecord) -> tuple[datetime | None, int]:
    """Order settled records by when they were."""
    return (record.settled_at, record.id)
