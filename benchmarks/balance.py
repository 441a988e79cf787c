"""Connections shared out evenly among the workers of a server.

Which worker accepts a connection is chance. One that gets eleven of sixteen, where another contestant had
eight and eight, would be measured in place of the code.
"""

import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .processes import open_files

_TRIES = 40  # for each connection
_ACCEPTED_SECONDS = 0.5


def connect(port: int, connections: int, workers: Sequence[int]) -> tuple[list[socket.socket], bool]:
    """Open connections, as many to each worker; return them, and whether they are shared out evenly.

    Without workers nobody is asked who has accepted.
    """
    opened: list[socket.socket] = []
    share = -(-connections // len(workers)) if workers else connections
    had: Counter[int | None] = Counter()
    for _ in range(_TRIES * connections):
        if len(opened) == connections:
            break
        link = open_link(port)
        worker = _acceptor(port, link.getsockname()[1], workers) if workers else None
        if had[worker] < share:
            had[worker] += 1
            opened.append(link)
        else:
            link.close()
    even = len(opened) == connections and None not in (had if workers else ())
    opened += (open_link(port) for _ in range(connections - len(opened)))
    return opened, even


def open_link(port: int) -> socket.socket:
    """Open a connection to a loopback port, whose small parts wait for nothing."""
    link = socket.create_connection(("127.0.0.1", port), timeout=60)
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _acceptor(port: int, our_port: int, workers: Sequence[int]) -> int | None:
    """Return the worker that has accepted our connection; None where none has in time."""
    deadline = time.monotonic() + _ACCEPTED_SECONDS
    while time.monotonic() < deadline:
        if inode := _inode(port, our_port):
            for worker in workers:
                if f"socket:[{inode}]" in open_files(worker):
                    return worker
        time.sleep(0.001)
    return None


def _inode(port: int, our_port: int) -> str | None:
    """Return the inode of the server's end; None before it is accepted."""
    local, remote = (f"0100007F:{number:04X}" for number in (port, our_port))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == [local, remote]:
            return None if fields[9] == "0" else fields[9]
    return None
