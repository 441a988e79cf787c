"""The ledger as a whole."""
# ruff: noqa: D102 - the name of a test is its docstring

from dataclasses import replace
from datetime import timedelta

from ..model import DeletionRecord
from ..ports import Archive, ClientRepository
from .fixtures import (
    _HARD,
    _RESTORE,
    _SOFT,
    AddClient,
    LetTimePass,
    RepositoryFixtures,
    _record,
    _settle,
    _states,
    _verify,
)


class ArchiveContract(RepositoryFixtures):
    """What `records`, `lacking` and `prune` must do; the fixtures are those of the rest."""

    def test_all_records_come_in_their_order_or_those_since_a_time(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme2, acme):
            add_client(client_id)
            _record(repository, client_id, _SOFT, _RESTORE)
        let_time_pass(3600)
        _record(repository, acme2, _HARD)
        found = _all(repository)
        told = [(record.client_id, record.action) for record in found]
        assert told == [(acme2, _SOFT), (acme2, _RESTORE), (acme, _SOFT), (acme, _RESTORE), (acme2, _HARD)]
        assert found[-1:] == list(_archive(repository).records(since=found[-1].requested_at, after=None))

    def test_what_is_lacking_is_told_by_client_action_and_time(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        (there,) = _all(repository)
        others = [
            replace(there, client_id=acme2),
            replace(there, action=_HARD),
            replace(there, requested_at=there.requested_at + timedelta(seconds=1)),
        ]
        assert list(_archive(repository).lacking([others[0], there, *others[1:]])) == others
        assert list(_archive(repository).lacking([replace(there, id=99, actor="another")])) == []

    def test_old_verified_records_are_pruned_but_not_the_newest_of_a_client_with_a_row(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT, _RESTORE, _SOFT)
        _record(repository, acme2, _HARD)
        for client_id in (acme, acme2):
            _settle(repository, client_id)
        _settle(repository, zeta)
        let_time_pass(3600)
        for client_id in (acme, acme2):
            _verify(repository, client_id)
        assert _pruned(repository, timedelta(hours=1)) == 0
        let_time_pass(7200)
        assert _pruned(repository, timedelta(hours=1)) == 6
        assert _states(repository, acme) == [(_SOFT, "verified")]
        assert _states(repository, acme2) == []
        assert len(_states(repository, zeta)) == 3  # not verified

    def test_none_is_pruned_that_was_verified_at_or_after_a_time(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _HARD)
        _settle(repository, acme)
        let_time_pass(3600)
        _verify(repository, acme)
        let_time_pass(3600)
        at = _all(repository)[0].verified_at
        assert at is not None
        prune = _archive(repository).prune
        assert prune(verified_before=at, kept=timedelta(0), after=None)[0] == 0
        later = at + timedelta(seconds=1)
        assert prune(verified_before=later, kept=timedelta(0), after=None)[0] == 1


def _archive(repository: ClientRepository) -> Archive:
    assert isinstance(repository, Archive)
    return repository


def _all(repository: ClientRepository) -> list[DeletionRecord]:
    found: list[DeletionRecord] = []
    while page := _archive(repository).records(since=None, after=found[-1] if found else None):
        found += page
    return found


def _pruned(repository: ClientRepository, kept: timedelta) -> int:
    deleted, after = _archive(repository).prune(verified_before=None, kept=kept, after=None)
    while after is not None:
        number, after = _archive(repository).prune(verified_before=None, kept=kept, after=after)
        deleted += number
    return deleted
