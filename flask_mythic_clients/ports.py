"""What a backend fulfils. Protocols: implement them, inherit from nothing.

`flask_mythic_clients.testing` holds the contracts in executable form.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol, runtime_checkable

from .entries import EntryRule, Value
from .model import (
    Backlog,
    Batch,
    Change,
    Client,
    DeletionRecord,
    Finding,
    Holding,
    Inactive,
    Mark,
    Preview,
    Recorded,
)


class KeyValueStore(Protocol):
    """The entries of the clients."""

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Remove and overwrite entries in one round trip; return those of `remove` that were there.

        An absent key is success: nothing to remove, and nothing to overwrite, for overwriting never
        makes an entry. An overwritten entry keeps its time to live.
        Raises KeyValueStoreError when the store did not confirm: the work may or may not be done. Where it
        refuses some keys, it does the rest, and raises EntriesRefusedError.
        """
        ...


class Run(Protocol):
    """A reconcile's run through a store, which tells whether the store was set back meanwhile."""

    mark: Mark | None
    """How far the store remembers; None where it has no mark."""

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Do what `KeyValueStore.apply` does, and count the call there, in the same round trip."""
        ...

    def close(self, mark: Mark) -> bool:
        """Set the mark, in one atomic step, if the store knows this run and all that was counted.

        Return False where it does not, or refused an entry in this run: it keeps the mark it has.
        Raises KeyValueStoreError.
        """
        ...


@runtime_checkable
class RememberingStore(KeyValueStore, Protocol):
    """A key-value store in which a mark can be left: if it comes back from a copy, so does an older mark."""

    def read_mark(self, name: str) -> Mark | None:
        """Return the mark of that name, None where there is none. Raises KeyValueStoreError."""
        ...

    def open_run(self, name: str) -> Run:
        """Read the mark, and leave a key of a new run. Raises KeyValueStoreError."""
        ...


@runtime_checkable
class ReadableStore(KeyValueStore, Protocol):
    """A key-value store of which the entries can be looked at."""

    def read(self, keys: Collection[str]) -> Mapping[str, bytes | None]:
        """Return key → value of the entries that are there; None for one that is no text, such as a hash.

        Raises KeyValueStoreError, also where it refuses to tell of one.
        """
        ...


@runtime_checkable
class ScannableStore(ReadableStore, Protocol):
    """A key-value store that can be walked through."""

    def scan(self, texts: Sequence[str]) -> Iterator[Collection[str]]:
        """Iterate over pages of the keys that are made of these texts, in turn, with any text between two.

        What is there all the while comes at least once. Raises KeyValueStoreError.
        """
        ...


@runtime_checkable
class JoinedStores(KeyValueStore, Protocol):
    """Several key-value stores that are asked as one."""

    @property
    def each(self) -> Sequence[KeyValueStore]:
        """The stores."""
        ...


@runtime_checkable
class CheckedStore(KeyValueStore, Protocol):
    """A key-value store that can be looked at before it is relied on."""

    def check_store(self, name: str) -> Iterable[Finding]:
        """Tell what is wrong with it; `name` is that of a mark, and no client's key is touched.

        Raises KeyValueStoreError where it is away.
        """
        ...


class DeletionSteps(Protocol):
    """The steps of a deletion (docs/failures.md). Every method raises RepositoryError.

    All times are the database's own, taken by the statement that writes or compares them: those who call have
    clocks of their own, which differ by minutes.
    """

    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        """Change the client's row, insert its deletion record, both or neither, and return that.

        Return None, having done nothing, where the row is absent or already so, or is active and the change
        says `only_if_inactive`, or is not inactive as it was when the change had `seen` it; or where a change
        that is taken again, which has a `requested_at`, is recorded already. What is returned
        is durable, and the row was seen to be changed: where the database kept it, or forbids the change,
        nothing has changed, and a ChangeRefusedError says what was in the way. The record's `requested_at` is
        before whatever this waited for; whether it was alone while it waited, `settle_alone` finds out.
        """
        ...

    def make_durable(self) -> None:
        """Return when all that is committed by now is as durable as what `record` has done.

        Others may not have waited for the disk, or for a standby; or their wait was cut short, as by a crash.
        The key-value store must not follow a row that may yet be lost.
        """
        ...

    def settle(self, client_ids: Collection[str], *, wait: bool = True) -> AbstractContextManager[Holding]:
        """Hold every pending record of the clients; leaving the block stamps them as settled.

        Waits for whoever holds one of them, and gives up after some time with BusyError. No record may seem
        settled before it was made: its time to be verified would come too early. Once the records are held,
        the clients are read, as they are now; all of them, also where nothing is pending. Where a single
        client is named and is not there, the record of its removal is held, unless that is settled already.
        Without `wait`, a client of which another holds a record is left out, with all its records.
        An exception in the block leaves the records pending.
        """
        ...

    def settle_alone(self, record: DeletionRecord) -> DeletionRecord | None:
        """Stamp the record as settled, without having held it, and return it as it is then.

        Return None, having done nothing, where another record of its client is pending or was settled since
        this one's `requested_at`, or this one is not pending any more: then somebody else has written the
        client's entries meanwhile, or may be about to.
        """
        ...

    def verify(
        self, client_ids: Collection[str], *, settled_for: timedelta, wait: bool = True
    ) -> AbstractContextManager[Holding]:
        """Hold the clients' records that are due; leaving the block stamps them as verified.

        Due is what has been settled for at least that long and was not verified. Until then no newer change
        of these clients can be settled: it waits, at its step 1 or its step 2, and a hard delete at its
        step 1, or `settle_alone` must refuse it. Otherwise a verifier that read a row and then paused would
        put the old value back. `wait` means what it means for `settle`; without
        it, a client whose row another holds is left out, too.
        """
        ...

    def note_failure(self, client_ids: Collection[str], error: str) -> None:
        """Count a try in vain for the clients' records that are not verified, and keep what went wrong.

        `error` tells no key and no value; 255 characters of it are kept.
        """
        ...

    def forget_keys(self, *, verified_before: datetime | None, kept: timedelta) -> int:
        """Keep digests alone of the keys of some records, and return of how many; 0 where none is left.

        They were verified before that time, if one is given, and at least `kept` ago.
        """
        ...

    def hold(self, client_ids: Collection[str], *, wait: bool = True) -> AbstractContextManager[Holding]:
        """Hold the clients as they are, and no records; newer changes wait as they do for `verify`.

        A client that has a row, and could not be held, is among those that are `left`: without `wait` one
        that another holds.
        """
        ...


class DeletionLedger(Protocol):
    """The deletion records, to read. Every method raises RepositoryError."""

    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Return a page of pending records, oldest first; the empty page is the last.

        `after` is the last record of the page before, None for the first page.
        """
        ...

    def due(self, *, settled_for: timedelta, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Return a page of records to be verified: settled for at least that long; longest first.

        Pages go on as those of `pending` do.
        """
        ...

    def done(
        self, *, since: datetime | None, before: datetime, after: DeletionRecord | None
    ) -> Sequence[DeletionRecord]:
        """Return a page of records that were verified, or else settled, within a time.

        That begins at `since`, None for as far back as there are records, and ends before `before`. Those
        that have no keys any more are left out. Pages go on as those of `pending` do, in an order of their
        own; a record that is verified meanwhile may come twice, or not at all.
        """
        ...

    def has_forgotten(self, *, since: datetime) -> bool:
        """Whether a record that was verified at or after a time has lost its keys."""
        ...

    def history(self, client_id: str) -> Sequence[DeletionRecord]:
        """Return every record of the client, oldest first; also of a client that is gone."""
        ...

    def backlog(self, *, settled_for: timedelta) -> Backlog:
        """Count what is to be done; due is what has been settled for at least that long."""
        ...

    def now(self) -> datetime:
        """Return the database's time, aware, in UTC."""
        ...

    def address(self) -> str:
        """Return what tells this ledger, in its database, from others; without a user's name and password."""
        ...


class ClientDirectory(Protocol):
    """The clients, to read. Every method raises RepositoryError."""

    def clients(self) -> Iterable[Client]:
        """Return all clients in the order of their ids."""
        ...

    def preview(self, change: Change, entries: EntryRule) -> Preview | None:
        """Do what `record` does, tell what came of it, and undo it; None where there is no client.

        What forbids the change is told, and not raised.
        """
        ...

    def check_columns(self, names: Collection[str]) -> None:
        """Refuse names that are no columns of a client; no I/O. Raises ConfigurationError."""
        ...


@runtime_checkable
class QuickSteps(Protocol):
    """Steps of which a repository takes several by one call, in fewer round trips."""

    def record_and_settle(self, change: Change, entries: EntryRule) -> AbstractContextManager["Begun | None"]:
        """Do what `record` does, `make_durable` where nothing was recorded, and then what `settle` does.

        A hard delete that was recorded alone is not settled: its holding is None. Yields None where the
        repository cannot; then nothing is held, and whatever was done `record` will find done.
        """
        ...


@runtime_checkable
class BulkSteps(Protocol):
    """Step 1 for many clients at once. Every method raises RepositoryError."""

    def record_each(self, changes: Sequence[Change], entries: EntryRule) -> Batch | None:
        """Do what `record` does for changes of one action and different clients, all in one transaction.

        A client that another transaction holds is left, and not waited for. Return None, having done
        nothing, where something forbids the change of one of them, or they take too long.
        """
        ...

    def inactive(self, *, for_at_least: timedelta, after: Inactive | None) -> Sequence[Inactive]:
        """Return a page of the inactive clients, in the order of their ids; the empty page is the last.

        Since when is told by a status that is a time, or else by `settled_at` of the client's newest record,
        if that is of a soft delete. `after` is the last one of the page before.
        """
        ...


@runtime_checkable
class Archive(Protocol):
    """The ledger as a whole, to be kept elsewhere, and pruned. Every method raises RepositoryError."""

    def records(self, *, since: datetime | None, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Return a page of the records, in the order in which they were made; the empty page is the last.

        `since` leaves out those that were requested before. `after` is the last one of the page before.
        """
        ...

    def lacking(self, records: Sequence[DeletionRecord]) -> Sequence[DeletionRecord]:
        """Return those that are not there, told by client, action and `requested_at`, in their order."""
        ...

    def prune(
        self, *, verified_before: datetime | None, kept: timedelta, after: int | None
    ) -> tuple[int, int | None]:
        """Delete some records that were verified at least `kept` ago, and before a time if one is given.

        The newest record of a client that has a row stays. Return how many were deleted, and what to pass as
        `after` for the next ones; None where there are none.
        """
        ...


@runtime_checkable
class AuditedRepository(Protocol):
    """A repository that can be compared with a key-value store. Every method raises RepositoryError."""

    def sample(self, number: int) -> Iterable[Client]:
        """Iterate over so many clients, chosen at random, each once; over all where there are fewer."""
        ...

    def fitting(self, column: str, texts: Collection[str]) -> Collection[str]:
        """Return those by which a value may be written that a row can have in the column; no I/O."""
        ...

    def owners(self, columns: Sequence[str], among: Collection[str]) -> Collection[tuple[str | None, ...]]:
        """Return the values, as text, that rows have in the columns, of rows with one of these in the first.

        A column that is NULL makes None. Rows count that are clients of another kind, too. Raises
        ConfigurationError where rows cannot be found by the first column, or a policy may hide them.
        """
        ...


class Begun(NamedTuple):
    """Both steps, as far as they are taken by one call."""

    recorded: Recorded | None
    holding: Holding | None
    settle_alone: Callable[[DeletionRecord], DeletionRecord | None]
    """Does what `DeletionSteps.settle_alone` does, within the block; None also where it could not."""


@runtime_checkable
class CheckedRepository(Protocol):
    """A repository that can be looked at before it is relied on."""

    def check_database(self, kind: str, entries: EntryRule, *, removes: bool) -> Iterable[Finding]:
        """Tell what is wrong with the database, or with the host's mapping; whatever is tried is undone.

        `removes` tells whether clients are to be removed for good. Raises RepositoryError where it is away.
        """
        ...


class ClientRepository(DeletionSteps, DeletionLedger, ClientDirectory, Protocol):
    """The clients' rows and the ledger, in one database: one guarantee, so one plug-in."""
