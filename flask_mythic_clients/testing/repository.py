"""What every repository must do."""
# ruff: noqa: D102 - the name of a test is its docstring

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Barrier, Event, Thread
from typing import Any, ClassVar, Generic, Never, Protocol, TypeVar

import pytest

from ..entries import EntryFunction, EntryRule, KeyTemplates
from ..errors import KeyValueStoreError
from ..model import Action, Backlog, Change, Client, DeletionRecord, Holding
from ..ports import ClientRepository

_T = TypeVar("_T")

# How long a test looks whether somebody waits. Far below the 5 s after which SQLite gives up waiting.
_HOLD = 0.2
# How long a test waits for what must come.
_PATIENCE = 20
_THREADS = 8
_MORE_THAN_A_PAGE = 120

_SOFT, _HARD, _RESTORE = Action.SOFT, Action.HARD, Action.RESTORE

_TEMPLATES = KeyTemplates(["client:{id}", "name:{name}"])
_FUNCTION = EntryFunction(lambda row: {f"name:{row.name}": None, f"label:{row.name}": "a value"})
_rules = pytest.mark.parametrize("rule", [_TEMPLATES, _FUNCTION], ids=["templates", "function"])
_actions = pytest.mark.parametrize("action", list(Action))


class AddClient(Protocol):
    """Inserts and commits a client with an id, a status and one more column, `name`, that may be None."""

    def __call__(self, client_id: str, /, *, status: bool = True, name: str | None = "a name") -> None:
        """Return when the client is there for everybody to see."""
        ...


class ClientRepositoryContract:
    """A repository joins by overriding the fixtures `repository` and `add_client`; both start empty.

    The tests run code in threads: a backend that needs something pushed there overrides `context`.
    A backend whose ids are not just any text overrides `ids` and `lookalikes`.
    """

    ids: ClassVar[tuple[str, str, str]] = ("acme", "acme2", "zeta")
    """Ids of three clients, in the order in which the repository lists them."""

    lookalikes: ClassVar[Sequence[str]] = (
        *("Acme", "ACME", "acmE", "acm", "acme_", "acm_", "_cme", "acme-", "-acme", "4cme", "acme22"),
        *("acmeacme", "a", "A" * 255),
    )
    """What is none of the ids, however much it looks like one; all of them allowed by `check_client_id`."""

    @pytest.fixture
    def repository(self) -> Any:
        """Return the repository under test."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `repository` to return your ClientRepository, "
            "without clients and records. It may yield inside whatever context the repository needs."
        )

    @pytest.fixture
    def add_client(self) -> Any:
        """Return a way to insert clients."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `add_client` to return a callable "
            "(client_id, *, status=True, name='a name') that inserts a client and commits."
        )

    @pytest.fixture
    def context(self) -> Callable[[], AbstractContextManager[Any]]:
        """Return what a thread enters before it calls the repository, such as `app.app_context`."""
        return nullcontext

    @pytest.fixture
    def threads(self, context: Callable[[], AbstractContextManager[Any]]) -> Iterator["_Threads"]:
        """Start calls beside the test, each in a thread and a context of its own."""
        threads = _Threads(context)
        yield threads
        threads.join()

    # Step 1, record

    @_rules
    def test_a_recorded_soft_delete_deactivates_the_client_and_is_pending(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme)
        add_client(acme2)
        assert repository.record(_change(acme, _SOFT), rule) is True
        assert _active(repository) == {acme: False, acme2: True}
        assert _states(repository, acme) == [(_SOFT, "pending")]
        assert _states(repository, acme2) == []

    @_rules
    def test_a_recorded_hard_delete_removes_the_client_and_is_pending(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, zeta = self.ids
        add_client(acme)
        add_client(acme2)
        add_client(zeta, status=False)
        assert repository.record(_change(acme, _HARD), rule) is True
        assert _active(repository) == {acme2: True, zeta: False}
        assert _states(repository, acme) == [(_HARD, "pending")]
        assert _states(repository, acme2) == []

    @_rules
    def test_a_recorded_restore_activates_the_client_and_is_pending(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, status=False)
        add_client(acme2, status=False)
        assert repository.record(_change(acme, _RESTORE), rule) is True
        assert _active(repository) == {acme: True, acme2: False}
        assert _states(repository, acme) == [(_RESTORE, "pending")]
        assert _states(repository, acme2) == []

    @_rules
    def test_recording_for_an_absent_client_does_nothing(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme2)
        for action in Action:
            assert repository.record(_change(acme, action), rule) is False, action
        assert _active(repository) == {acme2: True}
        assert repository.history(acme) == []
        assert repository.backlog() == Backlog(0, None)

    @_rules
    def test_recording_what_is_already_so_does_nothing(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, status=False)
        add_client(acme2, status=True)
        assert repository.record(_change(acme, _SOFT), rule) is False
        assert repository.record(_change(acme2, _RESTORE), rule) is False
        assert _active(repository) == {acme: False, acme2: True}
        assert repository.backlog() == Backlog(0, None)

    @_rules
    def test_only_if_inactive_holds_a_hard_delete_back_from_an_active_client(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, status=True)
        add_client(acme2, status=False)
        assert repository.record(_change(acme, _HARD, only_if_inactive=True), rule) is False
        assert repository.record(_change(acme2, _HARD, only_if_inactive=True), rule) is True
        assert _active(repository) == {acme: True}
        assert repository.history(acme) == []
        assert _states(repository, acme2) == [(_HARD, "pending")]

    def test_an_inactive_client_can_be_removed_too(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, status=False)
        assert repository.record(_change(acme, _HARD), _TEMPLATES) is True
        assert _active(repository) == {}

    @_rules
    def test_a_client_is_deleted_restored_and_removed_in_turn(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        actions = [_SOFT, _RESTORE, _SOFT, _RESTORE, _HARD]
        assert [repository.record(_change(acme, action), rule) for action in actions] == [True] * 5
        assert _states(repository, acme) == [(action, "pending") for action in actions]
        assert repository.record(_change(acme, _HARD), rule) is False

    def test_a_client_made_again_under_an_old_id_can_be_removed_again(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        for name in ("the first", "the second"):
            add_client(acme, name=name)
            assert repository.record(_change(acme, _HARD), _TEMPLATES) is True
        assert [record.kv_keys[1] for record in repository.history(acme)] == [
            "name:the first",
            "name:the second",
        ]

    @pytest.mark.parametrize("action", [_SOFT, _HARD])
    def test_a_rule_that_fails_leaves_the_client_as_it_was(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        failure = _PlannedError()

        def rule(_: Client) -> Any:
            raise failure

        with pytest.raises(_PlannedError) as caught:
            repository.record(_change(acme, action), rule)
        assert caught.value is failure
        assert _active(repository) == {acme: True}
        assert repository.history(acme) == []

    # The keys

    @_actions
    def test_keys_are_filled_from_the_row(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id, name in ((acme, "Acme Ltd"), (acme2, "another")):
            add_client(client_id, status=action is not _RESTORE, name=name)
        rule = KeyTemplates(["client:{id}", "name:{name}", "{id}/{name}/{id}"])
        repository.record(_change(acme, action), rule)
        (record,) = repository.history(acme)
        assert record.kv_keys == (f"client:{acme}", "name:Acme Ltd", f"{acme}/Acme Ltd/{acme}")

    @pytest.mark.parametrize(
        "name",
        ["", "null", " Zoë  客户 🦊 \"'\\ {id}{} 50% %s :id $1 a\nb\tc ", "é" * 200],
        ids=["empty", "null", "special", "long"],
    )
    @pytest.mark.parametrize("action", [_SOFT, _HARD])
    def test_a_key_is_filled_to_the_letter(
        self, repository: ClientRepository, add_client: AddClient, name: str, action: Action
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, name=name)
        rule = KeyTemplates(["name:{name}:%s:'\"\\:é", "{name}"])
        repository.record(_change(acme, action), rule)
        (record,) = repository.history(acme)
        assert record.kv_keys == (f"name:{name}:%s:'\"\\:é", name)

    @_actions
    def test_a_column_that_is_none_yields_no_key(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, status=action is not _RESTORE, name=None)
        add_client(acme2, status=action is not _RESTORE, name=None)
        repository.record(_change(acme, action), KeyTemplates(["name:{name}", "client:{id}", "{id}:{name}"]))
        repository.record(_change(acme2, action), KeyTemplates(["name:{name}"]))
        assert repository.history(acme)[0].kv_keys == (f"client:{acme}",)
        assert repository.history(acme2)[0].kv_keys == ()

    @_actions
    def test_a_function_names_the_keys(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, status=action is not _RESTORE, name="Zoë")
        repository.record(_change(acme, action), _FUNCTION)
        assert repository.history(acme)[0].kv_keys == ("name:Zoë", "label:Zoë")

    @_actions
    def test_the_rule_sees_the_client_as_it_was(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, _, _ = self.ids
        before = action is not _RESTORE
        add_client(acme, status=before, name="Zoë")
        repository.record(
            _change(acme, action),
            lambda client: {f"{client.id}:{client.active}:{client.row.name}": None},
        )
        assert repository.history(acme)[0].kv_keys == (f"{acme}:{before}:Zoë",)

    # Ids

    def test_ids_are_compared_to_the_letter(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        for lookalike in self.lookalikes:
            assert repository.preview(lookalike, _TEMPLATES) is None, lookalike
            for rule in (_TEMPLATES, _FUNCTION):
                assert repository.record(_change(lookalike, _SOFT), rule) is False, lookalike
                assert repository.record(_change(lookalike, _HARD), rule) is False, lookalike
        assert _active(repository) == {acme: True}
        assert repository.history(acme) == []

    def test_the_records_of_a_similar_id_are_left_alone(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        repository.record(_change(acme, _SOFT), _TEMPLATES)
        for lookalike in self.lookalikes:
            assert repository.history(lookalike) == [], lookalike
            with repository.settle([lookalike], at=_at(1)) as holding:
                assert holding == Holding((), {}), lookalike
        _settle(repository, acme, at=_at(1))
        for lookalike in self.lookalikes:
            with repository.verify([lookalike], at=_at(9), settled_before=_at(8)) as holding:
                assert holding == Holding((), {}), lookalike
        assert _states(repository, acme) == [(_SOFT, "settled")]

    # Step 2, settle

    def test_settle_stamps_all_pending_records_of_the_client(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
            _record(repository, client_id, _SOFT, _RESTORE, _HARD)
        with repository.settle([acme], at=_at(1)) as holding:
            assert [record.action for record in holding.records] == [_SOFT, _RESTORE, _HARD]
        assert [record.settled_at for record in repository.history(acme)] == [_at(1)] * 3
        assert [record.settled_at for record in repository.history(acme2)] == [None] * 3
        assert {record.verified_at for record in repository.history(acme)} == {None}

    def test_settle_stamps_only_once(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme, at=_at(1))
        _record(repository, acme, _RESTORE)
        with repository.settle([acme], at=_at(2)) as holding:
            assert [record.action for record in holding.records] == [_RESTORE]
        assert _settle(repository, acme, at=_at(3)).records == ()
        assert [record.settled_at for record in repository.history(acme)] == [_at(1), _at(2)]

    def test_settle_takes_several_clients_at_once(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        with repository.settle([zeta, acme], at=_at(1)) as holding:
            assert sorted(record.client_id for record in holding.records) == [acme, zeta]
            assert set(holding.clients) == {acme, zeta}
        assert [_states(repository, client_id) for client_id in self.ids] == [
            [(_SOFT, "settled")],
            [(_SOFT, "pending")],
            [(_SOFT, "settled")],
        ]

    def test_settle_and_verify_take_any_collection_of_ids(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        for collection, action in ((list, _SOFT), (set, _RESTORE), (dict.fromkeys, _SOFT)):
            client_ids: Collection[str] = collection([acme, acme2])
            _record(repository, acme, action)
            _record(repository, acme2, action)
            with repository.settle(client_ids, at=_at(1)) as holding:
                assert len(holding.records) == 2
            with repository.verify(client_ids, at=_at(3), settled_before=_at(2)) as holding:
                assert len(holding.records) == 2

    def test_the_held_records_are_those_of_the_history(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT, _RESTORE)
        settled = _settle(repository, acme, at=_at(1))
        assert list(settled.records) == list(repository.history(acme))
        with repository.verify([acme], at=_at(3), settled_before=_at(2)) as verified:
            pass
        assert list(verified.records) == list(repository.history(acme))

    def test_settle_yields_the_client_as_it_is_now(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, name="Zoë")
        _record(repository, acme, _SOFT)
        for active in (False, True):
            with repository.settle([acme], at=_at(1)) as holding:
                assert [(client.id, client.active) for client in holding.clients.values()] == [(acme, active)]
                assert holding.clients[acme].row.name == "Zoë"
            assert holding.clients[acme].row.name == "Zoë"  # also after the block
            _record(repository, acme, _RESTORE if not active else _SOFT)

    def test_a_client_that_is_gone_is_missing_from_the_holding(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        _record(repository, acme, _SOFT, _HARD)
        _record(repository, acme2, _SOFT)
        with repository.settle([acme, acme2], at=_at(1)) as holding:
            assert len(holding.records) == 3
            assert set(holding.clients) == {acme2}

    def test_a_client_made_again_is_in_the_holding(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, name="the first")
        _record(repository, acme, _HARD)
        add_client(acme, name="the second")
        holding = _settle(repository, acme, at=_at(1))
        assert len(holding.records) == 1
        assert holding.clients[acme].row.name == "the second"

    def test_settle_without_anything_pending_holds_no_records(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme, at=_at(1))
        assert _settle(repository, acme, at=_at(2)).records == ()
        assert _settle(repository, acme2, at=_at(2)) == Holding((), {})
        with repository.settle([], at=_at(2)) as holding:
            assert holding == Holding((), {})

    def test_settle_yields_the_clients_also_when_nothing_is_pending(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        # By this the service tells a client that is already soft-deleted from one that never was.
        acme, acme2, _ = self.ids
        add_client(acme, status=False)
        with repository.settle([acme, acme2], at=_at(1)) as holding:
            assert holding.records == ()
            assert [(client.id, client.active) for client in holding.clients.values()] == [(acme, False)]

    @pytest.mark.parametrize("error", [KeyValueStoreError, SystemExit])
    def test_an_exception_in_settles_block_leaves_all_pending_and_comes_out_unchanged(
        self, repository: ClientRepository, add_client: AddClient, error: type[BaseException]
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
            _record(repository, client_id, _SOFT, _RESTORE)
        failure = error("planned")
        with pytest.raises(error) as caught, repository.settle([acme, acme2], at=_at(1)):
            raise failure
        assert caught.value is failure
        for client_id in (acme, acme2):
            assert _states(repository, client_id) == [(_SOFT, "pending"), (_RESTORE, "pending")]
        assert len(_settle(repository, acme, at=_at(2)).records) == 2

    def test_a_second_settler_waits_for_the_first_and_then_finds_nothing(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme], at=_at(1)) as first:
            second = threads.settle(repository, acme, at=_at(2))
            assert not second.entered.wait(_HOLD), "Two settlers held the records at once."
        assert len(first.records) == 1
        assert second.result().records == ()
        assert repository.history(acme)[0].settled_at == _at(1)

    def test_a_settler_that_waited_for_one_that_failed_finds_its_records(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)

        def fail() -> Never:
            with repository.settle([acme], at=_at(1)):
                waiting.append(threads.settle(repository, acme, at=_at(2)))
                assert not waiting[0].entered.wait(_HOLD), "Two settlers held the records at once."
                raise _PlannedError

        waiting: list[_Thread[Holding]] = []
        with pytest.raises(_PlannedError):
            fail()
        (second,) = waiting
        assert [record.settled_at for record in second.result().records] == [_at(2)]
        assert _states(repository, acme) == [(_SOFT, "settled")]

    def test_a_settler_of_several_clients_waits_for_the_holder_of_one(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        with repository.settle([acme2], at=_at(1)):
            second = threads.settle(repository, zeta, acme2, acme, at=_at(2))
            assert not second.entered.wait(_HOLD), "Two settlers held a record at once."
        assert sorted(record.client_id for record in second.result().records) == [acme, zeta]

    def test_a_settler_that_waited_yields_the_client_as_it_is_after_the_wait(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme], at=_at(1)):
            second = threads.settle(repository, acme, at=_at(2))
            second.entered.wait(_HOLD)
            restore = threads.start(lambda: repository.record(_change(acme, _RESTORE), _TEMPLATES))
            restore.join(_HOLD)
            # A database that locks as a whole lets nobody record now, and there is nothing to see.
            recorded = not restore.is_alive()
        holding = second.result()
        assert restore.result() is True
        assert holding.clients[acme].active or not recorded

    @pytest.mark.parametrize("action", [_RESTORE, _HARD])
    @_rules
    def test_a_change_recorded_while_the_client_is_held_is_still_pending_afterwards(
        self,
        repository: ClientRepository,
        add_client: AddClient,
        threads: "_Threads",
        action: Action,
        rule: EntryRule,
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme], at=_at(1)) as holding:
            change = threads.start(lambda: repository.record(_change(acme, action), rule))
            change.join(_HOLD)  # Where the database locks as a whole, it waits for the end of the block.
        assert change.result() is True
        assert [record.action for record in holding.records] == [_SOFT]
        assert _states(repository, acme) == [(_SOFT, "settled"), (action, "pending")]
        later = _settle(repository, acme, at=_at(2))
        assert [record.action for record in later.records] == [action]
        assert {client_id: client.active for client_id, client in later.clients.items()} == (
            {acme: True} if action is _RESTORE else {}
        )

    def test_every_record_is_settled_by_one_of_many_settlers(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, *[_SOFT, _RESTORE] * 3)
        orders = [self.ids, self.ids[::-1], self.ids[1:], self.ids[:2][::-1]] * 2
        start = Barrier(len(orders))

        def settle(ids: Sequence[str]) -> Sequence[int]:
            start.wait(_PATIENCE)
            with repository.settle(ids, at=_at(1)) as holding:
                return [record.id for record in holding.records]

        settlers = [threads.start(partial(settle, ids)) for ids in orders]
        settled = [number for settler in settlers for number in settler.result()]
        every = [record.id for client_id in self.ids for record in repository.history(client_id)]
        assert sorted(settled) == sorted(every)
        assert repository.backlog().pending == 0

    # Step 3, verify

    def test_verify_stamps_the_records_settled_up_to_the_time(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        microsecond = timedelta(microseconds=1)
        for at, action in ((_at(1), _SOFT), (_at(2), _RESTORE), (_at(2) + microsecond, _SOFT)):
            for client_id in (acme, acme2):
                _record(repository, client_id, action)
                _settle(repository, client_id, at=at)
        with repository.verify([acme], at=_at(9), settled_before=_at(2)) as holding:
            assert [record.settled_at for record in holding.records] == [_at(1), _at(2)]
        assert [record.verified_at for record in repository.history(acme)] == [_at(9), _at(9), None]
        assert [record.verified_at for record in repository.history(acme2)] == [None, None, None]
        settled = [record.settled_at for record in repository.history(acme)]
        assert settled == [_at(1), _at(2), _at(2) + microsecond]

    def test_verify_leaves_pending_records_alone(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.verify([acme], at=_at(9), settled_before=_at(8)) as holding:
            assert holding.records == ()
        assert _states(repository, acme) == [(_SOFT, "pending")]
        _settle(repository, acme, at=_at(1))
        _record(repository, acme, _RESTORE)
        with repository.verify([acme], at=_at(9), settled_before=_at(8)) as holding:
            assert [record.action for record in holding.records] == [_SOFT]
        assert _states(repository, acme) == [(_SOFT, "verified"), (_RESTORE, "pending")]

    def test_verify_stamps_only_once(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme, at=_at(1))
        assert len(_verify(repository, acme, at=_at(3), settled_before=_at(2)).records) == 1
        assert _verify(repository, acme, at=_at(5), settled_before=_at(4)).records == ()
        assert repository.history(acme)[0].verified_at == _at(3)

    def test_verify_yields_the_clients_as_they_are_now(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id, name=f"named {client_id}")
            _record(repository, client_id, _SOFT)
            _settle(repository, client_id, at=_at(1))
        _record(repository, acme2, _RESTORE)
        _record(repository, zeta, _HARD)
        with repository.verify(self.ids, at=_at(3), settled_before=_at(2)) as holding:
            assert sorted(record.client_id for record in holding.records) == sorted(self.ids)
            active = {client_id: client.active for client_id, client in holding.clients.items()}
            assert active == {acme: False, acme2: True}
            assert holding.clients[acme].row.name == f"named {acme}"

    @pytest.mark.parametrize("error", [KeyValueStoreError, SystemExit])
    def test_an_exception_in_verifys_block_leaves_all_unverified_and_comes_out_unchanged(
        self, repository: ClientRepository, add_client: AddClient, error: type[BaseException]
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT, _RESTORE)
        _settle(repository, acme, at=_at(1))
        failure = error("planned")
        with (
            pytest.raises(error) as caught,
            repository.verify([acme], at=_at(3), settled_before=_at(2)),
        ):
            raise failure
        assert caught.value is failure
        assert _states(repository, acme) == [(_SOFT, "settled"), (_RESTORE, "settled")]
        assert len(_verify(repository, acme, at=_at(4), settled_before=_at(2)).records) == 2

    def test_a_second_verifier_waits_for_the_first_and_then_finds_nothing(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme, at=_at(1))
        with repository.verify([acme], at=_at(3), settled_before=_at(2)):
            second = threads.start(lambda: _verify(repository, acme, at=_at(4), settled_before=_at(2)))
            second.join(_HOLD)
            assert second.is_alive(), "The second verifier was done while the first held the records."
        assert second.result().records == ()
        assert repository.history(acme)[0].verified_at == _at(3)

    @pytest.mark.parametrize("action", [_SOFT, _HARD])
    @_rules
    def test_no_newer_change_is_settled_while_verifys_block_is_open(
        self,
        repository: ClientRepository,
        add_client: AddClient,
        threads: "_Threads",
        action: Action,
        rule: EntryRule,
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT, _RESTORE)
        _settle(repository, acme, at=_at(1))
        with repository.verify([acme], at=_at(3), settled_before=_at(2)) as holding:
            assert holding.clients[acme].active
            newer = threads.settle(
                repository, acme, at=_at(4), first=lambda: repository.record(_change(acme, action), rule)
            )
            assert not newer.entered.wait(_HOLD), "A newer change was being settled in verify's block."
        assert [record.action for record in newer.result().records] == [action]
        assert [client.active for client in newer.result().clients.values()] == (
            [False] if action is _SOFT else []
        )
        assert _states(repository, acme) == [
            (_SOFT, "verified"),
            (_RESTORE, "verified"),
            (action, "settled"),
        ]

    # Many at once

    @pytest.mark.parametrize("action", [_SOFT, _HARD])
    @_rules
    def test_of_many_equal_changes_at_once_one_is_recorded(
        self,
        repository: ClientRepository,
        add_client: AddClient,
        threads: "_Threads",
        action: Action,
        rule: EntryRule,
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        start = Barrier(_THREADS)

        def record() -> bool:
            start.wait(_PATIENCE)
            return repository.record(_change(acme, action), rule)

        recorders = [threads.start(record) for _ in range(_THREADS)]
        assert sorted(recorder.result() for recorder in recorders) == [False] * (_THREADS - 1) + [True]
        assert _states(repository, acme) == [(action, "pending")]
        assert _active(repository) == ({} if action is _HARD else {acme: False})

    @_rules
    def test_changes_against_each_other_leave_one_record_for_each_that_was_made(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads", rule: EntryRule
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        actions = [_SOFT, _RESTORE, _SOFT, _HARD, _SOFT, _RESTORE, _HARD, _SOFT]
        start = Barrier(len(actions))

        def record(action: Action) -> bool:
            start.wait(_PATIENCE)
            return repository.record(_change(acme, action), rule)

        recorders = [threads.start(partial(record, action)) for action in actions]
        made = [action for action, recorder in zip(actions, recorders, strict=True) if recorder.result()]
        recorded = [record.action for record in repository.history(acme)]
        assert sorted(recorded) == sorted(made)
        # One after the other, each from the state that the one before left; the removal is the last.
        alternating = [_SOFT, _RESTORE] * len(actions)
        assert recorded == [*alternating[: len(recorded) - 1], _HARD]
        assert _active(repository) == {}

    # The ledger

    def test_the_history_tells_what_was_recorded(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id, name="Zoë")
        repository.record(_change(acme, _SOFT, actor="Zoë 🦊", at=_at(1)), _TEMPLATES)
        repository.record(_change(acme2, _SOFT), _TEMPLATES)
        repository.record(_change(acme, _HARD, actor="a" * 64, at=_at(2)), _TEMPLATES)
        _settle(repository, acme, at=_at(3))
        _verify(repository, acme, at=_at(5), settled_before=_at(4))
        soft, hard = repository.history(acme)
        assert (soft.id, hard.id) == tuple(sorted({soft.id, hard.id}))
        keys = (f"client:{acme}", "name:Zoë")
        assert list(repository.history(acme)) == [
            DeletionRecord(soft.id, acme, _SOFT, "Zoë 🦊", keys, _at(1), _at(3), _at(5)),
            DeletionRecord(hard.id, acme, _HARD, "a" * 64, keys, _at(2), _at(3), _at(5)),
        ]
        assert isinstance(soft.action, Action)
        assert isinstance(soft.kv_keys, tuple)

    def test_times_come_back_aware_in_utc(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme, at=_at(1))
        held = _verify(repository, acme, at=_at(3), settled_before=_at(2)).records
        _record(repository, acme, _RESTORE)
        (pending,) = repository.unfinished(settled_before=None, after=None)
        times = [(r.requested_at, r.settled_at, r.verified_at) for r in (*held, *repository.history(acme))]
        found = [time for record in times for time in record if time is not None]
        found += [pending.requested_at, *filter(None, [repository.backlog().oldest])]
        assert len(found) == 3 + 3 + 1 + 1 + 1
        assert {time.utcoffset() for time in found} == {timedelta(0)}

    def test_the_history_outlives_the_client(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT, _HARD)
        _settle(repository, acme, at=_at(1))
        assert _active(repository) == {}
        assert _states(repository, acme) == [(_SOFT, "settled"), (_HARD, "settled")]

    def test_a_client_that_never_was_has_no_history(self, repository: ClientRepository) -> None:
        assert list(repository.history(self.ids[0])) == []

    def test_the_backlog_counts_the_pending_records_and_names_the_oldest(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        assert repository.backlog() == Backlog(0, None)
        for client_id in (acme, acme2):
            add_client(client_id)
        # The clocks of two servers: the later record is the older one.
        for client_id, action, at in ((acme, _SOFT, _at(5)), (acme2, _SOFT, _at(3)), (acme, _HARD, _at(4))):
            assert repository.record(_change(client_id, action, at=at), _TEMPLATES)
        assert repository.backlog() == Backlog(3, _at(3))
        _settle(repository, acme2, at=_at(6))
        assert repository.backlog() == Backlog(2, _at(4))
        _settle(repository, acme, at=_at(6))
        assert repository.backlog() == Backlog(0, None)

    def test_nothing_is_unfinished_at_first(self, repository: ClientRepository) -> None:
        assert list(repository.unfinished(settled_before=None, after=None)) == []
        assert list(repository.unfinished(settled_before=_at(0), after=None)) == []

    def test_pages_hold_all_pending_records_once_in_order(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        recorded = self._record_many(repository, add_client)
        assert _numbers(_walk(repository, None)) == recorded
        assert _numbers(_walk(repository, _at(999))) == []

    def test_pages_hold_all_unverified_records_once_in_order(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, zeta = self.ids
        recorded = self._record_many(repository, add_client)
        for client_id, seconds in ((acme, 1_001), (zeta, 1_003)):
            _settle(repository, client_id, at=_at(seconds))
        assert _numbers(_walk(repository, _at(1_000))) == []
        assert len(_walk(repository, _at(1_001))) + len(_walk(repository, None)) < len(recorded)
        assert {record.client_id for record in _walk(repository, _at(1_002))} == {acme}
        assert {record.client_id for record in _walk(repository, None)} == {acme2}
        _settle(repository, acme2, at=_at(1_002))
        walked = _walk(repository, _at(1_003))
        assert sorted(_numbers(walked)) == recorded
        settled = [record.settled_at for record in walked if record.settled_at is not None]
        assert settled == sorted(settled)
        assert _walk(repository, None) == []
        _verify(repository, *self.ids, at=_at(1_010), settled_before=_at(1_002))
        assert {record.client_id for record in _walk(repository, _at(1_003))} == {zeta}
        _verify(repository, zeta, at=_at(1_010), settled_before=_at(1_003))
        assert _walk(repository, _at(2_000)) == []

    def test_records_settled_at_the_same_time_are_on_pages_once(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        recorded = self._record_many(repository, add_client)
        _settle(repository, *self.ids, at=_at(1_001))
        assert sorted(_numbers(_walk(repository, _at(1_001)))) == recorded

    def test_no_record_is_missed_where_each_page_is_finished_before_the_next(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        self._record_many(repository, add_client)
        for settled_before in (None, _at(1_001)):
            after = None
            while page := repository.unfinished(settled_before=settled_before, after=after):
                clients = {record.client_id for record in page}
                if settled_before is None:
                    _settle(repository, *clients, at=_at(1_001))
                else:
                    _verify(repository, *clients, at=_at(1_010), settled_before=settled_before)
                after = page[-1]
        states = {state for client_id in self.ids for _, state in _states(repository, client_id)}
        assert states == {"verified"}

    # The directory

    def test_all_clients_are_listed_in_the_order_of_their_ids(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        first, second, third = self.ids
        assert list(repository.clients()) == []
        for client_id in (second, third, first):
            add_client(client_id, status=client_id != second, name=f"named {client_id}")
        clients = list(repository.clients())
        assert [(client.id, client.active) for client in clients] == [
            (first, True),
            (second, False),
            (third, True),
        ]
        assert [client.row.name for client in clients] == [f"named {client_id}" for client_id in self.ids]

    def test_a_client_that_was_read_stays_as_it_was(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, name="Zoë")
        (client,) = repository.clients()
        _record(repository, acme, _SOFT, _HARD)
        assert (client.id, client.active, client.row.name) == (acme, True, "Zoë")

    def test_a_preview_shows_the_client_and_changes_nothing(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, name="Zoë")
        add_client(acme2, status=False)
        preview = repository.preview(acme, _TEMPLATES)
        assert preview is not None
        assert (preview.client.id, preview.client.active) == (acme, True)
        assert preview.columns["name"] == "Zoë"
        assert list(preview.dependents) == []
        inactive = repository.preview(acme2, _TEMPLATES)
        assert inactive is not None
        assert (inactive.client.id, inactive.client.active) == (acme2, False)
        assert _active(repository) == {acme: True, acme2: False}
        assert list(repository.history(acme)) == []
        assert repository.backlog() == Backlog(0, None)

    @pytest.mark.parametrize("name", [" Zoë\\\"'{id} ", None])
    @_rules
    def test_a_preview_names_the_keys_that_a_hard_delete_then_records(
        self, repository: ClientRepository, add_client: AddClient, name: str | None, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, name=name)
        add_client(acme2, name="another")
        preview = repository.preview(acme, rule)
        assert preview is not None
        assert isinstance(preview.kv_keys, tuple)
        assert repository.record(_change(acme, _HARD), rule)
        assert preview.kv_keys == repository.history(acme)[0].kv_keys

    def test_there_is_no_preview_of_an_absent_client(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        assert repository.preview(acme, _TEMPLATES) is None
        add_client(acme)
        assert repository.preview(acme2, _TEMPLATES) is None
        _record(repository, acme, _HARD)
        assert repository.preview(acme, _TEMPLATES) is None

    def test_the_columns_of_a_client_are_accepted(self, repository: ClientRepository) -> None:
        repository.check_columns(["name"])
        repository.check_columns([])

    def _record_many(self, repository: ClientRepository, add_client: AddClient) -> list[int]:
        """Record more than a page of changes for each client in turn; return when each was requested."""
        for client_id in self.ids:
            add_client(client_id)
        for number in range(_MORE_THAN_A_PAGE):
            turn, who = divmod(number, 3)
            action = _SOFT if turn % 2 == 0 else _RESTORE
            assert repository.record(_change(self.ids[who], action, at=_at(number)), _TEMPLATES)
        return list(range(_MORE_THAN_A_PAGE))


class _PlannedError(Exception):
    """What a test raises, and what no backend knows."""


class _Thread(Thread, Generic[_T]):
    """A call beside the test; a daemon, so that a backend that never answers cannot hold the run."""

    def __init__(self, call: Callable[[], _T], context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(daemon=True)
        self.entered = Event()
        self._call = call
        self._context = context
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._context():
                self._results.append(self._call())
        except BaseException as error:  # it belongs to the thread that asks for the result
            self._error = error

    def result(self) -> _T:
        self.join(_PATIENCE)
        assert not self.is_alive(), f"The repository did not answer within {_PATIENCE} seconds."
        if self._error is not None:
            raise self._error
        return self._results[0]


class _Threads:
    """The threads of one test."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._context = context
        self._started: list[_Thread[Any]] = []

    def start(self, call: Callable[[], _T]) -> _Thread[_T]:
        """Start a call."""
        thread = _Thread(call, self._context)
        self._started.append(thread)
        thread.start()
        return thread

    def settle(
        self,
        repository: ClientRepository,
        *client_ids: str,
        at: datetime,
        first: Callable[[], object] = lambda: None,
    ) -> _Thread[Holding]:
        """Start a settler, whose `entered` is set inside its block."""

        def settle() -> Holding:
            first()
            with repository.settle(client_ids, at=at) as holding:
                thread.entered.set()
                return holding

        thread = _Thread(settle, self._context)
        self._started.append(thread)
        thread.start()
        return thread

    def join(self) -> None:
        """Wait for the threads of a test that failed before it did."""
        for thread in self._started:
            thread.join(_PATIENCE)


def _at(seconds: float) -> datetime:
    """Return a time with microseconds that are lost where they are rounded."""
    return datetime(2031, 12, 31, 22, 58, 59, 123_457, tzinfo=UTC) + timedelta(seconds=seconds)


def _change(
    client_id: str,
    action: Action,
    *,
    actor: str = "ops",
    at: datetime | None = None,
    only_if_inactive: bool = False,
) -> Change:
    return Change(client_id, action, actor, at or _at(0), only_if_inactive)


def _record(repository: ClientRepository, client_id: str, *actions: Action) -> None:
    for action in actions:
        assert repository.record(_change(client_id, action), _TEMPLATES), action


def _settle(repository: ClientRepository, *client_ids: str, at: datetime) -> Holding:
    with repository.settle(client_ids, at=at) as holding:
        return holding


def _verify(
    repository: ClientRepository, *client_ids: str, at: datetime, settled_before: datetime
) -> Holding:
    with repository.verify(client_ids, at=at, settled_before=settled_before) as holding:
        return holding


def _active(repository: ClientRepository) -> dict[str, bool]:
    return {client.id: client.active for client in repository.clients()}


def _states(repository: ClientRepository, client_id: str) -> list[tuple[Action, str]]:
    return [(record.action, _state(record)) for record in repository.history(client_id)]


def _state(record: DeletionRecord) -> str:
    if record.settled_at is None:
        return "pending" if record.verified_at is None else "verified, though never settled"
    return "settled" if record.verified_at is None else "verified"


def _walk(repository: ClientRepository, settled_before: datetime | None) -> list[DeletionRecord]:
    """Read all pages; stop at the first record that comes twice."""
    walked: list[DeletionRecord] = []
    while page := repository.unfinished(settled_before=settled_before, after=walked[-1] if walked else None):
        assert {record.id for record in page}.isdisjoint(record.id for record in walked)
        walked += page
    return walked


def _numbers(records: Iterable[DeletionRecord]) -> list[int]:
    """Tell a record by when it was requested."""
    return [round((record.requested_at - _at(0)).total_seconds()) for record in records]
