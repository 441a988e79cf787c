"""Operations that can be stopped at every call they make, without threads.

An operation is a function of the answers its stores give. So it is run again from its beginning with the
answers so far, and stopped by an exception at the first call that has none: that is its next step. What it
asks for after which answers is remembered, so that the real service runs once for each, not once a schedule.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from flask_mythic_clients import leases
from flask_mythic_clients.entries import EntryFunction, EntryRule, Value
from flask_mythic_clients.errors import EntriesRefusedError
from flask_mythic_clients.model import Action, Change, DeletionRecord, Holding, Mark, Recorded
from flask_mythic_clients.service import DeletionService

ID = "acme"
KNOWN, HOSTS = f"client:{ID}", f"pk:{ID}"
KEYS = (KNOWN, HOSTS)
WINDOW = timedelta(seconds=60)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULE = EntryFunction(lambda row: {KNOWN: value(row.name, row.status), HOSTS: None})


class Call(NamedTuple):
    """What an operation asks of a store: the name of a step, and its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


class End(NamedTuple):
    """How an operation ended: what it returned, or what it raised."""

    returned: Any = None
    raised: Exception | None = None


class Unanswered(BaseException):
    """The operation stops here until its call is answered."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.call = call


@cache
def value(name: str, status: bool) -> str:
    """Return the value of the entry that follows from the row."""
    return json.dumps({"id": ID, "name": name, "status": status})


class Ports:
    """Both stores, as an operation sees them: answers in their order, then the end of them."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = iter(answers)
        self._stopped: Unanswered | None = None

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return the next answer, or raise it where it is the class of an exception."""
        if self._stopped is not None:
            raise self._stopped  # it cleans up, which is not for now
        for answer in self._answers:
            if isinstance(answer, type):
                raise answer
            return answer
        self._stopped = Unanswered(Call(name, arguments))
        raise self._stopped

    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        # Where it waits for the row it is blind to what happens meanwhile: whether it was alone, too.
        began = self.ask("begin") if change.action is Action.HARD else None
        return self.ask("record", change, began)

    def make_durable(self) -> None:
        """Do nothing: all that is committed there is durable."""

    def settle(self, client_ids: Collection[str], *, wait: bool = True) -> Any:
        return self._holding("settle", tuple(client_ids), wait)

    def settle_alone(self, record: DeletionRecord) -> DeletionRecord | None:
        return self.ask("settle alone", record)

    def verify(self, client_ids: Collection[str], *, settled_for: timedelta, wait: bool = True) -> Any:
        return self._holding("verify", tuple(client_ids), wait, settled_for)

    def note_failure(self, client_ids: Collection[str], error: str) -> None:
        self.ask("note failure", tuple(sorted(client_ids)))

    def hold(self, client_ids: Collection[str], *, wait: bool = True) -> Any:
        return self._holding("hold", tuple(client_ids), wait)

    def forget_keys(self, *, verified_before: datetime | None, kept: timedelta) -> int:
        return 0  # nothing here is as old as that

    def has_forgotten(self, *, since: datetime) -> bool:
        return False

    def address(self) -> str:
        return "memory"

    def now(self) -> datetime:
        return NOW

    def done(
        self, *, since: datetime | None, before: datetime, after: DeletionRecord | None
    ) -> Sequence[DeletionRecord]:
        return self.ask("done", since, before, after)

    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        return self.ask("pending", after)

    def due(self, *, settled_for: timedelta, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        return self.ask("due", settled_for, after)

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        return set(self.ask("apply", tuple(sorted(remove)), tuple(sorted(overwrite.items()))))

    @contextmanager
    def _holding(self, name: str, *arguments: Any) -> Iterator[Holding]:
        holding = self.ask(name, *arguments)
        try:
            yield holding
        except Exception:
            self.ask("roll back")
            raise
        self.ask("commit")


class RememberingPorts(Ports):
    """The same, where the key-value store has a mark."""

    def now(self) -> datetime:
        return self.ask("now")

    def read_mark(self, name: str) -> Mark | None:
        raise NotImplementedError

    def open_run(self, name: str) -> "PortsRun":
        return PortsRun(self, *self.ask("open run", name))


class PortsRun:
    """A run, as an operation sees it; its state is the store's own, number by number."""

    def __init__(self, ports: Ports, key: str, mark: Mark | None) -> None:
        self._ports, self._key, self.mark = ports, key, mark
        self._pages, self._refused = 0, False

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        command = tuple(sorted(remove)), tuple(sorted(overwrite.items()))
        self._pages += 1
        try:
            return set(self._ports.ask("apply", *command, (self._key, self._pages - 1)))
        except EntriesRefusedError:
            self._refused = True
            raise

    def close(self, mark: Mark) -> bool:
        return self._ports.ask("close run", self._key, self._pages, self._refused, mark)


class PortsLeases:
    """The leases of a reader, as an operation sees them."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def find(self, key: str) -> bytes | None:
        return self._ports.ask("find", key)

    def lease(self, key: str) -> str | None:
        return self._ports.ask("lease", key)

    def fill(self, key: str, token: str, value: Value | None, expire: float) -> None:
        self._ports.ask("fill", key, token, value)


def _fetch(ports: Ports) -> None:
    """Read the entry, and fill it where it is missing: with a lease."""
    fill = leases.get_or_fill  # as it is now: some tests break it
    fill(PortsLeases(ports), KNOWN, lambda: (row := ports.ask("read")) and value(*row), expire=60)


def _recreate(ports: Ports) -> None:
    """Insert the row where there is none, then write its entries: the host takes the id into use again."""
    if (row := ports.ask("insert")) is not None:
        ports.ask("write", *row)


def _reread(ports: Ports) -> None:
    """Read the row, then write its entries: the classic cache that is filled with what was read before."""
    if (row := ports.ask("read")) is not None:
        ports.ask("write", *row)


HOST: Mapping[str, Callable[[Ports], None]] = {"host": _recreate, "reader": _reread, "fetch": _fetch}
SERVICE: Mapping[str, Callable[[DeletionService], Any]] = {
    "soft": lambda service: service.soft_delete(ID, actor="tests"),
    "hard": lambda service: service.hard_delete(ID, actor="tests"),
    "restore": lambda service: service.restore(ID, actor="tests"),
    "reconcile": lambda service: service.reconcile(),
}
OPERATIONS = (*SERVICE, "host", "reader")


class Programs:
    """What each operation asks for after which answers. An answer is known by its number."""

    def __init__(self, service: type[DeletionService] = DeletionService, *, remembers: bool = False) -> None:
        self.service = service
        self.remembers = remembers
        self._ports = RememberingPorts if remembers else Ports
        self._answers: list[Any] = []
        self._numbers: dict[Any, int] = {}
        self._next: dict[tuple[str, tuple[int, ...]], Call | End] = {}

    def number(self, answer: Any) -> int:
        """Return the same number for equal answers."""
        key = answer
        if isinstance(answer, Holding):
            clients = answer.clients.values()
            read = tuple((client.id, client.active, client.row.name) for client in clients)
            key = (answer.records, read, answer.left)
        number = self._numbers.setdefault((type(answer), key), len(self._answers))
        if number == len(self._answers):
            self._answers.append(answer)
        return number

    def next(self, operation: str, numbers: tuple[int, ...]) -> Call | End:
        """Return the call that the operation makes after these answers, or its end."""
        found = self._next.get((operation, numbers))
        if found is None:
            found = self._run(operation, self._ports([self._answers[number] for number in numbers]))
            self._next[operation, numbers] = found
        return found

    def _run(self, operation: str, ports: Ports) -> Call | End:
        try:
            if operation in HOST:
                return End(HOST[operation](ports))
            service = self.service(ports, ports, RULE, verify_after=WINDOW)  # type: ignore[arg-type]
            return End(SERVICE[operation](service))
        except Unanswered as stopped:
            return stopped.call
        except Exception as error:  # which of them may be is for the promises to say
            return End(raised=error)
