"""Campaign "failover": PostgreSQL's primary is killed under load, and its standby takes over."""

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import Running
from tests.hosts import KeyValue

from .host import KINDS
from .outages import AFTERWARDS
from .served import Answer, Eyes, Load, Served, percentile, serve
from .standby import Pair, open_pair

CALLERS = 8
# Of each failover: of ten clients four are removed, four switched off, and two not asked for.
CLIENTS = 400
GROUPS = ("hard", "soft", "hard", "soft", "never") * 2

# Seconds: what a caller waits before it repeats a request, and for how long one does so.
PAUSE = 0.05
PATIENCE = 60


@pytest.fixture
def pair(running: Running) -> Iterator[Pair]:
    """Two PostgreSQLs of our own."""
    with running(open_pair()) as pair:
        yield pair


@pytest.fixture
def eyes(pair: Pair, empty_kv: Callable[[str], KeyValue]) -> Iterator[Eyes]:
    """Both stores; the database is whichever of the pair takes writes."""
    kv = empty_kv("either")
    assert kv.url is not None
    with closing(Eyes(pair.url, kv.url)) as eyes:
        eyes.prepare()
        yield eyes


@pytest.fixture
def served(eyes: Eyes) -> Iterator[Served]:
    # Reconcile is to settle what the failover left, and not to verify the rest.
    with serve(*eyes.urls, VERIFY_AFTER="1200") as served:
        yield served


class Callers(Served):
    """Repeats what was answered 503, as the contract asks of callers."""

    def __init__(self, served: Served) -> None:
        super().__init__(served.port, served.process, served.environment)
        self.heard: list[tuple[float, Answer]] = []  # every answer, and when it came
        self._until = time.monotonic() + PATIENCE

    def send(self, action: str, client_id: str, **options: Any) -> Answer:
        """Return the first answer that is no 503, or the last one."""
        while True:
            answer = super().send(action, client_id, **options)
            self.heard.append((time.monotonic(), answer))
            if answer.status != 503 or time.monotonic() > self._until:
                return answer
            time.sleep(PAUSE)

    def load(self, ids: Sequence[str]) -> Load:
        """Ask for each of the clients what its name begins with."""
        plan = iter([(id.partition("-")[0], id) for id in ids])
        return Load(self, CALLERS, lambda: next(plan, None))


@dataclass
class Failover:
    """What was heard around a failover, and at last for each client; times are the monotonic clock's."""

    heard: list[tuple[float, Answer]]
    final: list[Answer]
    killed: float
    killed_at: datetime
    dead: float
    promoted: float

    def acknowledged_before(self) -> int:
        """Count the deletions that were answered 200 while the old primary lived."""
        return sum(at < self.killed and answer.status == 200 for at, answer in self.heard)

    def unsure(self) -> set[str]:
        """Return the clients for whom the answer was 503, at least once."""
        return {answer.client_id for _, answer in self.heard if answer.status == 503}

    def first_success(self) -> float:
        """Return how long the old primary was dead when a request was answered 200 that was sent since."""
        successes = (
            at - self.dead
            for at, answer in self.heard
            if answer.status == 200 and at - answer.seconds > self.dead
        )
        return min(successes, default=math.inf)

    def without_primary(self) -> float:
        """Return how long the old one was dead and the new one not yet promoted."""
        return self.promoted - self.dead


def clients(name: str, count: int) -> dict[str, list[str]]:
    """Return the ids of clients of every kind, by what they are asked for."""
    groups: dict[str, list[str]] = {"hard": [], "soft": [], "never": []}
    for n, group, kind in zip(range(count), itertools.cycle(GROUPS), itertools.cycle(KINDS), strict=False):
        groups[group].append(f"{group}-{name}-{n}-{kind}")
    return groups


def fail_over(
    pair: Pair, served: Served, ids: Sequence[str], chance: random.Random, *, cut_off: bool
) -> Failover:
    """Kill the primary amid requests for the clients, promote the standby; return when all are answered.

    `cut_off` takes the standby away from it some time before, as a network does that fails first.
    """
    callers = Callers(served)
    with callers.load(chance.sample(ids, len(ids))) as load:
        _let_through(load, int(len(ids) * chance.uniform(0.2, 0.6)))
        time.sleep(chance.uniform(0, 0.02))
        if cut_off:
            pair.cut_off_standby()
            time.sleep(0.2)  # enough for many answers, were they not to wait
        killed, killed_at = time.monotonic(), datetime.now(UTC)
        pair.kill_primary()
        dead = time.monotonic()
        time.sleep(chance.uniform(0.1, 1))  # nobody takes over at once
        pair.promote()
        promoted = time.monotonic()
        load.join()
    return Failover(callers.heard, load.answers, killed, killed_at, dead, promoted)


def _let_through(load: Load, answers: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(load.answers) < answers and time.monotonic() < deadline:
        time.sleep(0.001)


def reconcile(served: Served) -> "Counter[str]":
    """Reconcile once, for every kind; return what was done."""
    done = Counter[str]()
    for kind in KINDS:
        done.update(served.call("POST", f"/reconcile/{kind}"))
    return done


def lost(eyes: Eyes, answers: Sequence[Answer]) -> list[str]:
    """Return the clients whose row, entries or record are not what their answers, each the last one, say."""
    statuses, records, half = eyes.statuses(), eyes.records(), set(eyes.half_deleted())
    return [
        answer.client_id
        for answer in answers
        if statuses.get(answer.client_id) != AFTERWARDS[answer.action]
        or records[answer.client_id, answer.action] != 1
        or answer.client_id in half
    ]


def recorded_all_the_same(eyes: Eyes, failover: Failover) -> int:
    """Count the deletions that were answered 503, and yet recorded by the old primary."""
    c = eyes.ledger.c
    query = sa.select(c.client_id).where(c.requested_at < failover.killed_at)
    with eyes.engine.connect() as connection:
        return len(failover.unsure().intersection(connection.scalars(query)))


def touched(eyes: Eyes, ids: Sequence[str]) -> list[str]:
    """Return those of the clients, for whom nobody asked, that are not as they were made."""
    statuses, half = eyes.statuses(), set(eyes.half_deleted())
    recorded = {id for id, _ in eyes.records()}
    return [id for id in ids if not statuses.get(id) or id in half or id in recorded]


def test_a_failover_to_a_synchronous_standby_loses_nothing_that_was_acknowledged(
    pair: Pair, eyes: Eyes, served: Served, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    chance = random.Random(1)
    failovers: list[Failover] = []
    never: list[str] = []
    settled = 0
    for number in range(size(2)):
        groups = clients(f"{number}", CLIENTS)
        eyes.add([id for ids in groups.values() for id in ids])
        never += groups["never"]
        pair.make_standby(synchronous=True)
        asked = groups["hard"] + groups["soft"]
        failovers.append(fail_over(pair, served, asked, chance, cut_off=number % 2 == 1))

        # The stamp of a record is not waited for, so the last ones went with the primary.
        pending = eyes.pending()
        done = reconcile(served)
        assert (done["settled"], done["failed"], eyes.pending()) == (pending, 0, 0)
        settled += pending

    heard = [answer for failover in failovers for _, answer in failover.heard]
    final = [answer for failover in failovers for answer in failover.final]
    gone, changed, half = lost(eyes, final), touched(eyes, never), eyes.half_deleted()
    successes = [failover.first_success() for failover in failovers]
    report(
        failovers=len(failovers),
        requests=len(heard),
        answers=dict(Counter(answer.status for answer in heard)),
        acknowledged=sum(answer.status == 200 for answer in final),
        acknowledged_before_the_kill=sum(failover.acknowledged_before() for failover in failovers),
        recorded_though_answered_503=sum(recorded_all_the_same(eyes, failover) for failover in failovers),
        settled_by_reconcile=settled,
        first_success_after_p50_max=f"{percentile(successes, 0.5):.2f}/{max(successes):.2f}",
        half_deleted=len(half),
        lost=len(gone),
    )
    assert (gone, changed, half) == ([], [], [])
    assert [answer for answer in heard if not answer.is_documented()] == []
    assert len(final) == len({answer.client_id for answer in final}) == len(eyes.ids) - len(never)
    _check_final(failovers)


def _check_final(failovers: Sequence[Failover]) -> None:
    """Check that each failover was amid requests, and that each one repeated ended as the contract says."""
    for failover in failovers:
        unsure = failover.unsure()
        for answer in failover.final:
            # Nobody is there any more where all was done, and only the answer lost.
            finished = answer.status == 404 and answer.action == "hard" and answer.client_id in unsure
            assert answer.status == 200 or finished, answer
        assert 0 < failover.acknowledged_before() < len(failover.final)
        assert unsure, "Nobody noticed: this campaign proves nothing."
        assert failover.first_success() < failover.without_primary() + 5


# How the wait of a commit for its standby is cut short: it is then to be seen, though no standby has it.
CUT_SHORT = {"the primary starts again": Pair.restart_primary, "its connections are ended": Pair.end_waits}


@pytest.mark.parametrize("cut_short", CUT_SHORT.values(), ids=CUT_SHORT)
def test_what_no_standby_has_is_acknowledged_by_no_repeat_either(
    pair: Pair, eyes: Eyes, served: Served, cut_short: Callable[[Pair], None], report: Callable[..., None]
) -> None:
    removed, off = (
        [f"{action}-{kind}" for kind in ("clients", "watched_times")] for action in ("hard", "soft")
    )
    requests = [(id.partition("-")[0], id) for id in removed + off]
    eyes.add(removed + off)
    pair.make_standby(synchronous=True)
    pair.cut_off_standby()

    with ThreadPoolExecutor(10) as callers:

        def send(request: tuple[str, str]) -> Answer:
            return served.send(*request, timeout=3)

        first = callers.map(send, requests)
        pair.wait_for_waits(len(requests))
        cut_short(pair)
        heard = [*first]
        assert eyes.statuses() == dict.fromkeys(off, False)  # all of it is to be seen
        heard += callers.map(send, [*requests, *(("reconcile", id) for id in removed)])
        half = eyes.half_deleted()
        pair.kill_primary()  # for good
        pair.promote()
        assert reconcile(served)["failed"] == 0
    acknowledged = [answer for answer in heard if answer.status == 200]
    gone = lost(eyes, [answer for answer in acknowledged if answer.action != "reconcile"])
    report(acknowledged=len(acknowledged), lost=len(gone))
    assert (gone, eyes.half_deleted()) == ([], [])
    assert sorted(half) == sorted(removed + off)  # no entry was touched meanwhile
    with Callers(served).load(removed + off) as load:
        load.join()
    # A request for which nobody waits any longer may have found the new primary, and removed it there.
    assert [a for a in load.answers if a.status != 200 and (a.status, a.action) != (404, "hard")] == []
    assert lost(eyes, load.answers) == []
    assert eyes.statuses() == dict.fromkeys(off, False)


def test_a_failover_to_a_standby_that_was_left_behind_is_seen_to_lose_what_was_acknowledged(
    pair: Pair, eyes: Eyes, served: Served, report: Callable[..., None]
) -> None:
    """No promise, for nobody could keep it: but it shows that the campaign above would see a loss."""
    groups = clients("behind", 100)
    asked = groups["hard"] + groups["soft"]
    eyes.add(asked + groups["never"])
    pair.make_standby(synchronous=False)
    pair.cut_off_standby()
    with Callers(served).load(asked) as load:
        load.join()
    assert load.statuses() == {200: len(asked)}
    assert (lost(eyes, load.answers), eyes.pending()) == ([], 0)

    pair.kill_primary()
    pair.promote()
    assert reconcile(served)["settled"] == 0  # there is no record of them either
    gone = lost(eyes, load.answers)
    report(acknowledged=len(load.answers), half_deleted=len(eyes.half_deleted()), lost=len(gone))
    assert sorted(gone) == sorted(asked)
    assert touched(eyes, groups["never"]) == []
