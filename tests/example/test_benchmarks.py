"""The benchmarks measure what they say: contestants keep the contract, the proxy counts and delays."""

import socket
import time
from collections.abc import Iterator

import pytest

from benchmarks import counting, many, scenarios, tables
from benchmarks.contestants import ALL, Contestant
from benchmarks.contestants.settings import Settings
from benchmarks.figures import ratios
from benchmarks.proxy import proxied
from benchmarks.stores import Stores, started
from benchmarks.tables import Tables
from flask_mythic_clients.auth import digest

from ..conftest import Running
from ..hosts import ADMIN_KEY

CONTESTANTS = {contestant.name: contestant for contestant in ALL if contestant.changes_stores}


@pytest.fixture(scope="module")
def stores(running: Running) -> Iterator[Stores]:
    with running(started("postgresql")) as stores:
        yield stores


@pytest.mark.server
@pytest.mark.parametrize("contestant", CONTESTANTS.values(), ids=CONTESTANTS)
def test_a_contestant_answers_by_the_contract_and_leaves_the_stores_as_it_must(
    contestant: Contestant, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    if contestant.server == "uvicorn":
        for module in ("fastapi", "asyncpg", "uvicorn"):
            pytest.importorskip(module, reason="the extra bench is not installed")
    monkeypatch.setattr(tables, "POPULATION", 10)
    url = stores.create_database(contestant.name)
    seen = Tables(contestant.metadata, url, stores.redis.url)
    seen.prepare()
    try:
        settings = Settings(url.render_as_string(False), stores.redis.url, digest(ADMIN_KEY))
        with counting.before(stores) as proxies:
            # Which raises where an answer, or a store, is another than the contract has.
            counts = list(counting.count(stores, proxies, contestant, seen, settings, ADMIN_KEY))
    finally:
        seen.close()
    asked = [scenario.name for scenario in scenarios.ALL if scenario.asks(contestant)]
    assert [count.scenario for count in counts] == asked
    hard, soft = counts[:2]
    assert (hard.to_kv, soft.to_kv) == (1, 0)
    assert hard.to_database >= 2


def test_the_proxy_counts_a_burst_and_its_answer_once_and_delays_it_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, proxied(server.getsockname()[1]) as proxy:
        near = socket.create_connection(("127.0.0.1", proxy.port))
        far, _ = server.accept()
        with near, far:
            proxy.delay(0.05)
            for _ in range(2):
                began = time.monotonic()
                near.sendall(b"one")
                near.sendall(b"two")
                received = b""
                while len(received) < 6:
                    received += far.recv(100)
                assert time.monotonic() - began >= 0.05
                far.sendall(b"answer")
                assert near.recv(100) == b"answer"
            assert proxy.round_trips() == 2


@pytest.mark.server
def test_of_many_each_is_removed_replayed_and_forgotten(stores: Stores) -> None:
    bench = many.Bench(stores.create_database("many_of_a_test"), stores.redis.url, 1_100)
    try:
        done = list(many._round(bench, 0))
    finally:
        bench.engine.dispose()
    assert [(each.name, each.left) for each in done] == [
        (name, 0) for name in ("loop over the ORM", "bare SQL", "purge", "audit (keys)", "replay", "forget")
    ]


def test_a_ratio_is_taken_within_a_round() -> None:
    found = ratios({0: 1.0, 1: 30.0, 2: 5.0}, {0: 2.0, 1: 10.0})
    assert found is not None
    assert found.median == pytest.approx((0.5 + 3) / 2)
