"""The nouns that pass between the layers; all frozen. None shows a client's keys or values in its repr."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any

from .errors import InvalidActorError, InvalidClientIdError, InvalidReasonError, InvalidRequestIdError

CLIENT_ID = re.compile(r"[a-zA-Z0-9_-]{1,255}")


def is_client_id(client_id: object) -> bool:
    """Whether the wire contract allows it as the id of a client."""
    # fullmatch: `match` with `$` lets a trailing newline through.
    return isinstance(client_id, str) and CLIENT_ID.fullmatch(client_id) is not None


def check_client_id(client_id: str) -> None:
    """Refuse an id that the wire contract does not allow; raises InvalidClientIdError."""
    if not is_client_id(client_id):
        raise InvalidClientIdError(client_id)


def is_text(text: object) -> bool:
    """Whether the ledger takes it as a reason: one line, that can be printed."""
    return isinstance(text, str) and 0 < len(text) <= 500 and text.isprintable()


def is_actor(text: object) -> bool:
    """Whether the ledger takes it as the name of an actor: a text that every database can hold."""
    if not isinstance(text, str) or not text or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_request_id(text: object) -> bool:
    """Whether the ledger takes it as the id of a request, and a header of an answer has room for it."""
    return isinstance(text, str) and 0 < len(text) <= 128 and text.isascii() and text.isprintable()


def check_caller(client_id: str, actor: object, reason: object) -> None:
    """Refuse who asks, and why, if the ledger does not take it; raises InvalidActorError, InvalidReasonError.

    A reason may be None.
    """
    if not is_actor(actor):
        raise InvalidActorError(client_id)
    if reason is not None and not is_text(reason):
        raise InvalidReasonError(client_id)


class Action(StrEnum):
    """What a deletion record tells was done."""

    SOFT = "soft"
    HARD = "hard"
    RESTORE = "restore"


class HardDelete(StrEnum):
    """The hard-delete guard."""

    ALLOW = "allow"
    AFTER_SOFT_DELETE = "after-soft-delete"
    DENY = "deny"


class SoftDeleteEntries(StrEnum):
    """What a soft delete does to entries."""

    REWRITE = "rewrite"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Client:
    """A client as its row was read; `row` is the host's own object."""

    id: str
    active: bool
    row: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """The wish that step 1 records."""

    client_id: str
    action: Action
    actor: str
    only_if_inactive: bool = False
    reason: str | None = field(default=None, repr=False)
    request_id: str | None = None
    requested_at: datetime | None = None
    """Of a replay, when it was asked for first: it is recorded if it is not, also if nothing is to change."""
    seen: "Inactive | None" = None
    """Of a purge, what it goes by: a client that is not inactive in that way any more is left."""

    def check(self) -> None:
        """Refuse what the ledger does not take.

        Raises InvalidClientIdError, InvalidActorError, InvalidReasonError, InvalidRequestIdError.
        """
        check_client_id(self.client_id)
        check_caller(self.client_id, self.actor, self.reason)
        if self.request_id is not None and not is_request_id(self.request_id):
            raise InvalidRequestIdError(self.client_id)

    @property
    def needs_a_look(self) -> bool:
        """Whether more decides about it than the client's row."""
        return self.seen is not None or self.requested_at is not None

    def applies_to(self, client: Client) -> bool:
        """Whether the client is one that this change would change."""
        match self.action:
            case Action.SOFT:
                return client.active
            case Action.RESTORE:
                return not client.active
            case Action.HARD:
                return not (self.only_if_inactive and client.active)


@dataclass(frozen=True, slots=True)
class DeletionRecord:
    """A line of the ledger; pending while `settled_at` is None. Times are the repository's, aware, in UTC.

    Long after it was verified, it has in place of its keys `kv_digests`: of each the SHA-256, in hex.
    `reason` is what the caller gave as one, and `request_id` what its request had as one.
    `attempts` counts how often a reconcile tried in vain; `last_error` is what it met last.
    `kind` is the name under which its kind of client was mounted; the service says it, not the repository.
    """

    id: int
    client_id: str
    action: Action
    actor: str
    kv_keys: tuple[str, ...] = field(repr=False)
    requested_at: datetime
    settled_at: datetime | None = None
    verified_at: datetime | None = None
    attempts: int = 0
    last_error: str | None = None
    kv_digests: tuple[str, ...] = ()
    reason: str | None = field(default=None, repr=False)
    kind: str = "clients"
    request_id: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """The SHA-256 of each key, in hex, whether the record has the keys or only those."""
        return tuple(sha256(key.encode()).hexdigest() for key in self.kv_keys) or self.kv_digests


@dataclass(frozen=True, slots=True)
class Recorded:
    """What step 1 has done."""

    record: DeletionRecord
    alone: bool
    """Whether no other record of the client was pending, as far as the step could see."""

    @property
    def skips_hold(self) -> bool:
        """Whether the entries may be removed before the record is held: `settle_alone` stamps it."""
        return self.alone and self.record.action is Action.HARD


@dataclass(frozen=True, slots=True)
class Batch:
    """Clients by what step 1 did with each; of those that are in none of these sets nothing was to change."""

    recorded: frozenset[str]
    held: frozenset[str] = frozenset()
    """Left, for another transaction holds them."""
    alone: frozenset[str] = frozenset()
    """Left, for each has to be changed alone: the host's mapping has more to do."""

    def __add__(self, other: "Batch") -> "Batch":
        return Batch(self.recorded | other.recorded, self.held | other.held, self.alone | other.alone)


class Result(StrEnum):
    """What came of one client among many."""

    DONE = "done"
    FAILED = "failed"
    HELD = "held by another"
    UNRECORDED = "of unknown age"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one client among many; `cause` of the failed tells why."""

    client_id: str
    result: Result = Result.DONE
    cause: str | None = None
    alone: bool = False
    """Whether it was changed alone, for the host's mapping, or a trigger, has more to do."""


@dataclass(frozen=True, slots=True)
class Inactive:
    """A client that is inactive, and whether `for_at_least` so long; None if nobody knows since when."""

    client_id: str
    expired: bool | None
    for_at_least: timedelta


@dataclass(frozen=True, slots=True)
class Holding:
    """Records held by an open transaction, and their clients as they are now (id → client).

    A client that is gone is missing from `clients`; one that another transaction holds is among the `left`.
    """

    records: tuple[DeletionRecord, ...]
    clients: Mapping[str, Client]
    left: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """How far a key-value store remembers: what was done before the reconcile that `began` then.

    Both times are the database's. `needs_audit` once the store had lost what the ledger has no keys of any
    more, until somebody says that it was audited. As text, two times in ISO 8601 with a blank between them,
    and the word `audit` where it needs one.
    """

    began: datetime
    ended: datetime
    needs_audit: bool = False

    @classmethod
    def read(cls, text: str | bytes) -> "Mark | None":
        """Return the mark that was written so; None where somebody else has written something else."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        try:
            first, second, *rest = text.split(" ")
            began, ended = map(datetime.fromisoformat, (first, second))
        except ValueError:
            return None
        is_one = began.tzinfo and ended.tzinfo and rest in ([], [_AUDIT])
        return cls(began, ended, bool(rest)) if is_one else None

    @staticmethod
    def oldest(marks: "Iterable[Mark | None]") -> "Mark | None":
        """Return the oldest, which needs an audit if one of them does; None where one is missing."""
        found = list(marks)
        there = [mark for mark in found if mark is not None]
        if not there or len(there) < len(found):
            return None
        return replace(min(there), needs_audit=any(mark.needs_audit for mark in there))

    def __str__(self) -> str:
        told = f"{self.began.isoformat()} {self.ended.isoformat()}"
        return f"{told} {_AUDIT}" if self.needs_audit else told


_AUDIT = "audit"

OVERDUE = timedelta(minutes=5)
"""For how long a record may be due before somebody should look why reconcile does not run."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many records are pending, since how long the oldest, and how many are to be verified.

    `due` are all that are to be verified now, `overdue` those that have been for over five minutes, `failed`
    those of either kind that a reconcile tried in vain.
    """

    pending: int = 0
    oldest: timedelta | None = None
    due: int = 0
    overdue: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """How it stands; `backlog` is None where the database is away, and each cause where its store is well.

    `last_reconcile` is how long ago the last one ended that has gone all the way; None where the key-value
    store does not know of one. `needs_audit` is what the key-value store's mark says; None where it is away.
    """

    backlog: Backlog | None
    last_reconcile: timedelta | None
    database_away: str | None
    kv_away: str | None
    needs_audit: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is pending, has failed, is overdue or away, and no audit is needed."""
        backlog = self.backlog
        return not (
            self.needs_audit
            or self.database_away is not None
            or self.kv_away is not None
            or (backlog is not None and (backlog.pending or backlog.failed or backlog.overdue))
        )


class Fate(StrEnum):
    """What a change makes of rows that refer to the client."""

    REMOVED = "removed"
    UNLINKED = "set to NULL"
    KEPT = "kept"
    FORBIDS = "forbids it"


@dataclass(frozen=True, slots=True)
class Dependent:
    """Rows that refer to the client by a column, `table.column`, and what would become of them."""

    column: str
    rows: int
    fate: Fate


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do: to the row, to what refers to it, and to the entries that the keys name.

    `refused` tells what forbids it; None where nothing does.
    """

    client: Client
    columns: Mapping[str, Any] = field(repr=False)
    dependents: tuple[Dependent, ...]
    kv_keys: tuple[str, ...] = field(repr=False)
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """How many records a reconcile settled and verified, and how many clients it had to leave.

    `blind` where the key-value store had lost what the ledger has no keys of any more.
    """

    settled: int
    verified: int
    failed: int
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a client; each is None where it is not known."""

    key: str = field(repr=False)
    there: bool | None
    in_line: bool | None
    """Whether it agrees with the row as that is now."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is known of a client: its row, if it has one, its entries, and its records, oldest first."""

    client: Client | None
    entries: tuple[Entry, ...]
    records: tuple[DeletionRecord, ...]


class Wrong(StrEnum):
    """What is wrong with an entry, or with all of a client."""

    STALE = "does not say what the row says"
    LEFT = "is there, though the client is inactive"
    SHARED = "seems wrong, and several clients own it: give each a key of its own"
    ORPHAN = "belongs to no client"
    UNNAMED = "the entries of the client could not be named"
    REFUSED = "the key-value store refuses it"
    HELD = "seemed wrong, and another transaction holds the client"


@dataclass(frozen=True, slots=True)
class OutOfLine:
    """What an audit has found wrong, twice.

    `client_id` is None of an entry of which nobody can tell whose it was; `key` where it is all entries of a
    client.
    """

    client_id: str | None
    key: str | None = field(repr=False)
    wrong: Wrong
    cause: str | None = None
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Looked:
    """What an audit has done since it told the last time.

    It has looked at so many clients, and so many entries to find their owners. `note` tells what it cannot
    look at. `again` seemed to be wrong, and are looked at once more after a wait.
    """

    clients: int = 0
    entries: int = 0
    found: tuple[OutOfLine, ...] = ()
    note: str | None = None
    again: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a deployment, where, and what mends it; told without a client's keys and values."""

    subject: str
    problem: str
    fix: str
    breaks: bool = True
    """Whether a deletion may break its promise, or always fails, for it; else it costs time."""
