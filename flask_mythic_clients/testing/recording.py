"""Step 1 of a deletion."""
# ruff: noqa: D102 - the name of a test is its docstring

from functools import partial
from threading import Barrier
from typing import Any

import pytest

from ..entries import EntryRule, KeyTemplates
from ..errors import ChangeRefusedError
from ..model import Action, Backlog, Client, Holding, Recorded
from ..ports import ClientRepository
from .fixtures import (
    _AT_ONCE,
    _FUNCTION,
    _HARD,
    _PATIENCE,
    _RESTORE,
    _SOFT,
    _TEMPLATES,
    _THREADS,
    AddClient,
    KeepRows,
    RepositoryFixtures,
    _actions,
    _active,
    _backlog,
    _change,
    _PlannedError,
    _rules,
    _settle,
    _states,
    _Threads,
)


class RecordingContract(RepositoryFixtures):
    """What `record` must do."""

    @_rules
    def test_a_recorded_soft_delete_deactivates_the_client_and_is_pending(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme)
        add_client(acme2)
        assert repository.record(_change(acme, _SOFT), rule) is not None
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
        assert repository.record(_change(acme, _HARD), rule) is not None
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
        assert repository.record(_change(acme, _RESTORE), rule) is not None
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
            assert repository.record(_change(acme, action), rule) is None, action
        assert _active(repository) == {acme2: True}
        assert repository.history(acme) == []
        assert _backlog(repository) == Backlog()

    @_rules
    def test_recording_what_is_already_so_does_nothing(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, status=False)
        add_client(acme2, status=True)
        assert repository.record(_change(acme, _SOFT), rule) is None
        assert repository.record(_change(acme2, _RESTORE), rule) is None
        assert _active(repository) == {acme: False, acme2: True}
        assert _backlog(repository) == Backlog()

    @_rules
    def test_only_if_inactive_holds_a_hard_delete_back_from_an_active_client(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, acme2, _ = self.ids
        add_client(acme, status=True)
        add_client(acme2, status=False)
        assert repository.record(_change(acme, _HARD, only_if_inactive=True), rule) is None
        assert repository.record(_change(acme2, _HARD, only_if_inactive=True), rule) is not None
        assert _active(repository) == {acme: True}
        assert repository.history(acme) == []
        assert _states(repository, acme2) == [(_HARD, "pending")]

    def test_an_inactive_client_can_be_removed_too(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme, status=False)
        assert repository.record(_change(acme, _HARD), _TEMPLATES) is not None
        assert _active(repository) == {}

    @_rules
    def test_a_client_is_deleted_restored_and_removed_in_turn(
        self, repository: ClientRepository, add_client: AddClient, rule: EntryRule
    ) -> None:
        acme, _, _ = self.ids
        add_client(acme)
        actions = [_SOFT, _RESTORE, _SOFT, _RESTORE, _HARD]
        records = [repository.record(_change(acme, action), rule) for action in actions]
        assert [made and made.record for made in records] == list(repository.history(acme))
        assert _states(repository, acme) == [(action, "pending") for action in actions]
        assert repository.record(_change(acme, _HARD), rule) is None

    def test_a_client_made_again_under_an_old_id_can_be_removed_again(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, _, _ = self.ids
        for name in ("the first", "the second"):
            add_client(acme, name=name)
            assert repository.record(_change(acme, _HARD), _TEMPLATES) is not None
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

    @_rules
    def test_a_row_that_the_database_keeps_is_a_refusal_and_leaves_no_record(
        self, repository: ClientRepository, add_client: AddClient, keep_rows: KeepRows, rule: EntryRule
    ) -> None:
        clients = dict(zip(Action, self.ids, strict=True))
        for action, client_id in clients.items():
            add_client(client_id, status=action is not _RESTORE)
        before = _active(repository)
        for action in keep_rows():
            with pytest.raises(ChangeRefusedError) as refused:
                repository.record(_change(clients[action], action), rule)
            assert refused.value.client_id == clients[action]
        assert _active(repository) == before
        assert [list(repository.history(client_id)) for client_id in self.ids] == [[], [], []]

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
            assert repository.preview(_change(lookalike, _HARD), _TEMPLATES) is None, lookalike
            for rule in (_TEMPLATES, _FUNCTION):
                assert repository.record(_change(lookalike, _SOFT), rule) is None, lookalike
                assert repository.record(_change(lookalike, _HARD), rule) is None, lookalike
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
            with repository.settle([lookalike]) as holding:
                assert holding == Holding((), {}), lookalike
        _settle(repository, acme)
        for lookalike in self.lookalikes:
            with repository.verify([lookalike], settled_for=_AT_ONCE) as holding:
                assert holding == Holding((), {}), lookalike
        assert _states(repository, acme) == [(_SOFT, "settled")]

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

        def record() -> Recorded | None:
            start.wait(_PATIENCE)
            return repository.record(_change(acme, action), rule)

        recorders = [threads.start(record) for _ in range(_THREADS)]
        made = [found.record for recorder in recorders if (found := recorder.result()) is not None]
        assert made == list(repository.history(acme))
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

        def record(action: Action) -> Recorded | None:
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
