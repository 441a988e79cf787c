"""Campaign "crowds": 64 equal requests at once have one effect; four reconciles at once share the work."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from .served import Answer, Eyes, Served, finish, serve

pytestmark = pytest.mark.timed

CROWD = 64
PROCESSES = 4


def _crowd(served: Served, action: str, ids: Sequence[str]) -> list[Answer]:
    """Send each client as many equal requests as there are connections, all of them at once."""
    barrier, answers = threading.Barrier(CROWD), list[Answer]()

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        try:
            for id in ids:
                barrier.wait(120)
                answers.append(served.send(action, id, connection=connection))
        finally:
            connection.close()

    threads = [threading.Thread(target=one) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("action", ["hard", "soft"])
def test_a_crowd_of_equal_requests_has_one_effect(
    eyes: Eyes, action: str, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    ids = [f"c{n}" for n in range(size(4))]
    eyes.add(ids)
    with serve(*eyes.urls, threads=CROWD) as served:
        began = time.monotonic()
        answers = _crowd(served, action, ids)
        seconds = time.monotonic() - began
        statuses = Counter(answer.status for answer in answers)
        if statuses[503]:
            served.reconcile()
    report(
        clients=len(ids),
        answers=dict(statuses),
        undocumented=sum(not answer.is_documented() for answer in answers),
        records=eyes.records().total(),
        half_deleted=len(eyes.half_deleted()),
        pending=eyes.pending(),
        seconds=round(seconds, 1),
    )
    assert len(answers) == CROWD * len(ids)
    assert all(answer.is_documented() for answer in answers)
    assert set(statuses) <= ({200, 404, 503} if action == "hard" else {200, 503})
    succeeded = Counter(answer.client_id for answer in answers if answer.status == 200)
    unsure = {answer.client_id for answer in answers if answer.status == 503}
    assert {*succeeded, *unsure} == set(ids)
    if action == "hard":  # the request that removed the row, and the one that settled its record
        assert max(succeeded.values(), default=0) <= 2
    assert eyes.records() == {(id, action): 1 for id in ids}
    assert eyes.statuses() == ({} if action == "hard" else dict.fromkeys(ids, False))
    assert (eyes.pending(), eyes.half_deleted()) == (0, [])


def test_one_reconcile_settles_all_that_an_outage_left(
    eyes: Eyes, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    count = _outage(eyes, size)
    with serve(*eyes.urls) as served:
        began = time.monotonic()
        done = served.reconcile()
        report(pending=count, settled=done["settled"], seconds=round(time.monotonic() - began, 2))
    assert done == {"settled": count, "verified": 0, "failed": 0, "blind": False}
    assert (eyes.pending(), eyes.half_deleted()) == (0, [])


def test_four_reconciles_at_once_settle_every_record_once(
    eyes: Eyes, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    count = _outage(eyes, size)
    with serve(*eyes.urls) as served:
        with _starting_line(eyes):
            processes = [served.command("reconcile", "--json") for _ in range(PROCESSES)]
        began = time.monotonic()
        outputs = [finish(process) for process in processes]
        seconds = time.monotonic() - began
    assert [process.returncode for process in processes] == [0] * PROCESSES, outputs
    settled = [json.loads(out)["settled"] for out, _ in outputs]
    report(pending=count, settled_by_each=settled, seconds=round(seconds, 2))
    assert sum(settled) == count
    assert (eyes.pending(), eyes.half_deleted()) == (0, [])
    # Not on SQLite, where only one can write at a time; nor of two pages, which one may have done alone.
    if eyes.engine.dialect.name != "sqlite" and count > 1000:
        # Not all four: one that the machine lets run late finds nothing left, and is right.
        assert sum(share > 0 for share in settled) >= 2, settled


def _outage(eyes: Eyes, size: Callable[[int], int]) -> int:
    """Leave pending records of both kinds, ten for each of the size; return how many."""
    count = size(100) * 10
    ids = [f"p{n}" for n in range(count)]
    eyes.leave(ids[::2], "hard")
    eyes.leave(ids[1::2], "soft")
    assert (eyes.pending(), len(eyes.half_deleted())) == (count, count)
    return count


# How to keep everyone from the ledger, and how to count those that wait for it.
LOCKS = {
    "postgresql": (
        "LOCK TABLE client_deletions IN ACCESS EXCLUSIVE MODE",
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
        "COMMIT",
    ),
    "mariadb": (
        "LOCK TABLES client_deletions WRITE",
        "SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%'",
        "UNLOCK TABLES",
    ),
}


@contextmanager
def _starting_line(eyes: Eyes) -> Iterator[None]:
    """Hold back the processes that are started in the block until each has come to the ledger."""
    kind = eyes.engine.dialect.name
    if kind not in LOCKS:
        yield
        return
    lock, count, unlock = LOCKS[kind]
    with eyes.engine.connect() as holding, eyes.engine.connect() as looking:
        holding.execute(sa.text(lock))
        try:
            yield
            deadline = time.monotonic() + 60
            while looking.scalar(sa.text(count)) < PROCESSES:
                assert time.monotonic() < deadline, "Not all of them came to the ledger."
                looking.rollback()  # a transaction of PostgreSQL sees one state of its activity
                time.sleep(0.02)
        finally:
            holding.execute(sa.text(unlock))
