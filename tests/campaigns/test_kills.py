"""Campaign "kill -9": the server's process dies at every moment there is, and at random ones under load."""

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from .host import KINDS, document
from .served import Answer, Eyes, Load, Served, serve

ACTIONS = ("soft", "hard", "restore")
AFTERWARDS = {"soft": False, "hard": None, "restore": True}
CONNECTIONS = 12

# What the clients of a group are asked for, each of them several times and by several connections at once.
GROUPS = {"gone": ("hard",), "off": ("soft",), "switched": ("soft", "restore"), "any": ACTIONS}
CLIENTS_PER_KILL = 10
A_FEW = 16


@pytest.fixture
def served(eyes: Eyes) -> Iterator[Served]:
    # What is settled in a campaign, however long it takes, is not yet due to be verified at its end.
    with serve(*eyes.urls, VERIFY_AFTER="1200") as served:
        yield served


class Kills:
    """Sends one request after another, each killed a moment (a step of several) later than the one before."""

    def __init__(self, served: Served) -> None:
        self.count = 0
        self.moments: dict[tuple[str, str], list[str]] = {}  # of a kind and an action: they differ
        self._served = served

    def __call__(
        self,
        action: str,
        prepare: Callable[[str], None],
        *,
        kind: str = "clients",
        first: int = 1,
        step: int = 1,
    ) -> Iterator[str]:
        """Give the client whose request has just been killed, until a request gets through."""
        for at in itertools.count(first, step):
            client_id = f"{action}-{at}-{kind}"
            prepare(client_id)
            answer = self._served.send(action, client_id, **{"X-Die-At": f"{at}"})
            if answer.status is not None:
                assert answer.status == 200, answer
                moments = self.moments[kind, action] = answer.headers["X-Moments"].split("; ")
                # Those before it died at a moment of their own each, and no moment was left out at the end.
                assert at - step <= len(moments) < at
                return
            self.count += 1
            yield client_id


def test_a_kill_at_any_moment_of_a_request_leaves_what_one_reconcile_repairs(
    eyes: Eyes, served: Served, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    kills, left = Kills(served), Counter[str]()
    # Ours at all of its moments; of the others' a few suffice, where no size is asked for.
    for turn, (kind, action) in enumerate(itertools.product(KINDS, ACTIONS)):
        a_few = kind != "clients" and not size(0)
        if a_few and action == "hard":  # which writes no status
            continue
        active, step = action != "restore", A_FEW if a_few else 1
        prepare = partial(_prepare, eyes, served, action)
        for id in kills(action, prepare, kind=kind, first=1 + turn % step, step=step):
            how_far = _how_far(eyes, action, id, active)
            left[how_far] += 1
            assert served.send("reconcile", id).status == 200  # in the process that took over
            assert (eyes.pending(), eyes.half_deleted()) == (0, [])

            again = served.send(action, id)
            gone = action == "hard" and how_far != "unchanged"
            assert (again.status, again.is_documented()) == (404 if gone else 200, True)
            assert eyes.statuses().get(id) == AFTERWARDS[action]
            assert eyes.records()[id, action] == 1
            assert (eyes.pending(), eyes.half_deleted()) == (0, [])

    # Now for the command, in a process of its own: it has to finish for all three at once.
    for action in ACTIONS:
        _prepare(eyes, served, action, f"last-{action}")
        moment = f"{kills.moments['clients', action].index('before the KV call') + 1}"
        assert served.send(action, f"last-{action}", **{"X-Die-At": moment}).status is None
        kills.count += 1
    assert (eyes.pending(), len(eyes.half_deleted())) == (3, 3)
    assert served.reconcile()["settled"] == 3
    assert (eyes.pending(), eyes.half_deleted()) == (0, [])

    # Each of them is met, or the moments were not where they seem to be.
    assert set(left) == {"unchanged", "half done", "pending", "done"}
    report(
        kills_at_named_moments=kills.count,
        left_by_them=dict(left),
        half_deleted_after_reconcile=len(eyes.half_deleted()),
    )


def _prepare(eyes: Eyes, served: Served, action: str, id: str) -> None:
    """Add a client; another comes first, for what a process asks the database but once has moments too."""
    eyes.add([id, f"first-{id}"], status=action != "restore")
    assert served.send(action, f"first-{id}").status == 200


def _how_far(eyes: Eyes, action: str, id: str, active: bool) -> str:
    """Check what must hold before any repair, and say how far the request had come."""
    status, records = eyes.statuses().get(id), eyes.records()
    half, pending = eyes.half_deleted(), eyes.pending()
    changed = status == AFTERWARDS[action]
    assert changed or status == active
    assert records[id, action] == int(changed)
    if not changed:
        # Nobody has touched the key-value store before the database has committed.
        assert (half, pending) == ([], 0)
        return "unchanged"
    if half:
        assert (half, pending) == ([id], 1)
        return "half done"
    return "pending" if pending else "done"


def test_a_kill_at_any_moment_of_reconcile_leaves_what_another_repairs(
    eyes: Eyes, served: Served, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    kills = Kills(served)

    def prepare(id: str) -> None:
        eyes.leave([f"pending-{id}"], "hard")
        eyes.leave([f"switched-{id}"], "soft")
        # A slow reader has put back what was settled, and the time to look again has come.
        eyes.leave([f"due-{id}"], "hard", settled_at=datetime.now(UTC) - timedelta(hours=1))

    for turn, kind in enumerate(KINDS):
        # It has many moments: a few of them suffice, where no size is asked for, and the kinds take turns.
        first, step = (1, 1) if size(0) else (1 + 6 * turn, 6 * len(KINDS))
        for id in kills("reconcile", prepare, kind=kind, first=first, step=step):
            assert set(eyes.half_deleted()) <= _unfinished(eyes)  # what is stamped is done
            assert served.send("reconcile", id).status == 200
            assert (eyes.pending(), eyes.half_deleted()) == (0, [])
            assert _unfinished(eyes) == set()
    assert served.reconcile() == {"settled": 0, "verified": 0, "failed": 0, "blind": False}
    assert (eyes.pending(), eyes.half_deleted()) == (0, [])
    report(kills_at_named_moments=kills.count, half_deleted_after_reconcile=len(eyes.half_deleted()))


def _unfinished(eyes: Eyes) -> set[str]:
    """Return the clients of which a record is pending, or due to be verified."""
    c, now = eyes.ledger.c, datetime.now(UTC)
    due = c.verified_at.is_(None) & (c.settled_at < now - timedelta(minutes=30))
    with eyes.engine.connect() as connection:
        return set(connection.scalars(sa.select(c.client_id).where(c.settled_at.is_(None) | due)))


def test_kills_under_load_lose_nothing_that_was_acknowledged(
    eyes: Eyes, served: Served, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    kills, chance = -(-size(15) // 3), random.Random(1)  # on three databases
    kinds = list(zip(range(kills * CLIENTS_PER_KILL), itertools.cycle(KINDS)))
    groups = {name: [f"{name}-{n}-{kind}" for n, kind in kinds] for name in GROUPS}
    eyes.add([id for ids in groups.values() for id in ids])
    sent = itertools.count()

    def plan() -> tuple[str, str]:
        # Several connections ask for the same client at once, and again later, after a kill perhaps.
        name = chance.choice(list(GROUPS))
        ids = groups[name]
        return chance.choice(GROUPS[name]), ids[(next(sent) // 8 + chance.randrange(3)) % len(ids)]

    with Load(served, CONNECTIONS, plan) as load:
        for _ in range(kills):
            _let_through(load, chance.randrange(60))
            time.sleep(chance.uniform(0, 0.02))
            os.kill(served.call("GET", "/pid")["pid"], signal.SIGKILL)
            served.wait_until_up()
        time.sleep(0.3)
    left = eyes.pending()
    done = served.reconcile()["settled"]
    done += sum(served.call("POST", f"/reconcile/{kind}")["settled"] for kind in KINDS)
    half, lost = eyes.half_deleted(), _lost(eyes, load.answers)
    report(
        random_kills=kills,
        requests_sent=len(load.answers),
        answers=dict(load.statuses()),
        pending_after_the_kills=left,
        half_deleted_after_reconcile=len(half),
        acknowledged_deletes=len({(a.client_id, a.action) for a in load.answers if _is_lasting(a)}),
        acknowledged_deletes_lost=len(lost),
    )
    # A database may even now have been busy with what a dead process had sent.
    assert done >= left
    assert (eyes.pending(), half, lost) == (0, [], [])
    assert load.undocumented() == []
    _check_records(eyes, groups)


def _let_through(load: Load, answers: int) -> None:
    """Wait for so many answers: by the clock alone, most would die while their connections are being made."""
    enough, deadline = len(load.answers) + answers, time.monotonic() + 1
    while len(load.answers) < enough and time.monotonic() < deadline:
        time.sleep(0.001)


def _is_lasting(answer: Answer) -> bool:
    """Whether a delete was acknowledged that nothing in this campaign takes back."""
    final = answer.action == "hard" or answer.client_id.startswith("off-")
    return final and answer.status == 200


def _lost(eyes: Eyes, answers: Sequence[Answer]) -> list[Answer]:
    """Return the acknowledged deletes that the stores know nothing of."""
    statuses, cached = eyes.statuses(), eyes.redis.keys()
    present = {key.removeprefix("client:").removeprefix("publishable_key:pk-") for key in cached}
    documents = eyes.redis.mget([f"client:{a.client_id}" for a in answers])
    return [
        answer
        for answer, found in zip(answers, documents, strict=True)
        if _is_lasting(answer)
        and (
            answer.client_id in {*statuses, *present}
            if answer.action == "hard"
            else statuses[answer.client_id] or found != document(answer.client_id, False)
        )
    ]


def _check_records(eyes: Eyes, groups: Mapping[str, Sequence[str]]) -> None:
    """Check that every change has one record, and every record its change."""
    statuses, records = eyes.statuses(), eyes.records()
    for id in itertools.chain(*groups.values()):
        assert records[id, "hard"] == int(id not in statuses), id
        switched_off = records[id, "soft"] - records[id, "restore"]
        # Each takes back the one before it; the row may have been removed in either state.
        assert switched_off in ((0, 1) if id not in statuses else (int(not statuses[id]),)), id
