"""Both steps of a deletion by one call."""
# ruff: noqa: D102 - the name of a test is its docstring

import pytest

from ..model import Action, Holding, Recorded
from ..ports import Begun, ClientRepository, QuickSteps
from .fixtures import (
    _HARD,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    AddClient,
    RepositoryFixtures,
    _change,
    _PlannedError,
    _record,
    _settle,
    _states,
)


class QuickStepsContract(RepositoryFixtures):
    """What `record_and_settle` must do; the fixtures are those of the rest."""

    @pytest.mark.parametrize("action", [_SOFT, _RESTORE])
    def test_a_change_is_recorded_and_held(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id, status=action is _SOFT)
        with _quick(repository).record_and_settle(_change(acme, action), _TEMPLATES) as begun:
            recorded, holding = _both(begun)
            assert [record.id for record in holding.records] == [recorded.record.id]
            assert holding.clients[acme].active is (action is _RESTORE)
            assert _states(repository, acme) == [(action, "pending")]
        assert list(repository.history(acme)) == list(holding.records)
        assert _states(repository, acme) == [(action, "settled")]
        assert _states(repository, acme2) == []

    def test_what_is_raised_in_the_block_leaves_it_pending(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        quick = _quick(repository).record_and_settle(_change(acme, _SOFT), _TEMPLATES)
        with pytest.raises(_PlannedError), quick:
            raise _PlannedError
        assert [client.active for client in repository.clients()] == [False]
        assert _states(repository, acme) == [(_SOFT, "pending")]

    def test_a_lone_removal_is_not_held(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        with _quick(repository).record_and_settle(_change(acme, _HARD), _TEMPLATES) as begun:
            assert begun is not None
            recorded, holding, settle_alone = begun
            assert holding is None
            assert recorded is not None
            assert recorded.alone
            assert list(repository.clients()) == []
            assert _states(repository, acme) == [(_SOFT, "settled"), (_HARD, "pending")]
            settled = settle_alone(recorded.record)
        assert _states(repository, acme) == [(_SOFT, "settled"), (_HARD, "settled")]
        assert settled == repository.history(acme)[-1]

    def test_a_removal_beside_which_something_came_up_is_not_settled_alone(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        with _quick(repository).record_and_settle(_change(acme, _HARD), _TEMPLATES) as begun:
            assert begun is not None
            assert begun.recorded is not None
            add_client(acme)  # anew
            _record(repository, acme, _SOFT)
            assert begun.settle_alone(begun.recorded.record) is None
        assert _states(repository, acme) == [(_HARD, "pending"), (_SOFT, "pending")]

    def test_a_removal_beside_what_is_pending_is_held_with_it(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        with _quick(repository).record_and_settle(_change(acme, _HARD), _TEMPLATES) as begun:
            _, holding = _both(begun)
            assert [record.action for record in holding.records] == [_SOFT, _HARD]
            assert holding.clients == {}
        assert _states(repository, acme) == [(_SOFT, "settled"), (_HARD, "settled")]

    @pytest.mark.parametrize("pending", [False, True])
    @pytest.mark.parametrize("action", [_SOFT, _HARD])
    def test_where_nothing_is_to_be_changed_what_is_pending_is_held(
        self, repository: ClientRepository, add_client: AddClient, action: Action, pending: bool
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, action)
        if not pending:
            _settle(repository, acme)
        with _quick(repository).record_and_settle(_change(acme, action), _TEMPLATES) as begun:
            assert begun is not None
            recorded, holding, _ = begun
            assert recorded is None
            assert holding is not None
            assert [record.action for record in holding.records] == [action] * pending
            assert [client.active for client in holding.clients.values()] == [False] * (action is _SOFT)
        assert _states(repository, acme) == [(action, "settled")]


def _quick(repository: ClientRepository) -> QuickSteps:
    assert isinstance(repository, QuickSteps)
    return repository


def _both(begun: Begun | None) -> tuple[Recorded, Holding]:
    assert begun is not None
    recorded, holding, _ = begun
    assert recorded is not None
    assert holding is not None
    return recorded, holding
