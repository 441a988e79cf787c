"""PgBouncer in transaction mode, the real one: each transaction may have another connection to the server."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flask_mythic_clients.backends.memory import MemoryStore
from tests.hosts import Host, mounting

SETTINGS = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
logfile = {folder}/log
"""
IDS = [f"c{number}" for number in range(40)]


@pytest.fixture
def program() -> str:
    """The program, where it is installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed; Debian has a package of that name.")
    return program


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is another user's, too: as root the program refuses to run."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture
def pooled(program: str, empty_database: Callable[[str], str], folder: Path) -> Iterator[sa.URL]:
    """The URL of an empty database behind a pooler that is started for the test."""
    url = sa.make_url(empty_database("postgresql"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = SETTINGS.format(host=url.host, port=url.port, user=url.username, own_port=port, folder=folder)
    path = folder / "pgbouncer.ini"
    path.write_text(settings)
    command = [program, "--quiet", str(path)]
    if os.getuid() == 0:
        command[1:1] = ["--user", "nobody"]
    with subprocess.Popen(command) as process:
        try:
            _wait_for(port, process)
            yield url.set(host="127.0.0.1", port=port)
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(100):
        assert process.poll() is None, "pgbouncer ended while starting"
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("pgbouncer does not listen")


def _statuses(pooled: sa.URL, connect_args: dict[str, Any]) -> list[int]:
    """Delete and remove clients, four at a time, through all that their connections remember."""
    config = {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": connect_args}}
    with mounting(pooled.render_as_string(hide_password=False), MemoryStore()) as mount:
        host: Host = mount(config=config)
        with host.flask.app_context(), host.db.engine.begin() as connection:
            rows = [{"id": id, "name": "", "status": True} for id in IDS]
            connection.execute(sa.insert(host.model.__table__), rows)
        with ThreadPoolExecutor(4) as threads:
            return [
                answer.status_code
                for query in ("", "?hard=true")
                for answer in threads.map(host.delete, [f"{id}{query}" for id in IDS])
            ]


def _problems(pooled: sa.URL, connect_args: dict[str, Any]) -> str:
    config = {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": connect_args}}
    with mounting(pooled.render_as_string(hide_password=False), MemoryStore()) as mount:
        host: Host = mount(config=config)
        with host.flask.app_context():
            return " ".join(finding.problem for finding in host.clients.service.check())


def test_check_tells_of_it_only_where_prepared_statements_break(program: str, pooled: sa.URL) -> None:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    keeps_track = tuple(map(int, re.findall(r"\d+", told)[:2])) >= (1, 21)
    assert ("pooler" in _problems(pooled, {})) is not keeps_track
    assert "pooler" not in _problems(pooled, {"prepare_threshold": None})


def test_clients_are_deleted_through_it_without_prepared_statements(pooled: sa.URL) -> None:
    assert _statuses(pooled, {"prepare_threshold": None}) == [200] * 2 * len(IDS)


def test_with_prepared_statements_requests_fail_as_the_readme_says(program: str, pooled: sa.URL) -> None:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, re.findall(r"\d+", told)[:2])) >= (1, 21):
        pytest.skip("It keeps track of prepared statements since 1.21.")
    assert 503 in _statuses(pooled, {"prepare_threshold": 0})
