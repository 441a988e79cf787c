"""A TCP proxy in a process of its own: it counts round trips, and makes each of them longer.

A round trip is a burst from the client, however many chunks it has, and the server's answer. A delay holds
the burst's first chunk, and what follows meanwhile, for so long; once a round trip, and none on the way back.
It has one thread and no event loop of a framework: epoll tells who has something to read, and `select` waits
for it, because its time-out is in microseconds where epoll's is in milliseconds.
"""

import ctypes
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from . import processes

_TIMERSLACK = 29  # prctl's number for it
_CHUNK = 65536


class Proxy:
    """A running proxy, told what to do through its pipes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.port = int(self._read())

    def delay(self, seconds: float) -> None:
        """Make each round trip longer from now on."""
        self._ask(f"delay {seconds}")

    def round_trips(self) -> int:
        """Return how many there were since the proxy was started."""
        return int(self._ask("count"))

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError("The proxy has ended.")
        return line


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """Start a proxy before a loopback port."""
    pipe = subprocess.PIPE
    with processes.python("-m", __name__, f"{port}", stdin=pipe, stdout=pipe, text=True) as process:
        yield Proxy(process)


class _Link:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.asking = False  # the last that came was the client's
        self.held: list[bytes] = []  # of a burst that is being delayed


class _Loop:
    """Forwards, until its standard input is closed."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._epoll = select.epoll()
        self._on: dict[int, Callable[[], None]] = {}
        self._due: deque[tuple[float, _Link]] = deque()
        self._seconds = 0.0
        self._round_trips = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._watch(self._listener.fileno(), self._accept)
        self._watch(sys.stdin.fileno(), self._obey)
        self._say(self._listener.getsockname()[1])
        self._ended = False

    def run(self) -> None:
        """Forward."""
        while not self._ended:
            if self._due:
                wait = self._due[0][0] - time.perf_counter()
                if wait > 0:
                    select.select([self._epoll], [], [], wait)
                events = self._epoll.poll(0)
            else:
                events = self._epoll.poll()
            for descriptor, _ in events:
                if on := self._on.get(descriptor):  # the link may have ended with an event before
                    on()
            now = time.perf_counter()
            while self._due and self._due[0][0] <= now:
                self._release(self._due.popleft()[1])

    def _watch(self, descriptor: int, on: Callable[[], None]) -> None:
        self._on[descriptor] = on
        self._epoll.register(descriptor, select.EPOLLIN)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        link = _Link(near, far)
        for end, on in ((near, self._from_client), (far, self._from_server)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._watch(end.fileno(), lambda on=on: on(link))

    def _from_client(self, link: _Link) -> None:
        if not (chunk := _received(link.near)):
            self._release(link)
            self._end(link)
        elif link.held:
            link.held.append(chunk)
        elif not link.asking and self._seconds:
            link.asking = True
            link.held.append(chunk)
            self._due.append((time.perf_counter() + self._seconds, link))
        else:
            link.asking = True
            self._send(link, link.far, chunk)

    def _from_server(self, link: _Link) -> None:
        if not (chunk := _received(link.far)):
            self._end(link)
            return
        if link.asking:
            link.asking = False
            self._round_trips += 1
        self._send(link, link.near, chunk)

    def _release(self, link: _Link) -> None:
        chunk, link.held = b"".join(link.held), []
        if chunk:
            self._send(link, link.far, chunk)

    def _send(self, link: _Link, end: socket.socket, chunk: bytes) -> None:
        try:
            end.sendall(chunk)
        except OSError:
            self._end(link)

    def _end(self, link: _Link) -> None:
        for end in (link.near, link.far):
            if end.fileno() >= 0:
                self._epoll.unregister(end.fileno())
                del self._on[end.fileno()]
                end.close()

    def _obey(self) -> None:
        # Not by sys.stdin, which reads ahead: a second line would wait there unseen.
        lines = os.read(sys.stdin.fileno(), _CHUNK).decode().splitlines()
        self._ended = not lines
        for line in lines:
            command, _, argument = line.partition(" ")
            if command == "delay":
                self._seconds = float(argument)
                self._say(argument)
            elif command == "count":
                self._say(self._round_trips)

    def _say(self, what: object) -> None:
        print(what, flush=True)


def _received(end: socket.socket) -> bytes:
    with suppress(OSError):
        return end.recv(_CHUNK)
    return b""


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(
        _TIMERSLACK, 1
    )  # nanoseconds; 50 000 is the default, a tenth of half a millisecond
    _Loop(int(sys.argv[1])).run()
