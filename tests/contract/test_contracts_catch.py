"""The contracts catch wrong backends: each is ours with one mistake, and fails the tests meant for it."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.entries import EntryRule, Value
from flask_mythic_clients.errors import EntriesRefusedError
from flask_mythic_clients.model import Change, DeletionRecord, Holding, Recorded
from flask_mythic_clients.testing import ClientRepositoryContract, KeyValueStoreContract

_T = TypeVar("_T", bound=type)

EXPECTED: dict[type, Sequence[str]] = {}


def fails(*tests: str) -> Callable[[_T], _T]:
    """Plant a wrong backend, and name the tests that each have to catch it."""

    def plant(backend: _T) -> _T:
        EXPECTED[backend] = tests
        return backend

    return plant


# Key-value stores


@fails("test_a_named_entry_is_removed_and_returned", "test_an_entry_is_overwritten")
class ClaimsSuccessAndDoesNothing(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        return {key for key in remove if self.get(key) is not None}


@fails("test_a_key_is_no_prefix")
class RemovesByPrefix(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        every = [key for key in self._entries if key.startswith(tuple(remove))]
        return super().apply(remove=every, overwrite=overwrite).intersection(remove)


@fails("test_an_overwritten_entry_keeps_its_time_to_live")
class ForgetsTheTimeToLive(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        for key, value in overwrite.items():
            if self.get(key) is not None:
                self.set(key, value)
        return super().apply(remove=remove, overwrite={})


@fails("test_overwriting_never_makes_an_entry", "test_an_expired_entry_is_not_made_again")
class MakesEntries(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        for key, value in overwrite.items():
            if self.get(key) is None:
                self.set(key, value)
        return super().apply(remove=remove, overwrite=overwrite)


@fails("test_exactly_the_removed_keys_that_were_there_are_returned")
class ReturnsEveryKey(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        super().apply(remove=remove, overwrite=overwrite)
        return set(remove)


@fails("test_what_is_refused_is_told_and_the_rest_is_done")
class StopsAtARefusal(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        if refused := self._refused.intersection([*remove, *overwrite]):
            raise EntriesRefusedError(keys=refused)
        return super().apply(remove=remove, overwrite=overwrite)


@fails("test_what_is_refused_is_told_and_the_rest_is_done")
class KeepsARefusalToItself(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        try:
            return super().apply(remove=remove, overwrite=overwrite)
        except EntriesRefusedError as error:
            return set(error.removed)


# Repositories


@fails("test_a_failure_is_counted_and_told_for_what_is_not_verified")
class CountsFailuresOfWhatIsDone(MemoryRepository):
    def note_failure(self, client_ids: Collection[str], error: str) -> None:
        for record in self._of(client_ids):
            self._records[record.id] = replace(record, attempts=record.attempts + 1, last_error=error)


@fails("test_a_recorded_soft_delete_deactivates_the_client_and_is_pending")
class ChangesTheRowWithoutARecord(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        recorded = super().record(change, entries)
        self._records.clear()
        return recorded


@fails("test_a_row_that_the_database_keeps_is_a_refusal_and_leaves_no_record")
class BelievesTheDatabase(MemoryRepository):
    def _look(self, change: Change) -> None:
        pass


@fails("test_only_if_inactive_holds_a_hard_delete_back_from_an_active_client")
class IgnoresOnlyIfInactive(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        return super().record(replace(change, only_if_inactive=False), entries)


@fails("test_one_that_is_not_inactive_as_it_was_seen_is_left")
class IgnoresWhatWasSeen(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        return super().record(replace(change, seen=None), entries)


@fails("test_ids_are_compared_to_the_letter")
class FindsClientsWhateverTheirCase(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        return super().record(replace(change, client_id=change.client_id.lower()), entries)


@fails("test_the_records_of_a_similar_id_are_left_alone")
class FindsRecordsWhateverTheirCase(MemoryRepository):
    def _of(self, client_ids: Collection[str]) -> list[DeletionRecord]:
        return super()._of([client_id.lower() for client_id in client_ids])


@fails("test_the_rule_sees_the_client_as_it_was")
class ResolvesTheKeysAfterTheChange(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        return super().record(change, lambda client: entries(replace(client, active=not client.active)))


@fails("test_no_newer_change_is_settled_while_the_client_is_held")
class ReadsWhereItShouldHold(MemoryRepository):
    @contextmanager
    def hold(self, client_ids: Collection[str]) -> Iterator[Holding]:
        yield Holding((), self._clients(client_ids))


@fails("test_holding_yields_the_clients_as_they_are_now_and_stamps_nothing")
class SettlesWhatItShouldOnlyHold(MemoryRepository):
    @contextmanager
    def hold(self, client_ids: Collection[str]) -> Iterator[Holding]:
        with self.settle(client_ids) as holding:
            yield replace(holding, records=())


@fails("test_of_many_equal_changes_at_once_one_is_recorded")
class AnswersFromAReadBeforeTheWrite(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        client = self._clients([change.client_id]).get(change.client_id)
        applies = client is not None and change.applies_to(client)
        time.sleep(0.01)
        recorded = super().record(change, entries)
        return recorded or (Recorded(self._records[1], alone=True) if applies else None)


@fails("test_a_record_is_not_alone_while_another_is_just_being_settled")
class LooksOnlyWhenItStamps(MemoryRepository):
    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        recorded = super().record(change, entries)
        return recorded and replace(recorded, alone=True)


@fails("test_a_record_is_not_alone_while_another_is_pending")
class LooksOnlyWhenItRecords(MemoryRepository):
    def settle_alone(self, record: DeletionRecord) -> DeletionRecord | None:
        settled = self._records[record.id] = replace(record, settled_at=self._clock())
        return settled


@fails("test_settle_stamps_all_pending_records_of_the_client")
class StampsOnlyTheNewest(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        with super().settle(client_ids, **wait) as holding:
            yield holding
        for record in holding.records[:-1]:
            self._records[record.id] = replace(record, settled_at=None)


@fails(
    "test_an_exception_in_settles_block_leaves_all_pending_and_comes_out_unchanged",
    "test_an_exception_in_verifys_block_leaves_all_unverified_and_comes_out_unchanged",
    "test_a_settler_that_waited_for_one_that_failed_finds_its_records",
)
class NeverRollsBack(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        with super().settle(client_ids, **wait) as holding:
            self._records.update((record.id, record) for record in holding.records)
            yield holding

    @contextmanager
    def verify(self, client_ids: Collection[str], **options: Any) -> Iterator[Holding]:
        with super().verify(client_ids, **options) as holding:
            self._records.update((record.id, record) for record in holding.records)
            yield holding


@fails("test_an_exception_in_settles_block_leaves_all_pending_and_comes_out_unchanged")
class SwallowsTheException(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        with suppress(Exception), super().settle(client_ids, **wait) as holding:
            yield holding


@fails(
    "test_a_second_settler_waits_for_the_first_and_then_finds_nothing",
    "test_a_settler_of_several_clients_waits_for_the_holder_of_one",
    "test_a_second_verifier_waits_for_the_first_and_then_finds_nothing",
    "test_no_newer_change_is_settled_while_verifys_block_is_open",
)
class WaitsForNobody(MemoryRepository):
    @contextmanager
    def _hold(self, client_ids: Collection[str], wait: bool, **rows: bool) -> Iterator[Collection[str]]:
        yield client_ids


@fails(
    "test_a_settler_that_does_not_wait_leaves_out_a_client_that_is_held",
    "test_a_verifier_that_does_not_wait_leaves_out_a_client_that_is_held",
)
class WaitsAlways(MemoryRepository):
    @contextmanager
    def _hold(self, client_ids: Collection[str], wait: bool, **rows: bool) -> Iterator[Collection[str]]:
        with super()._hold(client_ids, True, **rows) as held:
            yield held


@fails(
    "test_a_settler_that_does_not_wait_leaves_out_a_client_that_is_held",
    "test_a_settler_that_does_not_wait_takes_no_record_of_a_client_that_is_held",
    "test_a_verifier_that_does_not_wait_leaves_out_a_client_that_is_held",
)
class TakesWhatIsHeld(MemoryRepository):
    @contextmanager
    def _hold(self, client_ids: Collection[str], wait: bool, **rows: bool) -> Iterator[Collection[str]]:
        with super()._hold(client_ids, wait, **rows) as held:
            yield held if wait else client_ids


@fails("test_no_newer_change_is_settled_while_verifys_block_is_open")
class VerifiesWithoutHoldingTheClients(MemoryRepository):
    """Records are held by their ids alone, so that a newer one is free."""

    @contextmanager
    def verify(self, client_ids: Collection[str], **options: Any) -> Iterator[Holding]:
        with super().verify(client_ids, **options) as holding:
            self._held.difference_update(client_ids)
            self._rows_held.difference_update(client_ids)
            yield holding


@fails("test_a_settler_that_waited_yields_the_client_as_it_is_after_the_wait")
class ReadsTheClientsBeforeItWaits(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        clients = self._clients(client_ids)
        with super().settle(client_ids, **wait) as holding:
            yield replace(holding, clients=clients)


@fails("test_settle_yields_the_clients_also_when_nothing_is_pending")
class ReadsOnlyClientsWithRecords(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        with super().settle(client_ids, **wait) as holding:
            yield holding if holding.records else Holding((), {})


@fails("test_a_change_recorded_while_the_client_is_held_is_still_pending_afterwards")
class StampsWhatItDidNotHold(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        with super().settle(client_ids, **wait) as holding:
            yield holding
        for record in self._of(client_ids):
            self._records[record.id] = replace(record, settled_at=record.settled_at or self._clock())


@fails("test_verify_leaves_pending_records_alone")
class VerifiesPendingRecords(MemoryRepository):
    @contextmanager
    def verify(self, client_ids: Collection[str], **options: Any) -> Iterator[Holding]:
        with super().verify(client_ids, **options) as holding:
            yield holding
        for record in self._of(client_ids):
            self._records[record.id] = replace(record, verified_at=self._clock())


@fails("test_the_history_tells_what_was_recorded")
class StampsWithAnotherClock(MemoryRepository):
    @contextmanager
    def settle(self, client_ids: Collection[str], **wait: bool) -> Iterator[Holding]:
        with super().settle(client_ids, **wait) as holding:
            yield holding
        for record in holding.records:
            self._records[record.id] = replace(record, settled_at=self._clock() - timedelta(minutes=5))


@fails("test_records_settled_at_the_same_time_are_on_pages_once")
class PagesByTimeAlone(MemoryRepository):
    def due(self, *, settled_for: timedelta, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        if after is not None:
            after = replace(after, id=len(self._records))
        return super().due(settled_for=settled_for, after=after)


@fails("test_pages_hold_all_pending_records_once_in_order")
class PagesWithoutEnd(MemoryRepository):
    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        return super().pending(after=None)


JOIN_STORE = """
class Test{backend}(KeyValueStoreContract):
    @pytest.fixture
    def raw(self):
        return {module}.{backend}()

    @pytest.fixture
    def store(self, raw):
        return raw

    @pytest.fixture
    def refuse_all_but(self, store):
        return lambda *keys: not store.refuse(*({{f"client:{{letter}}" for letter in "abcde"}} - {{*keys}}))
"""

JOIN_REPOSITORY = """
class Test{backend}(test_repositories.TestMemoryRepository):
    @pytest.fixture
    def repository(self):
        return {module}.{backend}()
"""

PLANTED = [(backend, test) for backend, tests in EXPECTED.items() for test in tests]
OURS = [
    (ours, test)
    for ours in (MemoryStore, MemoryRepository)
    for test in dict.fromkeys(test for backend, test in PLANTED if issubclass(backend, ours))
]


class Reports(dict[tuple[str, str], list[pytest.TestReport]]):
    """The plugin of the inner run: keeps its reports, by backend and test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _, joined, test = report.nodeid.partition("[")[0].split("::")
        if report.when == "call" or report.failed:
            self.setdefault((joined.removeprefix("Test"), test), []).append(report)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """Run every wrong backend on the tests meant for it, and ours on all of these."""
    lines = ["import pytest", "from flask_mythic_clients.testing import KeyValueStoreContract"]
    lines += ["from tests.contract import test_repositories"]
    for backend in [*EXPECTED, MemoryStore, MemoryRepository]:
        join = JOIN_STORE if issubclass(backend, MemoryStore) else JOIN_REPOSITORY
        lines += [
            f"import {backend.__module__}",
            join.format(module=backend.__module__, backend=backend.__name__),
        ]
    path = tmp_path_factory.mktemp("planted") / "test_planted.py"
    path.write_text("\n".join(lines))
    reports = Reports()
    wanted = [f"{path}::Test{backend.__name__}::{test}" for backend, test in [*PLANTED, *OURS]]
    pytest.main(["-q", f"--rootdir={path.parent}", "-p", "no:cacheprovider", *wanted], plugins=[reports])
    return reports


def idents(cases: Sequence[tuple[type, str]]) -> list[str]:
    return [f"{backend.__name__}-{test}" for backend, test in cases]


@pytest.mark.parametrize(("backend", "test"), PLANTED, ids=idents(PLANTED))
def test_a_wrong_backend_fails_the_test_that_is_meant_for_it(
    reports: Reports, backend: type, test: str
) -> None:
    failed = [report for report in reports[backend.__name__, test] if report.failed]
    assert failed
    for report in failed:
        # An assertion of the contract's, and no mistake of the plant's own.
        crash: Any = report.longrepr
        assert "flask_mythic_clients/testing/" in crash.reprcrash.path, report.longreprtext


@pytest.mark.parametrize(("ours", "test"), OURS, ids=idents(OURS))
def test_ours_passes_the_same_test_run_in_the_same_way(reports: Reports, ours: type, test: str) -> None:
    assert {report.outcome for report in reports[ours.__name__, test]} == {"passed"}


@pytest.mark.parametrize("contract", [KeyValueStoreContract, ClientRepositoryContract])
def test_a_backend_that_has_not_joined_is_told_what_to_override(
    pytester: pytest.Pytester, contract: type
) -> None:
    name = contract.__name__
    pytester.makepyfile(f"from {contract.__module__} import {name}\nclass TestMine({name}):\n    pass\n")
    result = pytester.runpytest_inprocess("-q", "-x", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*NotImplementedError: TestMine: override the fixture `*` to return *"])
