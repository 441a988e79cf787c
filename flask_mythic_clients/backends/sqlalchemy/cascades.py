"""Other clients that a removal would take along, without a record of theirs.

The database's cascades are followed by its own foreign keys: a host need not have declared them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa

from ...model import Client
from .rows import ClientRows

_Name: TypeAlias = tuple[str | None, str]  # schema, table
_Keys: TypeAlias = set[tuple[Any, ...]]  # primary keys, as the driver gives them
_AT_ONCE = 500


@dataclass(frozen=True)
class _Cascade:
    """A foreign key with ON DELETE CASCADE."""

    parent: _Name
    referred: Sequence[str]
    child: _Name
    referring: Sequence[str]


class Cascades:
    """Knows the foreign keys of one database by which the removal of a client may remove another."""

    def __init__(self, rows: ClientRows, kinds: Callable[[], Collection[ClientRows]]) -> None:
        self._rows = rows
        self._kinds = kinds
        self._found: Sequence[_Cascade] | None = None
        self._keys: dict[_Name, Sequence[str]] = {}

    def lead_to_clients(self, connection: sa.Connection) -> bool:
        """Whether there is such a foreign key; asks the database once."""
        if self._found is None:
            self._found = self._look(connection)
        return bool(self._found)

    def other_clients(self, connection: sa.Connection, client: Client) -> list[str]:
        """Return clients, as `table id`, that the database would remove with this one: the nearest.

        Rows on the way are locked: until the end of the transaction no other client comes to refer to one.
        """
        if not self.lead_to_clients(connection):
            return []
        seen: dict[_Name, _Keys] = {}
        new = {_name(table): self._own(connection, client, table) for table in self._rows.mapper.tables}
        while any(new.values()):
            for name, keys in new.items():
                seen.setdefault(name, set()).update(keys)
            reached: dict[_Name, _Keys] = {}
            for cascade in self._found or ():
                children = self._children(connection, cascade, new.get(cascade.parent, set()))
                reached.setdefault(cascade.child, set()).update(children)
            new = {name: keys - seen.get(name, set()) for name, keys in reached.items()}
            if others := set(self._clients(connection, new)) - {_told(self._rows, client.id)}:
                return sorted(others)
        return []

    def of_objects(self, removed: Iterable[Any], client: Client) -> list[str]:
        """Return the other clients, as `table id`, among the objects that the ORM removed with this one."""
        others = [row for row in removed if row is not client.row]
        kinds = self._kinds() if others else ()
        told = {_told(kind, kind.client(row).id) for row in others for kind in kinds if kind.owns(row)}
        return sorted(told)

    def _look(self, connection: sa.Connection) -> Sequence[_Cascade]:
        inspector = sa.inspect(connection)
        own = set(map(_name, self._rows.mapper.tables))
        clients = {_name(table) for kind in self._kinds() for table in kind.mapper.tables}
        cascades: list[_Cascade] = []
        for schema in {schema for schema, _ in clients}:
            cascades += _cascades(inspector.get_multi_foreign_keys(schema=schema))
        leading = _leading(cascades, clients)
        if own.isdisjoint(leading):
            return ()
        found = [cascade for cascade in cascades if cascade.child in leading | clients]
        for schema, name in own | {cascade.child for cascade in found}:
            key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
            referred = {column for by in found if by.parent == (schema, name) for column in by.referred}
            self._keys[schema, name] = key or sorted(referred)
        return found

    def _own(self, connection: sa.Connection, client: Client, table: Any) -> _Keys:
        query = sa.select(*raw(table, self._keys[_name(table)]))
        return set(map(tuple, connection.execute(query.where(*self._rows.of_client(client, table)))))

    def _children(self, connection: sa.Connection, by: _Cascade, parents: _Keys) -> Iterator[tuple[Any, ...]]:
        key, key_of_parent = self._keys[by.child], self._keys[by.parent]
        parent = _table(by.parent, {*by.referred, *key_of_parent}).alias("parent")
        child = _table(by.child, {*by.referring, *key}).alias("child")
        pairs = zip(raw(child, by.referring), raw(parent, by.referred), strict=True)
        refers = sa.and_(*(column == referred for column, referred in pairs))
        query = sa.select(*raw(child, key)).select_from(child.join(parent, refers))
        for some in _parts(parents):
            among = sa.tuple_(*raw(parent, key_of_parent)).in_(some)
            yield from map(tuple, connection.execute(query.where(among).with_for_update()))

    def _clients(self, connection: sa.Connection, new: dict[_Name, _Keys]) -> Iterator[str]:
        for kind in self._kinds():
            for table in kind.mapper.tables:
                name = _name(table)
                for some in _parts(new.get(name, set())):
                    among = sa.tuple_(*raw(table, self._keys[name])).in_(some)
                    query = sa.select(kind.id).select_from(kind.mapper.selectable).where(among)
                    yield from (_told(kind, id) for id in connection.scalars(query))


def _cascades(keys: Any) -> Iterator[_Cascade]:
    for child, of_child in keys.items():
        for key in of_child:
            if key.get("options", {}).get("ondelete", "").upper() == "CASCADE":
                parent = (key["referred_schema"], key["referred_table"])
                yield _Cascade(parent, key["referred_columns"], child, key["constrained_columns"])


def _leading(cascades: Collection[_Cascade], to: set[_Name]) -> set[_Name]:
    """Return the tables from which a cascade leads to others."""
    leading: set[_Name] = set()
    while parents := {by.parent for by in cascades if by.child in to | leading} - leading:
        leading |= parents
    return leading


def _name(table: Any) -> _Name:
    return table.schema, table.name


def _table(name: _Name, columns: Iterable[str]) -> Any:
    return sa.table(name[1], *map(sa.column, columns), schema=name[0])


def raw(table: Any, names: Iterable[str]) -> list[sa.ColumnElement[Any]]:
    """Return columns without their types: a value is compared as the driver gave it."""
    columns = {column.name: column for column in table.c}
    return [sa.type_coerce(columns[name], sa.types.NullType()) for name in names]


def _parts(keys: _Keys) -> Iterator[list[tuple[Any, ...]]]:
    every = list(keys)
    return (every[at : at + _AT_ONCE] for at in range(0, len(every), _AT_ONCE))


def _told(kind: ClientRows, id: Any) -> str:
    return f"{kind.id.table} {id}"
