"""Every interleaving: the real service on the real stores in memory, in every order of their steps.

Two or three operations at once, from seven starts: soft, hard, restore, reconcile, a host that creates the
client again, a reader that writes entries from the row it read before. Every call of a port is a step. At
each step something may go wrong: a crash; a key-value store that fails, that does the work and does not
answer, that does half of it, that does it later; a database that fails, that commits and does not answer,
that keeps the row and says nothing. And once, the verify window may pass between any two steps, while no
reader and no late command is under way. What must hold is listed in `promises.py`.

`--size 2` (the default): all pairs, with at most one fault, and the window passes; and all triples, without
either, from two of the starts. `--size 3` or more: all pairs with two faults; and all triples from all
starts, with a fault, and again without one where the window passes. It takes an hour or two.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import combinations_with_replacement
from types import SimpleNamespace
from typing import Any

import pytest

from flask_mythic_clients import leases, repair
from flask_mythic_clients.backends import memory
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryRun, MemoryStore, _is_due
from flask_mythic_clients.entries import Value
from flask_mythic_clients.errors import ClientNotFoundError, KeyValueStoreError
from flask_mythic_clients.model import Action, Change, DeletionRecord, Holding, Mark, Recorded
from flask_mythic_clients.service import DeletionService

from . import steps
from .explorer import Explorer, Findings, tell
from .programs import KEYS, KNOWN, OPERATIONS, SERVICE, Programs, value
from .starts import REMEMBERED, STARTS, UNCACHED
from .steps import WHOSE
from .stores import Start
from .world import RETURNS, Ending, World

Report = Callable[..., None]
Size = Callable[[int], int]
SOFT_DUE = "soft-deleted, to be verified"
RICH = (SOFT_DUE, "removed, pending, created again")
SEARCHES = {
    2: [(2, 1, True, STARTS), (3, 0, False, RICH)],
    3: [(2, 2, True, STARTS), (3, 1, False, STARTS), (3, 0, True, STARTS)],
}


@pytest.fixture(autouse=True)
def _same_each_time(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn by lot, no time passes but the world's, and what is logged a thousand times is not."""
    caplog.set_level(logging.CRITICAL, "flask_mythic_clients")
    monkeypatch.setattr(memory, "secrets", SimpleNamespace(token_hex=lambda _: WHOSE.token))
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(repair, "_CLOCK_SLACK", timedelta())


class Campaign:
    """Explores, adds up, and fails with the schedule that breaks a promise."""

    def __init__(self, starts: Mapping[str, Start] = STARTS) -> None:
        self.totals: Counter[str] = Counter()
        self._programs = Programs(remembers=starts is REMEMBERED)
        self._starts = starts

    def explore(self, start: str, kinds: Sequence[str], **options: Any) -> Findings:
        """Explore these operations; fails where a promise is broken."""

        def make() -> World:
            return World(self._starts[start], self._programs, kinds, **options)

        found = Explorer(make).explore()
        self.totals += Counter(
            explorations=1,
            states=found.states,
            steps=found.steps,
            faults=found.faults,
            ends=found.schedules,
            replayed=found.replayed,
        )
        for rule, (schedule, wrong) in found.broken.items():
            pytest.fail("\n    ".join([f"{start}: {kinds}: {rule}: {wrong}", *tell(make, schedule)]))
        return found


def test_no_interleaving_breaks_a_promise(size: Size, report: Report) -> None:
    for at_once, faults, time_passes, starts in SEARCHES[3 if size(2) > 2 else 2]:
        campaign = Campaign()
        for start in starts:
            for kinds in combinations_with_replacement(OPERATIONS, at_once):
                campaign.explore(start, kinds, faults=faults, time_passes=time_passes)
        report(at_once=at_once, faults_in_each=faults, time_passes=time_passes, **campaign.totals)


def test_a_removal_that_does_without_the_hold_breaks_no_promise_where_time_passes(report: Report) -> None:
    """What another stamps before it is written after it. With `--size 3` every three are tried so."""
    campaign = Campaign()
    for start in ("active", "soft-deleted, pending"):
        for other in ("soft", "restore", "reconcile"):
            campaign.explore(start, [other, "hard", "host"], faults=0, time_passes=True)
    report(**campaign.totals)


@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize(
    ("start", "operation", "others", "records"),
    [
        ("active", "soft", RETURNS, 1),
        ("active", "hard", ClientNotFoundError.__name__, 1),
        ("soft-deleted", "restore", RETURNS, 2),
        ("removed, pending", "hard", ClientNotFoundError.__name__, 1),
    ],
)
def test_equal_requests_at_once_have_one_effect_and_one_record(
    at_once: int, start: str, operation: str, others: str, records: int, report: Report
) -> None:
    campaign = Campaign()
    found = campaign.explore(start, [operation] * at_once, faults=0, time_passes=False)
    row = {"soft": ("first", False), "restore": ("first", True)}.get(operation)
    assert {(ending.row, ending.records) for ending in found.endings} == {(row, records)}
    assert {outcome for ending in found.endings for outcome in ending.outcomes} == {RETURNS, others}
    assert all(RETURNS in ending.outcomes for ending in found.endings)
    report(endings=len(found.endings), **campaign.totals)


def test_leaving_out_what_was_seen_before_loses_no_ending(report: Report) -> None:
    def world() -> World:
        return World(
            STARTS[SOFT_DUE],
            Programs(),
            ["hard", "restore", "reader"],
            faults=0,
            time_passes=False,
        )

    def endings(world: World) -> Iterator[Ending]:
        choices = world.choices()
        if not choices:
            yield world.ending()
        for choice in choices:
            if (other := world.fork()).take(choice):
                yield from endings(other)

    every = Counter(endings(world()))
    assert Explorer(world).explore().endings == set(every)
    report(schedules=every.total(), endings=len(every))


@pytest.mark.parametrize("other", ["soft", "hard", "restore", "host", "reconcile"])
def test_a_store_that_was_set_back_is_found_out_and_repaired(other: str, size: Size, report: Report) -> None:
    """It may be copied, and set back to that copy, between any two steps of a reconcile and of another.

    Two reconciles at once have very many: by default from one start, with `--size 3` from all.
    """
    campaign = Campaign(REMEMBERED)
    most = size(2) > 2
    for start in ["removed, to be verified"] if other == "reconcile" and not most else REMEMBERED:
        campaign.explore(start, ["reconcile", other], set_back=True, time_passes=most)
    report(**campaign.totals)


def test_a_reader_with_a_lease_never_leaves_a_stale_entry(report: Report) -> None:
    campaign = Campaign(UNCACHED)
    for start in UNCACHED:
        for others in combinations_with_replacement([*SERVICE, "host"], 2):
            campaign.explore(start, ["fetch", *others])
        for other in SERVICE:
            campaign.explore(start, ["fetch", "fetch", other])
            campaign.explore(start, ["fetch", other], faults=1)
    report(**campaign.totals)


# What follows is broken on purpose: the explorer must find it.


@contextmanager
def _hold_nobody(
    self: MemoryRepository, client_ids: Collection[str], wait: bool, *, rows: bool = False
) -> Iterator[Any]:
    yield client_ids


@contextmanager
def _hold_without_waiting(
    self: MemoryRepository, client_ids: Collection[str], wait: bool, *, rows: bool = False
) -> Iterator[Any]:
    held = set(client_ids) - self._held
    self._held |= held
    yield held
    self._held -= held


@contextmanager
def _hold_for_ever(
    self: MemoryRepository, client_ids: Collection[str], wait: bool, *, rows: bool = False
) -> Iterator[Any]:
    self._changed.wait_for(lambda: not wait or self._held.isdisjoint(client_ids))
    self._held |= set(client_ids)
    yield client_ids


@contextmanager
def _verify_without_holding(
    self: MemoryRepository, client_ids: Collection[str], *, settled_for: timedelta, wait: bool
) -> Iterator[Holding]:
    yield from self._stamping(client_ids, "verified_at", lambda each, at: _is_due(each, at - settled_for))


@contextmanager
def _settle_what_others_hold(
    self: MemoryRepository, client_ids: Collection[str], *, wait: bool = True
) -> Iterator[Holding]:
    held = set(client_ids) - self._held
    self._held |= held
    try:
        yield from self._stamping(client_ids, "settled_at", lambda each, _: each.settled_at is None)
    finally:
        self._held -= held


class KeyValueFirst(DeletionService):
    """Takes the steps in the wrong order."""

    def _carry_out(self, change: Change) -> None:
        if change.action is Action.HARD:
            self._kv.apply(remove=KEYS, overwrite={})
        else:
            self._kv.apply(remove=[], overwrite={KNOWN: value("first", change.action is Action.RESTORE)})
        super()._carry_out(change)


class WritesAfterStep1(DeletionService):
    """Writes after step 1 without holding the records, and then stamps them."""

    def _carry_out(self, change: Change) -> None:
        if self._repository.record(change, self._entries):
            active = change.action is Action.RESTORE
            self._kv.apply(remove=[], overwrite={KNOWN: value("first", active)})
        with self._repository.settle([change.client_id]):
            pass


class StampsFirst(DeletionService):
    """Writes only after the records are stamped, and so no longer held."""

    @contextmanager
    def _both_steps(self, change: Change) -> Iterator[tuple[Recorded | None, Holding | None]]:
        recorded = self._repository.record(change, self._entries)
        with self._repository.settle([change.client_id]) as holding:
            pass
        yield recorded, holding


class StampsAloneFirst(DeletionService):
    """Removes the entries only after the record is stamped."""

    def _settle_alone(
        self, record: DeletionRecord, settle_alone: Callable[[DeletionRecord], DeletionRecord | None]
    ) -> DeletionRecord | None:
        settled = settle_alone(record)
        self._kv.apply(remove=record.kv_keys, overwrite={})
        return settled


class WritesAgainFromAnOldRow(DeletionService):
    """Writes the entries of a repeated soft delete from the row that it saw when it settled."""

    def _write_again(self, client_id: str) -> None:
        with self._repository.hold([client_id]) as holding:
            found = holding.clients.values()
        for client in found:
            self._kv.apply(remove=(), overwrite={KNOWN: value("first", client.active)})


class TakesATimeoutForDone(DeletionService):
    """Says that entries are gone where the store did not answer."""

    def _bring_in_line(self, holding: Holding, *rest: Any, **options: Any) -> set[str]:
        with suppress(KeyValueStoreError):
            return super()._bring_in_line(holding, *rest, **options)
        return set()


def _mark_of_the_end(self: MemoryRun, mark: Mark, close: Any = MemoryRun.close) -> bool:
    return close(self, Mark(mark.ended, mark.ended))  # type: ignore[no-any-return]


def _mark_without_a_run(self: MemoryRun, mark: Mark) -> bool:
    self._store.set(f"{self._name}:mark", f"{mark}")
    return True


def _mark_of_a_run_that_does_not_count(self: MemoryRun, mark: Mark) -> bool:
    return self._store.get(self._key) is not None and _mark_without_a_run(self, mark)


def _read_then_lease(found: Any, key: str, load: Callable[[], Value | None], expire: float) -> None:
    if found.find(key) is None:
        value = load()
        if (token := found.lease(key)) is not None:
            found.fill(key, token, value, expire)


def _leave_leases(self: MemoryStore, *, apply: Any = MemoryStore.apply, **work: Any) -> Any:
    kept = {key: entry for key, entry in self._entries.items() if ":lease:" in key}
    try:
        return apply(self, **work)
    finally:
        self._entries |= kept


def _fill_without_looking(self: MemoryStore, key: str, token: str, value: Value, expire: float) -> None:
    self._entries[key] = (value, None)


NOBODY = (MemoryRepository, "_hold", _hold_nobody)
NO_WAIT = (MemoryRepository, "_hold", _hold_without_waiting)
FOR_EVER = (MemoryRepository, "_hold", _hold_for_ever)
NO_VERIFY = (MemoryRepository, "verify", _verify_without_holding)
NOT_ITS_OWN = (MemoryRepository, "settle", _settle_what_others_hold)
BELIEVED = (MemoryRepository, "_look", lambda self, change: None)
BLIND = (steps, "Recorded", lambda record, alone: Recorded(record, alone=True))
PENDING_ALONE = (memory, "_may_write", lambda other, since: other.settled_at is None)
SETTLED_ALONE = (
    memory,
    "_may_write",
    lambda other, since: other.settled_at is not None and other.settled_at >= since.requested_at,
)
NOT_COMPARED = (Change, "applies_to", lambda self, client: True)

BROKEN = {
    "nobody is held": (NOBODY, "active", ["soft", "restore"], 0, "settled"),
    "verify holds nobody": (NO_VERIFY, SOFT_DUE, ["reconcile", "restore"], 0, "settled"),
    "verify holds nobody, for good": (
        NO_VERIFY,
        SOFT_DUE,
        ["reconcile", "restore", "reconcile"],
        0,
        "agreement",
    ),
    "settle stamps what others hold": (NOT_ITS_OWN, "active", ["soft", "restore"], 0, "settled"),
    "nobody waits": (NO_WAIT, "active", ["soft", "soft"], 0, "confirmed"),
    "nobody is let go": (FOR_EVER, "active", ["soft", "hard"], 0, "progress"),
    "a crash keeps what it held": (NO_WAIT, "active", ["soft"], 1, "agreement"),
    "the row is not compared": (NOT_COMPARED, "active", ["soft", "soft"], 0, "one record"),
    "the database is believed": (BELIEVED, "active", ["hard"], 1, "one record"),
    "entries first": (KeyValueFirst, "active", ["soft"], 1, "agreement"),
    "written by one who holds nothing": (WritesAfterStep1, "active", ["soft"], 0, "held"),
    "written after step 1": (WritesAfterStep1, "active", ["soft", "restore"], 0, "settled"),
    "written after step 1, for good": (
        WritesAfterStep1,
        "active",
        ["soft", "restore", "reconcile"],
        0,
        "agreement",
    ),
    "stamped first": (StampsFirst, "active", ["soft"], 0, "settled"),
    "stamped alone first": (StampsAloneFirst, "active", ["hard"], 0, "settled"),
    "nobody looks before": (BLIND, "active", ["soft", "hard", "host"], 0, "settled"),
    "alone among what is pending": (PENDING_ALONE, "active", ["soft", "hard", "host"], 0, "settled"),
    "alone among what was settled": (SETTLED_ALONE, "active", ["soft", "hard", "host"], 0, "confirmed"),
    "written again by one who holds nothing": (WritesAgainFromAnOldRow, SOFT_DUE, ["soft"], 0, "held"),
    "written again from an old row": (
        WritesAgainFromAnOldRow,
        SOFT_DUE,
        ["soft", "restore"],
        0,
        "settled",
    ),
    "a timeout is a success": (TakesATimeoutForDone, "active", ["soft"], 1, "outcome"),
    "a timeout is taken for done": (TakesATimeoutForDone, "removed, pending", ["hard"], 1, "removal"),
}


@pytest.mark.parametrize(("broken", "start", "kinds", "faults", "rule"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_on_purpose_is_found(
    broken: Any,
    start: str,
    kinds: Sequence[str],
    faults: int,
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
    report: Report,
) -> None:
    programs = Programs(broken if isinstance(broken, type) else DeletionService)
    if isinstance(broken, tuple):
        monkeypatch.setattr(*broken)

    def make() -> World:
        return World(STARTS[start], programs, kinds, faults=faults, time_passes=True)

    found = Explorer(make).explore(until=rule)
    assert rule in found.broken
    schedule, wrong = found.broken[rule]
    report(
        promise=rule,
        states=found.states,
        steps=len(schedule),
        schedule="; ".join(tell(make, schedule)),
        wrong=wrong,
    )


SOON, LOST = "removed, soon to be verified", "removed, verified, set back"
FORGETFUL = {
    "the mark is of the end": (_mark_of_the_end, SOON, ["reconcile", "reconcile"]),
    "the mark needs no run": (_mark_without_a_run, LOST, ["reconcile"]),
    "the run does not count": (_mark_of_a_run_that_does_not_count, LOST, ["reconcile"]),
}


@pytest.mark.parametrize(("close", "start", "kinds"), FORGETFUL.values(), ids=FORGETFUL)
def test_a_mark_that_is_broken_on_purpose_is_found(
    close: Any,
    start: str,
    kinds: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    size: Size,
    report: Report,
) -> None:
    if len(kinds) > 1 and size(2) < 3:
        pytest.skip("Two reconciles at once take a minute: with --size 3.")
    programs = Programs(remembers=True)
    monkeypatch.setattr(MemoryRun, "close", close)

    def make() -> World:
        return World(REMEMBERED[start], programs, kinds, set_back=True, time_passes=True)

    found = Explorer(make).explore(until="agreement")
    schedule, wrong = found.broken["agreement"]
    report(states=found.states, schedule="; ".join(tell(make, schedule)), wrong=wrong)


LEASELESS = {
    "it is taken after the reading": (leases, "get_or_fill", _read_then_lease),
    "it is left where it is": (MemoryStore, "apply", _leave_leases),
    "nobody looks at it": (MemoryStore, "fill", _fill_without_looking),
}


@pytest.mark.parametrize("broken", LEASELESS.values(), ids=LEASELESS)
def test_a_lease_that_is_broken_on_purpose_is_found(
    broken: Any, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    programs = Programs()
    monkeypatch.setattr(*broken)

    def make() -> World:
        return World(UNCACHED["active"], programs, ["fetch", "hard"])

    found = Explorer(make).explore(until="settled")
    schedule, wrong = found.broken["settled"]
    report(states=found.states, schedule="; ".join(tell(make, schedule)), wrong=wrong)
