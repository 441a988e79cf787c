"""Step 3 of a deletion, and holding clients without records."""
# ruff: noqa: D102 - the name of a test is its docstring

from functools import partial

import pytest

from ..entries import EntryRule
from ..errors import KeyValueStoreError
from ..model import Action
from ..ports import ClientRepository
from .fixtures import (
    _AT_ONCE,
    _HARD,
    _HOLD,
    _LONG,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    AddClient,
    LetTimePass,
    RepositoryFixtures,
    _change,
    _record,
    _rules,
    _settle,
    _states,
    _Threads,
    _verify,
)


class VerifyingContract(RepositoryFixtures):
    """What `verify` must do."""

    def test_verify_stamps_the_records_that_have_been_settled_for_so_long(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        for action, seconds in ((_SOFT, 2), (_RESTORE, 2 * _LONG.total_seconds()), (_SOFT, 2)):
            for client_id in (acme, acme2):
                _record(repository, client_id, action)
                _settle(repository, client_id)
            let_time_pass(seconds)
        settled = [record.settled_at for record in repository.history(acme)]
        with repository.verify([acme], settled_for=_LONG) as holding:
            assert [record.settled_at for record in holding.records] == settled[:2]
        verified = [record.verified_at for record in repository.history(acme)]
        assert [at is None for at in verified] == [False, False, True]
        assert [record.verified_at for record in repository.history(acme2)] == [None, None, None]
        assert [record.settled_at for record in repository.history(acme)] == settled

    def test_verify_leaves_pending_records_alone(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with repository.verify([acme], settled_for=_AT_ONCE) as holding:
            assert holding.records == ()
        assert _states(repository, acme) == [(_SOFT, "pending")]
        _settle(repository, acme)
        _record(repository, acme, _RESTORE)
        with repository.verify([acme], settled_for=_AT_ONCE) as holding:
            assert [record.action for record in holding.records] == [_SOFT]
        assert _states(repository, acme) == [(_SOFT, "verified"), (_RESTORE, "pending")]

    def test_verify_stamps_only_once(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        verified = _verify(repository, acme).records
        assert len(verified) == 1
        assert _verify(repository, acme).records == ()
        assert list(repository.history(acme)) == list(verified)

    def test_verify_yields_the_clients_as_they_are_now(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id, name=f"named {client_id}")
            _record(repository, client_id, _SOFT)
            _settle(repository, client_id)
        _record(repository, acme2, _RESTORE)
        _record(repository, zeta, _HARD)
        with repository.verify(self.ids, settled_for=_AT_ONCE) as holding:
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
        _settle(repository, acme)
        failure = error("planned")
        with (
            pytest.raises(error) as caught,
            repository.verify([acme], settled_for=_AT_ONCE),
        ):
            raise failure
        assert caught.value is failure
        assert _states(repository, acme) == [(_SOFT, "settled"), (_RESTORE, "settled")]
        assert len(_verify(repository, acme).records) == 2

    def test_a_second_verifier_waits_for_the_first_and_then_finds_nothing(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        with repository.verify([acme], settled_for=_AT_ONCE) as first:
            second = threads.start(lambda: _verify(repository, acme))
            second.join(_HOLD)
            assert second.is_alive(), "The second verifier was done while the first held the records."
        assert second.result().records == ()
        assert list(repository.history(acme)) == list(first.records)

    def test_a_verifier_that_does_not_wait_leaves_out_a_client_that_is_held(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
        for client_id in (acme, zeta):
            _record(repository, client_id, _SOFT)
            _settle(repository, client_id)
        with repository.verify([acme], settled_for=_AT_ONCE) as first:
            other = threads.start(lambda: repository.record(_change(acme2, _SOFT), _TEMPLATES))
            other.join(_HOLD)
            verify = partial(_verify, wait=False)
            second = threads.start(lambda: verify(repository, acme, zeta))
            second.join(_HOLD)
            # A database that locks as a whole makes everybody wait.
            assert other.is_alive() or not second.is_alive(), "It waited for a client that was held."
        assert [record.client_id for record in second.result().records] == [zeta]
        assert list(repository.history(acme)) == list(first.records)

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
        _settle(repository, acme)
        with repository.verify([acme], settled_for=_AT_ONCE) as holding:
            assert holding.clients[acme].active
            newer = threads.settle(
                repository, acme, first=lambda: repository.record(_change(acme, action), rule)
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

    def test_holding_yields_the_clients_as_they_are_now_and_stamps_nothing(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in (acme, acme2):
            add_client(client_id, name=f"named {client_id}")
        _record(repository, acme, _SOFT)
        with repository.hold([acme, zeta]) as holding:
            assert holding.records == ()
            assert [(id, client.active) for id, client in holding.clients.items()] == [(acme, False)]
            assert holding.clients[acme].row.name == f"named {acme}"
        assert _states(repository, acme) == [(_SOFT, "pending")]

    @pytest.mark.parametrize("action", [_RESTORE, _HARD])
    @_rules
    def test_no_newer_change_is_settled_while_the_client_is_held(
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
        _settle(repository, acme)
        with repository.hold([acme]) as holding:
            assert not holding.clients[acme].active
            newer = threads.settle(
                repository, acme, first=lambda: repository.record(_change(acme, action), rule)
            )
            assert not newer.entered.wait(_HOLD), "A newer change was being settled in hold's block."
        assert [record.action for record in newer.result().records] == [action]
        assert _states(repository, acme) == [(_SOFT, "settled"), (action, "settled")]

    def test_an_exception_in_holds_block_comes_out_unchanged_and_lets_go(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        failure = KeyValueStoreError("planned")
        with pytest.raises(KeyValueStoreError) as caught, repository.hold([acme]):
            raise failure
        assert caught.value is failure
        _record(repository, acme, _SOFT)

    def test_a_failure_is_counted_and_told_for_what_is_not_verified(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        _settle(repository, acme)
        _verify(repository, acme)
        _record(repository, acme, _RESTORE)
        repository.note_failure([acme, zeta], "first")
        repository.note_failure([zeta], "x" * 300)
        told = {id: [(r.attempts, r.last_error) for r in repository.history(id)] for id in self.ids}
        assert told == {acme: [(0, None), (1, "first")], acme2: [(0, None)], zeta: [(2, "x" * 255)]}
        assert [record.client_id for record in repository.pending(after=None)] == [acme2, zeta, acme]
