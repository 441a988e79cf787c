"""Several servers that make one store, for the tests: a Redis Cluster, and a primary under a sentinel.

Like the single ones in `servers` they are throwaways, real and our own, and kinds are "redis" and "valkey".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.crc import key_slot

from . import servers
from .servers import ANSWER_SECONDS, Server, ServerFailedError

PRIMARIES = 3  # The fewest that a cluster is: they outvote one that is away.
SLOTS = 16384
WAIT_SECONDS = 30

# After a crash a node has what it had confirmed; and a primary does not wait for more replicas to come.
NODE = ["--appendonly", "yes", "--repl-diskless-sync-delay", "0"]
# The living nodes answer for what is theirs while another is away.
CLUSTER_NODE = [*NODE, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
CLUSTER_NODE += ["--cluster-require-full-coverage", "no"]


@dataclass
class Cluster:
    """A Redis Cluster: three primaries, then the replicas of the first, second and third, and so on."""

    nodes: list[Server]

    @property
    def url(self) -> str:
        """The URL of one node, by which a client finds the others."""
        return self.nodes[0].url

    def owner(self, key: str) -> Server:
        """Return the node that a key belongs to, by the word of the first that answers; it may be away.

        Ask before you freeze a node: to notice that it does not answer takes 2 seconds.
        """
        slot = key_slot(key.encode())
        for node in self.nodes:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                ranges = _ask(node, "CLUSTER", "SLOTS")
                port = next(owner[1] for first, last, owner, *_ in ranges if first <= slot <= last)
                return next(owner for owner in self.nodes if _port(owner) == port)
        raise ServerFailedError("No node of the cluster answers.")

    def await_whole(self) -> None:
        """Wait until every node serves and knows every other; one that was away needs 2 seconds for it."""
        _await("every node serves", lambda: all(self._is_whole_to(node) for node in self.nodes))

    def _is_whole_to(self, node: Server) -> bool:
        info = _ask(node, "CLUSTER INFO")
        known, served = int(info["cluster_known_nodes"]), int(info["cluster_slots_ok"])
        return (info["cluster_state"], known, served) == ("ok", len(self.nodes), SLOTS)


@contextlib.contextmanager
def cluster(replicas: int = 0, kind: str = "redis", options: Sequence[str] = ()) -> Iterator[Cluster]:
    """Run a cluster of three primaries, each with so many replicas.

    While one primary is away the others serve, or its replica takes its place after some 3 seconds. When
    two are away nobody serves.
    """
    with contextlib.ExitStack() as stack:
        nodes = [_node(stack, kind, [*CLUSTER_NODE, *options]) for _ in range(PRIMARIES * (1 + replicas))]
        for number, node in enumerate(nodes):
            _ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            # Gossip would make all acquainted too, in seconds.
            for other in nodes[:number]:
                _ask(node, "CLUSTER", "MEET", "127.0.0.1", _port(other))
        for number, node in enumerate(nodes[:PRIMARIES]):
            slots = range(SLOTS * number // PRIMARIES, SLOTS * (number + 1) // PRIMARIES)
            _ask(node, "CLUSTER", "ADDSLOTS", *slots)
        pairs = list(zip(nodes[:PRIMARIES] * replicas, nodes[PRIMARIES:], strict=True))
        for primary, replica in pairs:
            _attach(primary, replica)
        found = Cluster(nodes)
        found.await_whole()
        _await_streams(pairs)
        yield found


def _attach(primary: Server, replica: Server) -> None:
    id = _ask(primary, "CLUSTER", "MYID")
    _await("the replica knows its primary", lambda: _ask(replica, "CLUSTER", "REPLICATE", id))


@dataclass
class Replicated:
    """A primary, its replica, and a sentinel, which alone decides that the replica takes over."""

    primary: Server
    replica: Server
    sentinels: list[Server]
    service: str = "mythic"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The hosts and ports of the sentinels, as redis-py wants them."""
        return [("127.0.0.1", _port(sentinel)) for sentinel in self.sentinels]

    def await_primary(self, server: Server) -> None:
        """Wait until the sentinels name this server as the primary, and it accepts writes."""
        _await("the sentinels name it", lambda: all(self._is_named(server, one) for one in self.sentinels))
        # A write that changes nothing is refused like any other.
        _await("it accepts writes", lambda: _ask(server, "UNLINK", "no such key") == 0)

    def _is_named(self, server: Server, sentinel: Server) -> bool:
        # Asked for the address alone, it names the new one while redis-py still sees the old, which is down.
        said = _ask(sentinel, "SENTINEL MASTER", self.service)
        return bool(said["port"] == _port(server) and not said["is_sdown"])

    @contextlib.contextmanager
    def lagging(self) -> Iterator[None]:
        """Keep from the replica what is written to the primary within this block, and later too.

        What was written before has arrived. Kill or freeze the primary within the block, or at once after
        it: a replica that has missed its primary for 5 seconds is too old for the sentinel to choose.
        """
        _await_caught_up(self.primary, self.replica)
        # Frozen it does not notice that time passes; alone that would not do, because the kernel would keep
        # for it what was written: the connection is cut too, and the primary takes no other.
        self.replica.freeze()
        try:
            _ask(self.primary, "ACL", "SETUSER", "default", "-sync", "-psync")
            _ask(self.primary, "CLIENT", "KILL", "TYPE", "replica")
            _await("the replica is cut off", lambda: _replication(self.primary)["connected_slaves"] == 0)
            yield
        finally:
            self.replica.thaw()


@contextlib.contextmanager
def sentinel(kind: str = "redis") -> Iterator[Replicated]:
    """Run a primary with a replica, and one sentinel, which is the fewest that fail over by themselves.

    That takes 1 to 2 seconds. A primary that comes back afterwards takes writes, which will be lost, for
    another 10 seconds: so long the sentinel waits before it makes it a replica.
    """
    with contextlib.ExitStack() as stack:
        primary = _node(stack, kind, NODE)
        replica = _node(stack, kind, [*NODE, "--replicaof", "127.0.0.1", f"{_port(primary)}"])
        _await_streams([(primary, replica)])
        watching = servers.sentinel(kind)
        stack.callback(watching.stop)
        found = Replicated(primary, replica, [watching])
        _ask(watching, "SENTINEL", "MONITOR", found.service, "127.0.0.1", _port(primary), 1)
        for name, value in ("down-after-milliseconds", 500), ("failover-timeout", 2000):
            _ask(watching, "SENTINEL", "SET", found.service, name, value)
        know = (watching, "SENTINEL", "REPLICAS", found.service)
        _await("the sentinel knows the replica", lambda: _ask(*know))
        found.await_primary(primary)
        yield found


def _node(stack: contextlib.ExitStack, kind: str, options: Sequence[str]) -> Server:
    node = servers.node(kind, options)
    stack.callback(node.stop)
    return node


def _port(server: Server) -> int:
    return urlsplit(server.url).port or 0


def _ask(server: Server, *command: Any) -> Any:
    options: dict[str, Any] = {"socket_timeout": ANSWER_SECONDS, "retry": None, "decode_responses": True}
    with redis.Redis.from_url(server.url, **options) as client:
        return client.execute_command(*command)


def _replication(server: Server) -> dict[str, Any]:
    return dict(_ask(server, "INFO", "replication"))


def _await_streams(pairs: Sequence[tuple[Server, Server]]) -> None:
    """Wait until what is written to the primaries reaches their replicas at once.

    That they are linked is not enough: Redis 7 may send a new replica nothing for its first second.
    """
    for primary, replica in pairs:
        _await_caught_up(primary, replica)
    for primary, _ in pairs:
        _ask(primary, "FLUSHALL")  # It is sent to replicas also where there is nothing to remove.
    for primary, replica in pairs:
        _await_caught_up(primary, replica)


def _await_caught_up(primary: Server, replica: Server) -> None:
    offset = _replication(primary)["master_repl_offset"]

    def is_so() -> bool:
        info = _replication(replica)
        return bool(info["master_link_status"] == "up" and info["slave_repl_offset"] >= offset)

    _await("the replica has what its primary has", is_so)


def _await(what: str, is_so: Callable[[], Any]) -> None:
    deadline, cause = time.monotonic() + WAIT_SECONDS, None
    while time.monotonic() < deadline:
        try:
            if is_so():
                return
        except redis.RedisError as error:  # Not yet, or it is away.
            cause = error
        time.sleep(0.02)
    raise ServerFailedError(f"It took more than {WAIT_SECONDS} seconds until {what}.") from cause
