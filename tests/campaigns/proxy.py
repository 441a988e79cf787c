"""A TCP proxy between the host and one of its stores, which fails on command in the ways networks do."""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Direction = Literal["request", "reply"]


@dataclass(eq=False)
class Cut:
    """Where connections end: `at` so many bytes of a direction, counted in each connection on its own.

    With `after`, the count begins with the request that holds these bytes. A reply cut at 0 is a request that
    arrives, and whose answer is lost. Once so many `connections` were cut, it is over; `done` counts them.
    """

    direction: Direction
    at: int = 0
    after: bytes = b""
    connections: int = 1
    done: int = 0


class Proxy:
    """Forwards a loopback port of its own to the server of a URL; passes everything until it is told."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (f"{parts.hostname}", int(parts.port or 0))
        self._lock = threading.Lock()
        self._cut: Cut | None = None
        self._seconds = 0.0
        self._flowing = threading.Event()
        self._links: set[_Link] = set()
        self.bytes: dict[Direction, int] = {"request": 0, "reply": 0}
        self._port = 0
        self._listen()
        self.url = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{self._port}")).geturl()

    def refuse(self) -> None:
        """Close every connection, and accept none."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.end()
        self._flowing.set()
        for link in links:
            link.join()

    def hang(self) -> None:
        """Accept connections and bytes, and hold them; they are forwarded once it passes again."""
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Forward each chunk only after some seconds."""
        self._seconds = seconds

    def cut(self, cut: Cut) -> Cut:
        """Cut connections from now on."""
        with self._lock:
            self._cut = cut
        return cut

    def passing(self) -> None:
        """Forward everything again."""
        self._seconds, self._cut = 0.0, None
        self._flowing.set()
        if self._listener.fileno() < 0:
            self._listen()

    close = refuse

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=512)
        self._port = self._listener.getsockname()[1]
        self._flowing.set()
        self._acceptor = threading.Thread(target=self._accept, args=[self._listener])
        self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it is closed
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                link = _Link(self, near, far)
                with self._lock:
                    self._links.add(link)
                link.start()

    def _forward(self, link: "_Link", chunk: bytes, direction: Direction) -> tuple[bytes, bool]:
        """Return what of the chunk passes, and whether the connection ends behind it."""
        time.sleep(self._seconds)
        self._flowing.wait()
        with self._lock:
            passing = link.allowance(self._cut, chunk, direction)
            self.bytes[direction] += min(passing, len(chunk))
            return chunk[:passing], passing <= len(chunk)


class _Link:
    """One connection through the proxy, with a thread for each direction."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy, self._near, self._far = proxy, near, far
        self._cut: Cut | None = None
        self._left: int | None = None  # of the bytes until the cut; None before `after` was seen
        self._threads = [
            threading.Thread(target=self._pump, args=(near, far, "request")),
            threading.Thread(target=self._pump, args=(far, near, "reply")),
        ]
        self._pumping = len(self._threads)
        for end in (near, far):
            # Small parts must not wait for an answer.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Begin to forward."""
        for thread in self._threads:
            thread.start()

    def allowance(self, cut: Cut | None, chunk: bytes, direction: Direction) -> int:
        """Return how many bytes of the chunk may pass; as many as it has, or fewer, are the last."""
        if cut is not self._cut:
            self._cut, self._left = cut, None
        if cut is None or cut.done >= cut.connections:
            return len(chunk) + 1
        if self._left is None and (not cut.after or (direction == "request" and cut.after in chunk)):
            self._left = cut.at
        if self._left is None or direction != cut.direction:
            return len(chunk) + 1
        passing, self._left = self._left, self._left - len(chunk)
        cut.done += passing <= len(chunk)
        return passing

    def end(self) -> None:
        """Close the connection in both directions."""
        for end in (self._near, self._far):
            with suppress(OSError):  # it is closed
                end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until nothing is forwarded any more, and the sockets are given back."""
        for thread in self._threads:
            thread.join()

    def _pump(self, source: socket.socket, target: socket.socket, direction: Direction) -> None:
        last = False
        with suppress(OSError):
            while not last and (chunk := source.recv(65536)):
                passing, last = self._proxy._forward(self, chunk, direction)
                target.sendall(passing)
        self.end()
        with self._proxy._lock:
            self._pumping -= 1
            if self._pumping == 0:
                self._near.close()
                self._far.close()
                self._proxy._links.discard(self)
