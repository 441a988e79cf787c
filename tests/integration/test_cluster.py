"""A real Redis Cluster: a node that is dead or frozen is in nobody else's way."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import pytest
import redis

from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.model import Action, Change
from tests import topologies
from tests.conftest import Running
from tests.hosts import KeyValue

from .scene import Scene, make_scene

IDS = [f"c{number}" for number in range(60)]


@pytest.fixture
def replicas(request: pytest.FixtureRequest) -> int:
    """How many each primary has."""
    return int(getattr(request, "param", 0))


@pytest.fixture
def cluster(running: Running, replicas: int) -> Iterator[topologies.Cluster]:
    """One of our own, to be broken."""
    with running(topologies.cluster(replicas)) as cluster:
        yield cluster


@pytest.fixture
def scene(empty_database: Callable[[str], str], cluster: topologies.Cluster) -> Iterator[Scene]:
    store = RedisStore.from_url(cluster.url, cluster=True)
    with redis.RedisCluster.from_url(cluster.url, decode_responses=True) as raw:
        config = {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}"]}
        kv = KeyValue(store, raw, None)
        with make_scene(empty_database("postgresql"), kv, tapped=False, config=config) as scene:
            for id in IDS:
                scene.add(id)
            yield scene
    store.close()


def _take_away(node: Any, how: str) -> None:
    node.freeze() if how == "frozen" else node.kill()


def _bring_back(cluster: topologies.Cluster, node: Any, how: str) -> None:
    node.thaw() if how == "frozen" else node.start()
    cluster.await_whole()


def _is_its(node: Any, cluster: topologies.Cluster, id: str) -> bool:
    return cluster.owner(f"client:{id}") is node


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return act(), time.monotonic() - began


@pytest.mark.parametrize("how", ["frozen", "dead"])
class TestANodeThatIsAway:
    def test_costs_its_own_clients_a_second_and_the_others_nothing(
        self, scene: Scene, cluster: topologies.Cluster, how: str
    ) -> None:
        away = cluster.owner("client:c0")
        its = [id for id in IDS if _is_its(away, cluster, id)]
        others = [id for id in IDS if id not in its]
        assert len(its) > 6
        assert len(others) > 20
        assert scene.host.delete(its[0]).status_code == 200
        _take_away(away, how)
        seconds = []
        try:
            for turn in range(3):
                for id in its[turn * 2 + 1 : turn * 2 + 3]:
                    answer, took = _timed(partial(scene.host.delete, f"{id}?hard=true"))
                    assert (answer.status_code, took < 4) == (503, True), took
                for id in others[turn * 5 : turn * 5 + 5]:
                    answer, took = _timed(partial(scene.host.delete, f"{id}?hard=true"))
                    assert answer.status_code == 200
                    seconds.append(took)
                time.sleep(1.1)  # the pause ends, and the next call looks who is there
            assert median(seconds) < 0.5  # nobody waits for the other node; who comes first looks for all
            for id in (others[15], its[7], others[16]):
                with scene.host.flask.app_context():
                    scene.host.clients.service._repository.record(
                        _hard(id), scene.host.clients.service._entries
                    )
            done, took = _timed(scene.reconcile)
            assert (done.settled, done.failed) == (
                2,
                8,
            )  # with the one that was settled, and is looked at again
            assert took < 5
        finally:
            _bring_back(cluster, away, how)
        time.sleep(1.1)
        assert scene.reconcile().failed == 0
        assert scene.pending() == 0
        assert [id for id in [*its[1:8], *others[:17]] if scene.raw.get(f"client:{id}") is not None] == []

    def test_with_all_the_others_ends_a_reconcile_within_seconds(
        self, scene: Scene, cluster: topologies.Cluster, how: str
    ) -> None:
        with scene.host.flask.app_context():
            service = scene.host.clients.service
            for id in IDS:
                service._repository.record(_hard(id), service._entries)
        for node in cluster.nodes:
            _take_away(node, how)
        result, took = _timed(
            lambda: scene.host.flask.test_cli_runner().invoke(args=["mythic-clients", "reconcile"])
        )
        assert (result.exit_code, took < 10) == (3, True), took


def _hard(id: str) -> Change:
    return Change(id, Action.HARD, "tests")


@pytest.mark.parametrize("replicas", [1], indirect=True)
def test_a_replica_that_takes_over_is_found(scene: Scene, cluster: topologies.Cluster) -> None:
    primary = cluster.owner("client:c0")
    its = [id for id in IDS if _is_its(primary, cluster, id)]
    assert scene.host.delete(f"{its[0]}?hard=true").status_code == 200
    primary.kill()
    until = time.monotonic() + 30
    while scene.host.delete(f"{its[1]}?hard=true").status_code == 503:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert scene.raw.get(f"client:{its[1]}") is None
    assert scene.host.delete(f"{its[2]}?hard=true").status_code == 200
    assert scene.reconcile().failed == 0


def test_a_slot_that_has_moved_is_followed(scene: Scene, cluster: topologies.Cluster) -> None:
    scene.host.clients._kv.fetch("client:warm", lambda: "x", expire=60)  # type: ignore[attr-defined]
    source = cluster.owner("client:c0")
    target = next(node for node in cluster.nodes if node is not source)
    slot = scene.raw.keyslot("client:c0")
    with redis.Redis.from_url(source.url) as old, redis.Redis.from_url(target.url) as new:
        port = target.url.rpartition(":")[2].partition("/")[0]
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old.execute_command("CLUSTER", "MYID"))
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new.execute_command("CLUSTER", "MYID"))
        old.execute_command("MIGRATE", "127.0.0.1", port, "client:c0", 0, 5000)
        assert scene.host.delete("c0").status_code == 200  # in the middle of it: it is asked for, there
        assert "false" in scene.raw.get("client:c0")
        id = new.execute_command("CLUSTER", "MYID")
        for node in (new, old):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", id)
    assert scene.host.delete("c0?hard=true").status_code == 200
    assert scene.raw.get("client:c0") is None
    assert scene.reconcile().failed == 0
