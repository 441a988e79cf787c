"""Round trips of one request to each store, counted on the wire."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .contestants import Contestant
from .contestants.settings import Settings
from .phases import Phase, Racer, measure
from .proxy import Proxy, proxied
from .scenarios import ALL, Scenario
from .served import serve
from .stores import Stores
from .tables import Tables

_WARM, _COUNTED = 10, 40


@dataclass(frozen=True)
class Count:
    """Round trips a request: the mean of some, so what a connection costs once is not among them."""

    database: str
    contestant: str
    scenario: str
    to_database: float
    to_kv: float


@dataclass(frozen=True)
class Proxies:
    """Those before the stores; SQLite has none before it."""

    database: Proxy | None
    kv: Proxy

    def delay(self, seconds: float) -> None:
        """Make each round trip to either store longer."""
        for proxy in (self.database, self.kv):
            if proxy is not None:
                proxy.delay(seconds)

    def round_trips(self) -> tuple[int, int]:
        """Return those so far, to the database and to the key-value store."""
        return self.database.round_trips() if self.database else 0, self.kv.round_trips()

    def settings(self, stores: Stores, settings: Settings, name: str) -> Settings:
        """Return the settings of an app that reaches its stores through them."""
        url = stores.database_url(name)
        if self.database is not None:
            url = url.set(port=self.database.port)
        redis_url = stores.redis.url.replace(f":{_port(stores.redis.url)}/", f":{self.kv.port}/")
        return Settings(url.render_as_string(hide_password=False), redis_url, settings.key_digest)


@contextmanager
def before(stores: Stores) -> Iterator[Proxies]:
    """Start proxies before both stores."""
    with ExitStack() as stack:
        database = stores.database
        ahead = stack.enter_context(proxied(_port(database.url))) if database else None
        yield Proxies(ahead, stack.enter_context(proxied(_port(stores.redis.url))))


def count(
    stores: Stores, proxies: Proxies, contestant: Contestant, tables: Tables, settings: Settings, key: str
) -> Iterator[Count]:
    """Serve a contestant in one thread, and count for each scenario that is asked of it."""
    through = proxies.settings(stores, settings, contestant.name)
    with serve(contestant, through, workers=1, threads=1) as served:
        racer = Racer(served, tables, key)
        for scenario in ALL:
            if not scenario.asks(contestant):
                continue
            # Right before: a rollback, such as a 404's, makes psycopg forget what it has prepared.
            _send(stores, racer, scenario, _WARM)
            database, kv = proxies.round_trips()
            _send(stores, racer, scenario, _COUNTED)
            now = proxies.round_trips()
            counts = ((now[0] - database) / _COUNTED, (now[1] - kv) / _COUNTED)
            yield Count(stores.kind, contestant.name, scenario.name, *counts)


def _send(stores: Stores, racer: Racer, scenario: Scenario, requests: int) -> None:
    phase = Phase(stores.kind, 0, -1, scenario.name, 1, requests)
    sample = measure(racer, scenario, phase, {})
    if sample.wrong or sample.halves:
        what = f"{racer.name} does not keep the contract at {scenario.name}"
        raise RuntimeError(f"{what}: {sample.seen}\n{racer.served.said()}")


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])
