"""Step 1 for many clients at once."""
# ruff: noqa: D102 - the name of a test is its docstring

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ..errors import BusyError
from ..model import Action, Batch, Change, Inactive
from ..ports import BulkSteps, ClientRepository
from .fixtures import (
    _HARD,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    AddClient,
    KeepRows,
    LetTimePass,
    RepositoryFixtures,
    _change,
    _record,
    _settle,
    _states,
)

_LONG_AGO = datetime(2024, 2, 29, 23, 59, 59, 123000, tzinfo=UTC)


class BulkStepsContract(RepositoryFixtures):
    """What `record_each` and `inactive` must do; the fixtures are those of the rest."""

    @pytest.mark.parametrize("action", [_SOFT, _HARD, _RESTORE])
    def test_all_are_changed_and_recorded(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        for client_id in self.ids:
            add_client(client_id, name='Zoë\'s "own"', status=action is not _RESTORE)
        changes = [_change(id, action, actor=f"by {id} 🦊", reason=f"for {id}: 'x' %s") for id in self.ids]
        batch = _taken(repository, changes)
        assert (batch.held, batch.alone) == (frozenset(), frozenset())
        assert batch.recorded == {*self.ids}
        for id in self.ids:
            (record,) = repository.history(id)
            assert (record.action, record.actor, record.reason) == (
                action,
                f"by {id} 🦊",
                f"for {id}: 'x' %s",
            )
            assert record.kv_keys == (f"client:{id}", 'name:Zoë\'s "own"')
            assert abs(record.requested_at - repository.now()) < timedelta(minutes=1)
            assert _states(repository, id) == [(action, "pending")]
        there = {client.id: client.active for client in repository.clients()}
        assert there == ({} if action is _HARD else dict.fromkeys(self.ids, action is _RESTORE))
        assert {record.client_id for record in repository.pending(after=None)} == batch.recorded

    @pytest.mark.parametrize("action", [_SOFT, _HARD, _RESTORE])
    def test_the_absent_and_those_that_are_so_already_are_left_out(
        self, repository: ClientRepository, add_client: AddClient, action: Action
    ) -> None:
        acme, acme2, absent = self.ids
        add_client(acme, status=action is not _RESTORE)
        add_client(acme2, status=action is _RESTORE)
        changes = [_change(id, action, only_if_inactive=False) for id in self.ids]
        batch = _taken(repository, [changes[2], changes[1], changes[0]])
        both = {acme, acme2} if action is _HARD else {acme}
        assert batch.recorded == both
        assert _states(repository, absent) == []
        assert _taken(repository, changes) == Batch(frozenset())

    def test_an_active_client_is_left_where_only_the_inactive_are_meant(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme)
        add_client(acme2, status=False)
        changes = [_change(id, _HARD, only_if_inactive=True) for id in (acme, acme2)]
        assert _taken(repository, changes).recorded == {acme2}
        assert [client.id for client in repository.clients()] == [acme]

    def test_where_something_forbids_it_none_is_changed(
        self, repository: ClientRepository, add_client: AddClient, keep_rows: KeepRows
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        assert _SOFT in keep_rows()
        changes = [_change(id, _SOFT) for id in (acme, acme2)]
        batch = _bulk(repository).record_each(changes, _TEMPLATES)
        # Or each is left to be changed alone: what keeps rows may be known.
        assert batch is None or (not batch.recorded and batch.alone == {acme, acme2})
        assert {client.id: client.active for client in repository.clients()} == {acme: True, acme2: True}
        assert _states(repository, acme) == []

    def test_one_that_is_verified_meanwhile_is_left(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
            _record(repository, client_id, _SOFT)
            _settle(repository, client_id)
        let_time_pass(3600)
        changes = [_change(id, _HARD) for id in (acme, acme2)]
        try:
            with repository.verify([acme], settled_for=timedelta(0)):
                batch = _taken(repository, changes)
        except BusyError:
            return  # of a database that locks as a whole
        assert batch.held == {acme}
        assert batch.recorded == {acme2}
        assert _taken(repository, changes).recorded == {acme}

    def test_one_that_is_taken_again_is_recorded_as_it_was(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, absent = self.ids
        add_client(acme)
        add_client(acme2, status=False)
        told: Any = {"reason": "again", "request_id": "it's 7", "requested_at": _LONG_AGO}
        changes = [Change(id, _SOFT, "ops", **told) for id in self.ids]
        batch = _taken(repository, changes)
        assert batch.recorded == {*self.ids}
        for id in self.ids:
            (record,) = repository.history(id)
            assert {name: getattr(record, name) for name in told} == told
        assert {client.id: client.active for client in repository.clients()} == {acme: False, acme2: False}
        assert f"client:{acme}" in repository.history(acme)[0].kv_keys
        add_client(absent)  # made anew
        assert _taken(repository, changes) == Batch(frozenset())
        assert repository.record(changes[2], _TEMPLATES) is None
        assert {client.id for client in repository.clients() if client.active} == {absent}

    def test_it_is_told_who_is_inactive_and_whether_for_long_enough(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, other = self.ids
        add_client(acme)
        add_client(acme2)
        add_client(other, status=False)  # nobody has recorded when
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        let_time_pass(3600)
        _record(repository, acme2, _SOFT)
        assert _inactive(repository, timedelta(hours=2)) == {acme: False, acme2: False, other: None}
        assert _inactive(repository, timedelta(minutes=30)) == {acme: True, acme2: False, other: None}
        _settle(repository, acme2)
        assert _inactive(repository, timedelta(minutes=30))[acme2] is False
        assert _inactive(repository, timedelta(0)) == {acme: True, acme2: True, other: None}
        _record(repository, acme, _RESTORE)
        assert acme not in _inactive(repository, timedelta(0))

    @pytest.mark.parametrize("at_once", [True, False])
    def test_one_that_is_not_inactive_as_it_was_seen_is_left(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass, at_once: bool
    ) -> None:
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        _settle(repository, *self.ids)
        let_time_pass(3600)
        page = _bulk(repository).inactive(for_at_least=timedelta(minutes=30), after=None)
        seen = {each.client_id: Change(each.client_id, _HARD, "ops", seen=each) for each in page}
        anew, restored, still = self.ids
        _record(repository, anew, _RESTORE, _SOFT)
        _record(repository, restored, _RESTORE)
        _settle(repository, anew, restored)
        if at_once:
            assert _taken(repository, [*seen.values()]).recorded == {still}
        else:
            taken = {id for id, change in seen.items() if repository.record(change, _TEMPLATES)}
            assert taken == {still}
        assert {client.id for client in repository.clients()} == {anew, restored}
        assert _states(repository, still) == [(_SOFT, "settled"), (_HARD, "pending")]


def _bulk(repository: ClientRepository) -> BulkSteps:
    assert isinstance(repository, BulkSteps)
    return repository


def _taken(repository: ClientRepository, changes: list[Change]) -> Batch:
    batch = _bulk(repository).record_each(changes, _TEMPLATES)
    assert batch is not None
    return batch


def _inactive(repository: ClientRepository, duration: timedelta) -> dict[str, bool | None]:
    found: list[Inactive] = []
    while page := _bulk(repository).inactive(for_at_least=duration, after=found[-1] if found else None):
        found += page
    ids = [each.client_id for each in found]
    assert len(ids) == len(set(ids))
    return {each.client_id: each.expired for each in found}
