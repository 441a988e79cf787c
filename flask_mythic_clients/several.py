"""Several key-value stores as one: a cache and sessions, for example."""

from collections.abc import Collection, Mapping, Sequence

from .entries import Value
from .errors import EntriesRefusedError, KeyValueStoreError
from .ports import KeyValueStore


class SeveralStores:
    """Asks each store for all entries: an absent one is success, and all must confirm."""

    def __init__(self, stores: Sequence[KeyValueStore]) -> None:
        self._stores = tuple(stores)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self._stores)}>"

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`; one that is away keeps the others from nothing."""
        removed: set[str] = set()
        refusals: list[EntriesRefusedError] = []
        away: KeyValueStoreError | None = None
        for store in self._stores:
            try:
                removed |= store.apply(remove=remove, overwrite=overwrite)
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
