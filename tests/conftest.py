"""The stores the tests run on: every database and every key-value store, real and throwaway."""

import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click.testing
import pytest
import redis
import sqlalchemy as sa

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore

from .hosts import KeyValue
from .servers import START, Server, ServerUnavailableError

pytest_plugins = ["pytester"]

if "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters:
    # Before 8.2 click's runner mixed stderr into stdout unless told otherwise.
    click.testing.CliRunner.__init__ = functools.partialmethod(
        click.testing.CliRunner.__init__, mix_stderr=False
    )

FindServer = Callable[[str], Server]
Running = Callable[[AbstractContextManager[Any]], AbstractContextManager[Any]]
_T = TypeVar("_T")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the command line size a campaign, and ask for pictures."""
    parser.addoption("--size", type=int, help="how large a campaign is; each has a small default of its own")
    parser.addoption("--quick", action="store_true", help="on SQLite and in memory alone: start no server")
    parser.addoption("--pictures", help="the folder in which pictures of the console are kept")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of a quick run what is known to need a server."""
    if not config.getoption("--quick"):
        return
    left_out = [item for item in items if _needs_a_server(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish() -> None:
    """Keep thousands of tests out of the garbage collector's sight: it would look through them each time."""
    gc.collect()
    gc.freeze()


def _needs_a_server(item: pytest.Item) -> bool:
    parameters = item.name.partition("[")[2]
    return item.get_closest_marker("server") is not None or any(name in parameters for name in START)


@pytest.fixture(scope="session")
def find_server(pytestconfig: pytest.Config) -> Iterator[FindServer]:
    """Start a server when a test first asks for it.

    Where there is none, skip with the reason; under REQUIRE_SERVICES fail. A quick run has none.
    """
    quick = pytestconfig.getoption("--quick")
    started: dict[str, Server | ServerUnavailableError] = {}

    def find(name: str) -> Server:
        if quick:
            pytest.skip(f"A quick run starts no {name}.")
        if name not in started:
            try:
                started[name] = START[name]()
            except ServerUnavailableError as error:
                started[name] = error
        found = started[name]
        if isinstance(found, Server):
            return found
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(f"REQUIRE_SERVICES is set, and: {found}")
        pytest.skip(f"{found}")

    yield find
    for server in started.values():
        if isinstance(server, Server):
            server.stop()


@pytest.fixture(scope="session")
def running(pytestconfig: pytest.Config) -> Running:
    """Run servers of a test's own, given as a context, and end them; where they are missing, as above."""

    @contextmanager
    def run(servers: AbstractContextManager[_T]) -> Iterator[_T]:
        if pytestconfig.getoption("--quick"):
            pytest.skip("A quick run starts no server.")
        try:
            with servers as started:
                yield started
        except ServerUnavailableError as error:
            if os.environ.get("REQUIRE_SERVICES"):
                pytest.fail(f"REQUIRE_SERVICES is set, and: {error}")
            pytest.skip(f"{error}")

    return run


@pytest.fixture
def empty_database(find_server: FindServer, tmp_path: Path) -> Callable[[str], str]:
    """Return the URL of an empty database of a kind: sqlite, postgresql or mariadb."""

    def empty(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'test.db'}"
        url = find_server(kind).url
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            for statement in _EMPTY[kind]:
                connection.execute(sa.text(statement))
        return url

    return empty


_EMPTY = {
    "postgresql": ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"],
    "mariadb": ["DROP DATABASE test", "CREATE DATABASE test CHARACTER SET utf8mb4"],
}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest, empty_database: Callable[[str], str]) -> str:
    """An empty database of each kind."""
    return empty_database(request.param)


@pytest.fixture
def empty_kv(find_server: FindServer, pytestconfig: pytest.Config) -> Iterator[Callable[[str], KeyValue]]:
    """Return an empty key-value store of a kind: memory, redis, valkey, or either of the two servers.

    In a quick run memory stands in for either of them.
    """
    opened: list[Any] = []

    def empty(kind: str) -> KeyValue:
        if kind == "memory" or (kind == "either" and pytestconfig.getoption("--quick")):
            store = MemoryStore()
            return KeyValue(store, store, None)
        try:
            url = find_server("redis" if kind == "either" else kind).url
        except pytest.skip.Exception:
            if kind != "either":
                raise
            url = find_server("valkey").url
        raw = redis.Redis.from_url(url, decode_responses=True)
        store = RedisStore.from_url(url)
        opened.extend((raw, store))
        raw.flushdb()
        return KeyValue(store, raw, url)

    yield empty
    for client in opened:
        client.close()


@pytest.fixture(params=["memory", "redis", "valkey"])
def kv(request: pytest.FixtureRequest, empty_kv: Callable[[str], KeyValue]) -> KeyValue:
    """An empty key-value store of each kind."""
    return empty_kv(request.param)
