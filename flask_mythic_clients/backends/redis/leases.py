"""The leases of readers in Redis or Valkey."""

import secrets
from typing import Any

from ...entries import Value
from ...errors import EntriesRefusedError, KeyValueStoreError
from ...leases import LEASE_SECONDS, lease_of
from .nodes import Command, Nodes, has_moved, told

# NX: whoever has made the entry meanwhile has read later.
_FILL = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] == '0' then return 0 end
if redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2], 'NX') then return 1 end
return 0
"""


class RedisLeases:
    """Fulfils `leases.Leases`."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def find(self, key: str) -> bytes | None:
        """Fulfil `Leases.find`."""
        value = self._ask(key, ("GET", key))
        return value.encode() if isinstance(value, str) else value

    def lease(self, key: str) -> str | None:
        """Fulfil `Leases.lease`."""
        if not self._nodes.near(key, lease_of(key)):
            return None
        token = secrets.token_hex(8)
        left = self._ask(key, ("SET", lease_of(key), token, "NX", "PX", LEASE_SECONDS * 1000))
        return token if left else None

    def fill(self, key: str, token: str, value: Value | None, expire: float) -> None:
        """Fulfil `Leases.fill`."""
        life = 0 if value is None else max(1, round(expire * 1000))
        self._ask(key, ("EVAL", _FILL, 2, lease_of(key), key, token, life, "" if value is None else value))

    def _ask(self, key: str, command: Command) -> Any:
        node = self._nodes.of(key)
        if node is None:
            raise KeyValueStoreError
        try:
            (reply,) = node.send([(key, command)])
        except KeyValueStoreError:
            self._nodes.failed(node)
            raise
        if isinstance(reply, Exception) and has_moved(reply):
            reply = self._nodes.follow(command)
        if isinstance(reply, Exception):
            raise EntriesRefusedError(keys=[key]) from told(reply)
        return reply
