"""One schedule: the operations, their stores, and what can happen next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from flask_mythic_clients.model import Action
from tests.integration.scene import Crash

from .programs import HOST, WINDOW, Call, End, Programs
from .promises import Promises
from .steps import GOES, KEEPS, REFUSES, STEPS, WHOSE, Command, KeptError, carry_out, faults, leave
from .stores import Blocked, Row, Start, Stores, Transaction

T = TypeVar("T")

Choice = tuple[int, str]
"""Whose step is next, by its place, and how it goes: GOES, CRASHES or a fault. Some have a place below zero:
TIME_PASSES, COPIED, SET_BACK, and LANDS, for a command to the key-value store that comes late.
"""
TIME_PASSES = (-1, "the verify window passes")
COPIED, SET_BACK = (-1, "the key-value store is copied"), (-1, "it is set back to that copy")
LANDS = "a late command lands"
CRASHES, RETURNS = "crashes before", "returns"
_NOT_BEGUN = Call("begin")


class Ending(NamedTuple):
    """How the operations ended, in no order, and what is in the stores."""

    outcomes: tuple[str, ...]
    records: int
    row: Row
    entries: tuple[tuple[str, str], ...]


@dataclass
class Operation:
    """One of those that run at once."""

    kind: str
    answers: tuple[int, ...] = ()
    next: Call | End = _NOT_BEGUN
    started: bool = False
    crashed: bool = False
    failed: bool = False  # a store has failed it
    kept: bool = False  # the database has kept the row
    refused: bool = False  # the key-value store has refused it a key; reconcile goes on
    transaction: Transaction | None = None
    removed: bool = False  # it has removed the row
    owed: frozenset[str] = frozenset()  # entries to be confirmed as gone before it may say so
    seen: int | None = None  # how many records there were after its step 1

    @property
    def call(self) -> Call | None:
        """What it asks for; None at its end."""
        return self.next if isinstance(self.next, Call) and not self.crashed else None

    @property
    def outcome(self) -> str:
        """How it ended, in a word."""
        if self.crashed or isinstance(self.next, Call):
            return CRASHES
        return type(self.next.raised).__name__ if self.next.raised else RETURNS


class World:
    """Runs a schedule, choice by choice."""

    def __init__(
        self,
        start: Start,
        programs: Programs,
        kinds: Sequence[str],
        *,
        faults: int = 0,
        time_passes: bool = False,
        set_back: bool = False,
    ) -> None:
        self.stores = Stores(start.database, start.entries)
        self.promises = Promises(start.stale, start.written)
        self.late: tuple[Command, ...] = ()
        self.schedule: tuple[Choice, ...] = ()
        self._programs = programs
        self.remembers = programs.remembers
        self._faults = faults
        self._time_passes = time_passes
        self._set_back = set_back
        self._copy: dict[str, Any] | None = None
        self._ticks = set_back  # then it matters what was first
        self.operations = [Operation(kind) for kind in kinds]
        for operation in self.operations:
            self._go_on(operation)

    def fork(self) -> "World":
        """Return a world that is as this one is, and goes its own way."""
        other = _copy(self)
        other.stores = self.stores.fork()
        other.promises = _copy(self.promises)
        other.operations = [_copy(operation) for operation in self.operations]
        return other

    def choices(self) -> list[Choice]:
        """Return all that can happen next, first what needs no fault."""
        running = [(who, operation.call) for who, operation in enumerate(self.operations) if operation.call]
        choices = [(who, GOES) for who, _ in running]
        choices += [(-2 - place, LANDS) for place in range(len(self.late))]
        # No reader and no command takes longer than the window.
        if (
            self._time_passes
            and running
            and not self.late
            and all(call.name != "write" for _, call in running)
        ):
            choices.append(TIME_PASSES)
        if self._set_back and running:
            choices.append(COPIED)
        if self._copy is not None:
            choices.append(SET_BACK)
        if self._faults:
            for who, call in running:
                choices += [(who, fault) for fault in faults(call)]
                if self.operations[who].started:  # or it is as one that never was
                    choices.append((who, CRASHES))
        return choices

    def take(self, choice: Choice) -> bool:
        """Let it happen; return False, and change nothing, where it has to wait."""
        who, how = choice
        self.promises.broken = ()
        if choice == TIME_PASSES:
            self.stores.let_pass(2 * WINDOW)
            self._time_passes = False
        elif choice == COPIED:
            self._copy, self._set_back = dict(self.stores.kv._entries), False
        elif choice == SET_BACK:
            assert self._copy is not None
            self.promises.written |= self.stores.set_back(self._copy)
            self._copy = None
        elif how == LANDS:
            self._land(-2 - who)
        elif how == CRASHES:
            self._crash(self.operations[who])
        else:
            try:
                self._step(self.operations[who], how)
            except Blocked:
                return False
        self._faults -= is_fault(choice)
        self.schedule += (choice,)
        self.promises.after_step(self.stores)
        return True

    def fingerprint(self) -> tuple[Any, ...]:
        """Return all that the rest of the schedule depends on; equal operations may trade places."""
        operations = [
            (
                operation.kind,
                operation.answers,
                operation.crashed,
                operation.transaction is not None and operation.transaction.holds,
                tuple(sorted(operation.owed)),
                -1 if operation.seen is None else operation.seen,
            )
            for operation in self.operations
        ]
        operations.sort()
        return (
            self.stores.row,
            tuple(
                [(r.action.value, r.requested_at, r.settled_at, r.verified_at) for r in self.stores.records]
            ),
            tuple(sorted(self.stores.kv._entries.items())),
            None if self._copy is None else tuple(sorted(self._copy.items())),
            self._set_back,
            bool(self.stores.held),
            self.stores.now,
            self._time_passes,
            self._faults,
            self.late,
            self.promises.stale,
            self.promises.written,
            *operations,
        )

    def remains(self) -> tuple[Any, ...]:
        """Return all that matters once the operations have ended."""
        stores = self.stores
        entries = tuple(sorted(stores.kv._entries.items()))
        return stores.row, stores.now, tuple(stores.records), entries, bool(stores.held)

    def ending(self) -> Ending:
        """Return how it ended."""
        outcomes = sorted(operation.outcome for operation in self.operations)
        entries = tuple(sorted(self.stores.entries.items()))
        return Ending(tuple(outcomes), len(self.stores.records), self.stores.row, entries)

    def tell(self, choice: Choice) -> str:
        """Say in words what a choice is, before it is taken."""
        who, how = choice
        if who < 0:
            return how
        operation = self.operations[who]
        assert operation.call is not None
        name, arguments = operation.call
        shown = {
            "apply": lambda remove, overwrite, *_: f"remove={[*remove]} overwrite={dict(overwrite)}",
            "write": lambda name, status: f"the entries of {name!r}, status {status}",
        }.get(name, lambda *_: "")(*arguments)
        return f"{operation.kind} {who + 1} {how or 'does'} {name} {shown}".rstrip()

    def _go_on(self, operation: Operation) -> None:
        """Let the operation run to its next step."""
        while True:
            operation.next = self._programs.next(operation.kind, operation.answers)
            if operation.call is None or operation.call.name != "now":
                break
            operation.answers += (self._programs.number(self.stores.now),)  # no step of its own
        if isinstance(operation.next, End) and operation.kind not in HOST:
            self.promises.ended(operation, operation.next, self.stores.records)

    def _step(self, operation: Operation, fault: str) -> None:
        assert operation.call is not None
        name, arguments = operation.call
        row, records = self.stores.row, self.stores.records
        if self._ticks:
            self.stores.tick()
        WHOSE.token = f"{self.operations.index(operation)}"
        answer = STEPS[name](self, operation, fault, *arguments)
        operation.started = True
        goes_on = fault == REFUSES and operation.kind == "reconcile"
        operation.refused = operation.refused or goes_on
        operation.failed = operation.failed or not (goes_on or fault in (GOES, KEEPS))
        operation.kept = operation.kept or answer is KeptError
        if operation.kind not in HOST:
            new = len(self.stores.records) - len(records)
            self.promises.stepped(row, self.stores.row, new, at_step_1=name == "record")
        if name == "record" and not isinstance(answer, type):
            changed = answer is not None
            self.promises.check("one record", changed == (row != self.stores.row), f"record: {answer}")
            operation.removed = changed and operation.kind == Action.HARD
            operation.seen = len(self.stores.records)
            operation.owed = self.promises.stale if operation.kind == Action.HARD else frozenset()
        operation.answers += (self._programs.number(answer),)
        self._go_on(operation)

    def _crash(self, operation: Operation) -> None:
        """Let the operation die; its database finds out and rolls back."""
        if operation.transaction is not None:
            leave(self, operation, Crash())
        operation.crashed = True
        operation.owed = frozenset()

    def _land(self, place: int) -> None:
        command = self.late[place]
        self.late = self.late[:place] + self.late[place + 1 :]
        carry_out(self, command)
        self.promises.written |= {key for key, _ in command[1]}


def is_fault(choice: Choice) -> bool:
    """Whether something goes wrong there."""
    who, how = choice
    return who >= 0 and how != GOES


def _copy(original: T) -> T:
    """Do what copy.copy does, in a third of its time."""
    other = object.__new__(type(original))
    other.__dict__.update(original.__dict__)
    return other
