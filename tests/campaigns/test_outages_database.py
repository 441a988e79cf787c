"""Campaign "outages", second part: the database is away under load, or its connections break."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from .outages import AFTERWARDS, Dialogue, Do, Mix, Place, cuts, have_outage, lost, open_place, send_all
from .proxy import Cut
from .served import Answer

pytestmark = pytest.mark.timed


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_place(request.param, tmp_path_factory.mktemp("outages"), away="database") as place:
        yield place


@pytest.fixture(autouse=True)
def _forget_other_tests(place: Place) -> None:
    place.eyes.ids.clear()


def ways(place: Place) -> dict[str, tuple[Do, Do]]:
    """Return the ways to take the database away and to give it back."""
    return {
        "restart": (partial(place.server.stop, keep_data=True), place.server.start),
        "SIGKILL": (place.server.kill, place.server.start),
        "refuse": (place.proxy.refuse, place.proxy.passing),
        "hang": (place.proxy.hang, place.proxy.passing),
    }


# With a size every way is tried on both databases.
A_FEW = {"postgresql": ["SIGKILL"], "mariadb": ["restart"]}


def test_while_the_database_is_away_requests_are_answered_and_nothing_is_lost(
    place: Place, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    eyes, given = place.eyes, size(0)
    for way in ways(place) if given else A_FEW[eyes.engine.dialect.name]:
        eyes.ids.clear()
        # While it hangs requests wait for it, as long as the driver does: longer than the campaign's client.
        seconds = min(given or 1, 15 if way == "hang" else 1000)
        outage = have_outage(place.served, Mix(eyes, way), seconds, *ways(place)[way])
        assert [answer for answer in outage.answers if not answer.is_documented()] == []
        assert outage.healthy_after <= 5

        pending = eyes.pending()
        began = time.monotonic()
        done = place.served.reconcile()
        drained_in = time.monotonic() - began
        assert (done["settled"], done["failed"]) == (pending, 0)
        half, gone = eyes.half_deleted(), lost(eyes, outage.answers)
        assert (eyes.pending(), half, gone) == (0, [], [])
        report(
            way=way,
            **outage.figures(),
            pending=pending,
            drained_in=f"{drained_in:.1f}",
            half_deleted=len(half),
            lost=len(gone),
        )


# What the host says at the moments from which an answer is lost; an id is in the first statement.
MOMENTS = {
    "postgresql": ["UPDATE client_deletions", "COMMIT"],
    "mariadb": ["INSERT INTO client_deletions", "FOR UPDATE", "UPDATE client_deletions", "COMMIT"],
}


@pytest.mark.parametrize("connections", [1, 100])
def test_an_answer_lost_behind_any_statement_is_finished_by_the_same_request(
    place: Place, connections: int, report: Callable[..., None]
) -> None:
    dialogue, answers = Dialogue(place), Counter[tuple[int | None, int | None]]()
    kind = place.eyes.engine.dialect.name
    for action in ("soft", "hard"):
        for n, moment in enumerate(["", *MOMENTS[kind]]):
            if (kind, action, moment) == ("postgresql", "hard", "COMMIT"):
                continue  # each of its statements commits by itself
            id = f"{action}-lost-{connections}-{n}"
            place.eyes.add([id])
            cut = Cut("reply", after=(moment or id).encode(), connections=connections)
            first = dialogue.send(action, id, cut)
            assert cut.done > 0
            answers[first.status, _finish(place, action, id, first).status] += 1
    half = _check_all_done_once(place)
    report(
        lost_answers=sum(answers.values()),
        first_and_second_answer={f"{first}, {second}": n for (first, second), n in answers.items()},
        half_deleted=len(half),
    )


def test_a_dialogue_cut_anywhere_is_finished_by_the_same_request(
    place: Place, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    eyes, dialogue = place.eyes, Dialogue(place)
    answers, done = Counter[int | None](), 0
    for action, fresh in itertools.product(("soft", "hard"), (False, True)):
        ids = (f"{action}-{fresh:d}-cut-{n:05}" for n in itertools.count())
        eyes.add([next(ids)])
        lengths = dialogue.lengths(action, eyes.ids[-1], fresh=fresh)
        for cut in cuts(lengths, every=29 if size(0) else 1201):
            eyes.add([next(ids)])
            first = dialogue.send(action, eyes.ids[-1], cut, fresh=fresh)
            answers[first.status] += 1
            done += cut.done
            _finish(place, action, eyes.ids[-1], first)
    half = _check_all_done_once(place)
    report(cuts=done, answers=dict(answers), half_deleted=len(half))


def _finish(place: Place, action: str, id: str, first: Answer) -> Answer:
    """Repeat a request that was answered somehow."""
    assert first.is_documented(), first
    assert first.status in (200, 503), first
    # Where all was done and only the answer lost, nobody is there any more.
    done = id not in place.eyes.statuses() and place.eyes.pending() == 0
    again = place.served.send(action, id)
    assert again.is_documented(), again
    assert again.status == (404 if done else 200), (first, again)
    return again


def _check_all_done_once(place: Place) -> list[str]:
    """Check that the clients are what their names begin with, each by one record; return the half deleted."""
    eyes = place.eyes
    statuses, records, half = eyes.statuses(), eyes.records(), eyes.half_deleted()
    assert (eyes.pending(), half) == (0, [])
    for id in eyes.ids:
        action = id.partition("-")[0]
        assert (statuses.get(id), records[id, action]) == (AFTERWARDS[action], 1), id
    return half


def test_a_restart_of_the_database_between_two_requests_is_not_noticed(
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
