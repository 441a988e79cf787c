"""Campaign "outages", first part: the key-value store is away under load, or its connections break."""

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from .outages import (
    VERIFY_AFTER,
    Dialogue,
    Do,
    Mix,
    Outage,
    Place,
    cuts,
    have_outage,
    lost,
    open_place,
    send_all,
)
from .served import Eyes

pytestmark = pytest.mark.timed


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_place(request.param, tmp_path_factory.mktemp("outages"), away="kv") as place:
        yield place


@pytest.fixture(autouse=True)
def _forget_other_tests(place: Place) -> None:
    place.eyes.ids.clear()


def ways(place: Place) -> dict[str, tuple[Do, Do]]:
    """Return the ways to take the store away and to give it back."""
    server: Any = place.server
    return {
        "hang": (place.proxy.hang, place.proxy.passing),
        "SIGSTOP": (
            lambda: os.kill(server.process.pid, signal.SIGSTOP),
            lambda: os.kill(server.process.pid, signal.SIGCONT),
        ),
        "refuse": (place.proxy.refuse, place.proxy.passing),
        "slow": (lambda: place.proxy.delay(1.2), place.proxy.passing),
        "SIGKILL": (server.kill, server.start),
    }


# With a size every way is tried on every database.
A_FEW = {"sqlite": ["hang"], "postgresql": ["SIGSTOP"], "mariadb": ["SIGKILL"]}


def test_while_the_store_is_away_requests_are_answered_in_time_and_nothing_is_lost(
    place: Place, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    eyes, seconds = place.eyes, size(0)
    for way in ways(place) if seconds else A_FEW[eyes.engine.dialect.name]:
        eyes.ids.clear()
        outage = have_outage(place.served, Mix(eyes, way), seconds or 4, *ways(place)[way])
        assert [answer for answer in outage.answers if not answer.is_documented()] == []
        assert outage.during
        assert outage.took(0.99) <= 2.5
        assert outage.healthy_after <= 5
        assert _settled_while_away(eyes, outage) == 0

        time.sleep(VERIFY_AFTER)
        pending, late = eyes.pending(), len(_late_writes(eyes))
        began = time.monotonic()
        done = place.served.reconcile()
        drained_in = time.monotonic() - began
        assert (done["settled"], done["failed"]) == (pending, 0)
        half = _wrong_entries(eyes) if way == "SIGKILL" else eyes.half_deleted()
        gone = lost(eyes, outage.answers)
        assert (eyes.pending(), half, gone) == (0, [], [])
        report(
            way=way,
            **outage.figures(),
            pending=pending,
            late_writes_put_right=late,
            drained_in=f"{drained_in:.1f}",
            half_deleted=len(half),
            lost=len(gone),
        )


def _settled_while_away(eyes: Eyes, outage: Outage) -> int:
    """Count the records that claim to be confirmed by a store that was away.

    A request of the last moments may have had its answer when the store was back; one that had begun
    before may have had it just before the store went away, and settles afterwards.
    """
    c = eyes.ledger.c
    began_while_away = c.requested_at > outage.away_from
    claim = began_while_away & (c.settled_at < outage.away_until - timedelta(seconds=2))
    with eyes.engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).where(claim)) or 0)


def _late_writes(eyes: Eyes) -> list[str]:
    """Return the clients that are half deleted although all of their records are settled."""
    with eyes.engine.connect() as connection:
        pending = sa.select(eyes.ledger.c.client_id).where(eyes.ledger.c.settled_at.is_(None))
        return sorted(set(_wrong_entries(eyes)).difference(connection.scalars(pending)))


def _wrong_entries(eyes: Eyes) -> list[str]:
    """Return the clients that are half deleted, but for entries that the store has forgotten."""
    return [
        id for id in eyes.half_deleted() if eyes.redis.exists(f"client:{id}", f"publishable_key:pk-{id}") != 0
    ]


def test_a_dialogue_cut_behind_any_byte_is_finished_by_the_same_request_or_by_reconcile(
    place: Place, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    eyes, dialogue = place.eyes, Dialogue(place)
    answers, done = Counter[int | None](), 0
    for action, fresh in itertools.product(("soft", "hard"), (False, True)):
        ids = (f"{action}-{fresh:d}-cut-{n:05}" for n in itertools.count())
        eyes.add([next(ids)])
        lengths = dialogue.lengths(action, eyes.ids[-1], fresh=fresh)
        for cut in cuts(lengths, every=1 if size(0) else 97):
            eyes.add([next(ids)])
            answer = dialogue.send(action, eyes.ids[-1], cut, fresh=fresh)
            assert answer.is_documented()
            assert answer.status in _allowed(cut.done, fresh), (cut, answer)
            answers[answer.status] += 1
            done += cut.done
            if answer.status == 503 and cut.at % 2:
                assert place.served.send(action, eyes.ids[-1]).status == 200
    pending = eyes.pending()
    assert pending > 0
    assert place.served.send("reconcile", "").status == 200
    half, records = eyes.half_deleted(), eyes.records()
    assert (eyes.pending(), half) == (0, [])
    assert all(records[id, id.partition("-")[0]] == 1 for id in eyes.ids)
    report(cuts=done, answers=dict(answers), pending=pending, half_deleted=len(half))


def _allowed(cuts: int, fresh: bool) -> tuple[int, ...]:
    """Return the statuses there can be: one broken connection is replaced at once, a second is an outage.

    Unless halves of the commands get through where all of them do not. A fresh connection replaces a broken
    one already, and its own end may be noticed only as it is used.
    """
    return (200, 503) if cuts > 1 or (cuts == 1 and fresh) else (200,)


def test_a_restart_of_the_store_between_two_requests_is_not_noticed(
    place: Place, report: Callable[..., None]
) -> None:
    answers = send_all(place, "before")
    place.server.stop(keep_data=True)
    place.server.start()
    answers += send_all(place, "stopped")
    place.server.kill()
    place.server.start()
    answers += send_all(place, "killed")
    assert set(answers) == {200}
    report(restarts=2, answers=dict(answers))


def test_a_backlog_is_drained_by_one_reconcile_once_the_store_is_back(
    place: Place, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    eyes, half = place.eyes, 5000 if size(0) else 500
    place.proxy.refuse()
    eyes.leave([f"gone-{n}" for n in range(half)], "hard")
    eyes.leave([f"off-{n}" for n in range(half)], "soft")
    assert place.served.send("reconcile", "").status == 503
    assert (eyes.pending(), len(eyes.half_deleted())) == (2 * half, 2 * half)

    place.proxy.passing()
    began = time.monotonic()
    done = place.served.reconcile()
    seconds = time.monotonic() - began
    assert (done["settled"], done["failed"]) == (2 * half, 0)
    assert seconds <= 10
    assert (eyes.pending(), eyes.half_deleted()) == (0, [])
    report(backlog=2 * half, drained_in=f"{seconds:.2f}")
