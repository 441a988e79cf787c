"""Get or fill: a reader's cache that can never put a deleted client back.

A reader that misses takes a lease before it reads the row, and its fill is refused unless the lease is still
its own. Whoever changes an entry takes the lease away first, so what was read before that is never written.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from .entries import Value
from .errors import KeyValueStoreError

LEASE_SECONDS = 10
"""How long a lease stands whose reader has died; until then nobody else fills that entry."""


class Leases(Protocol):
    """What a store does for its readers, each an atomic step. All raise KeyValueStoreError."""

    def find(self, key: str) -> bytes | None:
        """Return the entry's value, or None."""
        ...

    def lease(self, key: str) -> str | None:
        """Leave a random token for `LEASE_SECONDS` and return it; None where another's stands."""
        ...

    def fill(self, key: str, token: str, value: Value | None, expire: float) -> None:
        """Take the token back; make the entry if the token was still there, and nobody has made it since.

        No value makes no entry.
        """
        ...


def get_or_fill(leases: Leases, key: str, load: Callable[[], Value | None], expire: float) -> bytes | None:
    """Return the entry's value, or what `load` returns, and keep that as the entry for `expire` seconds.

    The value is returned also where it could not be kept.
    """
    token = None
    with suppress(KeyValueStoreError):
        if (found := leases.find(key)) is not None:
            return found
        token = leases.lease(key)
    value: Value | None = None
    try:
        value = load()
    finally:
        if token is not None:
            with suppress(KeyValueStoreError):
                leases.fill(key, token, value, expire)
    return value.encode() if isinstance(value, str) else value


def lease_of(key: str) -> str:
    """Return the name of an entry's lease; on a cluster it lies in the entry's slot where that can be."""
    # Where it closes a brace it may have a tag, which no other may come before, and can have none of ours.
    return f"mythic:lease:{key}" if "}" in key else f"mythic:lease:{{{key}}}"
