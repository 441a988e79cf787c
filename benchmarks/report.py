"""The figures as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from .calibration import Calibration
from .figures import Spread
from .race import MORE, Results
from .summary import Block, Line

_COLUMNS = (
    *("contestant", "req/s", "q1–q3", "× by_hand", "q1–q3", "p50 ms", "p99 ms"),
    *("CPU app", "CPU db", "trips db+kv", "wrong+half"),
)


def text(
    machine: Mapping[str, Any],
    method: Mapping[str, Any],
    calibrations: Sequence[Calibration],
    results: Sequence[Results],
    blocks: Sequence[Block],
) -> str:
    """Return the whole report."""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"{machine['file_system']}; load before: {machine['load_before']:.1f}",
        f"Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
    ]
    lines += [f"{_stores(found.stores)}" for found in results]
    lines += [f"Left out: {reason}" for found in results for reason in found.left_out]
    lines += [
        f"Rounds of {method['requests']} requests on 1 connection, {method['requests'] * MORE} on 16; "
        "CPU in seconds for 1000 requests",
        *map(_calibration, calibrations),
        f"The load in the phases: {max(line.load_share for block in blocks for line in block.lines):.0%} of "
        "a core at the most",
    ]
    for found in results:
        memory = ", ".join(f"{name} {mb:.0f}" for name, mb in found.memory_mb.items())
        lines.append(f"MiB of a worker ({found.stores['database']}): {memory}")
    for block in blocks:
        lines += ["", *_table(block)]
    return "\n".join(lines) + "\n"


def _stores(stores: Mapping[str, Any]) -> str:
    return f"{stores['database']} {stores['version']}, {stores['kv']}"


def _calibration(of: Calibration) -> str:
    added = "; ".join(
        f"{delay:g} ms: {p50 * 1000:+.3f} ms (p50), {rate:.0f} a second" for delay, p50, _, rate in of.added
    )
    return (
        f"The load alone, {of.connections} connections: {of.rate:.0f} a second, p50 {of.p50 * 1000:.3f} ms, "
        f"{of.load_share:.0%} of a core; through a proxy with {added}"
    )


def _table(block: Block) -> list[str]:
    connections = f"{block.connections} connection{'s' if block.connections > 1 else ''}"
    title = f"{block.database}, +{block.delay:g} ms a round trip, {block.scenario}, {connections}"
    rounds = max(line.rounds for line in block.lines)
    title += f"; {rounds} round{'s' if rounds > 1 else ''}"
    rows = [_COLUMNS, *(_row(line) for line in block.lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [title, *("  ".join(_pad(row, widths)).rstrip() for row in rows)]


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    name, *figures = row
    return [name.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]


def _row(line: Line) -> tuple[str, ...]:
    trips = "–" if line.to_database is None else f"{line.to_database:g}+{line.to_kv:g}"
    bad = f"{line.wrong}+{line.halves}" + (f", {line.away} × 503" if line.away else "")
    bad += f", {line.uneven} uneven" if line.uneven else ""
    return (
        line.contestant,
        f"{line.rate.median:.0f}",
        _range(line.rate, 0),
        f"{line.rate_ratio.median:.2f}" if line.rate_ratio else "–",
        _range(line.rate_ratio, 2),
        f"{line.p50.median:.2f}",
        f"{line.p99:.2f}",
        f"{line.cpu['app']:.2f}" if "app" in line.cpu else "–",
        f"{line.cpu['database']:.2f}" if "database" in line.cpu else "–",
        trips,
        bad,
    )


def _range(of: Spread | None, digits: int) -> str:
    return f"{of.low:.{digits}f}–{of.high:.{digits}f}" if of else "–"
