"""A contestant under the server its users would have: two workers, of eight threads or of a loop each."""

import http.client
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from . import processes
from .contestants import Contestant
from .contestants.settings import THREADS, Settings

WORKERS = 2
START_SECONDS = 60
_EPOLL = "anon_inode:[eventpoll]"


@dataclass(frozen=True)
class Served:
    """A running contestant."""

    contestant: Contestant
    port: int
    pid: int
    workers: Sequence[int]
    log: IO[bytes]

    def said(self) -> str:
        """Return the last that it has written to its log."""
        return processes.tail(self.log)

    def memory_mb(self) -> float:
        """Return the resident memory of the larger worker."""
        return max(map(processes.memory_mb, self.workers))


@contextmanager
def serve(
    contestant: Contestant, settings: Settings, *, workers: int = WORKERS, threads: int = THREADS
) -> Iterator[Served]:
    """Start it, wait until each worker listens, and stop it at the end; raises RuntimeError with its log."""
    port = processes.free_port()
    arguments = _command(contestant, port, workers, threads)
    with (
        processes.log_file() as log,
        processes.python(
            "-m", *arguments, environment=settings.environment(), stdout=log, stderr=log
        ) as process,
    ):
        try:
            pids = _wait(process, port, workers)
        except TimeoutError as error:
            raise RuntimeError(f"{contestant.name} does not start:\n{processes.tail(log)}") from error
        yield Served(contestant, port, process.pid, pids, log)


def _command(contestant: Contestant, port: int, workers: int, threads: int) -> list[str]:
    if contestant.server == "uvicorn":
        options = f"--factory --host 127.0.0.1 --port {port} --workers {workers}"
        return ["uvicorn", *options.split(), "--log-level", "warning", "--no-access-log", contestant.factory]
    options = f"--bind 127.0.0.1:{port} --workers {workers} --worker-class gthread --threads {threads}"
    options += " --keep-alive 30 --no-control-socket --log-level warning"
    return ["gunicorn", *options.split(), f"{contestant.factory}()"]


def _wait(process: "subprocess.Popen[bytes]", port: int, workers: int) -> list[int]:
    """Return the workers' processes, when they run and one of them answers, whatever it says."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        # Neither a master nor the bookkeeper of Python's multiprocessing waits for connections.
        found = [pid for pid in processes.tree(process.pid) if _EPOLL in processes.open_files(pid)]
        if len(found) == workers and _answers(port):
            return found
        time.sleep(0.05)
    raise TimeoutError


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse()
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
