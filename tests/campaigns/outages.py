"""A store goes away under load: what was answered meanwhile, and what both stores hold afterwards."""

import itertools
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ..servers import START, Server, ServerUnavailableError
from .proxy import Cut, Direction, Proxy
from .served import Answer, Eyes, Load, Served, percentile, serve

CONNECTIONS = 12
CLIENTS = 100  # of each connection
SHARED = 3
PROBE = "probe"

# Seconds. What a request that timed out writes late is put right by the verification; here it comes soon.
VERIFY_AFTER = 1

GONE = None
AFTERWARDS = {"soft": False, "restore": True, "hard": GONE}


@dataclass
class Place:
    """A host on stores of its own; `server` is the one that may be stopped, behind the proxy."""

    server: Server
    proxy: Proxy
    eyes: Eyes
    served: Served


@contextmanager
def open_place(kind: str, folder: Path, *, away: str) -> Iterator[Place]:
    """Serve a host on a kind of database and a key-value store; `away`, either of them, may be stopped."""
    with ExitStack() as stack:
        kv = stack.enter_context(_own_server("redis", "valkey"))
        urls = {"database": f"sqlite:///{folder / 'test.db'}", "kv": kv.url}
        servers = {"kv": kv}
        if kind != "sqlite":
            servers["database"] = stack.enter_context(_own_server(kind))
            urls["database"] = servers["database"].url
        eyes = stack.enter_context(closing(Eyes(urls["database"], urls["kv"])))
        eyes.prepare()
        eyes.add([PROBE])
        proxy = stack.enter_context(closing(Proxy(urls[away])))
        urls[away] = proxy.url
        served = stack.enter_context(serve(urls["database"], urls["kv"], VERIFY_AFTER=f"{VERIFY_AFTER}"))
        yield Place(servers[away], proxy, eyes, served)


@contextmanager
def _own_server(*kinds: str) -> Iterator[Server]:
    """Start the first there is of some kinds; no other test uses it, so it may be stopped."""
    reasons = []
    for kind in kinds:
        try:
            server = START[kind]()
        except ServerUnavailableError as error:
            reasons.append(f"{error}")
            continue
        if server.process is not None:
            break
        reasons.append(f"The server from the {server.origin} is not ours to stop.")
    else:
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(f"REQUIRE_SERVICES is set, and: {reasons}")
        pytest.skip(" ".join(reasons))
    try:
        yield server
    finally:
        server.stop()


class Mix:
    """Requests for many clients; each but the shared ones is asked for by one connection alone.

    So its answers tell which states it can be in.
    """

    def __init__(self, eyes: Eyes, name: str) -> None:
        self._name = name
        self._shared = [f"{name}-shared-{n}" for n in range(SHARED)]
        self._numbers = itertools.count()
        self._own = threading.local()
        eyes.add([self._id(number, n) for number in range(CONNECTIONS) for n in range(CLIENTS)])
        eyes.add(self._shared)

    def __call__(self) -> tuple[str, str]:
        """Return the next request of the connection whose thread this is."""
        if random.random() < 0.2:
            return random.choice(("soft", "restore")), random.choice(self._shared)
        if not hasattr(self._own, "number"):
            self._own.number = next(self._numbers)
        action = random.choices(("soft", "restore", "hard"), (5, 4, 1))[0]
        return action, self._id(self._own.number, random.randrange(CLIENTS))

    def _id(self, number: int, n: int) -> str:
        return f"{self._name}-{number}-{n}"


def lost(eyes: Eyes, answers: list[Answer]) -> list[str]:
    """Return the clients in a state that their answers rule out, or whose changes were not recorded once."""
    asked = defaultdict[str, list[Answer]](list)
    for answer in answers:
        asked[answer.client_id].append(answer)
    statuses, records = eyes.statuses(), eyes.records()
    found = []
    for id in asked:
        state = statuses.get(id, GONE)
        off = records[id, "soft"] - records[id, "restore"]
        recorded = off in ((0, 1) if state is GONE else (int(not state),))
        recorded &= records[id, "hard"] == (state is GONE)
        if not recorded or not ("-shared-" in id or state in _possible_states(asked[id])):
            found.append(id)
    return found


def _possible_states(answers: list[Answer]) -> set[bool | None]:
    """Return the states that a client, active at first, can be in after these answers in their order."""
    states: set[bool | None] = {True}
    for answer in answers:
        changed = {GONE if state is GONE else AFTERWARDS[answer.action] for state in states}
        match answer.status:
            case 200:
                states = changed
            case 404:
                states = {GONE}
            case _:  # it may have been recorded
                states |= changed
    return states


Do = Callable[[], object]


@dataclass
class Outage:
    """What was measured around an outage; times in seconds."""

    seconds: float
    answers: list[Answer]
    during: list[Answer]
    healthy_after: float
    away_from: datetime
    away_until: datetime

    def took(self, share: float) -> float:
        """Return the time that a share of the answers took at most that came while the store was away."""
        return percentile([answer.seconds for answer in self.during], share)

    def figures(self) -> dict[str, object]:
        """Return what to report."""
        return {
            "seconds_away": f"{self.seconds:.1f}",
            "requests": len(self.answers),
            "answers": dict(Counter(answer.status for answer in self.answers)),
            "answers_meanwhile": dict(Counter(answer.status for answer in self.during)),
            "p50_p99_max": "/".join(f"{self.took(share):.2f}" for share in (0.5, 0.99, 1)),
            "healthy_after": f"{self.healthy_after:.2f}",
        }


def have_outage(served: Served, mix: Mix, seconds: float, away: Do, back: Do) -> Outage:
    """Take a store away under load, give it back, and wait until a request is answered 200 again."""
    with Load(served, CONNECTIONS, mix) as load:
        time.sleep(0.5)
        began, first = time.monotonic(), len(load.answers)
        try:
            away()
            away_from = datetime.now(UTC)
            time.sleep(seconds)
            away_until = datetime.now(UTC)
        finally:
            back()
        ended = time.monotonic()
        while served.send("restore", PROBE).status != 200:
            assert time.monotonic() < ended + 30, "The host does not recover."
            time.sleep(0.02)
        healthy, last = time.monotonic(), len(load.answers)
        time.sleep(0.5)
    during = load.answers[first:last]
    return Outage(ended - began, load.answers, during, healthy - ended, away_from, away_until)


def send_all(place: Place, name: str) -> Counter[int | None]:
    """Delete some clients, on all connections at once; count the answers by status."""
    ids = [f"{name}-{n}" for n in range(2 * CONNECTIONS)]
    place.eyes.add(ids)
    requests = iter([("hard", id) for id in ids])
    with Load(place.served, CONNECTIONS, lambda: next(requests, None)) as load:
        load.join()
    return load.statuses()


class Dialogue:
    """Requests whose dialogue with the store is cut on its way."""

    def __init__(self, place: Place) -> None:
        self._served, self._proxy = place.served, place.proxy
        self._warm_up = itertools.cycle(("soft", "restore"))

    def send(self, action: str, id: str, cut: Cut, *, fresh: bool = False) -> Answer:
        """Send a request; its connection to the store has to be made first, or is there already."""
        self._prepare(fresh)
        self._proxy.cut(cut)
        try:
            return self._served.send(action, id)
        finally:
            self._proxy.passing()

    def lengths(self, action: str, id: str, *, fresh: bool) -> dict[Direction, int]:
        """Send a request that is not cut, and count the bytes of its dialogue."""
        self._prepare(fresh)
        before = dict(self._proxy.bytes)
        assert self._served.send(action, id).status == 200
        return {direction: count - before[direction] for direction, count in self._proxy.bytes.items()}

    def _prepare(self, fresh: bool) -> None:
        if fresh:
            self._proxy.refuse()
            self._proxy.passing()
        else:
            assert self._served.send(next(self._warm_up), PROBE).status == 200


def cuts(lengths: dict[Direction, int], every: int) -> Iterator[Cut]:
    """Give the cuts of a dialogue that are so many bytes apart; each once, and each for every retry too."""
    for direction, length in lengths.items():
        for at, connections in itertools.product(range(0, length + 1, every), (1, 100)):
            yield Cut(direction, at, connections=connections)
