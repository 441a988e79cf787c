"""Whether the servers do for us what a reconcile and a reader need, and what they keep."""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from ...model import Finding
from .nodes import Command, Node, Nodes, told

_OLDEST = (6,)
_SECONDS = 60
# What the scripts of a reconcile and of a reader do.
_SCRIPT = """
redis.call('SET', KEYS[1], redis.call('GET', KEYS[1]) or '', 'EX', ARGV[1])
return redis.call('DEL', KEYS[1])
"""


def findings(nodes: Nodes, name: str) -> Iterator[Finding]:
    """Yield what is wrong with each server; raises KeyValueStoreError where one is away."""
    for node in nodes.every():
        subject = f"key-value store {node.name}".rstrip()
        key = nodes.key_on(node, f"{name}:check:{secrets.token_hex(8)}")
        (of_server,) = node.send([("", ("INFO",))])
        may_ask = isinstance(of_server, Mapping)
        if may_ask and nodes.take_many and of_server.get("redis_mode") == "cluster":
            problem = "It is a node of a cluster, and has a part of the entries alone."
            yield Finding(subject, problem, "Make the store by RedisStore.from_url(url, cluster=True).")
            continue
        yield from _of_rights(node, key, subject)
        if may_ask:
            yield from _of_server(node, of_server, subject)


def _of_rights(node: Node, key: str, subject: str) -> Iterator[Finding]:
    commands: list[Command] = [
        ("SET", key, "", "EX", _SECONDS),
        ("GET", key),
        ("EVAL", _SCRIPT, 1, key, _SECONDS),
        ("UNLINK", key),
    ]
    for command, reply in zip(commands, node.send([(key, command) for command in commands]), strict=True):
        if isinstance(reply, Exception):
            problem = f"It refuses {command[0]} on our own keys ({told(reply)})."
            yield Finding(subject, problem, "Let its user do that on mythic:*.")


def _of_server(node: Node, of_server: Mapping[str, Any], subject: str) -> Iterator[Finding]:
    version = f"{of_server.get('redis_version', '')}"
    numbers = tuple(int(number) for number in version.split(".") if number.isdecimal())
    if numbers and numbers < _OLDEST:
        yield Finding(subject, f"Its version is {version}.", "Use Redis 6 or later, or Valkey.")
    policy = of_server.get("maxmemory_policy", "noeviction")
    if of_server.get("maxmemory") and policy != "noeviction":
        problem = (
            f"Its maxmemory-policy is {policy}: without memory it drops what a reconcile leaves there, and "
            "the next one does all again, as far back as the ledger has keys."
        )
        fix = "Give it memory enough; or noeviction, where your own writes may fail."
        yield Finding(subject, problem, fix, breaks=False)
    (saves,) = node.send([("", ("CONFIG", "GET", "save"))])
    if of_server.get("aof_enabled") == 0 and isinstance(saves, Mapping) and not saves.get("save"):
        problem = "It keeps nothing on disk: after a restart the next reconcile does all again."
        yield Finding(subject, problem, "Switch appendonly on, if that takes too long.", breaks=False)
