"""A server that answers every request with the same bytes at once: what the load itself can do, and costs."""

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from . import processes

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def served() -> Iterator[tuple[int, int]]:
    """Start it; give its port and its pid."""
    with processes.python(
        "-m", __name__, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        yield int(process.stdout.readline()), process.pid


def _serve() -> None:
    listener, epoll = socket.create_server(("127.0.0.1", 0), backlog=256), select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    links: dict[int, socket.socket] = {}
    print(listener.getsockname()[1], flush=True)
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == listener.fileno():
                link, _ = listener.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                links[link.fileno()] = link
                epoll.register(link.fileno(), select.EPOLLIN)
            elif descriptor == sys.stdin.fileno():  # closed
                return
            elif links[descriptor].recv(65536):  # a request of the load's is one chunk
                links[descriptor].sendall(_ANSWER)
            else:
                epoll.unregister(descriptor)
                links.pop(descriptor).close()


if __name__ == "__main__":
    _serve()
