"""The load: a closed loop over some connections, in a process of its own. Each has one request on its way.

Answers are kept, and looked at when the clock stands still.
"""

import json
import re
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import processes
from .balance import connect, open_link

_SECONDS = 120  # after which a load gives up
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What to send, and what must come back for each."""

    port: int
    connections: int
    paths: Sequence[str]
    key: str = field(repr=False)
    status: int
    body: Any
    workers: Sequence[int] = ()
    """The server's processes, among which the connections are shared out."""
    watched: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Name → processes whose time is taken while the clock runs."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job; times in seconds."""

    seconds: float
    cpu: Mapping[str, float]
    """What the load used meanwhile, and what is watched, by its name."""
    latencies: Sequence[float]
    wrong: Sequence[tuple[int, str]]
    """The place in `paths`, and what was answered, where it was not what must come."""
    even: bool
    """Whether each worker had as many connections."""


def send(job: Job) -> Outcome:
    """Do the job in a new process."""
    pipe = subprocess.PIPE
    with processes.python("-m", __name__, stdin=pipe, stdout=pipe, text=True) as process:
        told, _ = process.communicate(json.dumps(asdict(job)), timeout=_SECONDS + 60)
    if process.returncode != 0:
        raise RuntimeError("The load has failed.")
    return Outcome(**json.loads(told))


class _Connection:
    """A connection, and the request that is on its way."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.received = b""
        self.index = -1
        self.began = 0.0

    def ask(self, index: int, request: bytes) -> None:
        self.index, self.received, self.began = index, b"", time.perf_counter()
        self.link.sendall(request)

    def is_answered(self) -> bool:
        """Read what is there; tell whether the answer is whole. Raises ConnectionError where it breaks."""
        chunk = self.link.recv(65536)
        if not chunk:
            raise ConnectionError
        self.received += chunk
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return bool(found and length and len(body) >= int(length[1]))


def _run(job: Job) -> Outcome:
    head = f"Host: localhost\r\nAuthorization: Bearer {job.key}\r\nContent-Type: application/json\r\n\r\n"
    requests = [f"DELETE {path} HTTP/1.1\r\n{head}".encode() for path in job.paths]
    links, even = connect(job.port, min(job.connections, len(requests)), job.workers)
    answers: list[bytes] = [b""] * len(requests)
    latencies = [0.0] * len(requests)
    before = processes.cpu_by_name(job.watched)
    own, began = time.process_time(), time.perf_counter()  # last: reading /proc is no part of the load
    _loop(job.port, list(map(_Connection, links)), requests, answers, latencies)
    seconds, own = time.perf_counter() - began, time.process_time() - own
    cpu = {name: used - before[name] for name, used in processes.cpu_by_name(job.watched).items()}
    wrong = [(i, _told(answer)) for i, answer in enumerate(answers) if not _is_right(answer, job)]
    return Outcome(seconds, {**cpu, "load": own}, latencies, wrong, even)


def _loop(
    port: int,
    connections: list[_Connection],
    requests: list[bytes],
    answers: list[bytes],
    latencies: list[float],
) -> None:
    """Send all; a connection that breaks is replaced, and its answer is empty."""
    left = deque(enumerate(requests))
    epoll, busy = select.epoll(), {}
    for connection in connections:
        epoll.register(connection.link.fileno(), select.EPOLLIN)
        busy[connection.link.fileno()] = connection
        connection.ask(*left.popleft())
    deadline = time.monotonic() + _SECONDS
    while busy:
        for descriptor, _ in epoll.poll(1):
            connection = busy[descriptor]
            try:
                if not connection.is_answered():
                    continue
                answers[connection.index] = connection.received
            except OSError:
                epoll.unregister(descriptor)
                del busy[descriptor]
                connection.link.close()
                connection.link = open_link(port)
                epoll.register(connection.link.fileno(), select.EPOLLIN)
                busy[connection.link.fileno()] = connection
            latencies[connection.index] = time.perf_counter() - connection.began
            if left:
                connection.ask(*left.popleft())
            else:
                epoll.unregister(connection.link.fileno())
                del busy[connection.link.fileno()]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(busy)} answers did not come within {_SECONDS} seconds.")


def _is_right(answer: bytes, job: Job) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(f"HTTP/1.1 {job.status} ".encode()):
        return False
    try:
        return bool(json.loads(body) == job.body)
    except ValueError:
        return False


def _told(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    return b" ".join([head.partition(b"\r\n")[0], body[:200]]).decode(errors="replace").strip()


if __name__ == "__main__":
    json.dump(asdict(_run(Job(**json.load(sys.stdin)))), sys.stdout)
