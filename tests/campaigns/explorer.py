"""The search: every schedule of some operations, each state but once.

Breadth first, on copies of the world, so that the first schedule that breaks a promise is a shortest one. A
state that was met before is not gone on from: every operation depends on the answers it got and on nothing
else, so what follows would be the same.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .steps import GOES
from .world import LANDS, SET_BACK, Choice, Ending, World, is_fault

Schedule = tuple[Choice, ...]
_REPLAYED = 100  # one of so many endings is checked by running its schedule again, without any copy


@dataclass
class Findings:
    """What a search has seen; `broken` holds the first schedule for each promise, and what was wrong."""

    schedules: int = 0  # to an end; of those that meet in one state, one
    states: int = 0
    steps: int = 0
    faults: int = 0
    replayed: int = 0
    broken: dict[str, tuple[Schedule, str]] = field(default_factory=dict)
    endings: set[Ending] = field(default_factory=set)


class Explorer:
    """Searches from one beginning, given as a function that makes the world anew."""

    def __init__(self, make: Callable[[], World]) -> None:
        self._make = make
        self._parts: dict[Any, int] = {}  # numbered, since many states share each
        self._seen: set[tuple[int, ...]] = set()
        self._judged: set[Any] = set()
        self.findings = Findings()

    def explore(self, until: str | None = None) -> Findings:
        """Return when there is nothing new, or that promise is broken."""
        todo = deque([self._make()])
        gc.disable()  # it would look through all states over and over, and there are no cycles to be found
        try:
            while todo and until not in self.findings.broken:
                world = todo.popleft()
                if self._is_new(world):
                    todo += self._next(world)
        finally:
            gc.enable()
        self.findings.states = len(self._seen)
        return self.findings

    def _next(self, world: World) -> list[World]:
        choices = world.choices()
        if not choices:
            self._end(world)
        taken = []
        for choice in choices:
            other = world if choice == choices[-1] else world.fork()  # the last one may have it
            if other.take(choice):
                self.findings.steps += 1
                self.findings.faults += is_fault(choice)
                self._note(other)
                taken.append((choice, other))
        if choices and not any(choice == SET_BACK or choice[1] in (GOES, LANDS) for choice, _ in taken):
            world.promises.broken = (("progress", "every operation waits for another"),)
            self._note(world)
        return [other for _, other in taken]

    def _is_new(self, world: World) -> bool:
        mark = tuple([self._parts.setdefault(part, len(self._parts)) for part in world.fingerprint()])
        if mark in self._seen:
            return False
        self._seen.add(mark)
        return True

    def _end(self, world: World) -> None:
        self.findings.schedules += 1
        self.findings.endings.add(world.ending())
        remains = world.remains()
        if self.findings.schedules % _REPLAYED == 1:
            self.findings.replayed += 1
            assert self._replay(world.schedule).remains() == remains, "a copy of a world went another way"
        if remains not in self._judged:
            self._judged.add(remains)
            world.promises.over(world.stores, remembers=world.remembers)
            self._note(world)

    def _replay(self, schedule: Schedule) -> World:
        world = self._make()
        for choice in schedule:
            world.take(choice)
        return world

    def _note(self, world: World) -> None:
        for rule, wrong in world.promises.broken:
            self.findings.broken.setdefault(rule, (world.schedule, wrong))


def tell(make: Callable[[], World], schedule: Schedule) -> Iterator[str]:
    """Say in words what happens in a schedule."""
    world = make()
    for choice in schedule:
        yield world.tell(choice)
        world.take(choice)
