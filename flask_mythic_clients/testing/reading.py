"""What is read from a repository."""
# ruff: noqa: D102 - the name of a test is its docstring

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from ..entries import EntryRule
from ..model import Action, Backlog
from ..ports import ClientRepository
from .fixtures import (
    _AT_ONCE,
    _HARD,
    _LONG,
    _MORE_THAN_A_PAGE,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    AddClient,
    LetTimePass,
    RepositoryFixtures,
    _active,
    _backlog,
    _change,
    _numbers,
    _record,
    _rules,
    _settle,
    _states,
    _verify,
    _walk,
)


class ReadingContract(RepositoryFixtures):
    """What the ledger and the directory must do."""

    # The ledger

    def test_the_history_tells_what_was_recorded(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        for client_id in (acme, acme2):
            add_client(client_id, name="Zoë")
        repository.record(_change(acme, _SOFT, actor="Zoë 🦊"), _TEMPLATES)
        repository.record(_change(acme2, _SOFT), _TEMPLATES)
        told: Any = {"reason": "Asked for: 'Ticket' 7 %s 🦊", "request_id": "r'7 %s" + "~" * 122}
        repository.record(_change(acme, _HARD, actor="a" * 64, **told), _TEMPLATES)
        _settle(repository, acme)
        _verify(repository, acme)
        soft, hard = repository.history(acme)
        assert (soft.id, hard.id) == tuple(sorted({soft.id, hard.id}))
        keys = (f"client:{acme}", "name:Zoë")
        for record, action, actor in ((soft, _SOFT, "Zoë 🦊"), (hard, _HARD, "a" * 64)):
            assert (record.client_id, record.action, record.actor) == (acme, action, actor)
            assert record.kv_keys == keys
            assert record.settled_at is not None
            assert record.verified_at is not None
            assert record.requested_at <= record.settled_at <= record.verified_at
        assert soft.requested_at <= hard.requested_at
        assert (soft.reason, soft.request_id) == (None, None)
        assert (hard.reason, hard.request_id) == tuple(told.values())
        assert isinstance(soft.action, Action)
        assert isinstance(soft.kv_keys, tuple)

    def test_times_come_back_aware_in_utc(self, repository: ClientRepository, add_client: AddClient) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT)
        _settle(repository, acme)
        held = _verify(repository, acme).records
        _record(repository, acme, _RESTORE)
        (pending,) = repository.pending(after=None)
        times = [(r.requested_at, r.settled_at, r.verified_at) for r in (*held, *repository.history(acme))]
        found = [time for record in times for time in record if time is not None]
        found += [pending.requested_at, repository.now()]
        assert len(found) == 3 + 3 + 1 + 1 + 1
        assert {time.utcoffset() for time in found} == {timedelta(0)}

    def test_the_history_outlives_the_client(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        _record(repository, acme, _SOFT, _HARD)
        _settle(repository, acme)
        assert _active(repository) == {}
        assert _states(repository, acme) == [(_SOFT, "settled"), (_HARD, "settled")]

    def test_a_client_that_never_was_has_no_history(self, repository: ClientRepository) -> None:
        assert list(repository.history(self.ids[0])) == []

    def test_the_backlog_counts_the_pending_records_and_tells_how_old_the_oldest_is(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, _ = self.ids
        assert _backlog(repository) == Backlog()
        for client_id in (acme, acme2):
            add_client(client_id)
        for client_id, action in ((acme2, _SOFT), (acme, _SOFT), (acme, _HARD)):
            _record(repository, client_id, action)
            let_time_pass(10)
        for pending, oldest, settled in ((3, 30, acme2), (2, 20, acme)):
            backlog = _backlog(repository)
            assert backlog.oldest is not None
            assert oldest <= backlog.oldest.total_seconds() < oldest + 10
            assert replace(backlog, oldest=None) == Backlog(pending)
            _settle(repository, settled)
        assert _backlog(repository) == Backlog()

    def test_the_backlog_counts_what_is_due_overdue_and_failed(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        for client_id in self.ids:
            add_client(client_id)
            _record(repository, client_id, _SOFT)
            _settle(repository, client_id)
        window = timedelta(seconds=60)
        assert _backlog(repository, window) == Backlog()
        let_time_pass(70)
        assert _backlog(repository, window) == Backlog(due=3)
        let_time_pass(300)
        repository.note_failure([self.ids[0]], "why")
        assert _backlog(repository, window) == Backlog(due=3, overdue=3, failed=1)
        _verify(repository, self.ids[0])
        assert _backlog(repository, window) == Backlog(due=2, overdue=2)

    def test_the_time_is_that_of_the_records(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        before = repository.now()
        _record(repository, acme, _SOFT)
        assert before <= repository.history(acme)[0].requested_at <= repository.now()

    def test_the_address_tells_the_same_each_time(self, repository: ClientRepository) -> None:
        assert repository.address() == repository.address() != ""

    def test_nothing_is_unfinished_at_first(self, repository: ClientRepository) -> None:
        assert list(repository.pending(after=None)) == []
        assert list(repository.due(settled_for=_AT_ONCE, after=None)) == []

    def test_pages_hold_all_pending_records_once_in_order(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        recorded = self._record_many(repository, add_client)
        assert _numbers(_walk(repository.pending)) == recorded
        assert _walk(repository.due, settled_for=_AT_ONCE) == []

    def test_pages_hold_all_unverified_records_once_in_order(
        self, repository: ClientRepository, add_client: AddClient, let_time_pass: LetTimePass
    ) -> None:
        acme, acme2, zeta = self.ids
        recorded = self._record_many(repository, add_client)
        due = partial(_walk, repository.due)
        _settle(repository, acme)
        assert due(settled_for=_LONG) == []
        let_time_pass(2 * _LONG.total_seconds())
        _settle(repository, zeta)
        assert len(due(settled_for=_LONG)) + len(_walk(repository.pending)) < len(recorded)
        assert {record.client_id for record in due(settled_for=_LONG)} == {acme}
        assert {record.client_id for record in _walk(repository.pending)} == {acme2}
        _settle(repository, acme2)
        walked = due(settled_for=_AT_ONCE)
        assert sorted(_numbers(walked)) == recorded
        settled = [record.settled_at for record in walked if record.settled_at is not None]
        assert settled == sorted(settled)
        assert _walk(repository.pending) == []
        _verify(repository, *self.ids, settled_for=_LONG)
        assert {record.client_id for record in due(settled_for=_AT_ONCE)} == {acme2, zeta}
        _verify(repository, acme2, zeta)
        assert due(settled_for=_AT_ONCE) == []

    def test_records_settled_at_the_same_time_are_on_pages_once(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        recorded = self._record_many(repository, add_client)
        _settle(repository, *self.ids)
        assert sorted(_numbers(_walk(repository.due, settled_for=_AT_ONCE))) == recorded

    def test_no_record_is_missed_where_each_page_is_finished_before_the_next(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        self._record_many(repository, add_client)
        after = None
        while page := repository.pending(after=after):
            _settle(repository, *{record.client_id for record in page})
            after = page[-1]
        after = None
        while page := repository.due(settled_for=_AT_ONCE, after=after):
            _verify(repository, *{record.client_id for record in page})
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
        preview = repository.preview(_change(acme, _HARD), _TEMPLATES)
        assert preview is not None
        assert (preview.client.id, preview.client.active) == (acme, True)
        assert preview.columns["name"] == preview.client.row.name == "Zoë"
        assert list(preview.dependents) == []
        inactive = repository.preview(_change(acme2, _HARD), _TEMPLATES)
        assert inactive is not None
        assert (inactive.client.id, inactive.client.active) == (acme2, False)
        assert _active(repository) == {acme: True, acme2: False}
        assert list(repository.history(acme)) == []
        assert _backlog(repository) == Backlog()

    @pytest.mark.parametrize("name", [" Zoë\\\"'{id} ", None])
    @_rules
    def test_a_preview_names_the_keys_that_a_hard_delete_then_records(
        self, repository: ClientRepository, add_client: AddClient, name: str | None, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, name=name)
        add_client(acme2, name="another")
        preview = repository.preview(_change(acme, _HARD), rule)
        assert preview is not None
        assert isinstance(preview.kv_keys, tuple)
        assert repository.record(_change(acme, _HARD), rule)
        assert preview.kv_keys == repository.history(acme)[0].kv_keys

    def test_there_is_no_preview_of_an_absent_client(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, _ = self.ids
        assert repository.preview(_change(acme, _HARD), _TEMPLATES) is None
        add_client(acme)
        assert repository.preview(_change(acme2, _HARD), _TEMPLATES) is None
        _record(repository, acme, _HARD)
        assert repository.preview(_change(acme, _HARD), _TEMPLATES) is None

    def test_the_columns_of_a_client_are_accepted(self, repository: ClientRepository) -> None:
        repository.check_columns(["name"])
        repository.check_columns([])

    def _record_many(self, repository: ClientRepository, add_client: AddClient) -> list[int]:
        """Record more than a page of changes for each client in turn; return their numbers."""
        for client_id in self.ids:
            add_client(client_id)
        for number in range(_MORE_THAN_A_PAGE):
            turn, who = divmod(number, 3)
            action = _SOFT if turn % 2 == 0 else _RESTORE
            assert repository.record(_change(self.ids[who], action, actor=f"{number}"), _TEMPLATES)
        return list(range(_MORE_THAN_A_PAGE))
