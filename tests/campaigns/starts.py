"""Where the schedules of `test_interleavings.py` start: what was done to the client before."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.errors import KeyValueStoreError
from flask_mythic_clients.service import DeletionService

from .programs import ID, KEYS, NOW, RULE, SERVICE, WINDOW
from .stores import Database, Start, write_entries

LONG_AGO = NOW - timedelta(days=1)


class _Past:
    """An active client with its entries, and what then happened to it."""

    def __init__(self) -> None:
        self.now = NOW
        self.repository, self.store = MemoryRepository(lambda: self.now), MemoryStore()
        self.away = False
        self.stale: Collection[str] = ()
        self.written: Collection[str] = ()
        self.create("first")
        write_entries(self.store, "first", True)

    def apply(self, **work: Collection[str]) -> set[str]:
        """Be the key-value store."""
        if self.away:
            raise KeyValueStoreError
        return self.store.apply(**work)  # type: ignore[arg-type]

    def create(self, name: str) -> "_Past":
        """Let the host insert the row, and not yet its entries."""
        self.repository.add(ID, status=True, name=name)
        return self

    def settled(self, operation: str, when: datetime = NOW) -> "_Past":
        """Let an operation succeed."""
        self.now = when
        SERVICE[operation](DeletionService(self.repository, self, RULE, verify_after=WINDOW))
        return self

    def pending(self, operation: str) -> "_Past":
        """Let an operation find no key-value store."""
        self.away = True
        try:
            self.settled(operation)
        except KeyValueStoreError:
            self.stale = KEYS if operation == "hard" else ()
        self.away = False
        return self

    def remembered(self, when: datetime = LONG_AGO) -> "_Past":
        """Let a reconcile leave its mark."""
        self.now = when
        DeletionService(self.repository, self.store, RULE, verify_after=WINDOW).reconcile()
        return self

    def set_back(self) -> "_Past":
        """Let a reconcile verify, and the key-value store then lose all since the mark before."""
        before = dict(self.store._entries)
        self.remembered(LONG_AGO)
        self.store._entries = before
        return self.recached()

    def uncached(self) -> "_Past":
        """Let the entries expire."""
        self.store.flush()
        return self

    def recached(self) -> "_Past":
        """Let a slow reader of the active row write its entries."""
        write_entries(self.store, "first", True)
        self.written = KEYS
        return self

    def start(self) -> Start:
        """Return what has become of it."""
        database = Database(self.repository._rows, self.repository._records, set(), set(), NOW)
        return Start(database, self.store._entries, tuple(self.stale), tuple(self.written))


STARTS: Mapping[str, Start] = {
    name: past.start()
    for name, past in {
        "active": _Past(),
        "soft-deleted": _Past().settled("soft"),
        "soft-deleted, to be verified": _Past().settled("soft", LONG_AGO).recached(),
        "soft-deleted, pending": _Past().pending("soft"),
        "removed, to be verified": _Past().settled("hard", LONG_AGO).recached(),
        "removed, pending": _Past().pending("hard"),
        "removed, pending, created again": _Past().pending("hard").create("second"),
    }.items()
}

LONGER_AGO = LONG_AGO - timedelta(days=1)
# Those of a key-value store that has a mark.
REMEMBERED: Mapping[str, Start] = {
    name: past.start()
    for name, past in {
        "active": _Past().remembered(),
        "soft-deleted, to be verified": _Past().remembered(LONGER_AGO).settled("soft", LONG_AGO),
        "removed, to be verified": _Past().remembered(LONGER_AGO).settled("hard", LONG_AGO).recached(),
        "removed, soon to be verified": _Past().remembered().settled("hard").recached(),
        "removed, verified": _Past().settled("hard", LONGER_AGO).remembered(),
        "removed, verified, set back": _Past().remembered(LONGER_AGO).settled("hard", LONGER_AGO).set_back(),
        "removed, pending": _Past().remembered().pending("hard"),
    }.items()
}
# Those where a reader misses.
UNCACHED: Mapping[str, Start] = {
    name: past.uncached().start()
    for name, past in {
        "active": _Past(),
        "soft-deleted": _Past().settled("soft"),
        "soft-deleted, pending": _Past().pending("soft"),
        "removed, pending, created again": _Past().pending("hard").create("second"),
    }.items()
}
