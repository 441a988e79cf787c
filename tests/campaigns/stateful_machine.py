"""Random programs over every operation, outage, crash and restart, against a small model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_mythic_clients import ClientNotFoundError, HardDeleteForbiddenError, StoreError
from flask_mythic_clients.entries import Entries, EntryRule, KeyTemplates
from flask_mythic_clients.model import Action, Client, DeletionRecord, HardDelete, Reconciliation
from flask_mythic_clients.service import DeletionService

from .stateful_stages import (
    AFTER_STAMP,
    BEFORE_RECORD,
    COMMIT,
    IDS,
    OUTAGES,
    POINTS,
    READ,
    Crash,
    Fault,
    FaultyRepository,
    FaultyStore,
    Row,
    Stage,
)

# A clock is moved by hours, and no program takes one: the time it takes by itself makes no difference.
WINDOW = timedelta(hours=60)
LIFETIME = 86_400.0  # of every entry, in seconds of the key-value store, whose clock is left alone

TEMPLATES = {
    "one key": ("client:{id}",),
    "two keys": ("client:{id}", "publishable_key:{publishable_key}"),
}

KEYS = ("same", "new", "none", "same")  # of a row: the one the id always has, one of its own, null

ids = st.sampled_from(IDS)
faults = st.none() | st.builds(Fault, st.sampled_from(POINTS), st.booleans())
faults_at_reads = st.none() | st.builds(Fault, st.sampled_from([READ, COMMIT]), st.booleans())


@dataclass(frozen=True)
class Setting:
    """The configuration of one process."""

    templates: tuple[str, ...]
    by_function: bool
    guard: HardDelete

    def rule(self, stage: Stage) -> EntryRule:
        """Return the host's rule; without a model, only a function can tell values."""
        fill = KeyTemplates(self.templates)
        if stage.has_model and not self.by_function:
            return fill

        def entries(client: Client) -> Entries:
            row = Row(client.id, client.row.name, client.active, client.row.publishable_key)
            return {key: row.document if key == f"client:{client.id}" else None for key in fill(client)}

        return entries


# Not evenly: most can happen where there are two keys and no guard.
settings = st.builds(
    Setting,
    st.sampled_from([TEMPLATES[name] for name in ("two keys", "one key", "two keys")]),
    st.booleans(),
    st.sampled_from([HardDelete.ALLOW, *HardDelete]),
)


@dataclass(frozen=True)
class Done:
    """What the model expects of the ledger, and when it happened, in time that only grows."""

    client_id: str
    action: Action
    keys: tuple[str, ...]
    at: timedelta


class ClientMachine(RuleBasedStateMachine):
    """The service and its stores on one side; a dictionary of rows and a list of changes on the other."""

    stage: Stage
    make_service: Callable[..., DeletionService] = DeletionService

    def __init__(self) -> None:
        super().__init__()
        self.stage.clear()
        self.rows: dict[str, Row] = {}
        self.done: list[Done] = []
        self.gone: set[str] = set()  # keys recorded by the hard delete of the last row that had them
        self.cached: set[str] = set()  # keys the host ever wrote
        self.readers: dict[str, tuple[Row, Done]] = {}  # a slow one, and what made its row an old one
        self.made = 0
        self.elapsed = timedelta()
        self.behind = timedelta()  # how far the clock was set back, in all
        self.settled: dict[int, timedelta] = {}  # what the clock told when each record was
        self.announced: list[int] = []
        self.unannounced: set[int] = set()  # a crash came between the stamp and the signal
        self.stage.figures["examples"] += 1

    @initialize(setting=settings)
    def open(self, setting: Setting) -> None:
        self.setting = setting
        self._start()
        for id in IDS[:2]:
            self._insert(id, "same", status=True)

    # What the host does.

    @precondition(lambda self: len(self.rows) < len(IDS))
    @rule(pick=st.integers(0, 2), key=st.sampled_from(KEYS), status=st.booleans())
    def create(self, pick: int, key: str, status: bool) -> None:
        """Make a row, mostly under an id that was deleted; its publishable key never was another id's."""
        self._count("create")
        absent = [id for id in IDS if id not in self.rows]
        id = absent[pick % len(absent)]
        self._insert(id, key, status=status)

    @rule(id=ids)
    def cache(self, id: str) -> None:
        """Write the entries of the row as it is now."""
        self._count("cache")
        if id in self.rows:
            self._write(self.rows[id], _keys(TEMPLATES["two keys"], self.rows[id]))

    @precondition(lambda self: self.readers)
    @rule(id=ids)
    def write_late(self, id: str) -> None:
        """Write the entries of a row that was read before it changed, no more than a window ago.

        Only the keys that the change recorded: what a configuration did not name, nobody can know.
        """
        self._count("write late")
        row, change = self.readers.pop(id, (None, None))
        if row is not None and self.elapsed - change.at < WINDOW:
            self.stage.figures["old rows written"] += 1
            self._write(row, change.keys)

    # What the service does.

    @rule(id=ids, fault=faults)
    def soft_delete(self, id: str, fault: Fault | None) -> None:
        self._operate(Action.SOFT, id, fault)

    @rule(id=ids, fault=faults)
    def hard_delete(self, id: str, fault: Fault | None) -> None:
        self._operate(Action.HARD, id, fault)

    @rule(id=ids, fault=faults, key=st.sampled_from(KEYS))
    def make_anew(self, id: str, fault: Fault | None, key: str) -> None:
        """Hard delete, and have the host make the row again at once, whatever the service said."""
        self._operate(Action.HARD, id, fault)
        if id not in self.rows:
            self._insert(id, key, status=True)

    @rule(id=ids, fault=faults)
    def restore(self, id: str, fault: Fault | None) -> None:
        self._operate(Action.RESTORE, id, fault)

    @rule(fault=faults)
    def reconcile(self, fault: Fault | None) -> None:
        self._count("reconcile")
        before = self.stage.records()
        pending = [record for record in before if record.settled_at is None]
        due = [
            r
            for r in before
            if r.settled_at and not r.verified_at and self.settled[r.id] <= self._clock - WINDOW
        ]
        outcome, counted = self._meet(fault, self.service.reconcile)
        if outcome is None:
            assert counted == Reconciliation(len(pending), len(due), 0)
            self._agree([*pending, *due])

    @rule(id=ids, hard=st.booleans(), fault=faults_at_reads)
    def look(self, id: str, hard: bool, fault: Fault | None) -> None:
        """Read all that can be read: it is what the model says, and nothing has changed."""
        self._count("look")
        before = self.stage.records(), self._entries()
        outcome, preview = self._meet(fault, self.service.preview, id, hard=hard)
        if self._confirmed(outcome):
            refusal = self._refusal(Action.HARD if hard else Action.SOFT, id, pending=False)
            told = HardDeleteForbiddenError if preview is not None and preview.refused else outcome
            assert told is refusal
            if outcome is None:
                assert preview.kv_keys == _keys(self.setting.templates, self.rows[id])
        outcome, history = self._meet(fault, self.service.history, id)
        assert not self._confirmed(outcome) or history == [r for r in before[0] if r.client_id == id]
        pending = [record for record in before[0] if record.settled_at is None]
        outcome, listed = self._meet(fault, lambda: list(self.service.pending()))
        assert not self._confirmed(outcome) or listed == pending
        outcome, backlog = self._meet(fault, self.service.backlog)
        if self._confirmed(outcome):
            assert backlog.pending == len(pending)
            assert (backlog.oldest is None) == (not pending)
        outcome, clients = self._meet(fault, lambda: [(c.id, c.active) for c in self.service.clients()])
        assert not self._confirmed(outcome) or clients == sorted((r.id, r.status) for r in self.rows.values())
        assert before == (self.stage.records(), self._entries())

    # What befalls them.

    @rule(outage=st.sampled_from([*["stores back"] * 3, *OUTAGES]))
    def go_down_or_come_back(self, outage: str) -> None:
        self._count(outage)
        self.stage.faults.down = OUTAGES.get(outage, frozenset())

    @rule(setting=st.none() | settings)
    def restart(self, setting: Setting | None) -> None:
        """Restart, perhaps with other key templates, another rule or another guard."""
        self._count("restart" if setting is None else "configure")
        self.setting = setting or self.setting
        self._start()

    @rule(hours=st.integers(-30, 90))
    def move_the_clock(self, hours: int) -> None:
        """Let time pass; or set the database's clock back, which takes no time back."""
        self._count("time passes" if hours >= 0 else "clock set back")
        self._move_the_clock(timedelta(hours=hours))

    @precondition(lambda self: self.stage.faults.down)
    @rule()
    def repair(self) -> None:
        self._count("repair")
        self._repair()

    # What must hold.

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        assert self.stage.rows() == {id: row.status for id, row in self.rows.items()}
        records = self.stage.records()
        assert [(r.client_id, r.action, r.kv_keys) for r in records] == [
            (done.client_id, done.action, done.keys) for done in self.done
        ]
        settled = [record.id for record in records if record.settled_at]
        assert sorted([*self.announced, *self.unannounced]) == settled, "a signal is missing, or came twice"
        assert all(r.verified_at - r.settled_at >= WINDOW for r in records if r.verified_at), "too early"
        for id in settled:
            self.settled.setdefault(id, self._clock)

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self._repair()
            self.the_database_says_what_the_model_says()

    def _repair(self) -> None:
        """Bring the stores back, let the window pass, reconcile: all must agree, and nothing be left."""
        self.stage.faults.down = frozenset()
        known = [record for record in self.stage.records() if not record.verified_at]
        before = self._entries()
        for _ in range(2):  # what the first settles, the second verifies
            self._move_the_clock(self.behind + WINDOW)
            self.service.reconcile()
        assert self.service.reconcile() == Reconciliation(0, 0, 0)
        assert list(self.service.pending()) == []
        assert all(record.verified_at for record in self.stage.records())
        self._agree(known)
        entries = self._entries()
        assert entries.keys() <= before.keys(), "reconcile made an entry"
        assert not self.gone & entries.keys(), "an entry of a client that is gone"
        for id, row in self.rows.items():
            assert entries.get(f"client:{id}") in (None, row.document)
        assert all(self.stage.raw.ttl(key) > 0 for key in entries), "an entry lost its time to live"

    def _agree(self, records: Iterable[DeletionRecord]) -> None:
        """Check the entries of records that were brought in line just now.

        The second look leaves one thing: a key that a newer row has taken over, for that may be its entry.
        """
        entries = self._entries()
        for record in records:
            row = self.rows.get(record.client_id)
            owned = () if row is None else _keys(self.setting.templates, row)
            for key in record.kv_keys:
                if row is not None and key == f"client:{row.id}":
                    assert entries.get(key) in (None, row.document), f"{key} has an old value"
                elif key not in owned or (record.action is Action.HARD and not record.settled_at):
                    assert key not in entries, f"{key} is still there"

    # How an operation is taken, and what the model says to it.

    def _operate(self, action: Action, id: str, fault: Fault | None) -> None:
        self._count(f"{action}")
        before = self._entries()
        pending = self._pending(id)
        refusal = self._refusal(action, id, pending=bool(pending))
        row = self.rows.get(id)
        changes = row is not None and refusal is None
        changes = changes and (action is Action.HARD or row.status is (action is Action.SOFT))
        method = {"soft": self.service.soft_delete, "hard": self.service.hard_delete}
        outcome, _ = self._meet(fault, method.get(action, self.service.restore), id, actor="tests")
        if changes and self._was_recorded(row):
            self._change(action, row)
        if self._confirmed(outcome):
            assert outcome is refusal
            made = [record for record in self.stage.records() if record.client_id == id][-1:]
            self._agree([*pending, *(made if changes else [])])
            assert not self._pending(id)
        elif changes and self.stage.faults.hit not in (BEFORE_RECORD, COMMIT, AFTER_STAMP):
            assert self._pending(id), "unconfirmed, but not pending"
        assert self._entries().keys() <= before.keys(), "the service made an entry"

    def _refusal(self, action: Action, id: str, *, pending: bool) -> type[Exception] | None:
        row, guard = self.rows.get(id), self.setting.guard
        if row is None:
            return ClientNotFoundError if action is Action.RESTORE or not pending else None
        if action is Action.HARD and (
            guard is HardDelete.DENY or (guard is HardDelete.AFTER_SOFT_DELETE and row.status)
        ):
            return HardDeleteForbiddenError
        return None

    def _was_recorded(self, row: Row) -> bool:
        """Whether a change that the model allows was made; only after a commit that failed is that open."""
        if self.stage.faults.hit in (COMMIT, None):
            seen = self.stage.rows().get(row.id)
            return self.stage.faults.hit is None or seen != row.status
        return self.stage.faults.hit != BEFORE_RECORD

    def _change(self, action: Action, row: Row) -> None:
        keys = _keys(self.setting.templates, row)
        self.done.append(Done(row.id, action, keys, self.elapsed))
        self.readers.setdefault(row.id, (row, self.done[-1]))
        self.stage.figures["changes"] += 1
        if action is Action.HARD:
            del self.rows[row.id]
            self.gone |= set(keys)
        else:
            self.rows[row.id] = replace(row, status=action is Action.RESTORE)

    def _meet(
        self, fault: Fault | None, call: Callable[..., Any], *args: Any, **options: Any
    ) -> tuple[type[BaseException] | None, Any]:
        """Call under a fault; return the exception's type and the answer. No fault may be swallowed."""
        self.stage.faults.armed, self.stage.faults.hit = fault, None
        outcome, answer = None, None
        try:
            answer = call(*args, **options)
        except (ClientNotFoundError, HardDeleteForbiddenError, StoreError, Crash) as error:
            outcome = type(error)
        self.stage.faults.armed = None
        assert self._confirmed(outcome) is (self.stage.faults.hit is None), f"{outcome} after a fault"
        if self.stage.faults.hit == AFTER_STAMP:
            settled = {record.id for record in self.stage.records() if record.settled_at}
            self.unannounced |= settled - set(self.announced)
        if outcome is Crash:
            self._start()
        return outcome, answer

    @staticmethod
    def _confirmed(outcome: type[BaseException] | None) -> bool:
        return outcome is None or not issubclass(outcome, (StoreError, Crash))

    def _start(self) -> None:
        self.stage.restart()
        self.service = self.make_service(
            FaultyRepository(self.stage.repository, self.stage.faults),
            FaultyStore(self.stage),
            self.setting.rule(self.stage),
            guard=self.setting.guard,
            verify_after=WINDOW,
            keys_kept=timedelta(days=36_500),  # the eyes compare them
            on_settled=lambda record: self.announced.append(record.id),
        )

    @property
    def _clock(self) -> timedelta:
        """What the database's clock tells, if it began at zero."""
        return self.elapsed - self.behind

    def _move_the_clock(self, by: timedelta) -> None:
        self.elapsed += max(by, timedelta())
        self.behind += max(-by, timedelta())
        self.stage.move_the_clock(by)

    def _pending(self, id: str) -> list[DeletionRecord]:
        return [r for r in self.stage.records() if r.client_id == id and r.settled_at is None]

    def _entries(self) -> dict[str, str]:
        return self.stage.entries(sorted(self.cached))

    def _insert(self, id: str, key: str, *, status: bool) -> None:
        self.made += 1
        publishable_key = {"same": f"pk-{id}", "new": f"pk-{id}-{self.made}", "none": None}[key]
        self.rows[id] = Row(id, f"{id} {self.made}", status, publishable_key)
        self.gone -= set(_keys(TEMPLATES["two keys"], self.rows[id]))
        self.stage.insert(self.rows[id])

    def _write(self, row: Row, keys: Iterable[str]) -> None:
        for key in keys:
            value = row.document if key == f"client:{row.id}" else row.id
            self.stage.raw.set(key, value, ex=int(LIFETIME))
            self.cached.add(key)

    def _count(self, operation: str) -> None:
        self.stage.figures["steps"] += 1
        self.stage.figures[operation] += 1


def _keys(templates: Iterable[str], row: Row) -> tuple[str, ...]:
    """Fill the templates; a column that is null makes no key."""
    filled = ((template, template.format(**vars(row))) for template in templates)
    null = row.publishable_key is None
    return tuple(key for template, key in filled if not (null and "{publishable_key}" in template))
