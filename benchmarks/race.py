"""The rounds: every contestant runs beside the others, and they take turns."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from . import counting, pgbench, scenarios
from .contestants import ALL, Contestant
from .contestants.settings import Settings
from .phases import Phase, Racer, Sample, measure
from .scenarios import Scenario
from .served import serve
from .stores import Stores
from .tables import Tables

CONNECTIONS = (1, 16)
MORE = 4  # times the requests where there are several connections, which are done with sooner
_WARM_ROUNDS = 5


@dataclass(frozen=True)
class Plan:
    """What is to be measured; delays in milliseconds a round trip."""

    rounds: int
    requests: int
    delays: Sequence[float]
    only: frozenset[str] | None
    key: str = field(repr=False)
    key_digest: str = field(repr=False)

    def takes_part(self, name: str) -> bool:
        """Whether somebody was asked for."""
        return self.only is None or name in self.only


@dataclass
class Results:
    """What was found on one database."""

    stores: Mapping[str, Any]
    samples: list[Sample] = field(default_factory=list)
    counts: list[counting.Count] = field(default_factory=list)
    memory_mb: dict[str, float] = field(default_factory=dict)
    """Resident memory of a worker, after the last round."""
    left_out: list[str] = field(default_factory=list)


class Race:
    """On one database; everything is stopped when its stack is."""

    def __init__(self, plan: Plan, stores: Stores, stack: ExitStack) -> None:
        self._plan = plan
        self._stores = stores
        self._key = plan.key
        self._contestants = [c for c in ALL if plan.takes_part(c.name) and stores.kind in c.databases]
        self.results = Results(
            {"database": stores.kind, "version": stores.version, "kv": stores.redis_version}
        )
        self._tables = {c.name: self._prepare(c.name, c.metadata, stack) for c in self._contestants}
        self._pgbench = self._find_pgbench(stack)

    def run(self) -> Results:
        """Count round trips, then measure with each delay."""
        with counting.before(self._stores) as proxies:
            for contestant in self._contestants:
                if (tables := self._tables[contestant.name]) is not None:
                    of = self._settings(contestant)
                    counts = counting.count(self._stores, proxies, contestant, tables, of, self._key)
                    self.results.counts += counts
            _say(f"{self._stores.kind}: round trips are counted")
            for delay in self._plan.delays:
                self._with_delay(delay, proxies if delay else None)
        return self.results

    def _with_delay(self, delay: float, proxies: counting.Proxies | None) -> None:
        if proxies is not None:
            proxies.delay(delay / 1000)
        with ExitStack() as stack:
            racers = [self._start(contestant, proxies, stack) for contestant in self._contestants]
            for racer in racers:
                self._warm(racer, delay)
            watched = self._watched(proxies)
            for number in range(self._plan.rounds):
                for scenario in scenarios.ALL:
                    for connections in CONNECTIONS:
                        phase = self._phase(delay, number, scenario, connections)
                        turns = racers[number % len(racers) :] + racers[: number % len(racers)]
                        self._turn(turns, scenario, phase, watched, proxies)
                _say(f"{self._stores.kind}, {delay:g} ms: round {number + 1} of {self._plan.rounds}")
            self.results.memory_mb = {racer.name: racer.served.memory_mb() for racer in racers}
        if proxies is not None:
            proxies.delay(0)

    def _turn(
        self,
        racers: Sequence[Racer],
        scenario: Scenario,
        phase: Phase,
        watched: Mapping[str, Sequence[int]],
        proxies: counting.Proxies | None,
    ) -> None:
        for racer in racers:
            if scenario.asks(racer.served.contestant):
                self.results.samples.append(measure(racer, scenario, phase, watched))
        if self._pgbench is not None and scenario.deletes:
            program, tables = self._pgbench
            url = tables.url
            if proxies is not None and proxies.database is not None:
                url = url.set(port=proxies.database.port)
            self.results.samples.append(pgbench.measure(program, tables, url, phase, watched))

    def _phase(self, delay: float, number: int, scenario: Scenario, connections: int) -> Phase:
        requests = self._plan.requests * (MORE if connections > 1 else 1)
        return Phase(self._stores.kind, delay, number, scenario.name, connections, requests)

    def _warm(self, racer: Racer, delay: float) -> None:
        """Let every thread of every worker take its connections, and everybody learn his statements."""
        for number in range(_WARM_ROUNDS):
            samples = []
            for scenario in scenarios.ALL:
                if scenario.deletes:
                    phase = replace(self._phase(delay, -1, scenario, max(CONNECTIONS)), requests=160)
                    samples.append(measure(racer, scenario, phase, {}))
            if number and all(sample.even for sample in samples):
                return

    def _start(self, contestant: Contestant, proxies: counting.Proxies | None, stack: ExitStack) -> Racer:
        of = self._settings(contestant)
        if proxies is not None:
            of = proxies.settings(self._stores, of, contestant.name)
        served = stack.enter_context(serve(contestant, of))
        return Racer(served, self._tables[contestant.name], self._key)

    def _settings(self, contestant: Contestant) -> Settings:
        url = self._stores.database_url(contestant.name).render_as_string(hide_password=False)
        return Settings(url, self._stores.redis.url, self._plan.key_digest)

    def _prepare(self, name: str, metadata: sa.MetaData | None, stack: ExitStack) -> Tables | None:
        if metadata is None:
            return None
        tables = Tables(metadata, self._stores.create_database(name), self._stores.redis.url)
        stack.enter_context(closing(tables))
        tables.prepare()
        return tables

    def _find_pgbench(self, stack: ExitStack) -> tuple[str, Tables] | None:
        stores = self._stores
        if stores.kind != "postgresql" or not self._plan.takes_part(pgbench.NAME) or not stores.database:
            return None
        try:
            program = pgbench.program(_pid(stores.database))
        except pgbench.NoPgbenchError as error:
            self.results.left_out.append(f"{pgbench.NAME}: {error}")
            return None
        tables = self._prepare(pgbench.NAME, pgbench.METADATA, stack)
        return (program, tables) if tables is not None else None

    def _watched(self, proxies: counting.Proxies | None) -> Mapping[str, Sequence[int]]:
        watched = {"kv": [_pid(self._stores.redis)]}
        if self._stores.database is not None:
            watched["database"] = [_pid(self._stores.database)]
        if proxies is not None:
            both = [proxy for proxy in (proxies.database, proxies.kv) if proxy is not None]
            watched["proxies"] = [proxy.process.pid for proxy in both]
        return watched


def _pid(server: Any) -> int:
    pid: int = server.process.pid
    return pid


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def names() -> Iterator[str]:
    """Iterate over the names that can be asked for."""
    yield from (contestant.name for contestant in ALL)
    yield pgbench.NAME
