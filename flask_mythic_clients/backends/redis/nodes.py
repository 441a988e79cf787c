"""The servers behind a store: one, or the primaries of a cluster; each is sent one pipeline a call."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import redis
from redis.client import NEVER_DECODE

from ...errors import ForeignError, KeyValueStoreError

# Seconds for which a server that timed out is left alone. Whoever waits for it holds a connection of the
# database and the locks on a client, on SQLite on everybody: in an outage the waits would add up.
_PAUSE = 1.0
_TRYING = 10.0  # seconds for which the others leave it alone while one call tries it

_READS = {"GET", "MGET", "SCAN"}

Command: TypeAlias = tuple[Any, ...]  # its name, then its arguments
Task: TypeAlias = tuple[str, Command]  # an entry's key, and what is to be done to it, or to its lease


class Node:
    """A server.

    After a time-out, calls of this process fail at once for a second; then one tries the server again, and
    until it has an answer the others still fail.
    """

    def __init__(self, name: str, client: redis.Redis, tries: int = 1) -> None:
        self.name = name
        self.client = client
        self._tries = tries  # on connections that were closed; more are the client's own
        self._away_until = 0.0  # on the monotonic clock

    def send(self, tasks: Sequence[Task], seal: Command | None = None) -> list[Any]:
        """Do the tasks at once; return their replies, an exception for each that was refused.

        `seal` goes last, on the same connection, or not at all; its reply is not returned.
        Raises KeyValueStoreError where the server, or all of it, cannot do its work.
        """
        self._check_pause()
        away_until = 0.0
        try:
            return self._send(tasks, seal)
        except UnicodeEncodeError:
            raise redis.DataError("A key or a value has characters that cannot be encoded.") from None
        except redis.DataError:
            raise  # a value that cannot be sent: the host's mistake, not an outage
        except Exception as error:  # a peer that is no Redis makes redis-py raise whatever it stumbles over
            if isinstance(error, redis.TimeoutError):
                away_until = time.monotonic() + _PAUSE
            raise KeyValueStoreError from told(error)
        finally:
            self._away_until = away_until

    def _send(self, tasks: Sequence[Task], seal: Command | None) -> list[Any]:
        failures: list[Exception] = []
        while len(failures) < self._tries:
            try:
                return self._execute(tasks, seal)
            except redis.ConnectionError as error:
                failures.append(error)
                self.client.ping()
        # The server is there, and closes the connection: as it does at a value that is too large.
        if len(tasks) < 2:
            return failures[-1:] * len(tasks)
        half = len(tasks) // 2
        return self._send(tasks[:half], None) + self._send(tasks[half:], None)

    def _execute(self, tasks: Sequence[Task], seal: Command | None) -> list[Any]:
        # No MULTI: the work is idempotent, and a refusal of one key is no reason to leave out the others.
        pipeline: Any = self.client.pipeline(transaction=False)
        for _, command in tasks:
            # As bytes also where the host's client decodes: others may have written what is no text.
            options = {NEVER_DECODE: True} if command[0] in _READS else {}
            pipeline.execute_command(*command, **options)
        if seal is not None:
            pipeline.execute_command(*seal)
        replies = list(pipeline.execute(raise_on_error=False))
        for reply in replies:
            if isinstance(reply, Exception) and _is_of_the_whole(reply):
                raise reply
        return replies[: len(tasks)]

    def _check_pause(self) -> None:
        away_until = self._away_until
        if time.monotonic() < away_until:
            raise KeyValueStoreError("The key-value store timed out a moment ago, and was not asked again.")
        if away_until:
            # This call tries. Not for ever: a fork may leave the thread behind that does.
            self._away_until = time.monotonic() + _TRYING


class Nodes(Protocol):
    """All servers of a store."""

    take_many: bool
    """Whether a command may name keys of any slot."""

    def every(self) -> Sequence[Node]:
        """Return all of them. Raises KeyValueStoreError where they cannot be known."""
        ...

    def of(self, key: str) -> Node | None:
        """Return the one that has the key; None where none has it. Raises KeyValueStoreError as above."""
        ...

    def near(self, key: str, other: str) -> bool:
        """Whether a step may touch both keys at once."""
        ...

    def share(self, work: Sequence[Task]) -> dict[Node | None, Sequence[Task]]:
        """Return which server is to do what; under None what none can do. Leases that cannot be are left out.

        Raises KeyValueStoreError as above.
        """
        ...

    def key_on(self, node: Node, name: str) -> str:
        """Return a key for the server's own affairs, which lies on it."""
        ...

    def failed(self, node: Node) -> None:
        """Hear that a server did not answer."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...

    def follow(self, command: Command) -> Any:
        """Send a command whose key has moved to another server; return its reply, or the exception."""
        ...


class OneNode:
    """A server that has all keys."""

    take_many = True

    def __init__(self, client: Any) -> None:
        self._node = Node("", client)

    def every(self) -> Sequence[Node]:
        """Fulfil `Nodes.every`."""
        return [self._node]

    def of(self, key: str) -> Node:  # noqa: ARG002
        """Fulfil `Nodes.of`."""
        return self._node

    def near(self, key: str, other: str) -> bool:  # noqa: ARG002
        """Fulfil `Nodes.near`."""
        return True

    def share(self, work: Sequence[Task]) -> dict[Node | None, Sequence[Task]]:
        """Fulfil `Nodes.share`."""
        return {self._node: work}

    def key_on(self, node: Node, name: str) -> str:  # noqa: ARG002
        """Fulfil `Nodes.key_on`."""
        return name

    def failed(self, node: Node) -> None:
        """Fulfil `Nodes.failed`: redis-py connects anew."""

    def close(self) -> None:
        """Fulfil `Nodes.close`."""
        self._node.client.close()

    def follow(self, command: Command) -> Any:  # noqa: ARG002
        """Fulfil `Nodes.follow`: nobody has told where to."""
        return redis.ResponseError("MOVED")


class ClusterNodes:
    """The primaries of a cluster, as redis-py finds them at first use, and again after one has failed."""

    take_many = False

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._cluster: Any = None  # a redis.RedisCluster, of which little is typed
        self._known: dict[str, Node] = {}
        self._failed: dict[str, float] = {}  # name → when to look who has taken its place

    def every(self) -> Sequence[Node]:
        """Fulfil `Nodes.every`."""
        with _finding():
            cluster = self._current()
            return [self._node(cluster, found) for found in cluster.get_primaries()]

    def of(self, key: str) -> Node | None:
        """Fulfil `Nodes.of`."""
        with _finding():
            cluster = self._current()
            slots = cluster.nodes_manager.slots_cache.get(cluster.keyslot(key))
            return self._node(cluster, slots[0]) if slots else None

    def near(self, key: str, other: str) -> bool:
        """Fulfil `Nodes.near`."""
        with _finding():
            cluster = self._current()
            return bool(cluster.keyslot(key) == cluster.keyslot(other))

    def share(self, work: Sequence[Task]) -> dict[Node | None, Sequence[Task]]:
        """Fulfil `Nodes.share`."""
        shares: dict[Node | None, list[Task]] = {}
        for key, command in work:
            if command[1] == key or self.near(key, command[1]):
                shares.setdefault(self.of(key), []).append((key, command))
        return dict(shares)

    def key_on(self, node: Node, name: str) -> str:
        """Fulfil `Nodes.key_on`: it names the node, for it moves on with its slot."""
        with _finding():
            cluster = self._current()
            slots = cluster.nodes_manager.slots_cache
            for tag in range(1_000_000):
                owners = slots.get(cluster.keyslot(f"{tag}"))
                if owners and owners[0].name == node.name:
                    return f"{name}:{node.name}:{{{tag}}}"
        raise KeyValueStoreError("A node of the cluster has no slots.")

    def failed(self, node: Node) -> None:
        """Fulfil `Nodes.failed`."""
        self._failed.setdefault(node.name, time.monotonic() + _PAUSE)

    def close(self) -> None:
        """Fulfil `Nodes.close`."""
        if self._cluster is not None:
            self._cluster.close()

    def follow(self, command: Command) -> Any:
        """Fulfil `Nodes.follow`."""
        try:
            return self._current().execute_command(*command)
        except Exception as error:  # as in `Node.send`
            return error

    def _current(self) -> Any:
        cluster = self._cluster
        if cluster is None:
            cluster = self._cluster = self._connect()
        now = time.monotonic()
        if any(due <= now for due in tuple(self._failed.values())):
            failed, self._failed = self._failed, {}
            self._look_again(cluster, failed)
        return cluster

    def _look_again(self, cluster: Any, failed: Collection[str]) -> None:
        """Let redis-py ask who is a primary now; not those that have failed, or it waits for them, too."""
        manager = cluster.nodes_manager
        known = dict(manager.startup_nodes)
        manager.startup_nodes = {name: node for name, node in known.items() if name not in failed} or known
        try:
            manager.initialize()
        except Exception:
            manager.startup_nodes = known
            raise

    def _node(self, cluster: Any, found: Any) -> Node:
        client = cluster.get_redis_connection(found)
        node = self._known.get(found.name)
        if node is None:
            node = self._known.setdefault(found.name, Node(found.name, client, tries=2))
        node.client = client
        return node


@contextmanager
def _finding() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise KeyValueStoreError from told(error)


# By these a server tells of its own state, not of a key.
_OF_THE_WHOLE = (redis.ConnectionError, redis.ReadOnlyError, redis.exceptions.ClusterDownError)
_OF_THE_WHOLE_BY_CODE = {"MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN"}


def _is_of_the_whole(error: Exception) -> bool:
    return isinstance(error, _OF_THE_WHOLE) or _code(error) in _OF_THE_WHOLE_BY_CODE


def _code(error: Exception) -> str:
    """Return the server's own word for an error, such as OOM; empty where redis-py has cut it off."""
    code = str(error).rpartition(" caused error: ")[2].partition(" ")[0]
    return code if code.isalpha() and code.isupper() else ""


def has_moved(reply: Exception) -> bool:
    """Whether a node of a cluster has answered that another has the key; redis-py 5 has no class for it."""
    return isinstance(reply, redis.exceptions.AskError) or (
        isinstance(reply, redis.ResponseError) and f"{reply}".startswith(("MOVED ", "ASK "))
    )


def told(error: Exception) -> ForeignError:
    """Tell an error by its text only where that is about the connection: redis-py quotes the command else."""
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        return ForeignError.told(error, error)
    return ForeignError.told(error, _code(error))
