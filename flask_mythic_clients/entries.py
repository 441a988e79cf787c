"""Which entries of the key-value store a client owns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from .errors import WrongEntriesError
from .model import Client, SoftDeleteEntries
from .templates import Template

Value: TypeAlias = str | bytes
Entries: TypeAlias = Mapping[str, Value | None]
"""Key → value; None where only the host knows the value."""


class EntryRule(Protocol):
    """Names the entries of a client."""

    def __call__(self, client: Client, /) -> Entries:
        """Return every entry the client owns, and the value where it is known."""
        ...


class Wished(NamedTuple):
    """What must become of a client's entries, as its row is now.

    Those that are in neither are left as they are: only the host knows their values.
    """

    absent: Collection[str]
    known: Mapping[str, Value]
    """Key → what the entry must say, if it is there."""


def wished(client: Client, entries: Entries, of_inactive: SoftDeleteEntries) -> Wished:
    """Return what an active or inactive client's entries must be."""
    if client.active or of_inactive is SoftDeleteEntries.REWRITE:
        return Wished((), {key: value for key, value in entries.items() if value is not None})
    return Wished(entries.keys(), {})


def as_bytes(value: Value) -> bytes:
    """Return a value as a key-value store gives it back; raises TypeError for what none takes."""
    if isinstance(value, (bytes, memoryview)):
        return bytes(value)
    if not _is_value(value):
        raise TypeError(type(value).__name__)
    return f"{value}".encode()


def _is_value(value: object) -> bool:
    # Numbers and views of bytes are no Value, and Redis takes them all the same.
    return isinstance(value, (str, bytes, memoryview, int, float)) and not isinstance(value, bool)


def _is_encodable(text: object) -> bool:
    if isinstance(text, str) and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def _checked(entries: Any, by: str) -> Entries:
    """Return what the app's code has returned; raises WrongEntriesError, which tells types alone."""
    if not isinstance(entries, Mapping):
        raise WrongEntriesError(
            f"{by} returned {type(entries).__name__} for a client's entries: return a dict of each key and "
            "its value, or None where the value is not known."
        )
    for key, value in entries.items():
        if not isinstance(key, str):
            raise WrongEntriesError(f"{by} returned {type(key).__name__} as an entry's key: return str.")
        if value is not None and not _is_value(value):
            raise WrongEntriesError(
                f"{by} returned {type(value).__name__} as an entry's value: return str or bytes, such as "
                "json.dumps makes."
            )
        if not all(map(_is_encodable, (key, value))):
            raise WrongEntriesError(f"{by} returned a text with half a character, which UTF-8 cannot encode.")
    checked: Entries = entries
    return checked


class EntryFunction:
    """A host's `entries(row) -> {key: value or None}` as a rule."""

    def __init__(self, entries: Callable[[Any], Entries]) -> None:
        self._entries = entries

    def __call__(self, client: Client, /) -> Entries:
        """Fulfil `EntryRule`."""
        return _checked(self._entries(client.row), "entries=")


class KeyTemplates:
    """Key templates such as `client:{id}`, filled from the row's columns.

    `{id}` is the client's id, whatever its column is called. A column that is None yields no key.
    Raises ConfigurationError for a template that no single client could own.
    """

    def __init__(self, templates: Sequence[str]) -> None:
        self.each = tuple(map(Template.read, templates))
        columns = (column for template in self.each for column in template.columns)
        self.columns = sorted({*columns} - {"id"})

    def __call__(self, client: Client, /) -> Entries:
        """Fulfil `EntryRule`; a row that has `entry_values` knows the values."""
        # Not by `isinstance`, which looks a Protocol's methods up each time.
        values: Entries = {}
        if hasattr(client.row, "entry_values"):
            by = f"{type(client.row).__name__}.entry_values"
            values = _checked(client.row.entry_values(), by)
        return {key: values.get(key) for key in self.keys(client)}

    def keys(self, client: Client) -> list[str]:
        """Return the keys of a client."""
        columns = {"id": client.id}
        for name in self.columns:
            columns[name] = getattr(client.row, name)
        keys = (template.key(columns) for template in self.each)
        return [key for key in keys if key is not None]

    def keys_of_id(self, client_id: str) -> list[str]:
        """Return the keys that can be told by the id alone."""
        of_id = (template for template in self.each if {*template.columns} == {"id"})
        return [template.filled([client_id] * len(template.columns)) for template in of_id]

    def keys_of_nobody(self, text: str) -> dict[str, str]:
        """Return key → template, with `text`, which no column of any client has, for every column."""
        return {template.filled([text] * len(template.columns)): f"{template}" for template in self.each}
