"""`python -m benchmarks`: measure, then write a JSON file, an SVG image and a text."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flask_mythic_clients.auth import create_key, digest
from tests.servers import ServerUnavailableError

from . import chart, machine, pgbench, report, stores, summary
from .calibration import Calibration, calibrate
from .contestants import ALL, EVERYWHERE
from .processes import ROOT
from .race import CONNECTIONS, Plan, Race, Results, names

OUT = ROOT / "build" / "benchmarks"


def main() -> int:
    """Measure what is asked for; return 1 where an answer or a store was not as it must be."""
    # Ended from outside, all that was started is stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    key = create_key()
    plan = Plan(options.rounds, options.requests, options.delay, options.only, key, digest(key))
    described = machine.describe()
    if described["file_system"] == "tmpfs":
        print("The temporary folder lies in memory: nobody waits for a disk. Set TMPDIR.", file=sys.stderr)
    calibrations = [calibrate(connections, options.delay) for connections in CONNECTIONS]
    results = [found for kind in options.databases if (found := _race(kind, plan)) is not None]
    blocks = summary.blocks(
        (sample for found in results for sample in found.samples),
        (count for found in results for count in found.counts),
    )
    method = {"rounds": plan.rounds, "requests": plan.requests, "delays_ms": plan.delays}
    text = report.text(described, method, calibrations, results, blocks)
    print(text)
    _write(options.out, described, method, calibrations, results, blocks, text)
    bad = sum(line.wrong + line.halves for block in blocks for line in block.lines)
    return 1 if bad or not results else 0


def _race(kind: str, plan: Plan) -> Results | None:
    """Return what was found on a database, None where there is no server for it."""
    if kind != "postgresql":
        plan = replace(plan, rounds=(plan.rounds + 1) // 2)
    try:
        with ExitStack() as stack:
            return Race(plan, stack.enter_context(stores.started(kind)), stack).run()
    except ServerUnavailableError as error:
        print(f"{kind} is left out: {error}", file=sys.stderr)
        return None


def _write(
    out: Path,
    described: Any,
    method: Any,
    calibrations: Sequence[Calibration],
    results: Sequence[Results],
    blocks: Sequence[summary.Block],
    text: str,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.txt").write_text(text)
    title = "Requests a second, × by_hand; the lines are quartiles over the rounds"
    stack = "; ".join(f"{found.stores['database']} {found.stores['version']}" for found in results)
    notes = [f"{described['cpu']}, {described['cores']} cores; Python {described['python']}; {stack}"]
    (out / "bench.svg").write_text(chart.svg(title, notes, blocks))
    legend = {contestant.name: contestant.told for contestant in ALL} | {pgbench.NAME: pgbench.TOLD}
    whole = {
        "machine": described,
        "method": method,
        "legend": legend,
        "calibration": list(map(asdict, calibrations)),
        "summary": list(map(asdict, blocks)),
        "results": list(map(asdict, results)),
    }
    (out / "bench.json").write_text(json.dumps(whole, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_at_least(1), default=5, help="of each phase (%(default)s)")
    requests = "in a phase; four times so many on 16 connections (%(default)s)"
    parser.add_argument("--requests", type=_at_least(4), default=200, help=requests)
    parser.add_argument(
        "--databases", type=_some(EVERYWHERE), default=["postgresql"], help="postgresql,mariadb,sqlite"
    )
    parser.add_argument(
        "--delay", type=_delays, default=[0.0, 0.5], help="milliseconds added to a round trip (0,0.5)"
    )
    parser.add_argument("--only", type=_some(names()), help="contestants, separated by commas")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the files (build/benchmarks)")
    options = parser.parse_args()
    options.only = None if options.only is None else frozenset(options.only)
    return options


def _at_least(least: int) -> Any:
    def read(text: str) -> int:
        if not least <= (number := int(text)) <= 100_000:
            raise argparse.ArgumentTypeError(f"{least} to 100000")
        return number

    return read


def _delays(text: str) -> list[float]:
    delays = list(map(float, text.split(",")))
    if not all(0 <= delay <= 100 for delay in delays):
        raise argparse.ArgumentTypeError("0 to 100 milliseconds")
    return delays


def _some(known: Any) -> Any:
    allowed = set(known)

    def read(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := set(wanted) - allowed:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(sorted(allowed))}")
        return wanted

    return read


if __name__ == "__main__":
    sys.exit(main())
