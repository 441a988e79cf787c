"""Throwaway stores that write to the disk as they would in production."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from tests import servers

# The tests switch fsync off. The last of two options counts. Nothing of the database's own accord comes in
# between: no vacuum, which is done before each phase, and no checkpoint.
_POSTGRESQL = (
    *("-c", "fsync=on", "-c", "autovacuum=off"),
    *("-c", "checkpoint_timeout=1h", "-c", "max_wal_size=8GB"),
)
_MARIADB = ("--innodb-flush-method=fsync", "--innodb-log-file-size=512M")


class NotDurableError(Exception):
    """The database would acknowledge what it has not written: its figures would mean nothing."""


@dataclass(frozen=True)
class Stores:
    """A database server, or none for SQLite, and a Redis; ours alone."""

    kind: str
    database: servers.Server | None
    redis: servers.Server
    folder: Path
    version: str
    redis_version: str

    def database_url(self, name: str) -> sa.URL:
        """Return the address of a database of that name, new ones among them."""
        if self.database is None:
            return sa.URL.create("sqlite", database=f"{self.folder / name}.db")
        return make_url(self.database.url).set(database=name)

    def create_database(self, name: str) -> sa.URL:
        """Make a database; return its address."""
        if self.database is not None:
            engine = sa.create_engine(self.database.url, isolation_level="AUTOCOMMIT")
            with closing_engine(engine), engine.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            return self.database_url(name)
        engine = sa.create_engine(url := self.database_url(name))
        with closing_engine(engine), engine.connect() as connection:
            # As a service has it: readers and a writer side by side. The file keeps it.
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        return url


@contextmanager
def closing_engine(engine: sa.Engine) -> Iterator[sa.Engine]:
    """Give the connections back at the end."""
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def started(kind: str, *options: str) -> Iterator[Stores]:
    """Start the stores, and stop them at the end. Raises servers.ServerUnavailableError, NotDurableError.

    `options` are PostgreSQL's, after ours.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        with _nobodys():
            kv = _key_value()
            stack.callback(kv.stop)
            database = _START[kind](options)
            if database is not None:
                stack.callback(database.stop)
        yield _stores(kind, database, kv, folder)


_START: Mapping[str, Callable[[Sequence[str]], servers.Server | None]] = {
    "postgresql": lambda options: servers.postgresql((*_POSTGRESQL, *options)),
    "mariadb": lambda _: servers.mariadb(_MARIADB),
    "sqlite": lambda _: None,
}


@contextmanager
def _nobodys() -> Iterator[None]:
    """Hide the servers that the environment names: one that is somebody's is no throwaway."""
    hidden = [name for name in os.environ if name.startswith("TEST_") and name.endswith("_URL")]
    urls = {name: os.environ.pop(name) for name in hidden}
    try:
        yield
    finally:
        os.environ.update(urls)


def _key_value() -> servers.Server:
    try:
        return servers.redis()
    except servers.ServerUnavailableError:
        return servers.valkey()


def _stores(kind: str, database: servers.Server | None, kv: servers.Server, folder: Path) -> Stores:
    with closing(redis.Redis.from_url(kv.url, decode_responses=True)) as client:
        told = client.info("server")
    redis_version = f"{told.get('server_name', 'redis')} {told.get('valkey_version', told['redis_version'])}"
    version = _durable(kind, database.url if database else "sqlite://")
    return Stores(kind, database, kv, folder, version, redis_version)


def _durable(kind: str, url: str) -> str:
    """Return the version of a database; raises NotDurableError where it does not wait for the disk."""
    queries = {
        "postgresql": ("SHOW server_version", {"SHOW fsync": "on", "SHOW synchronous_commit": "on"}),
        "mariadb": (
            "SELECT version()",
            {
                "SELECT @@innodb_flush_method": "fsync",
                "SELECT @@innodb_flush_log_at_trx_commit": "1",
            },
        ),
        "sqlite": ("SELECT sqlite_version()", {"PRAGMA synchronous": "2"}),
    }
    version, wanted = queries[kind]
    engine = sa.create_engine(url)
    with closing_engine(engine), engine.connect() as connection:
        for query, value in wanted.items():
            if (found := str(connection.exec_driver_sql(query).scalar())) != value:
                raise NotDurableError(f"{query} gives {found}, not {value}.")
        # What a distribution adds tells nothing.
        return str(connection.exec_driver_sql(version).scalar()).split()[0].partition("-")[0]
