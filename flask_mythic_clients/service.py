"""The order of steps: record in the database, settle in the key-value store, verify later."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from . import logs
from .audit import Audit
from .check import findings
from .entries import Entries, EntryRule, KeyTemplates, Value, Wished, as_bytes, wished
from .errors import (
    BusyError,
    ClientNotFoundError,
    ConfigurationError,
    EntriesRefusedError,
    HardDeleteForbiddenError,
    KeyValueStoreError,
    RepositoryError,
    StoreError,
)
from .many import REPLAYED_AT_ONCE, Many, batches
from .model import (
    Action,
    Backlog,
    Change,
    Client,
    DeletionRecord,
    Entry,
    Finding,
    HardDelete,
    Health,
    Holding,
    Inactive,
    Looked,
    Outcome,
    Preview,
    Reconciliation,
    Recorded,
    Result,
    Shown,
    SoftDeleteEntries,
    check_caller,
    check_client_id,
)
from .ports import (
    Archive,
    Begun,
    BulkSteps,
    ClientRepository,
    JoinedStores,
    KeyValueStore,
    QuickSteps,
    ReadableStore,
    RememberingStore,
    Run,
)
from .repair import Repair, mark_name, pages
from .sweep import Sweep

logger = logging.getLogger(__package__)


class DeletionService:
    """Deletes and restores clients in both stores, never half.

    Every deleting method raises StoreError when a store did not confirm. What was recorded by then
    stays pending; the same call again, or `reconcile`, finishes it.
    """

    def __init__(
        self,
        repository: ClientRepository,
        kv: KeyValueStore,
        entries: EntryRule,
        *,
        kind: str = "clients",
        guard: HardDelete = HardDelete.ALLOW,
        soft_delete_entries: SoftDeleteEntries = SoftDeleteEntries.REWRITE,
        verify_after: timedelta = timedelta(seconds=60),
        keys_kept: timedelta = timedelta(days=7),
        on_settled: Callable[[DeletionRecord], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._sweep = Sweep(repository)
        self._quick = repository if isinstance(repository, QuickSteps) else None
        self._kv = kv
        self._entries = entries
        self._kind = kind
        self._guard = guard
        self._guarded = guard is not HardDelete.ALLOW
        self.soft_delete_entries = soft_delete_entries
        self._verify_after = verify_after
        self._keys_kept = keys_kept
        self._on_settled = on_settled

    def soft_delete(
        self, client_id: str, *, actor: str, reason: str | None = None, request_id: str | None = None
    ) -> None:
        """Set the client's status to false.

        A client that already is deleted is success, and its entries are written again. The ledger keeps who
        did it, the reason, and the id of the request; what was done before is not recorded again, nor is
        another reason for it. Raises InvalidClientIdError, InvalidActorError, InvalidReasonError,
        InvalidRequestIdError, ClientNotFoundError, ChangeRefusedError, StoreError.
        """
        self._carry_out(Change(client_id, Action.SOFT, actor, reason=reason, request_id=request_id))

    def hard_delete(
        self, client_id: str, *, actor: str, reason: str | None = None, request_id: str | None = None
    ) -> None:
        """Remove the client's row and entries for good; on return both stores have confirmed.

        Raises what `soft_delete` does.
        """
        self._carry_out(Change(client_id, Action.HARD, actor, reason=reason, request_id=request_id))

    def restore(
        self, client_id: str, *, actor: str, reason: str | None = None, request_id: str | None = None
    ) -> None:
        """Take a soft delete back.

        An active client is success, and its entries are written again. Raises what `soft_delete` does.
        """
        self._carry_out(Change(client_id, Action.RESTORE, actor, reason=reason, request_id=request_id))

    def reconcile(self, *, since: timedelta | None = None, audited: bool = False) -> Reconciliation:
        """Settle all that is pending, verify all that is due; safe anywhere, at any time.

        Where the key-value store has come back from an older copy of itself, all is done again that the copy
        did not have. A store that has no mark cannot tell: `since` is how far back to do all again. One that
        had lost what the ledger has no keys of any more makes it `blind`, until that was `audited`.

        A client whose entries the host cannot name or the store refuses, or whose row or record another
        transaction holds, is logged, left for the next time and counted as failed; it holds up no other.
        Raises StoreError when a store is away: what is left stays pending.
        """
        repair = Repair(self._repository, self._kv, self._kind, self._bring_in_line_again)
        settled = self._sweep.all(self._settle, self._repository.pending)
        due = partial(self._repository.due, settled_for=self._verify_after)
        verified = self._sweep.all(self._verify, due)
        blind = repair.ask_for_audit(audited=audited)
        left = settled.left | verified.left | repair.do_again(since, needs_audit=blind)
        repair.forget_keys(self._keys_kept)
        if repair.lacks_mark:  # a missing right is no condition; a store that is away is one
            with suppress(EntriesRefusedError):
                self._probe()
        return Reconciliation(settled.records, verified.records, len(left), blind)

    def delete_each(
        self, client_ids: Iterable[str], *, hard: bool, actor: str, reason: str | None = None
    ) -> Iterator[Outcome]:
        """Delete many clients, several at once; yield what came of each, in their order.

        Lazily: iterate, or nothing is done. What is forbidden for one, or not there, is told in its outcome.
        Raises InvalidActorError, InvalidReasonError, and StoreError when a store is away: those of whom
        nothing was yielded are as they were, or pending.
        """
        check_caller("", actor, reason)
        action = Action.HARD if hard else Action.SOFT
        if hard and self._guard is HardDelete.DENY:
            told = _GUARD_MESSAGES[self._guard]
            yield from (Outcome(client_id, Result.FAILED, told) for client_id in client_ids)
            return
        guarded = self._guarded and hard
        changes = (
            Change(client_id, action, actor, only_if_inactive=guarded, reason=reason)
            for client_id in client_ids
        )
        yield from self._many().delete(changes)

    def would_purge(
        self, *, older_than: timedelta, limit: int | None = None, include_unrecorded: bool = False
    ) -> Iterator[Outcome]:
        """Yield of whom `purge` would try to remove, and whom it would leave; raises StoreError."""
        for chosen, left in self._expired(older_than, limit, include_unrecorded):
            yield from left
            yield from (Outcome(each.client_id) for each in chosen)

    def purge(
        self,
        *,
        older_than: timedelta,
        actor: str,
        reason: str | None = None,
        limit: int | None = None,
        include_unrecorded: bool = False,
    ) -> Iterator[Outcome]:
        """Remove for good the clients that have been soft-deleted for so long; yield what came of each.

        Lazily, as `delete_each`. One that another transaction holds is left to it. So is one of which nobody
        has recorded since when it is inactive, unless `include_unrecorded`. `limit` counts those that are
        tried. Raises HardDeleteForbiddenError, and what `delete_each` does.
        """
        check_caller("", actor, reason)
        if self._guard is HardDelete.DENY:
            raise HardDeleteForbiddenError("", _GUARD_MESSAGES[self._guard])
        many = self._many()
        for chosen, left in self._expired(older_than, limit, include_unrecorded):
            yield from left
            yield from many.purge(
                Change(each.client_id, Action.HARD, actor, only_if_inactive=True, reason=reason, seen=each)
                for each in chosen
            )

    def records(self, *, since: datetime | None = None) -> Iterator[DeletionRecord]:
        """Iterate over the whole ledger, in the order in which its records were made; raises StoreError."""
        archive, after = self._archive(), None
        while page := archive.records(since=since, after=after):
            yield from map(self._named, page)
            after = page[-1]

    def replay(self, records: Iterable[DeletionRecord]) -> Iterator[Outcome]:
        """Take again, after a backup was restored, what the ledger lacks of these; yield what came of each.

        Lazily, as `delete_each`. Records are told by client, action and `requested_at`, and have to be in
        their order. Each is recorded as it was, settled now, and its reason says that it was replayed. What
        is in the ledger is left: so a second run changes nothing, and a client that was made anew after its
        removal is not touched.
        Raises StoreError as `delete_each` does.
        """
        archive = self._archive()

        def lacking() -> Iterator[Change]:
            for some in batches(records, REPLAYED_AT_ONCE):
                for record in archive.lacking(some):
                    reason = "replayed" + (f": {record.reason}" if record.reason else "")
                    yield Change(
                        record.client_id,
                        record.action,
                        record.actor,
                        reason=reason[:500],
                        request_id=record.request_id,
                        requested_at=record.requested_at,
                    )

        yield from self._many().replay(lacking())

    def forget(self, *, older_than: timedelta) -> Iterator[int]:
        """Delete old records that are verified, page by page; yield how many. Raises StoreError.

        Lazily, as `delete_each`. Never one that the key-value store may have forgotten, so none where that
        has no mark yet; nor the newest of a client that has a row.
        """
        archive, before = self._archive(), None
        if isinstance(self._kv, RememberingStore):
            mark = self._kv.read_mark(mark_name(self._repository, self._kind))
            # One that is still to come was set while the database's clock ran ahead, and tells nothing.
            if mark is None or mark.began > self._repository.now():
                return
            before = mark.began
        after: int | None = None
        while True:
            number, after = archive.prune(verified_before=before, kept=older_than, after=after)
            if after is None:
                return
            yield number

    def _archive(self) -> Archive:
        if not isinstance(self._repository, Archive):
            raise ConfigurationError("This repository does not give its ledger away as a whole.")
        return self._repository

    def _expired(
        self, duration: timedelta, limit: int | None, include_unrecorded: bool
    ) -> Iterator[tuple[Sequence[Inactive], Sequence[Outcome]]]:
        """Yield page by page whose time has come, and who is left, for nobody knows since when."""
        if not isinstance(self._repository, BulkSteps):
            raise ConfigurationError("This repository does not tell since when clients are inactive.")
        after, number = None, 0
        while page := self._repository.inactive(for_at_least=duration, after=after):
            after = page[-1]
            fits = {True, None} if include_unrecorded else {True}
            chosen = [each for each in page if each.expired in fits]
            chosen = chosen if limit is None else chosen[: limit - number]
            unknown = () if include_unrecorded else (each.client_id for each in page if each.expired is None)
            yield chosen, [Outcome(client_id, Result.UNRECORDED) for client_id in unknown]
            number += len(chosen)
            if number == limit:
                return

    def _many(self) -> Many:
        def alone(change: Change) -> None:
            if change.requested_at is not None:
                self._replay_alone(change)
                return
            self._carry_out(change)

        return Many(
            self._repository,
            self._entries,
            settle=self._settle_free,
            settle_one=lambda client_id: self._settle([client_id]),
            alone=alone,
        )

    def _replay_alone(self, change: Change) -> None:
        """Take again what is to be changed alone; it is recorded also where nothing is to be changed."""
        if self._repository.record(change, self._entries) is None and isinstance(self._repository, BulkSteps):
            self._repository.record_each([change], self._entries)
        self._settle([change.client_id])

    def _settle_free(self, client_ids: Collection[str]) -> Collection[str]:
        """Settle those that nobody holds, but for those whose entries are refused; return who was settled."""
        settled: set[str] = set()

        def step(some: Collection[str], *, wait: bool) -> Holding:
            holding = self._settle(some, wait=wait)
            settled.update(record.client_id for record in holding.records)
            return holding

        try:
            # To wait takes fewer statements; and hardly anybody can hold what was recorded just now.
            self._sweep.take(partial(step, wait=True), sorted(client_ids))
        except BusyError:
            self._sweep.take(partial(step, wait=False), sorted(client_ids))
        return settled

    def pending(self) -> Iterator[DeletionRecord]:
        """Iterate over the records the key-value store has not confirmed yet, oldest first."""
        for page in pages(self._repository.pending):
            yield from map(self._named, page)

    def failed(self) -> Iterator[DeletionRecord]:
        """Iterate over the records that a reconcile tried in vain, whether pending or to be verified."""
        due = partial(self._repository.due, settled_for=self._verify_after)
        for page_after in (self._repository.pending, due):
            for page in pages(page_after):
                yield from (self._named(record) for record in page if record.attempts)

    def backlog(self) -> Backlog:
        """Count what is pending, to be verified and failed; raises StoreError."""
        return self._repository.backlog(settled_for=self._verify_after)

    def health(self) -> Health:
        """Report the status of deletions, for monitors; a store that is away is told, and raises nothing."""
        backlog, mark, age = None, None, None
        database_away, kv_away = None, None
        name = mark_name(self._repository, self._kind)
        try:
            self._probe()
            mark = self._kv.read_mark(name) if isinstance(self._kv, RememberingStore) else None
        except KeyValueStoreError as error:
            kv_away = f"{error} {error.cause}".rstrip()
        try:
            backlog = self.backlog()
            age = self._repository.now() - mark.ended if mark else None
        except RepositoryError as error:
            database_away = f"{error} {error.cause}".rstrip()
        needs_audit = None if kv_away is not None else mark is not None and mark.needs_audit
        return Health(backlog, age, database_away, kv_away, needs_audit)

    def _probe(self) -> None:
        """Raise KeyValueStoreError where the key-value store is away; there is no such entry."""
        self._kv.apply(remove=[f"{mark_name(self._repository, self._kind)}:probe"], overwrite={})

    def history(self, client_id: str) -> Sequence[DeletionRecord]:
        """Return all that was done to a client, oldest first; raises InvalidClientIdError."""
        check_client_id(client_id)
        return list(map(self._named, self._repository.history(client_id)))

    def show(self, client_id: str) -> Shown:
        """Return what is known of a client, also of one that is gone; its row is held meanwhile.

        Of a key-value store that cannot be read it is not known which entries are there; nor whether one is
        in line whose value nobody knows.
        Raises InvalidClientIdError, StoreError.
        """
        check_client_id(client_id)
        records = self.history(client_id)
        with self._repository.hold([client_id]) as holding:
            if holding.left:
                raise BusyError
            client = holding.clients.get(client_id)
            owned = dict(self._entries(client)) if client else {}
            keys = dict.fromkeys([*owned, *(key for record in records for key in record.kv_keys)])
            found = self._kv.read(list(keys)) if isinstance(self._kv, ReadableStore) else None
        stays = wished(client, owned, self.soft_delete_entries) if client else Wished((), {})
        entries = []
        for key in keys:
            there = None if found is None else key in found
            in_line: bool | None = None
            if found is not None and (key not in owned or key in stays.absent):
                in_line = key not in found
            elif found is not None and key in stays.known:
                in_line = key not in found or found[key] == as_bytes(stays.known[key])
            entries.append(Entry(key, there, in_line))
        return Shown(client, tuple(entries), tuple(records))

    def audit(
        self,
        *,
        sample: int | None = None,
        repair: bool = False,
        min_age: timedelta = timedelta(minutes=5),
    ) -> Iterator[Looked]:
        """Compare the stores: entries with what the rows know of them, then keys with the rows that own them.

        `sample` is how many clients and entries to look at, chosen at random. What seems wrong is looked at
        again after `min_age`, which is for a request or a reconcile that is just at it, while the client is
        held; only then it is told, and brought in line if `repair`.

        An entry counts as nobody's if its key is one that a template could make, and no row owns it: another
        part of the host may have made it. Raises ConfigurationError where the key-value store cannot be read,
        StoreError when a store is away.
        """
        kv = self._kv
        stores = kv.each if isinstance(kv, JoinedStores) else [kv]
        given = (self._repository, kv, stores, self._entries, self.soft_delete_entries)
        yield from Audit(*given, repair=repair, min_age=min_age).look(sample)

    @property
    def keys_begin(self) -> Collection[str]:
        """What the keys of all clients begin with, which is no secret; of a function nobody knows."""
        templates = self._entries.each if isinstance(self._entries, KeyTemplates) else ()
        return {template.texts[0] for template in templates} - {""}

    def clients(self) -> Iterable[Client]:
        """Return all clients in the order of their ids."""
        return self._repository.clients()

    def preview(self, client_id: str, *, hard: bool, actor: str = "preview") -> Preview:
        """Delete in the database, tell what came of it, and undo it: so it tells what a deletion would do.

        What is the host's in step 1 runs, too: listeners, and a `before=`. What forbids the deletion stands
        in `refused`, the guard too. The key-value store is not asked.
        Raises InvalidClientIdError, ClientNotFoundError, StoreError.
        """
        action = Action.HARD if hard else Action.SOFT
        change = Change(client_id, action, actor, only_if_inactive=self._guarded and hard)
        change.check()
        preview = self._repository.preview(change, self._entries)
        if preview is None:
            raise ClientNotFoundError(client_id)
        if hard and (self._guard is HardDelete.DENY or (self._guarded and preview.client.active)):
            return replace(preview, refused=_GUARD_MESSAGES[self._guard])
        return preview

    def check(self) -> list[Finding]:
        """Tell what in this deployment could break a deletion, each with its fix; asks both stores.

        Nothing is changed: what is tried in the database is undone, and the key-value store keeps nothing of
        it. A store that is away is a finding.
        """
        removes = self._guard is not HardDelete.DENY
        given = (self._repository, self._kv, self._kind, self._entries)
        return list(findings(*given, removes=removes, verify_after=self._verify_after))

    def _carry_out(self, change: Change) -> None:
        change.check()
        if self._guarded and change.action is Action.HARD:
            change = replace(change, only_if_inactive=True)
        begun: Recorded | None = None
        holding: Holding | None = None
        try:
            with self._both_steps(change) as (recorded, holding, settle_alone):
                begun, settled = recorded, None
                if holding is not None:
                    self._bring_in_line(holding, self._kv, removals=holding.records)
                elif recorded is not None:
                    settled = self._settle_alone(recorded.record, settle_alone)
            if settled is not None:
                self._settled(settled)
                return
            if holding is None:
                holding = self._settle([change.client_id])
            else:
                self._announce(holding)
            if recorded is None:
                self._explain(change, holding)
        except StoreError as error:
            if begun is not None:
                error.record_id = begun.record.id
            elif holding is not None and holding.records:
                error.record_id = holding.records[-1].id  # which an earlier request has left
            raise

    @contextmanager
    def _both_steps(self, change: Change) -> Iterator[Begun]:
        """Take step 1, and hold what is pending; nothing, where a removal was recorded alone."""
        denied = self._guard is HardDelete.DENY and change.action is Action.HARD
        if self._quick is not None and not denied:
            with self._quick.record_and_settle(change, self._entries) as begun:
                if begun is not None:
                    yield begun
                    return
        recorded = None if denied else self._repository.record(change, self._entries)
        settle_alone = self._repository.settle_alone
        if recorded is None:
            self._repository.make_durable()
        elif recorded.skips_hold:
            yield Begun(recorded, None, settle_alone)
            return
        try:
            with self._repository.settle([change.client_id]) as holding:
                yield Begun(recorded, holding, settle_alone)
        except StoreError as error:
            if recorded is not None:
                error.record_id = recorded.record.id
            raise

    def _settle_alone(
        self, record: DeletionRecord, settle_alone: Callable[[DeletionRecord], DeletionRecord | None]
    ) -> DeletionRecord | None:
        """Remove what a hard delete names, and then ask whether it needed to be held: None if it did.

        Removing is safe at any time once the row is gone. It is the end of it if nobody else had one of the
        client's records since step 1 began: who did may write an entry by an older row. Step 1 saw none; what
        it was blind to, for it waited, the stamp sees.
        """
        self._kv.apply(remove=record.kv_keys, overwrite={})
        return settle_alone(record)

    def _explain(self, change: Change, holding: Holding) -> None:
        """Raise where nothing was recorded because the row is absent, or because the guard held it back.

        Where it already was as wished, that is success. What an earlier request left pending is finished.
        """
        client_id, removes = change.client_id, change.action is Action.HARD
        present = client_id in holding.clients
        if removes:
            if present and change.only_if_inactive:
                held_back = _GUARD_MESSAGES[HardDelete.AFTER_SOFT_DELETE]
                raise HardDeleteForbiddenError(client_id, _GUARD_MESSAGES.get(self._guard, held_back))
            present = False  # it was absent a moment ago: a row there now is a newer client
        if not present and (not holding.records or change.action is Action.RESTORE):
            raise ClientNotFoundError(client_id)
        if not removes and not holding.records:
            self._write_again(client_id)
            logs.nothing_to_do(change)

    def _write_again(self, client_id: str) -> None:
        """Bring the entries in line though nothing was recorded: the caller may have seen a wrong one."""
        with self._repository.hold([client_id]) as holding:
            for client in holding.clients.values():
                absent, known = wished(client, self._entries(client), self.soft_delete_entries)
                self._kv.apply(remove=absent, overwrite=known)

    def _settle(self, client_ids: Collection[str], *, wait: bool = True) -> Holding:
        with self._repository.settle(client_ids, wait=wait) as holding:
            self._bring_in_line(holding, self._kv, removals=holding.records)
        self._announce(holding)
        return holding

    def _announce(self, holding: Holding) -> None:
        for record in holding.records:
            self._settled(record)

    def _settled(self, record: DeletionRecord) -> None:
        logs.settled(record)
        self._on_settled(record)

    def _named(self, record: DeletionRecord) -> DeletionRecord:
        return replace(record, kind=self._kind)

    def _verify(self, client_ids: Collection[str], *, wait: bool) -> Holding:
        with self._repository.verify(client_ids, settled_for=self._verify_after, wait=wait) as holding:
            self._bring_in_line_again(holding, self._kv)
        return holding

    def _bring_in_line_again(self, holding: Holding, store: KeyValueStore | Run) -> None:
        try:
            found = self._bring_in_line(holding, store)
        except EntriesRefusedError as error:
            self._warn(holding, set(error.removed))
            raise
        self._warn(holding, found)

    def _warn(self, holding: Holding, found: set[str]) -> None:
        """Log the entries that had come back, and are removed."""
        for record in holding.records:
            if again := found.intersection(record.kv_keys):
                found -= again  # an older record may name the same keys
                logger.warning(
                    "Client %s: entries had come back after record %d was settled, and are removed: %d. "
                    "Something writes entries from rows it read long before, or the key-value store has come "
                    "back from an older copy.",
                    record.client_id,
                    record.id,
                    len(again),
                )

    def _bring_in_line(
        self, holding: Holding, store: KeyValueStore | Run, removals: Collection[DeletionRecord] = ()
    ) -> set[str]:
        """Make the key-value store agree with the rows as they are now; return the keys removed.

        What a hard delete among the `removals` names, and no value is known for, is removed also where the
        row owns it: that is a newer client's under an old id, and the old one's entry is still there.
        """
        if not holding.records:
            return set()
        owned: dict[str, Entries] = {}
        for id, client in holding.clients.items():
            if client.active or self.soft_delete_entries is SoftDeleteEntries.REWRITE:
                owned[id] = self._entries(client)
        remove: set[str] = set()
        overwrite: dict[str, Value] = {}
        for record in holding.records:
            entries = owned.get(record.client_id, {})
            for key in record.kv_keys:
                if key not in entries:
                    remove.add(key)
                elif (value := entries[key]) is not None:
                    overwrite[key] = value
                elif record.action is Action.HARD and record in removals:
                    remove.add(key)
        try:
            return store.apply(remove=remove, overwrite=overwrite)
        except EntriesRefusedError as error:
            error.of(record.client_id for record in holding.records if error.keys & {*record.kv_keys})
            raise


_GUARD_MESSAGES = {
    HardDelete.AFTER_SOFT_DELETE: (
        "This service removes only clients that are soft-deleted: delete without hard=true first."
    ),
    HardDelete.DENY: "This service does not allow hard deletes.",
}
