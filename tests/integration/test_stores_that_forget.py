"""A key-value store that comes back from an older copy of itself: one reconcile repairs it.

Real Redis and Valkey with the persistence that they have by default, killed; a replica that had missed the
last writes, promoted by a real sentinel; one primary of a real cluster, set back.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from redis.sentinel import Sentinel

from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.redis.nodes import Node
from flask_mythic_clients.model import Action, Reconciliation
from tests import servers, topologies
from tests.conftest import Running
from tests.hosts import KeyValue

from .scene import AWAY, CONFIG, Scene, make_scene

# As it comes: a copy now and then, and no log of what was written.
AS_IT_COMES = ["--save", "3600 1 300 100 60 10000"]
GONE, HIDDEN, LIVING = [f"gone-{n}" for n in range(20)], ["hidden-0", "hidden-1"], ["living-0", "living-1"]
ALL = [*GONE, *HIDDEN, *LIVING]
NOTHING = Reconciliation(0, 0, 0)


@contextmanager
def _started(kind: str) -> Iterator[servers.Server]:
    server = servers.node(kind, AS_IT_COMES)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, running: Running) -> Iterator[servers.Server]:
    """A server of our own, to be killed."""
    with running(_started(request.param)) as server:
        yield server


@pytest.fixture
def kv(server: servers.Server) -> Iterator[KeyValue]:
    with redis.Redis.from_url(server.url, decode_responses=True) as raw:
        store = RedisStore.from_url(server.url)
        yield KeyValue(store, raw, server.url)
        store.close()


@pytest.fixture
def scene(database_url: str, kv: KeyValue) -> Iterator[Scene]:
    with make_scene(database_url, kv, tapped=False) as scene:
        _add(scene)
        yield scene


def _add(scene: Scene) -> None:
    """Add clients and their entries, and let a reconcile leave its mark."""
    for id in ALL:
        scene.add(id)
    assert scene.reconcile() == NOTHING


def _delete(scene: Scene, *, verified: bool) -> None:
    for id in GONE:
        scene.act(Action.HARD, id)
    for id in HIDDEN:
        scene.act(Action.SOFT, id)
    if verified:
        scene.age(120)
        assert scene.reconcile() == Reconciliation(0, len(GONE + HIDDEN), 0)


def _is_right(scene: Scene) -> None:
    """No entry of a removed client is there, and none of a living one is missing."""
    assert {id: scene.entries(id) for id in GONE if scene.entries(id)} == {}
    assert [id for id in HIDDEN + LIVING if not scene.agrees(id)] == []


def _came_back(scene: Scene) -> list[str]:
    return [id for id in GONE if scene.entries(id)]


def _set_back(server: servers.Server) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("verified", [False, True], ids=["settled", "verified"])
class TestAServerThatWasKilled:
    def test_is_repaired_by_one_reconcile_each_time(
        self, scene: Scene, server: servers.Server, verified: bool
    ) -> None:
        scene.raw.save()
        _delete(scene, verified=verified)
        for _ in range(2):
            _set_back(server)
            assert _came_back(scene) == GONE
            assert scene.reconcile() == NOTHING
            _is_right(scene)

    def test_in_the_middle_of_a_repair_is_repaired_by_the_next(
        self, scene: Scene, server: servers.Server, verified: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scene.raw.save()
        _delete(scene, verified=verified)
        _set_back(server)
        apply, calls = RedisStore._apply, []

        def kill_after_it(
            self: RedisStore, remove: Collection[str], overwrite: Mapping[str, Any], seals: Mapping[Node, Any]
        ) -> set[str]:
            found = apply(self, remove, overwrite, seals)
            calls.append(found)
            if len(calls) == 1:
                _set_back(server)
            return found

        monkeypatch.setattr(RedisStore, "_apply", kill_after_it)
        scene.reconcile()
        assert calls
        assert _came_back(scene)
        assert scene.reconcile() == NOTHING
        _is_right(scene)

    def test_after_a_repair_is_not_looked_through_for_ever(
        self, scene: Scene, server: servers.Server, verified: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene.raw.save()
        _delete(scene, verified=verified)
        _set_back(server)
        scene.reconcile()
        scene.age(3600)
        scene.reconcile()
        caplog.clear()
        scene.age(3600)
        seen: list[str] = []
        with scene.host.flask.app_context():
            engine = scene.host.db.engine
        sa.event.listen(engine, "before_cursor_execute", lambda *told: seen.append(told[2]))
        assert scene.reconcile() == NOTHING
        assert [statement for statement in seen if "FROM clients" in statement] == []
        assert caplog.records == []


def test_a_store_that_was_emptied_is_filled_again_and_nothing_of_the_living_is_removed(scene: Scene) -> None:
    _delete(scene, verified=True)
    scene.raw.flushall()
    for id in (*HIDDEN, *LIVING):
        scene.cache(id, status=True)  # by readers who have read long before
    assert scene.reconcile() == NOTHING
    _is_right(scene)


def test_two_services_in_one_server_do_not_answer_for_each_other(
    empty_database: Callable[[str], str], tmp_path: Any, kv: KeyValue, server: servers.Server
) -> None:
    with (
        make_scene(empty_database("sqlite"), kv, tapped=False) as scene,
        make_scene(f"sqlite:///{tmp_path / 'other.db'}", kv, tapped=False, config=_OTHERS) as other,
    ):
        _add(scene)
        scene.raw.save()
        _delete(scene, verified=True)
        _set_back(server)
        for _ in range(2):
            assert other.reconcile() == NOTHING
        assert _came_back(scene) == GONE
        assert scene.reconcile() == NOTHING
        _is_right(scene)


_OTHERS = {"MYTHIC_CLIENTS_KV_KEYS": ["account:{id}"]}


def test_a_store_without_a_mark_is_repaired_by_a_reconcile_that_is_told_since_when(
    empty_database: Callable[[str], str], kv: KeyValue, server: servers.Server
) -> None:
    with make_scene(empty_database("sqlite"), kv) as scene:  # behind the tap
        _add(scene)
        scene.raw.save()
        _delete(scene, verified=True)
        _set_back(server)
        run = scene.host.flask.test_cli_runner().invoke
        assert run(args=["mythic-clients", "reconcile"]).exit_code == 0
        assert run(args=["mythic-clients", "reconcile", "--since", "0s"]).exit_code == 0
        assert _came_back(scene) == GONE
        assert run(args=["mythic-clients", "reconcile", "--since", "2h"]).exit_code == 0
        _is_right(scene)


class TestAMark:
    @pytest.fixture
    def scene(self, empty_database: Callable[[str], str], kv: KeyValue) -> Iterator[Scene]:
        config = CONFIG | {"MYTHIC_CLIENTS_KEYS_KEPT": 600}
        with make_scene(empty_database("sqlite"), kv, tapped=False, config=config) as scene:
            _add(scene)
            yield scene

    def test_that_is_older_than_the_kept_keys_is_told_until_it_was_audited(
        self, scene: Scene, server: servers.Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene.raw.save()
        _delete(scene, verified=True)
        scene.age(700)
        for _ in range(2):
            assert scene.reconcile() == NOTHING
        _set_back(server)
        self._make_older(scene, "2020-01-01")
        caplog.clear()
        run = scene.host.flask.test_cli_runner().invoke
        for command in ("reconcile", "reconcile", "status"):
            result = run(args=["mythic-clients", command])
            assert result.exit_code == 1
            assert "It needs an audit: run `audit`" in result.stderr
            assert "then run `reconcile --audited` once" in result.stderr
        assert "It needs an audit" in caplog.text
        assert _came_back(scene) == GONE  # nobody knows their keys
        metrics = run(args=["mythic-clients", "status", "--prometheus"]).stdout
        assert 'mythic_deletions_needs_audit{kind="clients"} 1\n' in metrics
        assert json.loads(run(args=["mythic-clients", "status", "--json"]).stdout)["needs_audit"] is True
        assert run(args=["mythic-clients", "audit", "--repair", "--min-age", "0s"]).exit_code == 0
        assert _came_back(scene) == []
        for command in ("reconcile --audited", "reconcile", "status"):
            assert run(args=["mythic-clients", *command.split()]).exit_code == 0

    def test_keeps_keys_until_it_has_moved_past_their_verify(self, scene: Scene) -> None:
        _delete(scene, verified=True)
        scene.age(700)
        mark = scene.raw.get(self._key(scene))
        self._make_older(scene, "2020-01-01")
        assert scene.reconcile() == NOTHING
        (record,) = scene.host.records(GONE[0])
        assert record.kv_keys, "the mark was older"
        assert mark != scene.raw.get(self._key(scene))
        assert scene.reconcile() == NOTHING
        (record,) = scene.host.records(GONE[0])
        assert (record.kv_keys, len(record.kv_digests)) == ((), 2)

    def test_that_cannot_be_read_is_a_warning_and_settling_goes_on(
        self, scene: Scene, kv: KeyValue, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert kv.url is not None
        scene.raw.set(self._key(scene), "kept")
        keys = ["client:*", "publishable_key:*", "mythic:lease:*"]
        scene.raw.acl_setuser("clerk", enabled=True, nopass=True, keys=keys, categories=["+@all"], reset=True)
        with scene.host.flask.app_context():
            service = scene.host.clients.service
            service._kv = RedisStore.from_url(kv.url.replace("redis://", "redis://clerk:x@"))
        scene.act(Action.HARD, GONE[0])
        scene.age(120)
        caplog.clear()
        assert scene.reconcile() == Reconciliation(0, 1, 0)
        [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "The mark in the key-value store could not be read" in warning.getMessage()
        assert scene.entries(GONE[0]) == []
        service._kv.close()

    def test_that_cannot_be_read_because_the_store_is_away_is_an_outage_though_nothing_is_pending(
        self, scene: Scene
    ) -> None:
        with scene.host.flask.app_context():
            scene.host.clients.service._kv = AWAY
        result = scene.host.flask.test_cli_runner().invoke(args=["mythic-clients", "reconcile"])
        assert result.exit_code == 3
        assert "The key-value store did not confirm" in result.stderr

    def _key(self, scene: Scene) -> str:
        (key,) = scene.raw.keys("mythic:clients:*:mark")
        return str(key)

    def _make_older(self, scene: Scene, day: str) -> None:
        scene.raw.set(self._key(scene), f"{day}T00:00:00+00:00 {day}T00:00:01+00:00")


def test_the_rights_that_the_readme_lists_are_enough(
    empty_database: Callable[[str], str], kv: KeyValue
) -> None:
    assert kv.url is not None
    kv.raw.acl_setuser(
        "service",
        enabled=True,
        nopass=True,
        reset=True,
        keys=["client:*", "publishable_key:*", "mythic:*"],
        commands=["+get", "+set", "+del", "+unlink", "+eval", "+ping"],
    )
    store = RedisStore.from_url(kv.url.replace("redis://", "redis://service:x@"))
    with make_scene(empty_database("sqlite"), KeyValue(store, kv.raw, None), tapped=False) as scene:
        _add(scene)
        _delete(scene, verified=True)
        assert scene.reconcile() == NOTHING
        _is_right(scene)
        assert kv.raw.keys("mythic:clients:*:mark")
        assert store.fetch("client:new", lambda: "value", expire=60) == b"value"
        assert kv.raw.get("client:new") == "value"
    store.close()


@pytest.mark.parametrize("verified", [False, True], ids=["settled", "verified"])
def test_a_replica_that_had_missed_the_deletions_and_was_promoted_is_repaired(
    empty_database: Callable[[str], str], running: Running, verified: bool
) -> None:
    with running(topologies.sentinel()) as replicated:
        sentinel = Sentinel(replicated.addresses, socket_timeout=1)
        client = sentinel.master_for(replicated.service, socket_timeout=1, socket_connect_timeout=1)
        raw = sentinel.master_for(replicated.service, socket_timeout=5, decode_responses=True)
        kv = KeyValue(RedisStore(client), raw, None)
        with make_scene(empty_database("sqlite"), kv, tapped=False) as scene:
            _add(scene)
            with replicated.lagging():
                _delete(scene, verified=verified)
                _is_right(scene)
                replicated.primary.kill()
            replicated.await_primary(replicated.replica)
            assert _came_back(scene) == GONE
            assert scene.reconcile() == NOTHING
            _is_right(scene)
        for connected in (client, raw, *sentinel.sentinels):
            connected.close()


class TestAClusterOfWhichOnePrimary:
    @pytest.fixture
    def cluster(self, running: Running) -> Iterator[topologies.Cluster]:
        options = ["--appendonly", "no", *AS_IT_COMES]
        with running(topologies.cluster(options=options)) as cluster:
            yield cluster

    @pytest.fixture
    def scene(self, empty_database: Callable[[str], str], cluster: topologies.Cluster) -> Iterator[Scene]:
        store = RedisStore.from_url(cluster.url, cluster=True)
        with redis.RedisCluster.from_url(cluster.url, decode_responses=True) as raw:
            kv = KeyValue(store, raw, None)
            with make_scene(empty_database("sqlite"), kv, tapped=False) as scene:
                _add(scene)
                yield scene
        store.close()

    @pytest.mark.parametrize("verified", [False, True], ids=["settled", "verified"])
    def test_was_set_back_is_repaired_by_one_reconcile_each_time(
        self, scene: Scene, cluster: topologies.Cluster, verified: bool
    ) -> None:
        server = cluster.owner(f"client:{GONE[0]}")
        with redis.Redis.from_url(server.url) as its:
            its.save()
        _delete(scene, verified=verified)
        for _ in range(2):
            _set_back(server)
            cluster.await_whole()
            back = _came_back(scene)
            assert 0 < len(back) < len(GONE)
            assert scene.reconcile() == NOTHING
            _is_right(scene)

    def test_is_away_keeps_its_mark_and_the_others_move_theirs(
        self, scene: Scene, cluster: topologies.Cluster
    ) -> None:
        _delete(scene, verified=True)
        server = cluster.owner(f"client:{GONE[0]}")
        before = self._marks(scene)
        assert len(before) == 3
        with redis.Redis.from_url(server.url) as its:
            its.save()
        server.kill()
        scene.reconcile()
        server.start()
        cluster.await_whole()
        after = self._marks(scene)
        assert sum(before[key] == after[key] for key in before) == 1
        scene.reconcile()
        last = self._marks(scene)
        assert not [key for key in before if before[key] == last[key]]

    def _marks(self, scene: Scene) -> dict[str, str]:
        keys = scene.raw.keys("mythic:clients:*:mark:*", target_nodes="primaries")
        return {key: scene.raw.get(key) for key in keys}
