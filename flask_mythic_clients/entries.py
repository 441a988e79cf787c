"""Which entries of the key-value store a client owns."""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from .errors import ConfigurationError
from .model import Client

Value: TypeAlias = str | bytes
Entries: TypeAlias = Mapping[str, Value | None]
"""Key → value; None where only the host knows the value."""


class EntryRule(Protocol):
    """Names the entries of a client."""

    def __call__(self, client: Client, /) -> Entries:
        """Return every entry the client owns, and the value where it is known."""
        ...


class EntryValues(Protocol):
    """A row that knows values of its own entries."""

    def entry_values(self) -> Mapping[str, Value]:
        """Return key → value for the entries whose value follows from the row."""
        ...


class EntryFunction:
    """A host's `entries(row) -> {key: value or None}` as a rule."""

    def __init__(self, entries: Callable[[Any], Entries]) -> None:
        self._entries = entries

    def __call__(self, client: Client, /) -> Entries:
        """Fulfil `EntryRule`."""
        return self._entries(client.row)


class KeyTemplates:
    """Key templates such as `client:{id}`, filled from the row's columns.

    `{id}` is the client's id, whatever its column is called. A column that is None yields no key.
    Raises ConfigurationError for a template that no single client could own.
    """

    def __init__(self, templates: Sequence[str]) -> None:
        self.parts = tuple(_parse(template) for template in templates)
        columns = (column for parts in self.parts for _, column in parts)
        self.columns = sorted({column for column in columns if column is not None} - {"id"})

    def __call__(self, client: Client, /) -> Entries:
        """Fulfil `EntryRule`; a row that has `entry_values` knows the values."""
        # Not by `isinstance`, which looks a Protocol's methods up each time.
        values = client.row.entry_values() if hasattr(client.row, "entry_values") else {}
        keys = (_fill(parts, client) for parts in self.parts)
        return {key: values.get(key) for key in keys if key is not None}

    def keys_of_id(self, client_id: str) -> list[str]:
        """Return the keys that can be told by the id alone."""
        of_id = (parts for parts in self.parts if {column for _, column in parts} <= {"id", None})
        return ["".join(literal + (client_id if column else "") for literal, column in p) for p in of_id]

    def keys_of_nobody(self, text: str) -> dict[str, str]:
        """Return key → template, with `text`, which no column of any client has, for every column."""
        return {
            "".join(literal + (text if column else "") for literal, column in parts): template_of(parts)
            for parts in self.parts
        }


_Parts: TypeAlias = tuple[tuple[str, str | None], ...]


def _parse(template: str) -> _Parts:
    """Split a template into (literal text, column or None) pairs."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(f"{template!r}: {error}; write for example 'client:{{id}}'.") from error
    for _, column, spec, conversion in parsed:
        if column is not None and (not column.isidentifier() or spec or conversion):
            raise ConfigurationError(f"{template!r}: write {{column}}, a column's name and nothing else.")
    if all(column is None for _, column, _, _ in parsed):
        raise ConfigurationError(
            f"{template!r} names no column, so all clients would share that key; "
            "write for example 'client:{id}'."
        )
    return tuple((literal, column) for literal, column, _, _ in parsed)


def template_of(parts: _Parts) -> str:
    """Return the template that was split into these."""
    return "".join(literal + (f"{{{column}}}" if column else "") for literal, column in parts)


def _fill(parts: _Parts, client: Client) -> str | None:
    key = ""
    for literal, column in parts:
        key += literal
        if column is not None:
            value = client.id if column == "id" else getattr(client.row, column)
            if value is None:
                return None
            key += str(value)
    return key
