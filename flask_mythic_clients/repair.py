"""What a key-value store has forgotten is found out, and done again: the second half of a reconcile.

A store that was killed, or whose replica took over, may come back from an older copy of itself. The mark that
a reconcile leaves in the store comes back with it, and tells from when on everything is to be done again.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Protocol

from . import logs
from .errors import BusyError, EntriesRefusedError, ForeignError, KeyValueStoreError, is_of_the_app
from .model import DeletionRecord, Holding, Mark
from .ports import ClientRepository, KeyValueStore, RememberingStore, Run

logger = logging.getLogger(__package__)

LOST = (
    "was set back to an older copy, and of some of what was done since then the ledger has no keys any more: "
    "entries of removed clients may be back."
)
NEEDS_AUDIT = (
    "needs an audit: run `audit`, see what it would repair, repair it, then run `reconcile --audited` once."
)
_PAGES_FORGOTTEN = 20  # by one reconcile
_CLOCK_SLACK = timedelta(minutes=5)  # by which the database's clock may have gone back


class BringInLine(Protocol):
    """Makes the key-value store agree with the rows that are held."""

    def __call__(self, holding: Holding, store: KeyValueStore | Run, /) -> None:
        """Return when the store has confirmed."""
        ...


class PageAfter(Protocol):
    """Reads a page of records after one."""

    def __call__(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Return the page; the empty one is the last."""
        ...


class Repair:
    """Does again what the store may have lost; made when a reconcile begins."""

    def __init__(
        self, repository: ClientRepository, kv: KeyValueStore, kind: str, bring_in_line: BringInLine
    ) -> None:
        self._repository = repository
        self._kv = kv
        self._bring_in_line = bring_in_line
        self._began = repository.now()
        self._remembers = isinstance(kv, RememberingStore)
        self._run: Run | None = None
        self.lacks_mark = False
        """Whether the mark could not be read or set."""
        if isinstance(kv, RememberingStore):
            with self._no_condition():
                self._run = kv.open_run(mark_name(repository, kind))
        self._held: set[str] = set()
        self._failed: set[str] = set()
        self._waits = True

    @property
    def _mark(self) -> datetime | None:
        mark = self._run and self._run.mark
        # One that is still to come was set while the database's clock ran ahead, and tells nothing.
        return mark.began if mark and mark.began <= self._began else None

    def do_again(self, since: timedelta | None, *, needs_audit: bool) -> frozenset[str]:
        """Do again what the store may have forgotten, then move its mark; return the clients that are left.

        The new mark says whether an audit is needed.

        What was done since this began is left to the next reconcile: the mark promises nothing about it.
        `since` is how far back to go where a store has no mark, or none that can be read.
        """
        if self._run is None and since is None:
            return frozenset()
        whole = True
        for page in pages(partial(self._repository.done, since=self._earliest(since), before=self._began)):
            self._repository.make_durable()
            # What is not verified is to be done once more anyway: the mark need not wait for it. But one that
            # is held may be just being verified, with a stamp that is older than the mark to be set.
            self._again(self._kv, [record for record in page if record.verified_at is None])
            verified = [record for record in page if record.verified_at is not None]
            whole &= self._again(self._run or self._kv, verified)
        if self._run is not None and whole and not self._held:
            with self._no_condition():
                if not self._run.close(Mark(self._began, self._repository.now(), needs_audit)):
                    logger.warning(
                        "The key-value store was set back while this ran, or has refused an entry: the next "
                        "reconcile does all again."
                    )
        logs.left_to_others(self._held)
        return frozenset(self._held | self._failed)

    def forget_keys(self, kept: timedelta) -> None:
        """Let the ledger keep digests alone of old keys that no mark makes necessary; of many, some."""
        if self._remembers and self._mark is None:
            return
        with suppress(BusyError):  # another time will do
            for _ in range(_PAGES_FORGOTTEN):
                if not self._repository.forget_keys(verified_before=self._mark, kept=kept):
                    return

    def ask_for_audit(self, *, audited: bool) -> bool:
        """Tell, and return, whether the store lost what the ledger has no keys of any more.

        Before `do_again`, which moves the mark. What an older mark says holds until it was `audited`: told
        once, it would be overlooked. What is found only now, no audit has seen.
        """
        says = self._run is not None and self._run.mark is not None and self._run.mark.needs_audit
        if not (says and not audited) and not self._has_lost_keys():
            return False
        logger.error("The key-value store %s It %s", LOST, NEEDS_AUDIT)
        return True

    def _has_lost_keys(self) -> bool:
        return self._mark is not None and self._repository.has_forgotten(since=self._mark)

    @contextmanager
    def _no_condition(self) -> Iterator[None]:
        """Log what is wrong with the mark, and go on."""
        try:
            yield
        except KeyValueStoreError as error:
            logger.warning(
                "The mark in the key-value store could not be read or set: %s (%s)", error, error.cause
            )
            self.lacks_mark = True

    def _earliest(self, since: timedelta | None) -> datetime | None:
        """Return from when on all is done again; None for as far back as the ledger has keys."""
        if self._run is not None and self._mark is None:
            return None
        times = [self._mark - _CLOCK_SLACK] if self._mark else []
        return min([*times, self._began - since] if since is not None else times)

    def _again(self, store: KeyValueStore | Run, records: Sequence[DeletionRecord]) -> bool:
        """Bring in line what nobody else holds, then what its holder lets go; False where the rule failed."""
        held, whole = self._take(store, records, wait=False)
        if held and self._waits:
            of_held = [record for record in records if record.client_id in held]
            held, rest_whole = self._take(store, of_held, wait=True)
            whole &= rest_whole
            self._waits = not held  # one wait in vain was enough, or each that is held would cost another
        self._held |= held
        return whole

    def _take(
        self, store: KeyValueStore | Run, records: Sequence[DeletionRecord], *, wait: bool
    ) -> tuple[set[str], bool]:
        """Bring in line; return the clients that others hold, and False where the host's rule failed."""
        client_ids = sorted({record.client_id for record in records})
        held: set[str] = set()
        if not client_ids:
            return held, True
        try:
            with self._repository.hold(client_ids, wait=wait) as holding:
                held = set(holding.left)
                mine = tuple(record for record in records if record.client_id not in held)
                self._bring_in_line(replace(holding, records=mine), store)
            return held, True
        except BusyError:
            return set(client_ids), True
        except EntriesRefusedError as error:
            refused = error.client_ids or client_ids
            self._failed |= set(refused)
            logs.refused(refused, error.__cause__ or error)
            return held, True  # the run itself keeps the mark of who refused
        except Exception as error:  # the host's rule for entries failed: find out for whom, finish the others
            if not is_of_the_app(error):
                raise
            if len(client_ids) == 1:
                self._failed |= set(client_ids)
                logs.failed(client_ids, ForeignError.told(error))
                return held, False
        middle = client_ids[len(client_ids) // 2]
        for half in (
            [record for record in records if record.client_id < middle],
            [record for record in records if record.client_id >= middle],
        ):
            held |= self._take(store, half, wait=wait)[0]
        return held, False


def mark_name(repository: ClientRepository, kind: str) -> str:
    """Return the name under which a kind of client in a database has its mark."""
    return f"mythic:{kind}:{sha256(repository.address().encode()).hexdigest()[:16]}"


def pages(page_after: PageAfter) -> Iterator[Sequence[DeletionRecord]]:
    """Iterate over all pages."""
    after = None
    while page := page_after(after=after):
        yield page
        after = page[-1]
