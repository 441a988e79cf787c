"""A key template such as `client:{id}`: filled from a row, and read backwards from a key."""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from .errors import ConfigurationError

_MOST = 1000


@dataclass(frozen=True)
class Template:
    """Texts, and the names of the columns between them: one text more than columns."""

    texts: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def read(cls, template: str) -> "Template":
        """Return it in its parts; raises ConfigurationError where no single client could own such a key."""
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ConfigurationError(f"{template!r}: {error}; write for example 'client:{{id}}'.") from error
        texts, columns = [""], list[str]()
        for literal, column, spec, conversion in parsed:
            texts[-1] += literal
            if column is None:
                continue
            if not column.isidentifier() or spec or conversion:
                raise ConfigurationError(f"{template!r}: write {{column}}, a column's name and nothing else.")
            columns.append(column)
            texts.append("")
        if not columns:
            raise ConfigurationError(
                f"{template!r} names no column, so all clients would share that key; "
                "write for example 'client:{id}'."
            )
        return cls(tuple(texts), tuple(columns))

    def __str__(self) -> str:
        return self.filled([f"{{{column}}}" for column in self.columns])

    @property
    def ways(self) -> list[str]:
        """The columns, each once; by the first, which is the id if it is among them, rows are found."""
        return sorted(dict.fromkeys(self.columns), key=lambda column: column != "id")

    def key(self, values: Mapping[str, Any]) -> str | None:
        """Return the key of a row that has these values in its columns; None where one of them is None."""
        row = [values[column] for column in self.columns]
        return None if None in row else self._pattern.format(*row)

    def filled(self, values: Iterable[object]) -> str:
        """Return the texts with these between them."""
        return self._pattern.format(*values)

    @cached_property
    def _pattern(self) -> str:
        return "{!s}".join(text.replace("{", "{{").replace("}", "}}") for text in self.texts)

    def values(self, key: str) -> set[str]:
        """Return what the first of the `ways` may have had in a row that makes this key."""
        first, *others = self.texts
        if not key.startswith(first):
            return set()
        if len(others) == 1:  # as nearly all have it
            end = len(key) - len(others[0])
            return {key[len(first) : end]} if key.endswith(others[0]) and end >= len(first) else set()
        at = self.columns.index(self.ways[0])
        ways = list(islice(_split(key[len(first) :], others), _MOST))
        # So many of them has no key of ours.
        return {values[at] for values in ways} if len(ways) < _MOST else set()


def _split(text: str, texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield what may stand before each of the texts, the last of which is the end."""
    if len(texts) == 1:
        if text.endswith(texts[0]):
            yield (text[: len(text) - len(texts[0])],)
        return
    at = text.find(texts[0])
    while at >= 0:
        for others in _split(text[at + len(texts[0]) :], texts[1:]):
            yield (text[:at], *others)
        at = text.find(texts[0], at + 1)
