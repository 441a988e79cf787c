"""The service alone, on the stores in memory: guard, restore, pages, clock."""

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flask_mythic_clients import (
    ClientNotFoundError,
    HardDeleteForbiddenError,
    InvalidActorError,
    InvalidClientIdError,
    InvalidReasonError,
    KeyValueStoreError,
    RepositoryError,
)
from flask_mythic_clients.backends import memory
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.entries import KeyTemplates, Value
from flask_mythic_clients.errors import BusyError
from flask_mythic_clients.model import (
    Action,
    Backlog,
    Client,
    DeletionRecord,
    HardDelete,
    Reconciliation,
    SoftDeleteEntries,
)
from flask_mythic_clients.service import DeletionService

WINDOW = timedelta(seconds=60)
METHODS = ["soft_delete", "hard_delete", "restore"]


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def entries(client: Client) -> Mapping[str, Value | None]:
    """Name one entry whose value follows from the row, and one that only the host knows."""
    return {f"client:{client.id}": f"{client.active}", f"pk:{client.id}": None}


class Unsure(MemoryRepository):
    """Cannot tell whether what is committed there is durable, while that is so."""

    unsure = False

    def make_durable(self) -> None:
        """Fulfil `ports.DeletionSteps.make_durable`."""
        if self.unsure:
            raise RepositoryError


class World:
    """A service, and what lies behind it."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.rows, self.kv = Unsure(self.clock), MemoryStore()
        self.announced: list[DeletionRecord] = []
        self.away = False
        self.service = DeletionService(
            self.rows,
            self,
            options.pop("entries", entries),
            verify_after=WINDOW,
            on_settled=self.announced.append,
            **options,
        )

    def apply(self, **work: Any) -> set[str]:
        """Be the key-value store, which may be away."""
        if self.away:
            raise KeyValueStoreError
        return self.kv.apply(**work)

    def add(self, id: str = "acme", *, status: bool = True) -> None:
        """Add a client with its entries."""
        self.rows.add(id, status=status)
        self.kv.set(f"client:{id}", f"{status}")
        self.kv.set(f"pk:{id}", "host's")

    def act(self, method: str, id: str = "acme") -> None:
        """Call a method of the service."""
        getattr(self.service, method)(id, actor="tests")

    def fail(self, method: str, id: str = "acme") -> None:
        """Call a method while the key-value store is away."""
        self.away = True
        with pytest.raises(KeyValueStoreError):
            self.act(method, id)
        self.away = False

    def state(self, id: str = "acme") -> tuple[bool | None, Value | None, Value | None]:
        """Return the row's status and both entries."""
        status = {client.id: client.active for client in self.service.clients()}.get(id)
        return status, self.kv.get(f"client:{id}"), self.kv.get(f"pk:{id}")


SOFT = (False, "False", "host's")
ACTIVE = (True, "True", "host's")
GONE = (None, None, None)


class Untouchable:
    """Fails the test at the first touch."""

    def __getattr__(self, name: str) -> None:
        if name == "record_and_settle":
            raise AttributeError(name)  # only whether it has it is asked
        pytest.fail(f"{name} was called")


@pytest.mark.parametrize("id", ["", "a" * 256, "a b", "a/b", "a\n", "é", "a.b", "a:b", "٣"])
def test_an_invalid_id_is_refused_before_any_store_is_asked(id: str) -> None:
    untouchable: Any = Untouchable()
    service = DeletionService(untouchable, untouchable, untouchable)
    for method in METHODS:
        with pytest.raises(InvalidClientIdError) as caught:
            getattr(service, method)(id, actor="tests")
        assert caught.value.client_id == id
    with pytest.raises(InvalidClientIdError):
        service.history(id)
    with pytest.raises(InvalidClientIdError):
        service.preview(id, hard=True)


def test_delete_restore_and_remove_in_turn() -> None:
    world = World()
    world.add()
    states = {"soft_delete": SOFT, "restore": ACTIVE, "hard_delete": GONE}
    for method in ("soft_delete", "restore", "soft_delete", "hard_delete"):
        world.act(method)
        assert world.state() == states[method]
    actions = [record.action for record in world.service.history("acme")]
    assert actions == [Action.SOFT, Action.RESTORE, Action.SOFT, Action.HARD]
    assert [record.action for record in world.announced] == actions


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_client_is_not_found_and_leaves_no_record(method: str) -> None:
    world = World()
    with pytest.raises(ClientNotFoundError) as caught:
        world.act(method)
    assert caught.value.client_id == "acme"
    assert world.service.history("acme") == []


@pytest.mark.parametrize(("method", "status"), [("soft_delete", False), ("restore", True)])
def test_what_already_is_so_is_success_without_a_record(method: str, status: bool) -> None:
    world = World()
    world.add(status=status)
    world.act(method)
    assert world.service.history("acme") == world.announced == []


@pytest.mark.parametrize("again", METHODS)
@pytest.mark.parametrize("first", ["soft_delete", "hard_delete"])
def test_any_later_call_finishes_what_an_earlier_one_began(first: str, again: str) -> None:
    world = World()
    world.add()
    world.fail(first)
    assert world.service.backlog().pending == 1
    if (first, again) == ("hard_delete", "restore"):
        with pytest.raises(ClientNotFoundError):  # finished, and there is nothing to restore
            world.act(again)
    else:
        world.act(again)
    assert world.service.backlog().pending == 0
    final = GONE if "hard_delete" in (first, again) else ACTIVE if again == "restore" else SOFT
    assert world.state() == final


def test_no_entry_follows_a_row_that_may_yet_be_lost() -> None:
    world = World(soft_delete_entries=SoftDeleteEntries.REMOVE)
    for method in METHODS:
        world.add(method, status=method != "restore")
        world.fail(method, method)
    world.rows.unsure = True
    before = [world.state(method) for method in METHODS]
    for method in METHODS:
        with pytest.raises(RepositoryError):
            world.act(method, method)
    with pytest.raises(RepositoryError):
        world.service.reconcile()
    assert [world.state(method) for method in METHODS] == before
    assert world.service.backlog().pending == len(METHODS)


def test_no_entry_follows_a_row_that_may_yet_be_lost_at_a_verify_either() -> None:
    world = World()
    world.add()
    world.act("hard_delete")
    world.kv.set("client:acme", "came back")
    world.clock.now += WINDOW
    world.rows.unsure = True
    with pytest.raises(RepositoryError):
        world.service.reconcile()
    assert world.kv.get("client:acme") == "came back"
    world.rows.unsure = False
    assert world.service.reconcile() == Reconciliation(0, 1, 0)
    assert world.state() == GONE


def test_what_was_just_recorded_is_durable_already() -> None:
    world = World()
    world.add()
    world.rows.unsure = True
    world.act("hard_delete")
    assert world.state() == GONE


def test_a_restore_after_an_unconfirmed_deletion_settles_both() -> None:
    world = World()
    world.add()
    world.fail("soft_delete")
    world.fail("restore")
    world.act("restore")
    assert world.state() == ACTIVE
    assert [record.action for record in world.announced] == [Action.SOFT, Action.RESTORE]


def test_the_guard_denies_every_hard_delete_and_changes_nothing() -> None:
    world = World(guard=HardDelete.DENY)
    for status in (True, False):
        world.add(status=status)
        before = world.state()
        with pytest.raises(HardDeleteForbiddenError, match="does not allow hard deletes"):
            world.act("hard_delete")
        assert "not allow" in (world.service.preview("acme", hard=True).refused or "")
        assert world.state() == before
    assert world.service.history("acme") == []
    assert world.service.preview("acme", hard=False).client.id == "acme"


def test_the_guard_lets_only_soft_deleted_clients_go() -> None:
    world = World(guard=HardDelete.AFTER_SOFT_DELETE)
    world.add()
    with pytest.raises(HardDeleteForbiddenError, match="soft-deleted"):
        world.act("hard_delete")
    assert "soft-deleted" in (world.service.preview("acme", hard=True).refused or "")
    assert world.state() == ACTIVE
    world.act("soft_delete")
    preview = world.service.preview("acme", hard=True)
    assert (preview.refused, preview.kv_keys) == (None, ("client:acme", "pk:acme"))
    world.act("hard_delete")
    assert world.state() == GONE


@pytest.mark.parametrize("guard", HardDelete)
def test_the_guard_does_not_hide_that_there_is_no_client(guard: HardDelete) -> None:
    with pytest.raises(ClientNotFoundError):
        World(guard=guard).act("hard_delete")


@pytest.mark.parametrize("guard", [HardDelete.DENY, HardDelete.AFTER_SOFT_DELETE])
def test_a_guarded_hard_delete_finishes_what_is_pending_all_the_same(guard: HardDelete) -> None:
    world = World(guard=guard)
    world.add()
    world.fail("soft_delete")
    world.fail("restore")
    with pytest.raises(HardDeleteForbiddenError):
        world.act("hard_delete")
    assert world.state() == ACTIVE
    assert world.service.backlog().pending == 0


def test_pending_and_backlog_tell_the_oldest_first_over_all_pages() -> None:
    world = World()
    start = world.clock.now
    ids = [f"c{number}" for number in range(250)]
    for id in ids:
        world.add(id)
        world.fail("soft_delete", id)
        world.clock.now += timedelta(seconds=1)
    assert [record.client_id for record in world.service.pending()] == ids
    assert world.service.backlog() == Backlog(pending=250, oldest=world.clock.now - start)
    assert world.service.reconcile() == Reconciliation(settled=250, verified=0, failed=0)
    assert list(world.service.pending()) == []
    assert world.service.backlog() == Backlog()


def test_the_times_of_a_record_are_the_clocks() -> None:
    world = World()
    world.add()
    requested = world.clock.now
    world.fail("hard_delete")
    settled = world.clock.now = requested + timedelta(seconds=10)
    world.service.reconcile()
    verified = world.clock.now = settled + WINDOW
    world.service.reconcile()
    [record] = world.service.history("acme")
    assert (record.requested_at, record.settled_at, record.verified_at) == (requested, settled, verified)


def test_a_record_is_verified_when_the_window_has_passed_and_not_before() -> None:
    world = World()
    world.add()
    world.act("hard_delete")
    world.clock.now += WINDOW - timedelta(microseconds=1)
    assert world.service.reconcile().verified == 0
    world.clock.now += timedelta(microseconds=1)
    assert [world.service.reconcile().verified for _ in range(2)] == [1, 0]


def test_a_soft_delete_may_remove_the_entries_and_a_restore_makes_none() -> None:
    world = World(soft_delete_entries=SoftDeleteEntries.REMOVE)
    world.add()
    world.act("soft_delete")
    assert world.state() == (False, None, None)
    world.kv.set("client:acme", "True")  # a reader, from the row it read before
    world.clock.now += WINDOW
    assert world.service.reconcile().verified == 1
    assert world.state() == (False, None, None)
    world.act("restore")
    assert world.state() == (True, None, None)
    world.add()
    world.fail("soft_delete")
    world.act("restore")
    assert world.state() == ACTIVE  # it is active again: what is there is its own
    world.act("hard_delete")
    assert world.state() == GONE


def test_what_came_back_is_removed_with_one_warning_that_names_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.add()
    world.act("hard_delete")
    world.kv.set("client:acme", "True")
    world.kv.set("pk:acme", "host's")
    world.clock.now += WINDOW
    world.service.reconcile()
    assert world.state() == GONE
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("Client acme: entries had come back")
    assert "removed: 2" in warning.getMessage()
    assert "Something writes entries from rows it read long before" in warning.getMessage()


def test_a_key_that_now_belongs_to_a_newer_client_of_that_id_is_left_to_it() -> None:
    world = World()
    world.add()
    world.act("hard_delete")
    world.add()
    world.clock.now += WINDOW
    assert world.service.reconcile().verified == 1
    assert world.state() == ACTIVE


def test_a_client_whose_entries_cannot_be_named_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    poisoned: set[str] = set()

    def poisonous(client: Client) -> Mapping[str, Value | None]:
        if client.id in poisoned:
            raise LookupError(client.id)
        return entries(client)

    world = World(entries=poisonous)
    for id in ("a", "b", "c"):
        world.add(id)
        world.act("soft_delete", id)
        world.fail("restore", id)
    poisoned.add("b")
    world.clock.now += WINDOW
    # For b both its pending and its unverified record must be left.
    assert world.service.reconcile() == Reconciliation(settled=2, verified=2, failed=1)
    assert {record.getMessage() for record in caplog.records} == {"Client b could not be reconciled."}


def test_a_page_of_which_nothing_is_left_to_do_does_not_end_the_waiting_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_PAGE", 1)
    world = World(entries=lambda client: {f"{client.row.key}:{client.id}": None})
    world.rows.add("a", key="client")
    world.rows.add("b", key="client")
    for id in ("a", "b"):
        world.fail("soft_delete", id)
    del world.rows._rows["a"].key  # now it cannot be named
    hold = world.rows._hold
    monkeypatch.setattr(
        world.rows,
        "_hold",
        lambda ids, wait, **rows: hold(ids if wait else set(ids) - {"b"}, wait, **rows),
    )
    assert world.service.reconcile() == Reconciliation(settled=1, verified=0, failed=1)


def test_a_client_of_whom_the_store_refuses_an_entry_is_left_and_the_others_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    for id in ("a", "b", "c"):
        world.add(id)
        world.fail("hard_delete", id)
    world.kv.refuse("client:b")
    assert world.service.reconcile() == Reconciliation(settled=2, verified=0, failed=1)
    assert [world.state(id) for id in ("a", "b", "c")] == [GONE, (None, "True", None), GONE]
    assert world.service.history("b")[0].attempts == 1
    (logged,) = caplog.records
    assert logged.getMessage().startswith("Client b could not be reconciled: The key-value store refused")
    assert not logged.exc_info  # of a thousand it would be told a thousand times


def test_templates_may_stand_in_for_a_function() -> None:
    world = World(entries=KeyTemplates(["client:{id}"]))
    world.add()
    world.act("soft_delete")
    assert world.state() == (False, "True", "host's")  # no value is known, so none is written
    world.act("hard_delete")
    assert world.state() == (None, None, "host's")


def test_the_actor_and_the_time_of_every_action_are_recorded() -> None:
    service = DeletionService(MemoryRepository(), MemoryStore(), entries)
    began = datetime.now(UTC)
    service._repository.add("acme")  # type: ignore[attr-defined]
    for method in ("soft_delete", "restore", "hard_delete"):
        getattr(service, method)("acme", actor=method)
    history = service.history("acme")
    assert [record.actor for record in history] == ["soft_delete", "restore", "hard_delete"]
    for record in history:
        assert record.requested_at.tzinfo is UTC
        assert began <= record.requested_at <= datetime.now(UTC)


@pytest.mark.parametrize("method", ["soft_delete", "hard_delete", "restore"])
def test_the_reason_is_recorded_and_one_that_the_ledger_does_not_take_changes_nothing(method: str) -> None:
    repository = MemoryRepository()
    service = DeletionService(repository, MemoryStore(), entries)
    repository.add("acme", status=method != "restore")
    for wrong in ("", "x" * 501, "two\nlines", "\x00", "\ud800", 7):
        with pytest.raises(InvalidReasonError, match="500") as caught:
            getattr(service, method)("acme", actor="tests", reason=wrong)
        assert caught.value.client_id == "acme"
    assert list(service.history("acme")) == []
    getattr(service, method)("acme", actor="tests", reason="é" * 500)
    (record,) = service.history("acme")
    assert record.reason == "é" * 500
    assert "é" not in repr(record)


@pytest.mark.parametrize("wrong", ["", "a\x00b", "\ud800", None, 7])
def test_an_actor_that_the_ledger_does_not_take_changes_nothing(wrong: Any) -> None:
    repository = MemoryRepository()
    service = DeletionService(repository, MemoryStore(), entries)
    repository.add("acme")
    for call in (
        lambda: service.soft_delete("acme", actor=wrong),
        lambda: service.hard_delete("acme", actor=wrong),
        lambda: service.restore("acme", actor=wrong),
        lambda: service.preview("acme", hard=True, actor=wrong),
        lambda: next(service.delete_each(["acme"], hard=True, actor=wrong)),
        lambda: next(service.purge(older_than=timedelta(0), actor=wrong)),
    ):
        with pytest.raises(InvalidActorError, match="at least one character"):
            call()
    assert list(service.history("acme")) == []
    assert [client.active for client in service.clients()] == [True]


def test_a_repeat_keeps_the_first_reason() -> None:
    repository = MemoryRepository()
    service = DeletionService(repository, MemoryStore(), entries)
    repository.add("acme")
    for reason in ("first", "second"):
        service.soft_delete("acme", actor="tests", reason=reason)
    assert [record.reason for record in service.history("acme")] == ["first"]


def test_a_refusal_names_its_client_and_its_reason() -> None:
    world = World(guard=HardDelete.AFTER_SOFT_DELETE)
    world.add()
    with pytest.raises(ClientNotFoundError) as absent:
        world.service.preview("nobody", hard=True)
    assert absent.value.client_id == "nobody"
    with pytest.raises(HardDeleteForbiddenError, match="soft-deleted") as forbidden:
        world.act("hard_delete")
    assert forbidden.value.client_id == "acme"


def test_reconcile_finishes_what_nobody_holds_and_then_waits_for_the_rest() -> None:
    world = World()
    for id in ("a", "b", "c"):
        world.add(id)
        world.fail("soft_delete", id)

    def is_settled(id: str) -> bool:
        return world.service.history(id)[0].settled_at is not None

    with ThreadPoolExecutor(1) as other:
        with pytest.raises(LookupError), world.rows.settle(["b"]):  # noqa: PT012
            reconciling = other.submit(world.service.reconcile)
            deadline = time.monotonic() + 10
            while not (is_settled("a") and is_settled("c")) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [is_settled(id) for id in ("a", "b", "c")] == [True, False, True]
            raise LookupError  # its holder gives b back, unfinished
        assert reconciling.result(10) == Reconciliation(settled=3, verified=0, failed=0)
    assert world.state("b") == SOFT


@pytest.mark.parametrize("gets_on", [True, False])
def test_reconcile_does_not_give_up_while_others_get_on_with_the_work(
    monkeypatch: pytest.MonkeyPatch, gets_on: bool
) -> None:
    """On a database that locks as a whole, whoever waits may never get a turn before they are done."""
    world, waits = World(), []
    for id in ("a", "b", "c"):
        world.add(id)
        world.fail("soft_delete", id)
    settle = world.rows.settle

    def busy(ids: Collection[str], *, wait: bool) -> Any:
        waits.append(sorted(ids))
        if gets_on or len(waits) == 1:
            with settle([min(ids)]):  # by another
                pass
        raise BusyError

    monkeypatch.setattr(world.rows, "settle", busy)
    left = Reconciliation(0, 0, 0 if gets_on else 2)
    assert world.service.reconcile() == left
    assert waits == [["a", "b", "c"], ["b", "c"], *([["c"]] if gets_on else [])]


def test_reconcile_verifies_what_nobody_holds_and_then_waits_for_the_rest() -> None:
    world = World()
    for id in ("a", "b", "c"):
        world.add(id)
        world.act("soft_delete", id)
    world.clock.now += WINDOW

    def is_verified(id: str) -> bool:
        return world.service.history(id)[0].verified_at is not None

    with ThreadPoolExecutor(1) as other:
        with pytest.raises(LookupError), world.rows.verify(["b"], settled_for=WINDOW):  # noqa: PT012
            reconciling = other.submit(world.service.reconcile)
            deadline = time.monotonic() + 10
            while not (is_verified("a") and is_verified("c")) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [is_verified(id) for id in ("a", "b", "c")] == [True, False, True]
            raise LookupError  # its holder gives b back, unfinished
        assert reconciling.result(10) == Reconciliation(settled=0, verified=3, failed=0)


def test_a_request_waits_for_whoever_holds_the_client() -> None:
    world = World()
    world.add()
    world.fail("soft_delete")
    with ThreadPoolExecutor(1) as other:
        with world.rows.settle(["acme"]):
            asking = other.submit(world.act, "soft_delete")
            with pytest.raises(TimeoutError):
                asking.result(0.2)
        asking.result(10)


def test_reconcile_looks_for_what_is_due_and_for_nothing_younger() -> None:
    world = World()
    asked = []

    def due(**options: Any) -> list[DeletionRecord]:
        asked.append(options["settled_for"])
        return []

    world.rows.due = due  # type: ignore[method-assign,assignment]
    world.service.reconcile()
    assert set(asked) == {WINDOW}


def test_each_client_whose_entries_came_back_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for id in ("a", "b"):
        world.add(id)
        world.act("hard_delete", id)
        world.kv.set(f"client:{id}", "True")
    world.clock.now += WINDOW
    world.service.reconcile()
    warned = [record.getMessage().split(":")[0] for record in caplog.records]
    assert warned == ["Client a", "Client b"]


def test_of_two_clients_the_one_whose_entries_cannot_be_named_does_not_hold_the_other_back() -> None:
    def poisonous(client: Client) -> Mapping[str, Value | None]:
        if client.id == "b" and not client.active:
            raise LookupError(client.id)
        return entries(client)

    world = World(entries=poisonous)
    for id in ("a", "b"):
        world.add(id)
    world.fail("soft_delete", "a")
    with pytest.raises(LookupError):
        world.act("soft_delete", "b")
    assert world.service.reconcile() == Reconciliation(settled=1, verified=0, failed=1)


def test_an_entry_that_a_newer_client_took_over_unsettled_is_removed_by_its_key() -> None:
    world = World()
    world.add()
    world.fail("hard_delete")
    world.add()
    removed: list[set[str]] = []
    apply = world.kv.apply

    def watch(**work: Any) -> set[str]:
        removed.append(set(work["remove"]))
        return apply(**work)

    world.kv.apply = watch  # type: ignore[method-assign]
    assert world.service.reconcile().settled == 1
    assert removed == [{"pk:acme"}]
    assert world.state() == (True, "True", None)


def test_who_changed_the_row_is_answered_well_also_where_another_settled_it() -> None:
    world = World()
    world.add()
    record = world.rows.record

    def record_and_be_overtaken(*arguments: Any) -> bool:
        recorded = record(*arguments)
        world.rows.record = record  # type: ignore[method-assign]
        assert world.service.reconcile().settled == 1
        return recorded

    world.rows.record = record_and_be_overtaken  # type: ignore[method-assign]
    world.act("hard_delete")
    assert world.state() == GONE
    with pytest.raises(ClientNotFoundError):
        world.act("hard_delete")
