"""Several key-value stores as one: a cache and sessions, for example."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from .check import NO_MARK
from .entries import Value
from .errors import EntriesRefusedError, KeyValueStoreError
from .model import Finding, Mark
from .ports import CheckedStore, KeyValueStore, RememberingStore, Run


def join(stores: Sequence[KeyValueStore]) -> KeyValueStore:
    """Return several stores as one, which has a mark where one of them may have one."""
    if len(stores) == 1:
        return stores[0]
    remember = any(isinstance(store, RememberingStore) for store in stores)
    return RememberingStores(stores) if remember else SeveralStores(stores)


class SeveralStores:
    """Asks each store for all entries: an absent one is success, and all must confirm."""

    def __init__(self, stores: Sequence[KeyValueStore]) -> None:
        self._stores = tuple(stores)

    @property
    def each(self) -> Sequence[KeyValueStore]:
        """The stores."""
        return self._stores

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self._stores)}>"

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`; one that is away keeps the others from nothing."""
        return _apply((store.apply for store in self._stores), remove, overwrite)

    def check_store(self, name: str) -> Iterator[Finding]:
        """Fulfil `ports.CheckedStore.check_store`."""
        for number, store in enumerate(self._stores, 1):
            found = store.check_store(name) if isinstance(store, CheckedStore) else ()
            for finding in found if isinstance(store, RememberingStore) else (*found, NO_MARK):
                yield replace(finding, subject=f"{finding.subject} ({number} of {len(self._stores)})")


class RememberingStores(SeveralStores):
    """Remembers as far as that store of several does that remembers least."""

    def read_mark(self, name: str) -> Mark | None:
        """Fulfil `ports.RememberingStore.read_mark`."""
        return Mark.oldest(store.read_mark(name) for store in self._remembering())

    def open_run(self, name: str) -> Run:
        """Fulfil `ports.RememberingStore.open_run`."""
        runs = {id(store): store.open_run(name) for store in self._remembering()}
        return _Runs(list(runs.values()), [runs.get(id(store), store).apply for store in self._stores])

    def _remembering(self) -> list[RememberingStore]:
        return [store for store in self._stores if isinstance(store, RememberingStore)]


class _Runs:
    """Fulfils `ports.Run`."""

    def __init__(self, runs: Sequence[Run], apply: Sequence[Callable[..., set[str]]]) -> None:
        self._runs, self._apply = runs, apply
        self._refused = False
        self.mark = Mark.oldest(run.mark for run in runs)

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        try:
            return _apply(self._apply, remove, overwrite)
        except EntriesRefusedError:
            self._refused = True  # perhaps by a store that keeps no mark
            raise

    def close(self, mark: Mark) -> bool:
        if self._refused:
            return False
        closed = [run.close(mark) for run in self._runs]
        return all(closed)


def _apply(
    each: Iterable[Callable[..., set[str]]], remove: Collection[str], overwrite: Mapping[str, Value]
) -> set[str]:
    removed: set[str] = set()
    refusals: list[EntriesRefusedError] = []
    away: KeyValueStoreError | None = None
    for apply in each:
        try:
            removed |= apply(remove=remove, overwrite=overwrite)
        except EntriesRefusedError as error:
            refusals.append(error)
            removed |= error.removed
        except KeyValueStoreError as error:
            away = error
    if away is not None:
        raise away
    if refusals:
        refused = frozenset[str]().union(*(error.keys for error in refusals))
        raise EntriesRefusedError(keys=refused, removed=removed) from refusals[0].__cause__
    return removed
