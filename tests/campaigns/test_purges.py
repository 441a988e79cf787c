"""Purges killed in their middle, and several at once: nobody half deleted, nobody twice."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from .served import Eyes, Served, finish, serve

KILLS = 4


def _purge(served: Served) -> "dict[str, int]":
    process = served.command("purge", "--older-than", "1h", "--json")
    out, err = finish(process)
    assert process.returncode == 0, err
    done: dict[str, int] = json.loads(out)
    return done


@pytest.fixture
def soft_deleted(eyes: Eyes, size: Callable[[int], int]) -> list[str]:
    """Clients whose soft delete is old, of two kinds of status; and one that is active."""
    ids = [f"gone-{number}" for number in range(size(3000))]
    old = datetime.now(UTC) - timedelta(days=1)
    for at in range(0, len(ids), 10_000):
        eyes.leave(ids[at : at + 10_000], "soft", settled_at=old, verified_at=old)
    eyes.add(["active"])
    return ids


def _check(eyes: Eyes, ids: list[str]) -> None:
    assert eyes.statuses() == {"active": True}
    assert eyes.half_deleted() == []
    assert eyes.pending() == 0
    assert eyes.records() == Counter({(id, action): 1 for id in ids for action in ("soft", "hard")})


def test_of_a_purge_that_is_killed_nothing_is_half_done_and_nothing_twice(
    eyes: Eyes, soft_deleted: list[str], report: Callable[..., None]
) -> None:
    kills, left = 0, len(soft_deleted)
    with serve(*eyes.urls) as served:
        for number in range(KILLS):
            process = served.command("purge", "--older-than", "1h")
            # When it has begun; then at a random moment of a batch.
            while process.poll() is None and eyes.rows() - 1 == left:
                time.sleep(0.005)
            time.sleep(random.Random(number).uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            left = eyes.rows() - 1
        # Whoever has a row after a kill has had no hard record either: both or neither.
        hard = {id for id, action in eyes.records() if action == "hard"}
        assert hard.isdisjoint(eyes.statuses())
        done = _purge(served)
        assert done["removed"] == left
        served.reconcile()
    _check(eyes, soft_deleted)
    assert kills
    report(clients=len(soft_deleted), kills=kills, left_to_the_last=left)


def test_four_purges_at_once_remove_each_client_once(
    eyes: Eyes, soft_deleted: list[str], report: Callable[..., None]
) -> None:
    with serve(*eyes.urls) as served:
        processes = [served.command("purge", "--older-than", "1h", "--json") for _ in range(4)]
        ended = [(process, *finish(process)) for process in processes]
        told = [json.loads(out) for process, out, _ in ended if process.returncode == 0]
        # SQLite locks as a whole: one that waits in vain for a second gives up, and says so.
        assert {process.returncode for process, _, _ in ended} <= {0, 3}
        rest = _purge(served)["removed"]
        served.reconcile()
    _check(eyes, soft_deleted)
    assert sum(each["removed"] for each in told) + rest <= len(soft_deleted)
    report(clients=len(soft_deleted), removed=[each["removed"] for each in told], rest=rest)
