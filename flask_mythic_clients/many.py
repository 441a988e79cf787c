"""The same steps for many clients: several in a transaction, and in a pipeline of the key-value store."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

from .entries import EntryRule
from .errors import (
    BusyError,
    ClientNotFoundError,
    EntriesRefusedError,
    ForeignError,
    HardDeleteForbiddenError,
    MythicClientsError,
    StatementTimeoutError,
    StoreError,
)
from .model import Action, Batch, Change, Outcome, Result, is_client_id
from .ports import BulkSteps, ClientRepository

AT_ONCE = 1000
REPLAYED_AT_ONCE = 5000
_T = TypeVar("_T")


class Many:
    """Takes both steps for many.

    `settle` takes step 2 for clients, leaves those that others hold, and tells for whom it was done;
    `settle_one` waits for one. `alone` takes both steps for one.
    """

    def __init__(
        self,
        repository: ClientRepository,
        entries: EntryRule,
        *,
        settle: Callable[[Collection[str]], Collection[str]],
        settle_one: Callable[[str], object],
        alone: Callable[[Change], object],
    ) -> None:
        self._bulk = repository if isinstance(repository, BulkSteps) else None
        self._entries = entries
        self._settle = settle
        self._settle_one = settle_one
        self._alone = alone
        self._each_alone: set[str] = set()

    def delete(self, changes: Iterable[Change]) -> Iterator[Outcome]:
        """Yield what came of each, in their order; a client that others hold is waited for."""
        for batch in batches(changes):
            possible = {change.client_id: change for change in batch if is_client_id(change.client_id)}
            done = self._finish(self._record([*possible.values()]).recorded)
            for change in batch:
                if change.client_id in done:
                    yield done.pop(change.client_id)
                else:
                    yield self._one(change)

    def purge(self, changes: Iterable[Change]) -> Iterator[Outcome]:
        """Yield what came of each that is still there; a client that others hold is left to them."""
        for batch in batches(changes):
            possible = {change.client_id: change for change in batch if is_client_id(change.client_id)}
            taken = self._record([*possible.values()])
            done = self._finish(taken.recorded, possible.keys() - taken.held - taken.alone)
            for change in batch:
                if change.client_id in done:
                    yield done[change.client_id]
                elif change.client_id in taken.held:
                    yield Outcome(change.client_id, Result.HELD)
                elif change.client_id in taken.alone or change.client_id not in possible:
                    yield from self._one_if_there(change)

    def replay(self, changes: Iterable[Change]) -> Iterator[Outcome]:
        """Take again, in their order, what was done before; yield what came of each.

        Where one could not be taken again, what came after it for that client is left, too.
        """
        stuck: set[str] = set()
        for some in batches(changes, REPLAYED_AT_ONCE):
            for layer in _layers(some):
                for batch in batches(layer):
                    rest = [change for change in batch if change.client_id not in stuck]
                    for outcome in self._replayed(rest):
                        if outcome.result is not Result.DONE:
                            stuck.add(outcome.client_id)
                        yield outcome

    def _replayed(self, changes: Sequence[Change]) -> Iterator[Outcome]:
        taken = self._record(changes)
        done = self._finish(taken.recorded, {c.client_id for c in changes} - taken.held - taken.alone)
        for change in changes:
            if change.client_id in taken.held:
                yield Outcome(change.client_id, Result.HELD)
            elif change.client_id in taken.alone:
                yield self._one(change)
            else:
                yield done.get(change.client_id, Outcome(change.client_id))

    def _record(self, changes: Sequence[Change]) -> Batch:
        """Take step 1 for all, or for halves, where something forbids it for one of them."""
        taken = Batch(frozenset(), alone=frozenset(change.client_id for change in changes))
        if self._bulk is None or not changes:
            return taken
        recorded = self._bulk.record_each(changes, self._entries)
        if recorded is not None:
            self._each_alone |= recorded.alone
            return recorded
        if len(changes) == 1:
            return taken  # its own error tells why
        half = len(changes) // 2
        return self._record(changes[:half]) + self._record(changes[half:])

    def _finish(self, recorded: Collection[str], others: Collection[str] = ()) -> dict[str, Outcome]:
        """Take step 2 for whom step 1 was taken, and return what came of each.

        It is also taken for those of the others for whom something is pending: that may have been recorded
        here, and the answer to the commit be lost. Of them nothing is told, for it may be another's.
        """
        client_ids = sorted({*recorded, *others})
        settled = self._settle(client_ids) if client_ids else ()
        return {
            client_id: Outcome(client_id)
            if client_id in settled
            else _told(client_id, partial(self._settle_one, client_id))
            for client_id in sorted(recorded)
        }

    def _one(self, change: Change) -> Outcome:
        return self._told_alone(change, partial(self._alone, change))

    def _one_if_there(self, change: Change) -> Iterator[Outcome]:
        gone: list[str] = []

        def act() -> None:
            try:
                self._alone(change)
            except (ClientNotFoundError, HardDeleteForbiddenError):  # somebody else was first
                gone.append(change.client_id)

        outcome = self._told_alone(change, act)
        yield from () if gone else (outcome,)

    def _told_alone(self, change: Change, act: Callable[[], object]) -> Outcome:
        told = _told(change.client_id, act)
        return replace(told, alone=self._bulk is None or change.client_id in self._each_alone)


def _told(client_id: str, act: Callable[[], object]) -> Outcome:
    """Return what came of it; raises StoreError where that is of no one client."""
    try:
        act()
    except (BusyError, EntriesRefusedError, StatementTimeoutError) as error:
        return Outcome(client_id, Result.FAILED, f"{error} {error.cause}".rstrip())
    except StoreError:
        raise
    except MythicClientsError as error:
        return Outcome(client_id, Result.FAILED, f"{error}")
    except Exception as error:  # the host's own, such as its hook's
        return Outcome(client_id, Result.FAILED, f"{ForeignError.told(error)}")
    return Outcome(client_id)


def _layers(changes: Iterable[Change]) -> Iterator[Sequence[Change]]:
    """Part changes, so that a part has one action and each client once; the order of a client's is kept."""
    layers: dict[tuple[int, Action], list[Change]] = {}
    seen: Counter[str] = Counter()
    for change in changes:
        layers.setdefault((seen[change.client_id], change.action), []).append(change)
        seen[change.client_id] += 1
    for _, layer in sorted(layers.items()):
        yield layer


def batches(items: Iterable[_T], size: int = AT_ONCE) -> Iterator[list[_T]]:
    """Iterate over lists of the items, each of so many."""
    every = iter(items)
    while batch := list(islice(every, size)):
        yield batch
