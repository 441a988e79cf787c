"""What could break a deletion in this deployment: asked before the first one, and nothing is changed."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta

from .entries import EntryRule, KeyTemplates
from .errors import EntriesRefusedError, ForeignError, StoreError
from .model import OVERDUE, Finding
from .ports import CheckedRepository, CheckedStore, ClientRepository, KeyValueStore, RememberingStore
from .repair import LOST, NEEDS_AUDIT, mark_name

NO_MARK = Finding(
    "key-value store",
    "It keeps no mark, so nobody finds out if it comes back from an older copy of itself.",
    "After each restore of it run `reconcile --since`, as far back as the copy is old.",
    breaks=False,
)
_RECONCILE = "Run `reconcile` every minute."


def findings(
    repository: ClientRepository,
    kv: KeyValueStore,
    kind: str,
    entries: EntryRule,
    *,
    removes: bool,
    verify_after: timedelta,
) -> Iterator[Finding]:
    """Yield what is wrong with the database, the mapping, the key-value store, and who looks after them."""
    away: list[StoreError] = []
    if isinstance(repository, CheckedRepository):
        yield from _unless_away("database", repository.check_database(kind, entries, removes=removes), away)
    name = mark_name(repository, kind)
    yield from _unless_away("key-value store", _of_store(kv, name, entries), away)
    if not away:
        with suppress(StoreError):  # for what the database lacks, as is told above
            yield from _of_reconcile(repository, kv, name, verify_after)


def _unless_away(subject: str, found: Iterable[Finding], away: list[StoreError]) -> Iterator[Finding]:
    try:
        yield from found
    except StoreError as error:
        away.append(error)
        told = f"{error} {error.cause}".rstrip()
        yield Finding(subject, told, "Mend that, and check again: the rest of it could not be looked at.")


def _of_store(kv: KeyValueStore, name: str, entries: EntryRule) -> Iterator[Finding]:
    token = f"check-{secrets.token_hex(8)}"
    keys = {f"{name}:{token}": ""}
    if isinstance(entries, KeyTemplates):
        keys = entries.keys_of_nobody(token)
    try:
        kv.apply(remove=(), overwrite=dict.fromkeys(keys, ""))  # which makes no entry
        kv.apply(remove=keys, overwrite={})
    except EntriesRefusedError as error:
        if refused := sorted({keys[key] for key in error.keys if key in keys} - {""}):
            problem = f"The key-value store refuses to change such entries. {error.cause}".rstrip()
            fix = "Mend that; its user needs UNLINK and SET on them, and on mythic:*."
            yield Finding(", ".join(refused), problem, fix)
    except StoreError:
        raise
    except Exception as error:  # of a store of the host's
        problem = f"It fails for an entry that is not there ({ForeignError.told(error)})."
        yield Finding("key-value store", problem, "An absent entry is success: mend the store.")
    if isinstance(kv, CheckedStore):
        yield from kv.check_store(name)
    elif not isinstance(kv, RememberingStore):
        yield NO_MARK


def _of_reconcile(
    repository: ClientRepository, kv: KeyValueStore, name: str, verify_after: timedelta
) -> Iterator[Finding]:
    backlog = repository.backlog(settled_for=verify_after)
    late = backlog.overdue or (backlog.oldest is not None and backlog.oldest > OVERDUE)
    if late:
        yield Finding(
            "reconcile",
            f"It does not run, or does not get through: pending {backlog.pending}, overdue "
            f"{backlog.overdue}.",
            f"{_RECONCILE} Its exit code and its log tell what is in its way.",
        )
    if not isinstance(kv, RememberingStore):
        return
    mark = kv.read_mark(name)
    if mark is None:
        if not late:
            yield Finding("reconcile", "None has gone all the way yet.", _RECONCILE, breaks=False)
        return
    if mark.needs_audit or repository.has_forgotten(since=mark.began):
        yield Finding(
            "key-value store",
            f"It {LOST}",
            f"It {NEEDS_AUDIT}",
        )
    elif not late and repository.now() - mark.ended > OVERDUE:
        yield Finding(
            "reconcile",
            f"None has gone all the way since {mark.ended:%H:%M} UTC on {mark.ended:%Y-%m-%d}.",
            _RECONCILE,
        )
