"""What a repository does so that a key-value store may be repaired, and keeps no secrets for ever."""
# ruff: noqa: D102 - the name of a test is its docstring

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from hashlib import sha256

import pytest

from ..model import DeletionRecord
from ..ports import ClientRepository
from .fixtures import (
    _AT_ONCE,
    _HARD,
    _HOLD,
    _LONG,
    _MORE_THAN_A_PAGE,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    AddClient,
    LetTimePass,
    RepositoryFixtures,
    _change,
    _record,
    _settle,
    _states,
    _Threads,
    _verify,
    _walk,
)

_MINUTE = timedelta(minutes=1)


class RepairingContract(RepositoryFixtures):
    """Part of `ClientRepositoryContract`."""

    def test_what_was_settled_or_verified_since_is_found(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
        _settle(repository, acme, acme2)
        _verify(repository, acme)
        let_time_pass(600)
        _verify(repository, acme2)
        _settle(repository, zeta)
        _record(repository, zeta, _RESTORE)
        now = repository.now()
        done = partial(_walk, repository.done, before=now + _MINUTE)
        assert _clients(done(since=now - _MINUTE)) == {acme2, zeta}
        assert _clients(done(since=now - 20 * _MINUTE)) == {acme, acme2, zeta}
        assert _clients(done(since=None)) == {acme, acme2, zeta}
        assert done(since=now + _MINUTE) == []
        assert _clients(_walk(repository.done, since=None, before=now - _MINUTE)) == {acme}
        (found,) = (record for record in done(since=None) if record.client_id == zeta)
        assert found == repository.history(zeta)[0]

    def test_the_time_itself_is_not_left_out(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
            _record(repository, client_id, _SOFT)
            _settle(repository, client_id)
        _verify(repository, acme)
        verified, settled = repository.history(acme)[0].verified_at, repository.history(acme2)[0].settled_at
        assert verified is not None
        assert settled is not None
        done, later = partial(_walk, repository.done), repository.now() + _MINUTE
        assert acme in _clients(done(since=verified, before=later))
        assert acme2 in _clients(done(since=settled, before=later))
        assert acme not in _clients(done(since=None, before=verified))  # but the other
        assert acme2 not in _clients(done(since=None, before=settled))

    @pytest.mark.parametrize("verified", [0, 60, _MORE_THAN_A_PAGE])
    def test_pages_hold_all_that_was_done_once(
        self, repository: ClientRepository, add_client: AddClient, verified: int
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        for number in range(_MORE_THAN_A_PAGE):
            _record(repository, acme, _RESTORE if number % 2 else _SOFT)
            if number == verified - 1:
                _settle(repository, acme)
                _verify(repository, acme)
        _settle(repository, acme)
        now = repository.now()
        found = _walk(repository.done, since=now - _LONG, before=now + _MINUTE)
        assert sorted(record.id for record in found) == [r.id for r in repository.history(acme)]

    def test_a_client_that_is_held_is_left_where_nobody_waits(
        self, repository: ClientRepository, add_client: AddClient, threads: "_Threads"
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in (acme, acme2):
            add_client(client_id)
        with repository.hold([acme], wait=False) as first:
            assert (set(first.clients), set(first.left)) == ({acme}, set())
            other = threads.start(lambda: repository.record(_change(acme2, _SOFT), _TEMPLATES))
            other.join(_HOLD)
        other.result()
        with repository.hold(self.ids, wait=False) as holding:
            assert (set(holding.clients), set(holding.left)) == ({acme, acme2}, set())
            assert zeta not in holding.clients
            assert not holding.clients[acme2].active

    def test_keys_are_forgotten_long_after_they_were_verified(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, zeta = self.ids
        for client_id in self.ids:
            add_client(client_id, name="secret")
            _record(repository, client_id, _HARD)
            _settle(repository, client_id)
        _verify(repository, acme)
        let_time_pass(600)
        _verify(repository, acme2)
        before = {client_id: repository.history(client_id)[0] for client_id in self.ids}
        assert repository.forget_keys(verified_before=None, kept=_LONG) == 0
        assert repository.forget_keys(verified_before=before[acme].verified_at, kept=_AT_ONCE) == 0
        assert repository.forget_keys(verified_before=None, kept=5 * _MINUTE) == 1
        assert repository.forget_keys(verified_before=None, kept=5 * _MINUTE) == 0
        (forgotten,) = repository.history(acme)
        digests = [sha256(key.encode()).hexdigest() for key in before[acme].kv_keys]
        assert (forgotten.kv_keys, list(forgotten.kv_digests)) == ((), digests)
        assert _states(repository, acme) == [(_HARD, "verified")]
        assert repository.history(acme2) == [before[acme2]]
        assert repository.forget_keys(verified_before=repository.now() + _MINUTE, kept=_AT_ONCE) == 1
        assert repository.history(zeta) == [before[zeta]], "What is not verified needs its keys."

    def test_what_has_no_keys_any_more_cannot_be_done_again(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        _verify(repository, acme)
        done = partial(_walk, repository.done, since=None, before=repository.now() + _MINUTE)
        assert _clients(done()) == {acme}
        assert repository.forget_keys(verified_before=None, kept=_AT_ONCE) == 1
        assert done() == []

    def test_it_is_known_whether_something_done_since_has_lost_its_keys(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        _verify(repository, acme)
        let_time_pass(60)
        before = repository.now() - _LONG
        assert not repository.has_forgotten(since=before)
        assert repository.forget_keys(verified_before=None, kept=_AT_ONCE) == 1
        assert repository.has_forgotten(since=before)
        assert not repository.has_forgotten(since=repository.now())

    def test_more_than_a_page_is_forgotten_page_by_page(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        for number in range(_MORE_THAN_A_PAGE):
            _record(repository, acme, _RESTORE if number % 2 else _SOFT)
        _settle(repository, acme)
        _verify(repository, acme)
        forgotten = 0
        while some := repository.forget_keys(verified_before=None, kept=_AT_ONCE):
            forgotten += some
        assert forgotten == _MORE_THAN_A_PAGE
        assert {record.kv_keys for record in repository.history(acme)} == {()}


def _clients(records: Sequence[DeletionRecord]) -> set[str]:
    return {record.client_id for record in records}
