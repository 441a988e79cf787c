"""The entries in Redis or Valkey."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import iscoroutinefunction
from itertools import compress, repeat

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...entries import Value
from ...errors import ConfigurationError, EntriesRefusedError, KeyValueStoreError
from ...leases import get_or_fill, lease_of
from ...model import Finding, Mark
from .check import findings
from .leases import RedisLeases
from .nodes import ClusterNodes, Command, Node, Nodes, OneNode, Task, has_moved, told
from .reading import read, scan
from .runs import RedisRun, read_mark

_MANY = ""  # stands for all that is removed at once; an entry of that name would only be done twice
# One command, for redis-py takes its time for each; and as by one it is told which were there.
_UNLINK = """
local there = {}
for i, key in ipairs(KEYS) do there[i] = redis.call('UNLINK', key) end
return table.concat(there)
"""


class RedisStore:
    """Entries in Redis 6 or later, or in Valkey: one server, a primary that Sentinel names, or a cluster.

    After a time-out, calls of this process fail at once for a second; then one tries the server again, and
    until it has an answer the others still fail. Of a cluster, this goes for the node that is away: the
    clients on the others are served.
    """

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        if not hasattr(client, "pipeline") or iscoroutinefunction(getattr(client, "execute_command", None)):
            raise ConfigurationError(
                "RedisStore takes a client of redis-py, and none of redis.asyncio; for a URL use "
                "RedisStore.from_url."
            )
        # Not by its class: it may be an extension's object that stands for a client, as Flask-Redis has one.
        of_cluster = hasattr(client, "get_primaries")
        self._nodes: Nodes = ClusterNodes(lambda: client) if of_cluster else OneNode(client)

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 1.0, cluster: bool = False) -> "RedisStore":
        """Connect to a redis://, rediss:// or unix:// URL when first used; `timeout` is in seconds.

        With `cluster` the URL is that of any node of a Redis Cluster, which tells of the others.
        A connection the server has closed is replaced once at once. A time-out is not tried again:
        the record stays pending, and the caller has its answer.
        Raises ConfigurationError for a URL that cannot be read.
        """
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        try:
            # Every default of redis-py is another: ten tries here, none there.
            retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
            store = cls(redis.Redis.from_url(url, retry=retry, **options))
        except ValueError:
            # Its text may hold a part of the password, so it is no cause to show.
            raise ConfigurationError(
                "The Redis URL cannot be read: write redis://:PASSWORD@HOST:6379/0, and in the password "
                "%23 for '#', %2F for '/', %40 for '@' and %25 for '%'."
            ) from None
        if cluster:
            retry = Retry(NoBackoff(), 1)
            store._nodes = ClusterNodes(
                # Living nodes serve their keys also where others are away.
                lambda: redis.RedisCluster.from_url(url, require_full_coverage=False, retry=retry, **options)
            )
        return store

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # a URL may hold a password

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`."""
        return self._apply(remove, overwrite, {})

    def fetch(self, key: str, load: Callable[[], Value | None], *, expire: float) -> bytes | None:
        """Return the entry's value, or else what `load` returns, kept as the entry for `expire` seconds.

        It can never put a deleted client back: a fill is refused where the entry was changed, or removed,
        since the reading began. `load` returning None makes no entry. The value is returned also where the
        entry could not be made, or the store is away.

        `load` must see what is committed when it is called. An object that a session has loaded before does
        not (`populate_existing=True`), nor does a transaction that has read before at REPEATABLE READ, the
        default of MariaDB: end it first. A replica of the database that lags is no place to load from.
        On a cluster, a key with a `}` and no hash tag, such as `a}b`, is loaded and never kept: its lease
        would lie on another node.
        """
        return get_or_fill(RedisLeases(self._nodes), key, load, expire)

    def close(self) -> None:
        """Close the connections; a later call opens others."""
        self._nodes.close()

    def read_mark(self, name: str) -> Mark | None:
        """Fulfil `ports.RememberingStore.read_mark`."""
        return read_mark(self._nodes, name)

    def read(self, keys: Collection[str]) -> dict[str, bytes | None]:
        """Fulfil `ports.ReadableStore.read`."""
        return read(self._nodes, keys)

    def scan(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Fulfil `ports.ScannableStore.scan`."""
        return scan(self._nodes, texts)

    def check_store(self, name: str) -> Iterator[Finding]:
        """Fulfil `ports.CheckedStore.check_store`."""
        return findings(self._nodes, name)

    def open_run(self, name: str) -> RedisRun:
        """Fulfil `ports.RememberingStore.open_run`."""
        return RedisRun(self._nodes, name, self._apply)

    def _apply(
        self, remove: Collection[str], overwrite: Mapping[str, Value], seals: Mapping[Node, Command]
    ) -> set[str]:
        """Do the work, each server's in one pipeline, which ends with the server's seal if it has one."""
        # A lease goes before its entry: in the other order a reader could fill the entry in between.
        keys = [*remove, *overwrite]
        gone = [*map(lease_of, keys), *remove]
        sets: list[Task] = [(key, ("SET", key, value, "XX", "KEEPTTL")) for key, value in overwrite.items()]
        first = frozenset[str]()
        if len(gone) > 2 and self._nodes.take_many:
            at_once: Task = (_MANY, ("EVAL", _UNLINK, len(gone), *gone))
            try:
                return self._work([at_once, *sets], remove, seals)
            except EntriesRefusedError as error:
                if _MANY not in error.keys:
                    raise
                # Of which one it would not is not told. What was done is only done once more.
                first = error.removed
        # Not DEL, which holds the server up while it frees a large set.
        unlink = zip(repeat("UNLINK"), gone)
        one_by_one: list[Task] = [*zip([*keys, *remove], unlink, strict=True)]
        try:
            return self._work([*one_by_one, *sets], remove, seals) | first
        except EntriesRefusedError as error:
            error.removed |= first
            raise

    def _work(self, work: Sequence[Task], remove: Collection[str], seals: Mapping[Node, Command]) -> set[str]:
        shares = dict.fromkeys(seals, ()) | self._nodes.share(work)
        removed: set[str] = set()
        refused: set[str] = set()
        away: list[KeyValueStoreError] = []
        why: BaseException | None = None
        for node, tasks in shares.items():
            try:
                if node is None:
                    raise KeyValueStoreError("No node of the cluster has the slots of these keys.")
                replies = node.send(tasks, seals.get(node))
            except KeyValueStoreError as error:
                if node is not None:
                    self._nodes.failed(node)
                away.append(error)
                why = error.__cause__ or error
                refused.update(key for key, _ in tasks)
                continue
            for (key, command), answer in zip(tasks, replies, strict=True):
                reply = answer
                if isinstance(reply, Exception) and has_moved(reply):
                    reply = self._nodes.follow(command)
                if isinstance(reply, Exception):
                    refused.add(key)
                    why = told(reply)
                elif command[0] == "EVAL":
                    there = reply if isinstance(reply, str) else reply.decode()
                    removed.update(compress(command[3:], map(int, there)))
                elif reply and command[0] == "UNLINK":
                    removed.add(command[1])
        removed.intersection_update(remove)  # without the leases
        if away and len(away) >= len(self._nodes.every()):
            raise away[0]
        if refused:
            raise EntriesRefusedError(keys=refused, removed=removed) from why
        return removed
