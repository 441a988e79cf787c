"""What the measuring itself costs: the load against a server that does nothing, the proxy in between."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import null
from .figures import at
from .load import Job, Outcome, send
from .proxy import proxied

REQUESTS = 2000


@dataclass(frozen=True)
class Calibration:
    """Times in seconds; `added` is what a proxy adds to a round trip, with the delay it is told to add."""

    connections: int
    rate: float
    p50: float
    load_share: float
    """What the load used of a core while it went as fast as it could."""
    added: Sequence[tuple[float, float, float]]
    """For each delay in milliseconds: p50 and p99 less those without a proxy; requests a second."""


def calibrate(connections: int, delays: Sequence[float]) -> Calibration:
    """Measure the load, then the load through a proxy with each of these delays in milliseconds, and 0."""
    with null.served() as (port, _), proxied(port) as proxy:
        direct = _send(port, connections)
        added = []
        for delay in sorted({0.0, *delays}):
            proxy.delay(delay / 1000)
            through = _send(proxy.port, connections)
            more = (at(through.latencies, share) - at(direct.latencies, share) for share in (0.5, 0.99))
            added.append((delay, *more, REQUESTS / through.seconds))
    share = direct.cpu["load"] / direct.seconds
    return Calibration(connections, REQUESTS / direct.seconds, at(direct.latencies, 0.5), share, added)


def _send(port: int, connections: int) -> Outcome:
    paths = [f"/api/v1/clients/none-{number}" for number in range(REQUESTS)]
    return send(Job(port, connections, paths, key="none", status=200, body={}))
