"""What the commands print: data on stdout, as JSON, for a pipe or for people."""

import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import click

from .model import Fate, Looked, Outcome, OutOfLine, Preview, Result, Wrong
from .sampling import in_line_at_least


def keys(keys: Iterable[str], begins: Collection[str] | None) -> tuple[str, ...]:
    """Shorten keys, which may be secrets, to what all clients' begin with; None shows them."""
    if begins is None:
        return tuple(keys)
    return tuple(
        f"{max((each for each in begins if key.startswith(each)), key=len, default='')}…" for key in keys
    )


def print_json(value: Any) -> None:
    """Print a value; what JSON has no word for as its text."""
    click.echo(json.dumps(value, default=str))


def print_rows(rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows as a JSON array, or as lines of tab-separated values under a line of names.

    On a terminal the columns stand below each other, and the few values that are long in lines of their own.
    """
    if as_json:
        print_json(list(rows))
        return
    if is_terminal():
        _print_for_people(rows)
        return
    for number, row in enumerate(rows):
        if number == 0:
            click.echo("\t".join(row))
        click.echo("\t".join(map(text, row.values())))


def is_terminal() -> bool:
    """Whether people read it."""
    return sys.stdout.isatty()


# What stands side by side, and what below that in a line of its own, where there is anything.
_SIDE_BY_SIDE = ("id", "status", "action", "actor", "requested_at", "settled_at", "verified_at")
_BELOW = ("reason", "request_id", "kv_keys", "kv_digests", "attempts", "last_error")


def _print_for_people(rows: Iterable[Mapping[str, Any]]) -> None:
    """Pad the columns, as wide as the first rows need them."""
    every = iter(rows)
    first = list(islice(every, 100))
    names = [name for name in first[0] if name in _SIDE_BY_SIDE] if first else []
    head = dict(zip(names, names, strict=True))
    widths = [max(len(_cell(row[name])) for row in (head, *first)) for name in names]
    for row in (head, *first) if first else ():
        _print_cells(row, names, widths)
    for row in every:
        _print_cells(row, names, widths)


def _print_cells(row: Mapping[str, Any], names: Sequence[str], widths: Sequence[int]) -> None:
    cells = (_cell(row[name]).ljust(width) for name, width in zip(names, widths, strict=True))
    click.echo("  ".join(cells).rstrip())
    for name in _BELOW:
        if value := row.get(name):
            # A digest is of use to programs alone.
            told = len(value) if name == "kv_digests" else text(value)
            click.echo(f"    {name.replace('_', ' ')}: {told}")


def _cell(value: object) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else text(value)


def text(value: object) -> str:
    """Write a value; control characters, which a client's name may hold, are escaped for the terminal."""
    if isinstance(value, tuple):
        return " ".join(map(text, value))
    shown = "-" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def preview_told(preview: Preview, hard: bool, *, show_row: bool, show_keys: bool) -> dict[str, Any]:
    """Return what a dry run tells; row and keys only if they are asked for, since they hold secrets."""
    dependents = [dataclasses.asdict(dependent) for dependent in preview.dependents]
    told = {"id": preview.client.id, "hard": hard, "refused": preview.refused, "dependents": dependents}
    told["entries"] = len(preview.kv_keys)
    if show_keys:
        told["kv_keys"] = preview.kv_keys
    if show_row:
        told["row"] = dict(preview.columns)
    return told


def print_preview(told: Mapping[str, Any], on_entry: str) -> None:
    """Print the verdict of a dry run, what goes along, and what would become of each entry."""
    dependents, refused = told["dependents"], told["refused"]
    if refused is not None:
        forbids = [_referring(each) for each in dependents if each["fate"] is Fate.FORBIDS]
        verdict, on_entry = f"would be refused: {'; '.join(forbids) or refused}", "left as it is"
    else:
        verdict = "would be removed" if told["hard"] else "status would be false"
    click.echo(f"client {told['id']}: {verdict}")
    for name, value in told.get("row", {}).items():
        click.echo(f"  {name}: {text(value)}")
    for each in dependents:
        click.echo(f"  {_referring(each)}: {_FATES[each['fate']]}")
    for key in told.get("kv_keys", ()):
        click.echo(f"  entry {text(key)}: would be {on_entry}")
    if "kv_keys" not in told:
        click.echo(f"  entries: {told['entries']}; each would be {on_entry}")


def _referring(dependent: Mapping[str, Any]) -> str:
    return f"{dependent['column']}, {dependent['rows']} row{'' if dependent['rows'] == 1 else 's'}"


_FATES = {
    Fate.REMOVED: "would be removed",
    Fate.UNLINKED: "would be set to NULL",
    Fate.KEPT: "would stay as they are",
    Fate.FORBIDS: "forbid it",
}


class Counted:
    """What came of many: counted while it is done, with a bar on stderr; so it is known where it stopped."""

    def __init__(self, outcomes: Iterable[Outcome], length: int | None = None) -> None:
        self._outcomes = outcomes
        self._length = length
        self._counts: Counter[Result] = Counter()
        self._alone = 0

    def __iter__(self) -> Iterator[Outcome]:
        """Yield each."""
        if not sys.stderr.isatty():
            yield from map(self._count, self._outcomes)
            return
        with click.progressbar(self._outcomes, length=self._length, show_pos=True, file=sys.stderr) as bar:
            yield from map(self._count, bar)

    def _count(self, outcome: Outcome) -> Outcome:
        self._counts[outcome.result] += 1
        self._alone += outcome.alone
        return outcome

    @property
    def failed(self) -> bool:
        """Whether one has failed so far."""
        return bool(self._counts[Result.FAILED])

    @property
    def all_done(self) -> bool:
        """Whether none but those done came so far."""
        return set(self._counts) <= {Result.DONE}

    def counts(self, done: str) -> dict[str, int]:
        """Return how many; `done` is what was done."""
        names = {Result.DONE: done}
        counts = {names.get(result, result.name.lower()): self._counts[result] for result in Result}
        return {**counts, "one_by_one": self._alone}


def _is_nobodys(found: OutOfLine) -> bool:
    """Whether it was found by its key, and not by a client's row."""
    return found.wrong is Wrong.ORPHAN or found.client_id is None


class Audited:
    """What an audit has looked at and found so far, with a count on stderr."""

    def __init__(self, looks: Iterable[Looked]) -> None:
        self._looks = looks
        self._found: Counter[Wrong] = Counter()
        self._wrong_clients = self._wrong_entries = 0
        self.clients = self.entries = self.repaired = 0

    def __iter__(self) -> Iterator[Looked]:
        """Yield each look."""
        if not sys.stderr.isatty():
            yield from map(self._count, self._looks)
            return
        with click.progressbar(self._looks, item_show_func=self._told, file=sys.stderr) as bar:
            yield from map(self._count, bar)

    def _count(self, looked: Looked) -> Looked:
        self.clients += looked.clients
        self.entries += looked.entries
        self.repaired += sum(found.repaired for found in looked.found)
        self._found.update(found.wrong for found in looked.found)
        of_nobody = {found.key for found in looked.found if _is_nobodys(found)}
        self._wrong_entries += len(of_nobody)
        self._wrong_clients += len({found.client_id for found in looked.found if not _is_nobodys(found)})
        return looked

    def _told(self, _: object) -> str:
        return f"{self.clients} clients, {self.entries} entries"

    @property
    def out_of_line(self) -> int:
        """How many were found."""
        return self._found.total()

    def summary(self, found: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        """Return how many, and what was found, if it is given."""
        counts = {
            "clients": self.clients,
            "entries": self.entries,
            "out_of_line": self.out_of_line,
            "repaired": self.repaired,
        }
        return counts if found is None else {**counts, "found": found}

    def bounds(self, sample: int) -> Iterator[str]:
        """Yield what so many of each, chosen at random, tell of all."""
        wrong = {"clients": self._wrong_clients, "entries": self._wrong_entries}
        for what, looked_at in (("clients", self.clients), ("entries", self.entries)):
            told = f"{what}: {wrong[what]:,} of {looked_at:,} out of line".replace(",", " ")
            if looked_at < sample:
                yield f"{told}, and those are all"
            else:
                share = math.floor(in_line_at_least(wrong[what], looked_at) * 10_000) / 100
                yield f"{told}: at least {share:.2f} % in line (95 %)"
