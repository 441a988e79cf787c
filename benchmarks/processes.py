"""Processes of ours: started so that none outlives us, and read in /proc. Linux alone has that."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
STOP_SECONDS = 10
_TICKS = os.sysconf("SC_CLK_TCK")
_PDEATHSIG = 1  # prctl's number for it

_libc = ctypes.CDLL(None)


@contextmanager
def python(
    *arguments: str, environment: Mapping[str, str] | None = None, **pipes: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Run Python with these arguments beside the block; at its end stop it by its pid.

    It ends with us even when we are killed. Variables of the tests and of Flask are not handed on.
    """
    foreign = ("TEST_", "MYTHIC_", "FLASK_", "DATABASE_", "REDIS_", "PG")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | dict(environment or {}),
        preexec_fn=_end_with_parent,
        **pipes,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process, by force where it does not listen; ended already is success."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@contextmanager
def log_file() -> Iterator[IO[bytes]]:
    """Give a file for what a server says, which is gone at the end."""
    with tempfile.TemporaryFile() as log:
        yield log


def tail(log: IO[bytes]) -> str:
    """Return the last that was written."""
    log.seek(0)
    return log.read()[-3000:].decode(errors="replace")


def free_port() -> int:
    """Return a free loopback port, which Linux gives to no connection of its own accord."""
    for _ in range(1000):
        port = random.randrange(23_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("No free port was found.")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and that live."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def open_files(pid: int) -> set[str]:
    """Return what a process has open, as Linux names it: `socket:[1234]`."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # it has just been closed
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def cpu_seconds(pid: int) -> float:
    """Return what a process and all below it have used, with those that have ended and were waited for."""
    total = 0.0
    for member in tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            own, waited_for = (int(a) + int(b) for a, b in (fields[11:13], fields[13:15]))
            # That is in hundredths of a second, cut off; of living threads there are nanoseconds.
            total += max(own / _TICKS, _precisely(member)) + waited_for / _TICKS
    return total


def cpu_by_name(watched: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the same for groups of processes, by the names of the groups."""
    return {name: sum(map(cpu_seconds, pids)) for name, pids in watched.items()}


def _precisely(pid: int) -> float:
    """Return what the living threads of a process have used; nothing where Linux does not tell."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(task.read_text().split()[0])
    return total / 1e9


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Return the resident memory of a process in MiB, now or at its peak."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise ValueError(f"Process {pid} has no {name}")


def _end_with_parent() -> None:
    _libc.prctl(_PDEATHSIG, signal.SIGTERM)
