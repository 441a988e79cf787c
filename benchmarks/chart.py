"""The figures as an SVG image, which follows the reader's dark or light mode."""

from collections.abc import Iterator, Sequence
from html import escape

from . import pgbench
from .contestants import ALL
from .summary import Block, Line

_WIDTH, _MARGIN = 920, 16
_PANEL = (_WIDTH - 3 * _MARGIN) // 2
_NAMES = 140  # for a contestant's name, left of its bar
_FIGURES = 96  # for its figures, right of it
_BAR, _STEP, _TITLE = 12, 20, 30
_HEAD = 92
_KINDS = {
    "ours": "this package",
    "sure": "others with a guarantee",
    "unsure": "without one",
    "floor": "floor, cut off",
}
_STYLE = """
  .page { fill: #ffffff } text { fill: #1f2328; font: 12px system-ui, sans-serif }
  .title { font-weight: 600 } .small { fill: #59636e; font-size: 11px }
  .ours { fill: #1f6feb } .sure { fill: #7aa7e8 } .unsure { fill: #d1883b } .floor { fill: #b6bec8 }
  .whisker { stroke: #1f2328; stroke-width: 1.2 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #e6edf3 } .small { fill: #9198a1 }
    .ours { fill: #4493f8 } .sure { fill: #2f5f9e } .unsure { fill: #c07a32 } .floor { fill: #59636e }
    .whisker { stroke: #e6edf3 }
  }
"""


def svg(title: str, notes: Sequence[str], blocks: Sequence[Block]) -> str:
    """Return an image of the deletes, a panel for each block, the bars to one scale within it."""
    shown = [block for block in blocks if block.scenario in ("hard", "soft")]
    body: list[str] = []
    y = _HEAD + 14 * len(notes)
    for row in _rows(shown):
        for column, block in enumerate(row):
            body += _panel(block, _MARGIN + column * (_PANEL + _MARGIN), y)
        y += _TITLE + _STEP * max(len(block.lines) for block in row) + _MARGIN
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{y}"/>',
        _text(_MARGIN, 26, title, "title"),
        *(_text(_MARGIN, 46 + 14 * number, note, "small") for number, note in enumerate(notes)),
        *_legend(_HEAD + 14 * len(notes) - 32),
    ]
    return "\n".join([*head, *body, "</svg>", ""])


def _rows(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Put beside each other what differs in the number of connections alone."""
    rows: dict[tuple[str, float, str], list[Block]] = {}
    for block in sorted(blocks, key=lambda block: (block.delay, block.scenario)):
        rows.setdefault((block.database, block.delay, block.scenario), []).append(block)
    for database in dict.fromkeys(block.database for block in blocks):
        yield from (row for key, row in rows.items() if key[0] == database)


def _panel(block: Block, x: int, y: int) -> Iterator[str]:
    wait = f", +{block.delay:g} ms a round trip" if block.delay else ""
    connections = f"{block.connections} connection{'s' if block.connections > 1 else ''}"
    yield _text(x, y + 14, f"{block.database}: {block.scenario} delete, {connections}{wait}", "title")
    # A floor would make all others small: its bar is cut off.
    racing = [line.rate.high for line in block.lines if _kind(line.contestant) != "floor"]
    most = max(racing or [line.rate.high for line in block.lines])
    for number, line in enumerate(sorted(block.lines, key=lambda line: line.rate.median)):
        yield from _bar(line, x, y + _TITLE + number * _STEP, most)


def _bar(line: Line, x: int, y: int, most: float) -> Iterator[str]:
    room = _PANEL - _NAMES - _FIGURES
    left = x + _NAMES
    scale = room / most
    width = min(line.rate.median * scale, room)
    middle = y + _BAR / 2
    ratio = f" · ×{line.rate_ratio.median:.2f}" if line.rate_ratio else ""
    cut = line.rate.median > most
    yield f'<text x="{left - 8}" y="{y + 10}" text-anchor="end">{escape(line.contestant)}</text>'
    yield f'<rect class="{_kind(line.contestant)}" x="{left}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'
    if not cut:
        low, high = (left + min(value * scale, room) for value in (line.rate.low, line.rate.high))
        yield f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}"/>'
    yield _text(left + room + 6, y + 10, f"{'» ' if cut else ''}{line.rate.median:.0f}/s{ratio}", "small")


def _kind(name: str) -> str:
    if name == pgbench.NAME:
        return "floor"
    return next(contestant.kind for contestant in ALL if contestant.name == name)


def _legend(y: int) -> Iterator[str]:
    for number, (kind, told) in enumerate(_KINDS.items()):
        x = _MARGIN + number * 170
        yield f'<rect class="{kind}" x="{x}" y="{y}" width="12" height="12"/>'
        yield _text(x + 18, y + 10, told, "small")


def _text(x: float, y: float, what: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(what)}</text>'
