"""What keeps the mark from moving, and what does not; how far back a reconcile goes."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flask_mythic_clients.backends import memory
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.entries import EntryFunction
from flask_mythic_clients.errors import BusyError, KeyValueStoreError, RepositoryError
from flask_mythic_clients.model import Action, Change, Mark, Reconciliation
from flask_mythic_clients.repair import mark_name
from flask_mythic_clients.service import DeletionService

WINDOW, DAY = timedelta(seconds=60), timedelta(days=1)
NAME = mark_name(MemoryRepository(), "clients")


class World:
    """Clients `a` and `b`, removed and verified an hour ago; the store has lost that since."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.rows, self.kv = MemoryRepository(lambda: self.now), MemoryStore()
        self.broken: set[str] = set()
        self.service = DeletionService(
            self.rows, self.kv, EntryFunction(self.entries), verify_after=WINDOW, keys_kept=DAY
        )
        for id in ("a", "b"):
            self.rows.add(id)
            self.kv.set(f"client:{id}", "1")
        self.service.reconcile()
        before = dict(self.kv._entries)
        for id in ("a", "b"):
            self.service.hard_delete(id, actor="tests")
        self.pass_(120)
        assert self.service.reconcile().verified == 2
        self.kv._entries = before
        self.pass_(3600)

    def entries(self, row: Any) -> Mapping[str, None]:
        if row.id in self.broken:
            raise LookupError(row.id)
        return {f"client:{row.id}": None}

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @property
    def mark(self) -> datetime | None:
        mark = self.kv.read_mark(NAME)
        return mark and mark.began

    @property
    def came_back(self) -> list[str]:
        return [id for id in ("a", "b") if self.kv.get(f"client:{id}") is not None]


@pytest.fixture
def world() -> World:
    """A world whose store was set back."""
    world = World()
    assert world.came_back == ["a", "b"]
    return world


def test_one_reconcile_repairs_it_and_moves_the_mark(world: World) -> None:
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)


def test_what_it_has_settled_itself_is_done_again_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark promises nothing about what was done since it began, and once is enough."""
    world.service.reconcile()
    world.pass_(1)
    world.rows.add("c")
    world.rows.record(Change("c", Action.HARD, "tests"), EntryFunction(world.entries))
    done: list[str] = []
    apply = MemoryStore.apply

    def count(store: MemoryStore, *, remove: Collection[str], overwrite: Mapping[str, Any]) -> set[str]:
        done.extend(remove)
        return apply(store, remove=remove, overwrite=overwrite)

    monkeypatch.setattr(MemoryStore, "apply", count)
    assert world.service.reconcile().settled == 1
    assert done.count("client:c") == 1
    world.pass_(1)
    world.service.reconcile()
    assert done.count("client:c") == 2


def test_nothing_is_repaired_by_rows_that_may_yet_be_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.mark

    def unsure() -> None:
        raise RepositoryError

    monkeypatch.setattr(world.rows, "make_durable", unsure)
    with pytest.raises(RepositoryError):
        world.service.reconcile()
    assert (world.came_back, world.mark) == (["a", "b"], before)


def test_what_a_verified_client_is_refused_keeps_the_mark(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    before = world.mark
    world.kv.refuse("client:a")
    assert world.service.reconcile() == Reconciliation(0, 0, 1)
    assert (world.came_back, world.mark) == (["a"], before)
    assert "was set back while this ran, or has refused an entry" in caplog.text
    world.kv.refuse()
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)


def test_a_rule_that_fails_for_a_verified_client_keeps_the_mark_and_stops_no_other(world: World) -> None:
    world.rows.add("a")
    world.broken = {"a"}
    before = world.mark
    assert world.service.reconcile() == Reconciliation(0, 0, 1)
    assert (world.came_back, world.mark) == (["a"], before)
    world.broken = set()
    world.service.reconcile()
    assert world.mark == world.now


def test_what_fails_on_one_page_keeps_the_mark_though_the_next_is_well(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "_PAGE", 1)
    for id in ("a", "b"):
        world.rows.add(id)
    before = world.mark
    for broken in ({"a"}, {"b"}, {"a", "b"}):
        world.broken = broken
        assert world.service.reconcile() == Reconciliation(0, 0, len(broken))
        assert world.mark == before
        for id in broken:
            assert f"Client {id} could not be reconciled." in caplog.messages
    assert all(record.exc_info for record in caplog.records if "could not" in record.message)


@pytest.mark.parametrize(("broken", "held"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("let_go", [False, True])
def test_who_is_held_beside_one_whose_rule_fails_is_told_too(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: str, held: str, let_go: bool
) -> None:
    world.rows.add(broken)
    world.broken = {broken}
    before, hold = world.mark, world.rows._hold

    def without_held(ids: Collection[str], wait: bool, **rows: bool) -> Any:
        return hold(ids if wait and let_go else set(ids) - {held}, wait, **rows)

    monkeypatch.setattr(world.rows, "_hold", without_held)
    assert world.service.reconcile() == Reconciliation(0, 0, 1 if let_go else 2)
    assert (world.came_back, world.mark) == ([broken] if let_go else ["a", "b"], before)


def test_who_is_held_together_with_others_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = world.rows.hold

    def busy(ids: Collection[str], *, wait: bool) -> Any:
        if not wait:
            raise BusyError
        return hold(ids, wait=wait)

    monkeypatch.setattr(world.rows, "hold", busy)
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)


def test_the_mark_moves_also_where_nothing_was_verified_since(world: World) -> None:
    world.service.reconcile()
    world.pass_(600)
    world.rows.add("c")
    world.service.hard_delete("c", actor="tests")
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert world.mark == world.now


def test_what_is_let_go_in_time_is_waited_for_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits before all that nobody holds is done."""
    hold, asked = world.rows._hold, []

    def held(ids: Collection[str], wait: bool, **rows: bool) -> Any:
        asked.append((sorted(ids), wait))
        return hold(ids if wait else set(ids) - {"a"}, wait, **rows)

    monkeypatch.setattr(world.rows, "_hold", held)
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)
    assert asked == [(["a", "b"], False), (["a"], True)]


def test_what_is_held_keeps_the_mark_and_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, hold = world.mark, world.rows._hold
    monkeypatch.setattr(world.rows, "_hold", lambda ids, wait, **rows: hold(set(ids) - {"a"}, wait, **rows))
    assert world.service.reconcile() == Reconciliation(0, 0, 1)
    assert (world.came_back, world.mark) == (["a"], before)
    assert "Clients left, for another transaction holds them: 1, a first." in caplog.text
    monkeypatch.undo()
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)


def test_what_is_not_yet_verified_does_not_keep_the_mark(world: World) -> None:
    world.rows.add("c")
    world.kv.set("client:c", "1")
    world.service.hard_delete("c", actor="tests")
    world.pass_(1)
    world.kv.refuse("client:c")
    assert world.service.reconcile() == Reconciliation(0, 0, 1)
    assert (world.came_back, world.mark) == ([], world.now)


def test_what_may_be_just_being_verified_keeps_the_mark(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stamp is older than what it does to the entries."""
    world.rows.add("c")
    world.service.hard_delete("c", actor="tests")
    world.pass_(1)
    before, hold = world.mark, world.rows._hold
    monkeypatch.setattr(world.rows, "_hold", lambda ids, wait, **rows: hold(set(ids) - {"c"}, wait, **rows))
    assert world.service.reconcile() == Reconciliation(0, 0, 1)
    assert (world.came_back, world.mark) == ([], before)


def test_a_store_that_is_away_at_the_end_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> bool:
        raise KeyValueStoreError

    monkeypatch.setattr("flask_mythic_clients.backends.memory.MemoryRun.close", away)
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert world.came_back == []
    assert "The mark in the key-value store could not be read or set" in caplog.text


def test_a_clock_that_went_back_five_minutes_loses_nothing(world: World) -> None:
    """What was verified then seems to be from before the mark."""
    world.service.reconcile()
    world.kv.set("client:a", "1")
    (record,) = world.rows.history("a")
    assert record.verified_at is not None
    for minutes, back in ((4, []), (6, ["a"])):
        world.kv.set("client:a", "1")
        mark = record.verified_at + timedelta(minutes=minutes)
        assert world.kv.open_run(NAME).close(Mark(mark, mark))
        world.service.reconcile()
        assert world.came_back == back


def test_a_mark_that_is_still_to_come_tells_nothing(world: World) -> None:
    """It was set while the database's clock ran ahead."""
    world.kv.set("client:a", "1")
    ahead = world.now + timedelta(hours=1)
    assert world.kv.open_run(NAME).close(Mark(ahead, ahead))
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)


def test_without_a_mark_it_goes_back_as_far_as_there_are_keys(world: World) -> None:
    world.kv.flush()
    world.kv.set("client:a", "1")
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert (world.came_back, world.mark) == ([], world.now)


def test_since_goes_back_further_than_the_mark(world: World) -> None:
    world.service.reconcile()
    world.kv.set("client:a", "1")
    world.pass_(1)
    world.service.reconcile(since=timedelta(seconds=10))
    assert world.came_back == ["a"]
    world.service.reconcile(since=timedelta(hours=2))
    assert world.came_back == []


def test_keys_are_let_go_when_they_are_old_and_the_mark_is_younger(world: World) -> None:
    world.pass_(DAY.total_seconds())
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert world.rows.history("a")[0].kv_keys == ("client:a",), "the mark was older"
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert world.rows.history("a")[0].kv_keys == ()


def test_all_keys_that_are_old_are_let_go_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [2, 1, 0]
    monkeypatch.setattr(world.rows, "forget_keys", lambda **_: pages.pop(0))
    world.service.reconcile()
    assert pages == []


def test_a_store_that_has_lost_what_has_no_keys_any_more_is_told_until_it_was_audited(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    copy = dict(world.kv._entries)
    world.pass_(DAY.total_seconds())
    for _ in range(2):
        world.service.reconcile()
    world.kv._entries = copy
    # What is found only now, no audit has seen.
    assert world.service.reconcile(audited=True) == Reconciliation(0, 0, 0, blind=True)
    for _ in range(2):
        caplog.clear()
        assert world.service.reconcile() == Reconciliation(0, 0, 0, blind=True)
        assert "entries of removed clients may be back. It needs an audit" in caplog.text
        assert world.service.health().needs_audit
        assert not world.service.health().ok
        assert "`reconcile --audited` once" in f"{world.service.check()}"
    assert world.came_back == ["a", "b"]
    assert world.service.reconcile(audited=True) == Reconciliation(0, 0, 0)
    assert world.service.reconcile() == Reconciliation(0, 0, 0)
    assert world.service.health().ok
