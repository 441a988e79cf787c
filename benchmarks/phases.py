"""A phase: one contestant, one scenario, one number of connections; measured, and its effects looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from .figures import at
from .load import Job, send
from .scenarios import Scenario
from .served import Served
from .tables import Tables

_SHOWN = 3
_AWAY = "HTTP/1.1 503 "
_serial = count()


@dataclass(frozen=True)
class Phase:
    """Where a figure belongs; `delay` is in milliseconds a round trip."""

    database: str
    delay: float
    round: int
    scenario: str
    connections: int
    requests: int


@dataclass(frozen=True)
class Sample:
    """What a phase gave; times in seconds, CPU in seconds for 1000 requests."""

    phase: Phase
    contestant: str
    seconds: float
    p50: float
    p99: float
    cpu: Mapping[str, float]
    """What the processes of the app, of the stores, of the proxies and of the load have used."""
    load_share: float
    """What the load used of a core."""
    wrong: int
    """Answers that were not those of the wire contract."""
    away: int
    """Answers of 503: the contract has them, where a database is held for too long, and nobody wants them."""
    halves: int
    """Clients that a store did not hold as it must afterwards."""
    even: bool = True
    """Whether each worker had as many connections."""
    seen: Sequence[str] = ()
    """Some of what was wrong."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.phase.requests / self.seconds


@dataclass(frozen=True)
class Racer:
    """A contestant that is running, and its stores where it has any."""

    served: Served
    tables: Tables | None
    key: str

    @property
    def name(self) -> str:
        """The contestant's."""
        return self.served.contestant.name


def measure(racer: Racer, scenario: Scenario, phase: Phase, watched: Mapping[str, Sequence[int]]) -> Sample:
    """Fill the stores, send the load, compare; `watched` names the processes whose time is taken."""
    ids = new_ids(phase.requests)
    if racer.tables is not None and scenario.deletes:
        racer.tables.add(ids)
    status, body = scenario.answer(racer.served.contestant)
    job = Job(
        port=racer.served.port,
        connections=phase.connections,
        paths=list(map(scenario.path, ids)),
        key=racer.key if scenario.knows_key else f"{racer.key}x",
        status=status,
        body=body,
        workers=racer.served.workers if phase.connections > 1 else (),
        watched={"app": [racer.served.pid], **watched},
    )
    outcome = send(job)
    per_1000 = {name: used * 1000 / len(ids) for name, used in outcome.cpu.items()}
    others = dict(outcome.wrong)
    wrong = [told for told in others.values() if not told.startswith(_AWAY)]
    halves: list[str] = []
    if racer.tables is not None and scenario.deletes:
        right = [id for number, id in enumerate(ids) if number not in others]
        halves = racer.tables.halves(right, hard=scenario.name == "hard")
        racer.tables.forget(ids)
    return Sample(
        phase,
        racer.name,
        outcome.seconds,
        at(outcome.latencies, 0.5),
        at(outcome.latencies, 0.99),
        per_1000,
        outcome.cpu["load"] / outcome.seconds,
        len(wrong),
        len(others) - len(wrong),
        len(halves),
        outcome.even,
        [*wrong[:_SHOWN], *halves[:_SHOWN]],
    )


def new_ids(number: int) -> list[str]:
    """Return ids that no phase had before."""
    serial = next(_serial)
    return [f"c{serial}-{i}" for i in range(number)]
