"""A PostgreSQL primary and its standby, both of our own: the one is killed, the other one promoted."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..servers import Server, ServerFailedError, ServerUnavailableError, postgresql

WAIT_SECONDS = 20
_WAITING = "pg_stat_activity WHERE wait_event = 'SyncRep'"


@dataclass
class _Member:
    """A server that keeps its port and its folder, whatever it is at the time."""

    server: Server
    port: int
    data: Path

    def ask(self, *statements: str) -> Any:
        """Run statements, each committed at once; return what the last one found."""
        with self.connect() as connection:
            results = [connection.exec_driver_sql(statement) for statement in statements]
            return results[-1].scalar() if results[-1].returns_rows else None

    def connect(self) -> sa.Connection:
        """Connect to this server alone."""
        return sa.create_engine(
            self.server.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        ).connect()

    def wait_until(self, condition: str) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.ask(f"SELECT {condition}"):
            if time.monotonic() > deadline:
                raise ServerFailedError(f"{self.server.origin} waits in vain: {condition}")
            time.sleep(0.02)


class Pair:
    """Two servers; `url` finds the one that takes writes, whichever it is.

    Until `make_standby` the second one is a stranger to the first.
    """

    def __init__(self, primary: Server, standby: Server) -> None:
        self._primary, self._standby = _member(primary), _member(standby)
        self._copy = Path(self._primary.ask("SELECT setting FROM pg_config WHERE name = 'BINDIR'"))
        self._copy /= "pg_basebackup"
        if not self._copy.exists():
            raise ServerUnavailableError(f"No {self._copy}: install the Debian package postgresql-client.")
        hosts = "&".join(f"host=127.0.0.1:{member.port}" for member in (self._primary, self._standby))
        self.url = f"postgresql+psycopg://postgres@/test?{hosts}&target_session_attrs=read-write"

    def make_standby(self, *, synchronous: bool) -> None:
        """Copy the primary over the other server, and start that as its standby, up to date.

        From then on the primary's commits wait for a synchronous one.
        """
        # Not into the copy: once promoted it has no standby to wait for.
        self._primary.ask("ALTER SYSTEM RESET synchronous_standby_names")
        self._standby.server.kill()
        shutil.rmtree(self._standby.data)
        self._copy_primary()
        self._standby.server.start()
        names, state = ("*", "sync") if synchronous else ("", "async")
        self._primary.ask(
            f"ALTER SYSTEM SET synchronous_standby_names = '{names}'", "SELECT pg_reload_conf()"
        )
        self._primary.wait_until(
            "EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming'"
            f" AND sync_state = '{state}' AND flush_lsn >= pg_current_wal_flush_lsn())"
        )

    def cut_off_standby(self) -> None:
        """Let nothing that is committed from now on reach the standby."""
        self._standby.ask("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        self._standby.wait_until("NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")
        self._primary.wait_until("NOT EXISTS (SELECT FROM pg_stat_replication)")

    def kill_primary(self) -> None:
        """Kill all of its processes at once, as a machine that fails does."""
        assert self._primary.server.process is not None
        with self._primary.connect() as connection:
            # So that it does not see its children end, tell the others, and let them take their leave.
            os.kill(self._primary.server.process.pid, signal.SIGSTOP)
            others = sa.text("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            for process in connection.scalars(others).all():
                os.kill(process, signal.SIGKILL)
        self._primary.server.kill()

    def restart_primary(self) -> None:
        """Kill it, and start it again, as a machine does by itself."""
        self.kill_primary()
        self._primary.server.start()

    def wait_for_waits(self, count: int) -> None:
        """Wait until so many commits wait for the standby."""
        self._primary.wait_until(f"{count} = (SELECT count(*) FROM {_WAITING})")

    def end_waits(self) -> None:
        """End the connections whose commits wait for the standby."""
        self._primary.ask(f"SELECT count(pg_terminate_backend(pid)) FROM {_WAITING}")

    def promote(self) -> None:
        """Make the standby the primary; the one that was it is dead, or must be."""
        if not self._standby.ask(f"SELECT pg_promote(true, {WAIT_SECONDS})"):
            raise ServerFailedError(f"{self._standby.server.origin} is not promoted.")
        self._primary, self._standby = self._standby, self._primary

    def _copy_primary(self) -> None:
        where = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--pgdata", self._standby.data]
        # PGOPTIONS, PGSERVICE and the like are meant for other servers.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        copied = subprocess.run(
            [self._copy, "--dbname", where, *options], env=env, capture_output=True, text=True, check=False
        )
        if copied.returncode != 0:
            raise ServerFailedError(f"{self._copy} failed:\n{copied.stderr}")


def _member(server: Server) -> _Member:
    if server.process is None:
        raise ServerUnavailableError(f"The server from the {server.origin} is not ours to kill.")
    port = sa.make_url(server.url).port
    assert port is not None
    member = _Member(server, port, Path())
    member.data = Path(member.ask("SHOW data_directory"))
    return member


@contextmanager
def open_pair() -> Iterator[Pair]:
    """Start two servers; raises ServerUnavailableError where that cannot be."""
    with ExitStack() as stack:
        servers = []
        for _ in range(2):
            servers.append(postgresql())
            stack.callback(servers[-1].stop)
        yield Pair(*servers)
