"""Step 2 of a deletion."""
# ruff: noqa: D102 - the name of a test is its docstring

from collections.abc import Collection, Sequence
from functools import partial
from threading import Barrier
from typing import Never

import pytest

from ..entries import EntryRule
from ..errors import KeyValueStoreError
from ..model import Action, Holding, Recorded
from ..ports import ClientRepository
from .fixtures import (
    _AT_ONCE,
    _HARD,
    _HOLD,
    _PATIENCE,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    AddClient,
    RepositoryFixtures,
    _backlog,
    _change,
    _PlannedError,
    _record,
    _rules,
    _settle,
    _states,
    _Thread,
    _Threads,
)


class SettlingContract(RepositoryFixtures):
    """What `settle` must do."""

    def test_settle_stamps_all_pending_records_of_the_client(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
            _record(repository, client_id, _SOFT, _RESTORE, _HARD)
        with repository.settle([acme]) as holding:
            assert [record.action for record in holding.records] == [_SOFT, _RESTORE, _HARD]
        assert None not in {record.settled_at for record in repository.history(acme)}
        assert [record.settled_at for record in repository.history(acme2)] == [None] * 3
        assert {record.verified_at for record in repository.history(acme)} == {None}

    def test_settle_stamps_only_once(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        (settled,) = _settle(repository, acme).records
        _record(repository, acme, _RESTORE)
        with repository.settle([acme]) as holding:
            assert [record.action for record in holding.records] == [_RESTORE]
        assert _settle(repository, acme).records == ()
        assert list(repository.history(acme)) == [settled, *holding.records]

    @_rules
    def test_a_record_that_is_alone_is_settled_without_being_held(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)  # what was settled before is in nobody's way
        _record(repository, acme2, _SOFT)  # nor is another client's
        recorded = repository.record(_change(acme, _HARD), rule)
        assert recorded is not None
        assert recorded.alone
        settled = repository.settle_alone(recorded.record)
        assert settled == repository.history(acme)[-1]
        assert _states(repository, acme) == [(_SOFT, "settled"), (_HARD, "settled")]
        assert _states(repository, acme2) == [(_SOFT, "pending")]
        assert repository.settle_alone(recorded.record) is None  # it is no more pending
        assert settled == repository.history(acme)[-1]

    @_rules
    def test_a_record_is_not_alone_while_another_is_pending(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        recorded = repository.record(_change(acme, _HARD), rule)
        assert recorded is not None
        assert not recorded.alone
        assert repository.settle_alone(recorded.record) is None
        assert _states(repository, acme) == [(_SOFT, "pending"), (_HARD, "pending")]

    @_rules
    def test_a_record_is_not_alone_while_another_is_just_being_settled(
        self, repository: ClientRepository, add_client: AddClient, threads: _Threads, rule: EntryRule
    ) -> None:
        """Its stamp may be older than the removal, and what its settler writes younger."""
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme]):
            removal = threads.start(lambda: repository.record(_change(acme, _HARD), rule))
            removal.join(_HOLD)
            waits = removal.is_alive()  # as where a database locks as a whole
        recorded = removal.result()
        assert recorded is not None
        assert recorded.alone is waits

    def test_settle_takes_several_clients_at_once(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        with repository.settle([zeta, acme]) as holding:
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
            with repository.settle(client_ids) as holding:
                assert len(holding.records) == 2
            with repository.verify(client_ids, settled_for=_AT_ONCE) as holding:
                assert len(holding.records) == 2

    def test_the_held_records_are_those_of_the_history(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT, _RESTORE)
        settled = _settle(repository, acme)
        assert list(settled.records) == list(repository.history(acme))
        with repository.verify([acme], settled_for=_AT_ONCE) as verified:
            pass
        assert list(verified.records) == list(repository.history(acme))

    def test_settle_yields_the_client_as_it_is_now(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, name="Zoë")
        _record(repository, acme, _SOFT)
        for active in (False, True):
            with repository.settle([acme]) as holding:
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
        with repository.settle([acme, acme2]) as holding:
            assert len(holding.records) == 3
            assert set(holding.clients) == {acme2}

    def test_a_client_made_again_is_in_the_holding(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, name="the first")
        _record(repository, acme, _HARD)
        add_client(acme, name="the second")
        holding = _settle(repository, acme)
        assert len(holding.records) == 1
        assert holding.clients[acme].row.name == "the second"

    def test_settle_without_anything_pending_holds_no_records(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        assert _settle(repository, acme).records == ()
        assert _settle(repository, acme2) == Holding((), {})
        with repository.settle([]) as holding:
            assert holding == Holding((), {})

    def test_settle_yields_the_clients_also_when_nothing_is_pending(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        # By this the service tells a client that is already soft-deleted from one that never was.
        acme, acme2, _ = self.ids
        add_client(acme, status=False)
        with repository.settle([acme, acme2]) as holding:
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
        with pytest.raises(error) as caught, repository.settle([acme, acme2]):
            raise failure
        assert caught.value is failure
        for client_id in (acme, acme2):
            assert _states(repository, client_id) == [(_SOFT, "pending"), (_RESTORE, "pending")]
        assert len(_settle(repository, acme).records) == 2

    def test_a_second_settler_waits_for_the_first_and_then_finds_nothing(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme]) as first:
            second = threads.settle(repository, acme)
            assert not second.entered.wait(_HOLD), "Two settlers held the records at once."
        assert len(first.records) == 1
        assert second.result().records == ()
        assert list(repository.history(acme)) == list(first.records)

    def test_a_settler_that_waited_for_one_that_failed_finds_its_records(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)

        def fail() -> Never:
            with repository.settle([acme]):
                waiting.append(threads.settle(repository, acme))
                assert not waiting[0].entered.wait(_HOLD), "Two settlers held the records at once."
                raise _PlannedError

        waiting: list[_Thread[Holding]] = []
        with pytest.raises(_PlannedError):
            fail()
        (second,) = waiting
        assert len(second.result().records) == 1
        assert _states(repository, acme) == [(_SOFT, "settled")]

    def test_a_settler_of_several_clients_waits_for_the_holder_of_one(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        with repository.settle([acme2]):
            second = threads.settle(repository, zeta, acme2, acme)
            assert not second.entered.wait(_HOLD), "Two settlers held a record at once."
        assert sorted(record.client_id for record in second.result().records) == [acme, zeta]

    def test_a_settler_that_waited_yields_the_client_as_it_is_after_the_wait(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme]):
            second = threads.settle(repository, acme)
            second.entered.wait(_HOLD)
            restore = threads.start(lambda: repository.record(_change(acme, _RESTORE), _TEMPLATES))
            restore.join(_HOLD)
            # A database that locks as a whole lets nobody record now, and there is nothing to see.
            recorded = not restore.is_alive()
        holding = second.result()
        assert restore.result() is not None
        assert holding.clients[acme].active or not recorded

    def test_a_settler_that_does_not_wait_leaves_out_a_client_that_is_held(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
        _record(repository, acme, _SOFT)
        _record(repository, zeta, _SOFT)
        with repository.settle([acme]) as first:
            other = threads.start(lambda: repository.record(_change(acme2, _SOFT), _TEMPLATES))
            other.join(_HOLD)
            second = threads.start(partial(_settle, repository, acme, zeta, wait=False))
            second.join(_HOLD)
            # A database that locks as a whole makes everybody wait.
            assert other.is_alive() or not second.is_alive(), "It waited for a client that was held."
        assert [record.client_id for record in second.result().records] == [zeta]
        assert list(repository.history(acme)) == list(first.records)

    def test_a_settler_that_does_not_wait_takes_no_record_of_a_client_that_is_held(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        """Else a paused holder of the older record would put an old value over the newer one's."""
        acme, *_ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.settle([acme]):
            restore = threads.start(lambda: repository.record(_change(acme, _RESTORE), _TEMPLATES))
            restore.join(_HOLD)
            recorded = not restore.is_alive()
            second = threads.start(partial(_settle, repository, acme, wait=False))
            second.join(_HOLD)
        assert restore.result() is not None
        assert not (recorded and second.result().records)

    def test_no_record_is_settled_earlier_than_it_was_made(
        self, repository: ClientRepository, add_client: AddClient, threads: _Threads
    ) -> None:
        """Also where a settler waits, and finds a record that was made in the meantime."""
        acme, *_ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)

        def record_later() -> Recorded | None:
            return repository.record(_change(acme, _RESTORE), _TEMPLATES)

        def settle() -> None:
            with repository.settle([acme]):
                pass

        with pytest.raises(_PlannedError), repository.settle([acme]):  # noqa: PT012
            settler = threads.start(settle)
            settler.join(_HOLD)
            recorder = threads.start(record_later)
            recorder.join(_HOLD)
            raise _PlannedError  # its record is left to the one who waits
        assert recorder.result()
        settler.result()
        settle()
        _, restored = repository.history(acme)
        assert restored.settled_at is not None
        assert restored.settled_at >= restored.requested_at

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
        with repository.settle([acme]) as holding:
            change = threads.start(lambda: repository.record(_change(acme, action), rule))
            change.join(_HOLD)  # Where the database locks as a whole, it waits for the end of the block.
        assert change.result() is not None
        assert [record.action for record in holding.records] == [_SOFT]
        assert _states(repository, acme) == [(_SOFT, "settled"), (action, "pending")]
        later = _settle(repository, acme)
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
            with repository.settle(ids) as holding:
                return [record.id for record in holding.records]

        settlers = [threads.start(partial(settle, ids)) for ids in orders]
        settled = [number for settler in settlers for number in settler.result()]
        every = [record.id for client_id in self.ids for record in repository.history(client_id)]
        assert sorted(settled) == sorted(every)
        assert _backlog(repository).pending == 0
