"""What each step does to the real stores, and what can go wrong with it.

A step returns the answer that the operation gets: a class of exceptions is raised there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from flask_mythic_clients.backends.memory import MemoryRun
from flask_mythic_clients.errors import (
    DatabaseRefusedError,
    EntriesRefusedError,
    KeyValueStoreError,
    RepositoryError,
)
from flask_mythic_clients.model import Change, DeletionRecord, Holding, Mark, Recorded

from .programs import HOSTS, ID, KEYS, RULE, Call
from .stores import Begin, Row, write_entries

if TYPE_CHECKING:
    from .world import Operation, World

WHOSE = SimpleNamespace(token="")  # in place of what is drawn by lot
GOES, FAILS, UNANSWERED = "", "fails at", "gets no answer to"
KEEPS = "keeps the row at"  # the database, and raises nothing
HALF, LATE = "gets through half of", "is outlived by its"
REFUSES = "is refused a key of"
_FAULTS: Mapping[str, Sequence[str]] = {
    "record": (FAILS, UNANSWERED, KEEPS),
    "settle": (FAILS,),
    "settle alone": (FAILS, UNANSWERED),
    "verify": (FAILS,),
    "hold": (FAILS,),
    "pending": (FAILS,),
    "due": (FAILS,),
    "commit": (FAILS, UNANSWERED),
    "note failure": (FAILS,),
    "apply": (FAILS, UNANSWERED, LATE, REFUSES, HALF),
    "done": (FAILS,),
    "open run": (FAILS, UNANSWERED),
    "close run": (FAILS, UNANSWERED),
    "find": (FAILS,),
    "lease": (FAILS, UNANSWERED),
    "fill": (FAILS, UNANSWERED),
}
Command: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
"""What to remove, and what to overwrite."""


def faults(call: Call) -> Sequence[str]:
    """Return how the step can fail."""
    found = _FAULTS.get(call.name, ())
    if call.name == "apply":
        remove, overwrite = call.arguments[:2]
        left_out = {HALF: len(remove) + len(overwrite) < 2, REFUSES: HOSTS not in remove}
        return [fault for fault in found if not left_out.get(fault)]
    return found


class RefusedKeyError(EntriesRefusedError):
    """The key-value store refused one entry, the one whose value only the host knows, and did the rest."""

    def __init__(self) -> None:
        super().__init__(keys=[HOSTS])


class KeptError(DatabaseRefusedError):
    """The database kept the row."""

    def __init__(self) -> None:
        super().__init__(ID)


class Began(NamedTuple):
    """What a step 1 knows that has begun, and may wait for the row."""

    at: datetime
    alone: bool


def _begin(world: "World", operation: "Operation", fault: str) -> Began:
    repository = world.stores.repository
    return Began(repository._clock(), all(record.settled_at for record in repository._of([ID])))


def _record(world: "World", operation: "Operation", fault: str, change: Change, began: Began | None) -> Any:
    repository = world.stores.repository
    if fault == FAILS:
        return RepositoryError
    if fault == KEEPS:
        repository.keep(ID)
    try:
        answer = repository.record(change, RULE)
    except DatabaseRefusedError:
        return KeptError
    finally:
        repository._kept.clear()
    if answer is not None and began is not None:
        record = replace(answer.record, requested_at=began.at)
        repository._records[record.id] = record
        answer = Recorded(record, began.alone)
    return RepositoryError if fault == UNANSWERED else answer


def _settle(world: "World", operation: "Operation", fault: str, ids: Sequence[str], wait: bool) -> Any:
    return _enter(world, operation, fault, lambda rows: rows.settle(ids, wait=wait))


def _settle_alone(world: "World", operation: "Operation", fault: str, record: DeletionRecord) -> Any:
    if fault == FAILS:
        return RepositoryError
    settled = world.stores.repository.settle_alone(record)
    return RepositoryError if fault else settled


def _verify(
    world: "World", operation: "Operation", fault: str, ids: Sequence[str], wait: bool, settled_for: timedelta
) -> Any:
    return _enter(world, operation, fault, lambda rows: rows.verify(ids, settled_for=settled_for, wait=wait))


def _hold(world: "World", operation: "Operation", fault: str, ids: Sequence[str], wait: bool) -> Any:
    return _enter(world, operation, fault, lambda rows: rows.hold(ids, wait=wait))


def _enter(
    world: "World", operation: "Operation", fault: str, begin: Begin
) -> Holding | type[RepositoryError]:
    if fault:
        return RepositoryError
    holding, operation.transaction = world.stores.enter(begin)
    return holding


def _note_failure(world: "World", operation: "Operation", fault: str, ids: Sequence[str]) -> Any:
    if fault:
        return RepositoryError
    world.stores.repository.note_failure(ids, "refused")
    return None


def _commit(world: "World", operation: "Operation", fault: str) -> type[RepositoryError] | None:
    leave(world, operation, RepositoryError() if fault == FAILS else None)
    return RepositoryError if fault else None


def _roll_back(world: "World", operation: "Operation", fault: str) -> None:
    leave(world, operation, KeyValueStoreError())


def leave(world: "World", operation: "Operation", error: BaseException | None) -> None:
    """End the operation's transaction."""
    assert operation.transaction is not None
    world.stores.leave(operation.transaction, error)
    operation.transaction = None


def _pending(world: "World", operation: "Operation", fault: str, after: DeletionRecord | None) -> Any:
    return RepositoryError if fault else tuple(world.stores.repository.pending(after=after))


def _due(
    world: "World", operation: "Operation", fault: str, settled_for: timedelta, after: DeletionRecord | None
) -> Any:
    if fault:
        return RepositoryError
    return tuple(world.stores.repository.due(settled_for=settled_for, after=after))


def _done(
    world: "World",
    operation: "Operation",
    fault: str,
    since: datetime | None,
    before: datetime,
    after: DeletionRecord | None,
) -> Any:
    if fault:
        return RepositoryError
    return tuple(world.stores.repository.done(since=since, before=before, after=after))


def _open_run(world: "World", operation: "Operation", fault: str, name: str) -> Any:
    if fault == FAILS:
        return KeyValueStoreError
    run = world.stores.kv.open_run(name)
    return KeyValueStoreError if fault else (run._key, run.mark)


def _close_run(
    world: "World", operation: "Operation", fault: str, key: str, pages: int, refused: bool, mark: Mark
) -> Any:
    if fault == FAILS:
        return KeyValueStoreError
    closed = _run(world, key, pages, refused=refused).close(mark)
    return KeyValueStoreError if fault else closed


def _run(world: "World", key: str, pages: int, *, refused: bool = False) -> MemoryRun:
    """Return the store's own run, as it is by now."""
    run = object.__new__(MemoryRun)
    name = key.partition(":run:")[0]
    run.__dict__.update(_store=world.stores.kv, _name=name, _key=key, _pages=pages, _refused=refused)
    return run


def _find(world: "World", operation: "Operation", fault: str, key: str) -> Any:
    return KeyValueStoreError if fault else world.stores.kv.find(key)


def _lease(world: "World", operation: "Operation", fault: str, key: str) -> Any:
    token = None if fault == FAILS else world.stores.kv.lease(key)
    return KeyValueStoreError if fault else token


def _fill(
    world: "World", operation: "Operation", fault: str, key: str, token: str, filled: str | None
) -> Any:
    if fault != FAILS:
        world.stores.kv.fill(key, token, filled, 60)
    return KeyValueStoreError if fault else None


def _apply(
    world: "World",
    operation: "Operation",
    fault: str,
    remove: tuple[str, ...],
    overwrite: tuple[tuple[str, str], ...],
    counted: tuple[str, int] | None = None,
) -> Any:
    keys = {*remove, *dict(overwrite)}
    world.promises.touched(keys, operation, world.stores.held, removes=not overwrite)
    if fault == LATE:
        world.late += ((remove, overwrite),)
    elif fault == HALF:
        done = (len(remove) + len(overwrite)) // 2
        carry_out(world, (remove[:done], overwrite[: max(0, done - len(remove))]))
    elif fault == REFUSES:
        allowed = tuple(key for key in remove if key != HOSTS)
        carry_out(world, (allowed, overwrite))
        world.promises.confirmed({*allowed, *dict(overwrite)}, world.operations)
        return RefusedKeyError
    elif fault != FAILS:
        found = carry_out(world, (remove, overwrite))
        if counted is not None:
            _run(world, *counted).apply(remove=(), overwrite={})
    if fault:
        return KeyValueStoreError
    world.promises.confirmed(keys, world.operations)
    return tuple(sorted(found))


def carry_out(world: "World", command: Command) -> set[str]:
    """Do what the command says."""
    remove, overwrite = command
    world.promises.written -= {*remove, *dict(overwrite)}
    return world.stores.kv.apply(remove=remove, overwrite=dict(overwrite))


def _insert(world: "World", operation: "Operation", fault: str) -> Row:
    if world.stores.row is not None:
        return None
    world.stores.repository.add(ID, status=True, name="second")
    return world.stores.row


def _read(world: "World", operation: "Operation", fault: str) -> Row:
    return world.stores.row


def _write(world: "World", operation: "Operation", fault: str, name: str, status: bool) -> None:
    write_entries(world.stores.kv, name, status)
    world.promises.written |= set(KEYS)


STEPS: Mapping[str, Callable[..., Any]] = {
    "begin": _begin,
    "record": _record,
    "settle": _settle,
    "settle alone": _settle_alone,
    "verify": _verify,
    "hold": _hold,
    "note failure": _note_failure,
    "pending": _pending,
    "due": _due,
    "done": _done,
    "open run": _open_run,
    "close run": _close_run,
    "find": _find,
    "lease": _lease,
    "fill": _fill,
    "apply": _apply,
    "commit": _commit,
    "roll back": _roll_back,
    "insert": _insert,
    "read": _read,
    "write": _write,
}
