"""What was answered 200 is on the disk, also where the host's own commits do not wait for it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients.backends.memory import MemoryStore
from tests.hosts import client_model, mounting
from tests.servers import Server, postgresql

PROCESSES = Path("/proc")


def _listened(*events: str) -> dict[str, Any]:
    """Make a model with listeners, for which a statement is not enough, and its database."""
    db = SQLAlchemy()
    model = client_model(db)
    for event in events:
        sa.event.listen(model, event, lambda *_: None)
    return {"db": db, "model": model}


def _run(url: str, *statements: str) -> Any:
    """Run statements, each committed at once, independently of the host; return what the last one found."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        results = [connection.exec_driver_sql(statement) for statement in statements]
        return results[-1].scalar() if results[-1].returns_rows else None


@pytest.fixture(scope="module")
def forgetful_server(find_server: Callable[[str], Server]) -> Iterator[Server]:
    """A PostgreSQL of our own that by default does not wait for the disk."""
    find_server("postgresql")  # or skip, or fail
    server = postgresql(["-c", "synchronous_commit=off"])
    if server.process is None or not PROCESSES.exists():
        pytest.skip("All processes of the server must be ours to kill, and be found in /proc.")
    yield server
    server.stop()


@contextmanager
def _power_cut_after(server: Server) -> Iterator[None]:
    """Keep what nobody waits for from the disk, at the end cut the power, and start again."""
    walwriter = _run(server.url, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    os.kill(walwriter, signal.SIGSTOP)
    try:
        yield
    finally:
        assert server.process is not None
        postmaster = server.process.pid
        os.kill(postmaster, signal.SIGSTOP)  # so that it does not see its children end, and tell the others
        for child in _children(postmaster):
            os.kill(child, signal.SIGKILL)
        server.kill()
        server.start()


def _children(parent: int) -> list[int]:
    """Return the processes of a parent, also those that have left its session."""
    found = []
    for process in PROCESSES.glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()  # the name may hold anything
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since
        if int(fields[1]) == parent:
            found.append(int(process.name))
    return found


# Each as the last one: whoever waits for the disk waits for all that was before.
@pytest.mark.parametrize("ids", [("soft", "hard"), ("hard", "soft")], ids=" then ".join)
@pytest.mark.parametrize("events", [(), ("before_update", "before_delete")], ids=["plain", "listeners"])
def test_what_was_answered_200_before_the_power_went_is_there_when_it_is_back(
    forgetful_server: Server, store: MemoryStore, events: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    url = forgetful_server.url
    _run(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    with mounting(url, store) as mount:
        host = mount(**_listened(*events))
        for id in ids:
            host.add(id=id)
            store.set(f"client:{id}", "value")
        _run(
            url, "SET synchronous_commit = on", "SELECT pg_logical_emit_message(true, '', '')"
        )  # all of that
        with _power_cut_after(forgetful_server):
            for id in ids:
                assert host.delete("soft" if id == "soft" else "hard?hard=true").status_code == 200
            host.add(id="the host's")
        host.close()  # its connections are dead
        found = {row.id: row.status for row in host.rows()}
        assert "the host's" not in found, "What nobody waited for is there too: this test proves nothing."
        assert found == {"soft": False}
        assert [[record.action for record in host.records(id)] for id in ids] == [[id] for id in ids]
        with host.flask.app_context():
            host.clients.service.reconcile()
            assert host.clients.service.backlog().pending == 0
        assert store.get("client:hard") is None


@pytest.mark.parametrize("events", [(), ("before_update", "before_delete")], ids=["plain", "listeners"])
def test_a_client_that_the_host_switched_off_without_waiting_is_off_once_we_have_answered(
    forgetful_server: Server, store: MemoryStore, events: tuple[str, ...]
) -> None:
    url = forgetful_server.url
    _run(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    with mounting(url, store) as mount:
        host = mount(**_listened(*events))
        host.add(id="acme")
        _run(url, "SET synchronous_commit = on", "SELECT pg_logical_emit_message(true, '', '')")
        with _power_cut_after(forgetful_server):
            _run(url, "UPDATE clients SET status = false")
            assert host.delete("acme").status_code == 200
            host.add(id="the host's")
        host.close()  # its connections are dead
        assert {row.id: row.status for row in host.rows()} == {"acme": False}


# Where a host may have set it, and what then holds for step 1.
SET = {
    "connection": "SELECT '{}'",
    "role": "ALTER ROLE CURRENT_USER SET synchronous_commit = {}",
    "database": "ALTER DATABASE test SET synchronous_commit = {}",
}
HOLDS = {
    "off": "local",
    "local": "local",
    "remote_write": "remote_write",
    "on": "on",
    "remote_apply": "remote_apply",
}


@pytest.fixture
def changed_database(empty_database: Callable[[str], str]) -> Iterator[str]:
    """An empty database whose own defaults are reset at the end."""
    url = empty_database("postgresql")
    yield url
    resets = ("ALTER ROLE CURRENT_USER RESET {}", "ALTER DATABASE test RESET {}")
    _run(url, *(reset.format("synchronous_commit") for reset in resets))


@pytest.mark.parametrize("where", SET)
@pytest.mark.parametrize("value", HOLDS)
def test_step_1_waits_for_the_disk_and_changes_nothing_else_of_what_the_host_waits_for(
    changed_database: str, store: MemoryStore, where: str, value: str
) -> None:
    """A default of the host's in the ledger tells what holds then; it is no trigger, and seen by none."""
    url = changed_database
    _run(url, SET[where].format(value))
    options = f"-c synchronous_commit={value}" if where == "connection" else ""
    config = {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": {"options": options}}}
    with mounting(url, store) as mount:
        host = mount(**_listened("before_update"), config=config)
        holds = "text DEFAULT current_setting('synchronous_commit')"
        _run(url, f"ALTER TABLE client_deletions ADD COLUMN held {holds}")
        for id in ("unit-of-work", "statement"):
            host.add(id=id)
        assert host.delete("unit-of-work").status_code == 200
        assert host.delete("statement?hard=true").status_code == 200
        query = (
            "SELECT client_id, held, current_setting('synchronous_commit') FROM client_deletions ORDER BY id"
        )
        with host.flask.app_context(), host.db.engine.connect() as connection:
            found = list(map(tuple, connection.exec_driver_sql(query)))
    assert found == [(id, HOLDS[value], value) for id in ("unit-of-work", "statement")]
