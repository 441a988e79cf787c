"""The entries of Redis or Valkey, to look at."""

from collections.abc import Collection

import redis

from ...errors import EntriesRefusedError, KeyValueStoreError
from .nodes import Nodes, has_moved, told


def read(nodes: Nodes, keys: Collection[str]) -> dict[str, bytes | None]:
    """Fulfil `ports.ReadableStore.read`."""
    found: dict[str, bytes | None] = {}
    for node, tasks in nodes.share([(key, ("GET", key)) for key in keys]).items():
        if node is None:
            raise KeyValueStoreError("No node of the cluster has the slots of these keys.")
        try:
            replies = node.send(tasks)
        except KeyValueStoreError:
            nodes.failed(node)
            raise
        for (key, command), answer in zip(tasks, replies, strict=True):
            reply = answer
            if isinstance(reply, Exception) and has_moved(reply):
                reply = nodes.follow(command)
            if isinstance(reply, redis.ResponseError) and f"{reply}".startswith("WRONGTYPE"):
                found[key] = None
            elif isinstance(reply, Exception):
                raise EntriesRefusedError(keys=[key]) from told(reply)
            elif reply is not None:
                found[key] = reply.encode() if isinstance(reply, str) else reply
    return found
