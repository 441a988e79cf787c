"""Both real stores in memory, for one operation at a time, and to be copied at any step."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.model import DeletionRecord, Holding

from .programs import HOSTS, ID, KEYS, KNOWN, value

Row = tuple[str, bool] | None
"""Name and status; None where the row is absent."""
Begin = Callable[[MemoryRepository], AbstractContextManager[Holding]]


class Blocked(BaseException):
    """The step has to wait for another operation."""


class Turnstile:
    """Stands in for the condition of the repository: one operation runs at a time, and none may wait."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        pass

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        if not predicate():
            raise Blocked

    def notify_all(self) -> None:
        pass


class Database(NamedTuple):
    """What the repository keeps, and what its clock tells."""

    rows: dict[str, Any]
    records: dict[int, DeletionRecord]
    held: set[str]
    rows_held: set[str]
    now: datetime

    def copy(self) -> "Database":
        """Copy it, for the repository changes all of it in place."""
        rows = {id: SimpleNamespace(**vars(row)) for id, row in self.rows.items()}
        return Database(rows, dict(self.records), set(self.held), set(self.rows_held), self.now)


class Transaction(NamedTuple):
    """An open one; in a copy of the stores it can only be begun again, on what it was begun on, and then."""

    context: AbstractContextManager[Holding]
    repository: MemoryRepository
    begin: Begin
    on: Database
    records: tuple[DeletionRecord, ...]
    holds: bool


@dataclass
class Start:
    """What is in the stores where schedules start, and what `Promises` has to know of the past."""

    database: Database
    entries: dict[str, Any]
    stale: Sequence[str] = ()
    written: Sequence[str] = ()


class Stores:
    """The repository, the key-value store, and eyes on both."""

    def __init__(self, database: Database, entries: dict[str, Any]) -> None:
        self.repository = MemoryRepository()
        self.repository._changed = Turnstile()  # type: ignore[assignment]
        self._load(database.copy())
        self.kv = MemoryStore()
        self.kv._entries = dict(entries)

    def fork(self) -> "Stores":
        """Return equal stores that go their own way."""
        return Stores(self._database, self.kv._entries)

    @property
    def row(self) -> Row:
        """The row as it is now."""
        row = self.repository._rows.get(ID)
        return None if row is None else (row.name, row.status)

    @property
    def records(self) -> list[DeletionRecord]:
        """The ledger."""
        return list(self.repository._records.values())

    @property
    def entries(self) -> dict[str, Any]:
        """The entries that are there."""
        return {key: entry for key, (entry, _) in self.kv._entries.items() if key in KEYS}

    @property
    def held(self) -> set[str]:
        """The clients that are held."""
        return self.repository._held

    @property
    def now(self) -> datetime:
        """What the repository's clock tells."""
        return self.repository._clock()

    def let_pass(self, time: timedelta) -> None:
        """Let time pass on the repository's clock."""
        self._load(self._database._replace(now=self.now + time))

    def tick(self) -> None:
        """Let a moment pass."""
        now = self.now + timedelta(milliseconds=1)
        self.repository._clock = lambda: now

    def set_back(self, entries: dict[str, Any]) -> set[str]:
        """Bring the key-value store back to a copy; return the keys that are not as they were."""
        before, self.kv._entries = self.kv._entries, dict(entries)
        return {key for key in {*before, *entries} if before.get(key) != entries.get(key)}

    def enter(self, begin: Begin) -> tuple[Holding, Transaction]:
        """Begin a transaction; raises Blocked, and changes nothing, where it has to wait."""
        on = self._database.copy()
        context = begin(self.repository)
        holding = context.__enter__()
        holds = self.held != on.held
        return holding, Transaction(context, self.repository, begin, on, holding.records, holds)

    def leave(self, transaction: Transaction, error: BaseException | None = None) -> None:
        """Commit or, given an error, roll back."""
        context = transaction.context
        if transaction.repository is not self.repository:
            now = self._database
            self._load(transaction.on.copy())
            context = transaction.begin(self.repository)
            context.__enter__()
            self._load(now)
        context.__exit__(error and type(error), error, None)

    @property
    def _database(self) -> Database:
        repository = self.repository
        held = repository._held, repository._rows_held
        return Database(repository._rows, repository._records, *held, self.now)

    def _load(self, database: Database) -> None:
        repository = self.repository
        repository._rows, repository._records, repository._held, repository._rows_held, now = database
        repository._clock = lambda: now


def write_entries(kv: MemoryStore, name: str, status: bool) -> None:
    """Write the entries of a row, as its host would."""
    kv.set(KNOWN, value(name, status))
    kv.set(HOSTS, secret(name))


def secret(name: str) -> str:
    """Return the value of the entry that only the host knows."""
    return f"secret of the {name}"
