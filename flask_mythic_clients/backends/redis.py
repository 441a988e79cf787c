"""Redis or Valkey as the key-value store. The only module that imports redis."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..entries import Value
from ..errors import ConfigurationError, EntriesRefusedError, ForeignError, KeyValueStoreError

# Seconds for which a server that timed out is left alone. Whoever waits for it holds a connection of the
# database and the locks on a client, on SQLite on everybody: in an outage the waits would add up.
_PAUSE = 1.0


class RedisStore:
    """Entries in Redis 6 or later, or in Valkey.

    After a time-out, calls of this process fail at once for a second; then one tries the server again, and
    until it has an answer the others still fail. Not so for a cluster, of which one node may be away.
    """

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        if not hasattr(client, "pipeline") or iscoroutinefunction(getattr(client, "execute_command", None)):
            raise ConfigurationError(
                "RedisStore takes a client of redis-py, and none of redis.asyncio; for a URL use "
                "RedisStore.from_url."
            )
        self._client = client
        self._away_until = 0.0  # on the monotonic clock

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 1.0) -> "RedisStore":
        """Connect to a redis://, rediss:// or unix:// URL when first used; `timeout` is in seconds.

        A connection the server has closed is replaced once at once. A time-out is not tried again:
        the record stays pending, and the caller has its answer.
        Raises ConfigurationError for a URL that cannot be read.
        """
        try:
            client = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # Every default of redis-py is another: ten tries here, none there.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError:
            # Its text may hold a part of the password, so it is no cause to show.
            raise ConfigurationError(
                "The Redis URL cannot be read: write redis://:PASSWORD@HOST:6379/0, and in the password "
                "%23 for '#', %2F for '/', %40 for '@' and %25 for '%'."
            ) from None
        return cls(client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # a URL may hold a password

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, Value]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`."""
        self._check_pause()
        away_until = 0.0
        commands: list[_Command] = []
        for key in remove:
            commands.append(("UNLINK", key))  # not DEL, which holds the server up while it frees a large set
        for key, value in overwrite.items():
            commands.append(("SET", key, value, "XX", "KEEPTTL"))
        try:
            replies = self._send(commands)
        except UnicodeError:
            raise redis.DataError("A key or a value has characters that cannot be encoded.") from None
        except redis.DataError:
            raise  # a value that cannot be sent: the host's mistake, not an outage
        except Exception as error:  # a peer that is no Redis makes redis-py raise whatever it stumbles over
            if isinstance(error, redis.TimeoutError) and isinstance(self._client, redis.Redis):
                away_until = time.monotonic() + _PAUSE
            raise KeyValueStoreError from _told(error)
        finally:
            self._away_until = away_until
        removed, refused, why = set(), [], None
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                refused.append(command[1])
                why = reply
            elif reply and command[0] == "UNLINK":
                removed.add(command[1])
        if why is not None:
            raise EntriesRefusedError(keys=refused, removed=removed) from _told(why)
        return removed

    def _send(self, commands: Sequence["_Command"]) -> list[Any]:
        """Send the commands at once; return their replies, an exception for each that was refused.

        Raises what redis-py raises where the server, or all of it, cannot do its work.
        """
        # No MULTI: the work is idempotent, and the keys may live on several nodes of a cluster.
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            replies = pipeline.execute(raise_on_error=False)
        except redis.ConnectionError as error:
            if not isinstance(self._client, redis.Redis):
                raise  # a node of a cluster is away
            # A server also closes the connection at a value that is too large, and does none of the rest.
            self._client.ping()
            if len(commands) == 1:
                return [error]
            half = len(commands) // 2
            return self._send(commands[:half]) + self._send(commands[half:])
        for reply in replies:
            if isinstance(reply, Exception) and _is_of_the_whole(reply):
                raise reply
        return list(replies)

    def _check_pause(self) -> None:
        away_until = self._away_until
        if time.monotonic() < away_until:
            raise KeyValueStoreError("The key-value store timed out a moment ago, and was not asked again.")
        if away_until:
            self._away_until = math.inf  # this call tries


_Command: TypeAlias = tuple[Any, ...]  # its name, the key, and more

# By these a server tells of its own state, not of a key.
_OF_THE_WHOLE = (redis.ConnectionError, redis.ReadOnlyError, redis.exceptions.ClusterDownError)
_OF_THE_WHOLE_BY_CODE = {"MISCONF", "NOREPLICAS", "BUSY", "TRYAGAIN"}


def _is_of_the_whole(error: Exception) -> bool:
    return isinstance(error, _OF_THE_WHOLE) or _code(error) in _OF_THE_WHOLE_BY_CODE


def _code(error: Exception) -> str:
    """Return the server's own word for an error, such as OOM; empty where redis-py has cut it off."""
    code = str(error).rpartition(" caused error: ")[2].partition(" ")[0]
    return code if code.isalpha() and code.isupper() else ""


def _told(error: Exception) -> ForeignError:
    """Tell an error by its text only where that is about the connection: redis-py quotes the command else."""
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        return ForeignError.told(error, error)
    return ForeignError.told(error, _code(error))
