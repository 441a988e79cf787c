"""Any sequence of operations, outages, crashes and restarts keeps the promises; found by Hypothesis."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import run_state_machine_as_test

from flask_mythic_clients import KeyValueStoreError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.entries import Value
from flask_mythic_clients.model import Holding
from flask_mythic_clients.service import DeletionService
from tests.hosts import KeyValue

from .stateful_machine import ClientMachine
from .stateful_stages import MemoryStage, RealStage, Stage

SETTINGS = settings(
    deadline=None,
    database=None,
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
    # Long programs draw much, and a real server's step takes milliseconds: both are wanted here.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@pytest.fixture(autouse=True)
def _quiet_and_tidy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    # Hypothesis keeps a cache of the constants it read in a folder of the checkout.
    set_hypothesis_home_dir(tmp_path / "hypothesis")
    # A long run would keep a million warnings of entries that came back.
    caplog.set_level(logging.ERROR, "flask_mythic_clients")
    yield
    set_hypothesis_home_dir(None)


@pytest.fixture
def play(
    request: pytest.FixtureRequest, size: Callable[[int], int], report: Callable[..., None]
) -> Callable[[Stage, int], None]:
    """Run random programs on a stage: without `--size` the same ones every time, with it new ones.

    What fails is printed as a program; `--hypothesis-seed` chooses the programs of a sized run.
    """

    def play(stage: Stage, default: int, share: int = 1) -> None:
        examples = max(size(default * share) // share, 1)
        machine: Any = type("Machine", (ClientMachine,), {"stage": stage})
        if examples == default:
            machine = seed(crc32(request.node.name.encode()))(machine)
        steps = 30 if examples == default else 50
        started = time.monotonic()
        try:
            run_state_machine_as_test(
                machine, settings=settings(SETTINGS, max_examples=examples, stateful_step_count=steps)
            )
        finally:
            each = (time.monotonic() - started) * 1000 / max(stage.figures["steps"], 1)
            report(**dict(sorted(stage.figures.items())), milliseconds_per_step=f"{each:.2f}")

    return play


def test_random_programs_keep_the_promises_in_memory(play: Callable[[Stage, int], None]) -> None:
    with MemoryStage() as stage:
        play(stage, 300)


@pytest.mark.parametrize(
    ("database", "kv"),
    [("sqlite", "memory"), ("sqlite", "either"), ("postgresql", "either"), ("mariadb", "either")],
)
def test_random_programs_keep_the_promises_on_real_stores(
    database: str,
    kv: str,
    empty_database: Callable[[str], str],
    empty_kv: Callable[[str], KeyValue],
    play: Callable[[Stage, int], None],
) -> None:
    with RealStage(empty_database(database), empty_kv(kv)) as stage:
        play(stage, 10, share=20)


class _MakesEntries(MemoryStore):
    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        for key, value in overwrite.items():
            self.set(key, value, ex=60)
        return super().apply(remove=remove, overwrite={})


class _TakesAnOutageForSuccess(DeletionService):
    def _bring_in_line(self, holding: Holding, *rest: Any, **options: Any) -> set[str]:
        with suppress(KeyValueStoreError):
            return super()._bring_in_line(holding, *rest, **options)
        return set()


class _WritesAfterTheStamp(DeletionService):
    def _settle(self, client_ids: Collection[str], *, wait: bool = True) -> Holding:
        with self._repository.settle(client_ids, wait=wait) as holding:
            pass
        self._bring_in_line(holding, self._kv, removals=holding.records)
        for record in holding.records:
            self._on_settled(record)
        return holding


class _LooksTooEarly(DeletionService):
    def __init__(self, *args: Any, verify_after: timedelta, **options: Any) -> None:
        super().__init__(*args, verify_after=verify_after / 2, **options)


class _KnowsOnlyTheKeysOfToday(DeletionService):
    def _bring_in_line(self, holding: Holding, *rest: Any, **options: Any) -> set[str]:
        today = {key for client in holding.clients.values() for key in self._entries(client)}
        records = [
            replace(record, kv_keys=tuple(key for key in record.kv_keys if key in today))
            if record.client_id in holding.clients
            else record
            for record in holding.records
        ]
        return super()._bring_in_line(replace(holding, records=tuple(records)), *rest, **options)


class _TrustsANewerRow(DeletionService):
    def _bring_in_line(self, holding: Holding, store: Any, removals: Any = ()) -> set[str]:
        return super()._bring_in_line(holding, store)


@pytest.mark.parametrize(
    ("make_store", "make_service"),
    [
        (_MakesEntries, DeletionService),
        (MemoryStore, _TakesAnOutageForSuccess),
        (MemoryStore, _WritesAfterTheStamp),
        (MemoryStore, _LooksTooEarly),
        (MemoryStore, _KnowsOnlyTheKeysOfToday),
        (MemoryStore, _TrustsANewerRow),
    ],
)
def test_random_programs_find_a_planted_fault(
    make_store: type[MemoryStore], make_service: type[DeletionService], report: Callable[..., None]
) -> None:
    with MemoryStage(make_store) as stage:
        machine = seed(0)(type("Machine", (ClientMachine,), {"stage": stage, "make_service": make_service}))
        unshrunk = settings(SETTINGS, max_examples=3000, phases=[Phase.generate], stateful_step_count=50)
        with pytest.raises(AssertionError):
            run_state_machine_as_test(machine, settings=unshrunk)
        report(examples_until_found=stage.figures["examples"])
