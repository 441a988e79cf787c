"""The samples of all rounds as one line for each contestant and each kind of phase."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from .contestants import BASE
from .counting import Count
from .figures import Spread, ratios, spread
from .phases import Sample


@dataclass(frozen=True)
class Line:
    """A contestant's figures; latencies in milliseconds, CPU in seconds for 1000 requests."""

    contestant: str
    rounds: int
    rate: Spread
    rate_ratio: Spread | None
    """The rate as a multiple of `by_hand`'s, within each round."""
    p50: Spread
    p50_ratio: Spread | None
    p99: float
    cpu: Mapping[str, float]
    load_share: float
    to_database: float | None
    to_kv: float | None
    wrong: int
    away: int
    """Answers of 503."""
    halves: int
    """Clients of which a store was not as it must be."""
    uneven: int
    """Rounds in which a worker had more connections than another."""


@dataclass(frozen=True)
class Block:
    """What can be compared: one database, one delay, one scenario, one number of connections."""

    database: str
    delay: float
    scenario: str
    connections: int
    lines: Sequence[Line]


def blocks(samples: Iterable[Sample], counts: Iterable[Count]) -> list[Block]:
    """Return the blocks in the order in which they were measured first."""
    trips = {(count.database, count.contestant, count.scenario): count for count in counts}
    found = []
    order: dict[tuple[str, float, str, int], list[Sample]] = {}
    for sample in samples:
        phase = sample.phase
        key = (phase.database, phase.delay, phase.scenario, phase.connections)
        order.setdefault(key, []).append(sample)
    for (database, delay, scenario, connections), those in order.items():
        by_name = _by_name(those)
        lines = [
            _line(name, own, by_name.get(BASE, ()), trips.get((database, name, scenario)))
            for name, own in by_name.items()
        ]
        found.append(Block(database, delay, scenario, connections, lines))
    return found


def _by_name(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each contestant, in the order of the first round."""
    names = list(dict.fromkeys(sample.contestant for sample in samples))
    ordered = sorted(samples, key=lambda sample: names.index(sample.contestant))
    return {name: list(own) for name, own in groupby(ordered, lambda sample: sample.contestant)}


def _line(name: str, own: Sequence[Sample], base: Sequence[Sample], trips: Count | None) -> Line:
    def of_round(samples: Sequence[Sample], value: Callable[[Sample], float]) -> dict[int, float]:
        return {sample.phase.round: value(sample) for sample in samples}

    def rate(sample: Sample) -> float:
        return sample.rate

    def p50(sample: Sample) -> float:
        return sample.p50 * 1000

    return Line(
        contestant=name,
        rounds=len(own),
        rate=spread(list(map(rate, own))),
        rate_ratio=ratios(of_round(own, rate), of_round(base, rate)),
        p50=spread(list(map(p50, own))),
        p50_ratio=ratios(of_round(own, p50), of_round(base, p50)),
        p99=median(sample.p99 * 1000 for sample in own),
        cpu={part: median(sample.cpu.get(part, 0.0) for sample in own) for part in own[0].cpu},
        load_share=median(sample.load_share for sample in own),
        to_database=trips and trips.to_database,
        to_kv=trips and trips.to_kv,
        wrong=sum(sample.wrong for sample in own),
        away=sum(sample.away for sample in own),
        halves=sum(sample.halves for sample in own),
        uneven=sum(not sample.even for sample in own),
    )
