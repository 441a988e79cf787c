"""The entries of Redis or Valkey, to look at."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

import redis

from ...errors import EntriesRefusedError, KeyValueStoreError
from .nodes import Nodes, has_moved, told


def read(nodes: Nodes, keys: Collection[str]) -> dict[str, bytes | None]:
    """Fulfil `ports.ReadableStore.read`."""
    if nodes.take_many and len(keys) > 1 and (at_once := _at_once(nodes, list(keys))) is not None:
        return at_once
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


def _at_once(nodes: Nodes, keys: list[str]) -> dict[str, bytes | None] | None:
    """Read by one command; None where that does not tell all, as of one that is no text, or is refused."""
    (node,) = nodes.every()
    (values,) = node.send([("", ("MGET", *keys))])
    if isinstance(values, Exception):
        return None
    lacking = [key for key, value in zip(keys, values, strict=True) if value is None]
    if lacking and node.send([("", ("EXISTS", *lacking))]) != [0]:
        return None
    read = zip(keys, values, strict=True)
    return {
        key: value.encode() if isinstance(value, str) else value for key, value in read if value is not None
    }


def scan(nodes: Nodes, texts: Sequence[str]) -> Iterator[list[str]]:
    """Fulfil `ports.ScannableStore.scan`, one server after the other."""
    pattern = "*".join(_SPECIAL.sub(r"\\\g<0>", text) for text in texts)
    for node in nodes.every():
        cursor = 0
        while True:
            try:
                (reply,) = node.send([("", ("SCAN", cursor, "MATCH", pattern, "COUNT", _AT_ONCE))])
            except KeyValueStoreError:
                nodes.failed(node)
                raise
            if isinstance(reply, Exception):
                raise KeyValueStoreError("The key-value store refuses to be walked through.") from told(reply)
            cursor, found = reply
            yield [*_texts(found)]
            if not int(cursor):
                break


_SPECIAL = re.compile(r"[*?\[\]\\^-]")
_AT_ONCE = 5000


def _texts(keys: Collection[str | bytes]) -> Iterator[str]:
    for key in keys:
        with suppress(UnicodeDecodeError):  # no template makes such a key
            yield key if isinstance(key, str) else key.decode()
