"""`python -m benchmarks.reconcile`: how long a backlog takes, beside bare SQL and a pipeline that do it."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa

from tests.servers import ServerUnavailableError

from . import machine, stores
from .backlog import Backlog
from .figures import ratios, spread
from .processes import ROOT
from .reconcilers import BARE, PACKAGE, Took, run

OUT = ROOT / "build" / "benchmarks"
_NAME = "backlog"


@dataclass(frozen=True)
class Settled:
    """What one took in a round; `left` of the clients were not as they must be."""

    database: str
    version: str
    round: int
    name: str
    page: int
    took: Took
    left: int


def main() -> int:
    """Measure; return 1 where something was left undone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    described = machine.describe()
    settled: list[Settled] = []
    for kind in options.databases:
        try:
            with stores.started(kind) as found:
                settled += _measure(found, options)
        except ServerUnavailableError as error:
            print(f"{kind} is left out: {error}", file=sys.stderr)
    text = _text(described, settled, options.records)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "reconcile.txt").write_text(text)
    whole = {"machine": described, "records": options.records, "settled": list(map(asdict, settled))}
    (options.out / "reconcile.json").write_text(json.dumps(whole, indent=1) + "\n")
    return 1 if not settled or any(one.left for one in settled) else 0


def _measure(found: stores.Stores, options: argparse.Namespace) -> list[Settled]:
    url, redis_url = found.create_database(_NAME), found.redis.url
    settled = []
    with closing(Backlog(url, redis_url, options.records)) as backlog:
        backlog.prepare()
        for number in range(options.rounds):
            for name, page in [(PACKAGE, 0), *((BARE, page) for page in options.pages)]:
                took, left = _settle(backlog, name, page, url, redis_url)
                settled.append(Settled(found.kind, found.version, number, name, page, took, left))
            print(f"{found.kind}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return settled


def _settle(backlog: Backlog, name: str, page: int, url: sa.URL, redis_url: str) -> tuple[Took, int]:
    backlog.empty()
    if name == PACKAGE:
        run(name, page, url, redis_url)  # As a minute before: it leaves its mark, and all is not done twice.
    backlog.fill()
    took = run(name, page, url, redis_url)
    return took, len(backlog.unfinished())


def _text(described: Any, settled: Sequence[Settled], records: int) -> str:
    lines = [
        f"{described['cpu']}, {described['cores']} cores, {described['file_system']}; "
        f"Python {described['python']}; load before: {described['load_before']:.1f}",
        f"{records} pending records, half of them hard; medians, of the ratios with quartiles",
    ]
    for database, version in dict.fromkeys((one.database, one.version) for one in settled):
        own = [one for one in settled if one.database == database]
        lines += ["", f"{database} {version}"]
        lines.append(f"{'':<16}{'s':>8}{'ms each':>9}{'CPU s':>8}{'MiB at start':>14}{'peak':>8}  package ×")
        for name, page in dict.fromkeys((one.name, one.page) for one in own):
            lines.append(_line(own, name, page, records))
    return "\n".join(lines) + "\n"


def _line(own: Sequence[Settled], name: str, page: int, records: int) -> str:
    those = [one for one in own if (one.name, one.page) == (name, page)]
    seconds = spread([one.took.seconds for one in those]).median
    package = {one.round: one.took.seconds for one in own if one.name == PACKAGE}
    ratio = ratios(package, {one.round: one.took.seconds for one in those})
    told = f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio and name != PACKAGE else ""
    left = sum(one.left for one in those)
    cpu, before, peak = (
        median(getattr(one.took, part) for one in those) for part in ("cpu", "before_mb", "peak_mb")
    )
    shown = f"{name} by {page}" if page else name
    figures = f"{seconds:>8.2f}{seconds * 1000 / records:>9.3f}{cpu:>8.2f}{before:>14.0f}{peak:>8.0f}"
    return f"{shown:<16}{figures}  {told}{f'  LEFT UNDONE: {left}' if left else ''}".rstrip()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconcile", description=__doc__)
    parser.add_argument("--records", type=_number(1_000_000), default=10_000, help="(%(default)s)")
    parser.add_argument("--rounds", type=_number(100), default=3, help="(%(default)s)")
    parser.add_argument("--pages", type=_numbers, default=[100, 1000], help="of the bare SQL (100,1000)")
    parser.add_argument(
        "--databases", type=_databases, default=["postgresql", "mariadb"], help="postgresql,mariadb"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the files (build/benchmarks)")
    return parser.parse_args()


def _number(most: int) -> Any:
    def read(text: str) -> int:
        if not 1 <= (number := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"1 to {most}")
        return number

    return read


def _numbers(text: str) -> list[int]:
    return list(map(_number(100_000), text.split(",")))


def _databases(text: str) -> list[str]:
    if unknown := set(wanted := text.split(",")) - {"postgresql", "mariadb"}:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are postgresql and mariadb")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
