"""Rows that a removal would leave behind: no foreign key would stop it, and none would take them along."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import RelationshipDirection, Session

from ...errors import ConfigurationError
from ...model import Finding
from .dialects import Dialect
from .rows import ClientRows, metadata_of

_LEDGERS = {"client_id", "kv_keys", "requested_at", "settled_at"}  # of whichever kind of client, and app


def check_ignored(ignore: Any) -> Collection[str]:
    """Return the columns that a host wants to hear nothing of; raises ConfigurationError for what is none."""
    if isinstance(ignore, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) and "." in name for name in ignore
    ):
        return frozenset(ignore)
    raise ConfigurationError(
        f"ignore= takes a list of columns as 'table.column', such as ['invoices.client_id'], not {ignore!r}."
    )


@dataclass(frozen=True)
class _Column:
    """A column that seems to refer to a client, and that no foreign key knows."""

    name: str
    is_sure: bool
    goes_with: str | None
    """The parent of its table, where a cascade comes by."""


class Loose:
    """Columns that are named as if they referred to a client, and have no foreign key."""

    def __init__(self, rows: ClientRows, ignore: Collection[str]) -> None:
        self._rows = rows
        self._ignore = ignore

    def findings(self, session: Session, *, dialect: Dialect, kind: str) -> list[Finding]:
        """Return them, and what of `ignore=` names none."""
        connection = session.connection()
        declared, found = self._declared(), list[Finding]()
        ignored = {name.casefold(): name for name in sorted(self._ignore)}
        for each in self._columns(connection, kind, dialect.partitions(connection)):
            if each.name.casefold() in ignored:
                del ignored[each.name.casefold()]
                continue
            found.append(self._finding(each, declared))
        for name in ignored.values():
            problem = "ignore= names it, but it is no column that would be told."
            found.append(Finding(name, problem, "Take it out, or mend the name.", breaks=False))
        if not dialect.sees_all(connection):
            problem = "Its user sees only tables to which it has a right: others may refer to clients, too."
            found.append(Finding("database", problem, "Check once as a user who sees all.", breaks=False))
        return found

    def _finding(self, each: "_Column", declared: Mapping[str, str]) -> Finding:
        fix = (
            "Make the foreign key; or name it in SQLAlchemyRepository(…, "
            f"ignore=[{each.name!r}]), where a before= removes the rows, or they are meant to stay."
        )
        if each.name in declared:
            problem = f"The model has a foreign key to {declared[each.name]} there, the database has none."
            return Finding(each.name, problem, fix)
        if each.goes_with is not None:
            problem = f"It has no foreign key: its rows go only where their {each.goes_with} does."
            return Finding(each.name, problem, fix, breaks=False)
        clients = self._rows.id.table
        problem = f"It is named as if it referred to {clients}, and has no foreign key: its rows would stay."
        return Finding(each.name, problem, fix, breaks=each.is_sure)

    def _columns(
        self, connection: sa.Connection, kind: str, partitions: Collection[str]
    ) -> Iterator["_Column"]:
        """Yield all that are named so and that nothing looks after."""
        inspector = sa.inspect(connection)
        default = inspector.default_schema_name
        names, looked_after = self._names(kind), set(self._looked_after())
        own = {(column.table.name, column.name) for column in self._keys()}
        clients = {table.name for table in self._rows.mapper.tables}
        schemas = {table.schema for table in metadata_of(self._rows.model).tables.values()}
        schemas = {None if schema == default else schema for schema in {*schemas, self._rows.id.table.schema}}
        for schema in sorted(schemas, key=str):
            keys: Any = inspector.get_multi_foreign_keys(schema=schema)
            columns: Any = inspector.get_multi_columns(schema=schema)
            going = _going_along(keys, clients)
            for (_, table), of_table in sorted(columns.items(), key=lambda item: item[0][1]):
                there = {column["name"].casefold(): column for column in of_table}
                if _LEDGERS.issubset(there) or table in partitions:
                    continue
                foreign = set(_covered(keys.get((schema, table), ()), there, clients))
                for folded, column in there.items():
                    name = column["name"]
                    rank = _rank(name, names)
                    if not rank or folded in foreign or {(table, name)} & (own | looked_after):
                        continue
                    fits = self._is_of_type(column["type"])
                    if table in clients and (not fits or _is_alone_unique(inspector, table, schema, name)):
                        continue  # a number of the client's, given by somebody else
                    full = f"{schema}.{table}.{name}" if schema else f"{table}.{name}"
                    yield _Column(full, is_sure=rank == _EXACT and fits, goes_with=going.get(table))

    def _is_of_type(self, type_: Any) -> bool:
        """Whether a column of that type can hold a client's id."""
        try:
            return bool(type_.python_type is self._rows.id.type.python_type)
        except NotImplementedError:
            return True

    def _names(self, kind: str) -> set[str]:
        """Return how a column is called that refers to this kind of client: in small letters, without '_'."""
        clients = {kind} if kind != "clients" else set()
        clients |= {self._rows.model.__name__, *(table.name for table in self._rows.mapper.tables)}
        one = {word for name in clients for word in _singulars("".join(_words(name)))} - {""}
        keys = {"id", *("".join(_words(column.name)) for column in self._keys())}
        return {client + key for client in one for key in keys}

    def _keys(self) -> list[sa.Column[Any]]:
        """Return the columns by which a client is named."""
        tables: Any = self._rows.mapper.tables
        return [self._rows.id, *(column for table in tables for column in table.primary_key)]

    def _looked_after(self) -> Iterator[tuple[str, str]]:
        """Yield what the ORM removes, or sets to null, by a relationship that needs no foreign key."""
        for related in self._rows.mapper.relationships:
            if (
                related.direction is RelationshipDirection.MANYTOONE
                or related.viewonly
                or related.passive_deletes
            ):
                continue
            for _, column in related.synchronize_pairs:
                yield column.table.name, column.name

    def _declared(self) -> dict[str, str]:
        """Return column → table for the foreign keys that the models have to a client."""
        clients = {table.fullname for table in self._rows.mapper.tables}
        found = {}
        for table in metadata_of(self._rows.model).tables.values():
            for key in table.foreign_keys:
                if (to := key.target_fullname.rpartition(".")[0]) in clients:
                    found[f"{table}.{key.parent.name}"] = to
        return found


def _words(name: str) -> list[str]:
    """Return the words of a name, as of `owner_tenant_id` or `ownerTenantId`, in small letters."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]


def _singulars(name: str) -> set[str]:
    """Return what may be the singular of a table's name, and the name."""
    endings = {"s": "", "es": "", "ies": "y"}
    return {name} | {name.removesuffix(s) + y for s, y in endings.items() if name.endswith(s)}


_EXACT, _WITH_A_ROLE = 2, 1


def _rank(column: str, names: Collection[str]) -> int:
    """Tell whether a column is called so, or with words before that, as `owner_tenant_id`; 0 for neither."""
    words = _words(column)
    if "".join(words) in names:
        return _EXACT
    return _WITH_A_ROLE if any("".join(words[at:]) in names for at in range(1, len(words))) else 0


def _covered(keys: Iterable[Any], columns: Mapping[str, Any], clients: Collection[str]) -> Iterator[str]:
    """Yield the columns that a foreign key looks after: one with a null in it looks after nothing."""
    for key in keys:
        own = {
            name.casefold() for name in key["constrained_columns"]
        }  # SQLite gives them as they were written
        for name in own:
            if key["referred_table"] in clients or not any(
                columns[each]["nullable"] for each in own - {name}
            ):
                yield name


def _going_along(keys: Mapping[Any, Any], clients: Collection[str]) -> dict[str, str]:
    """Return table → parent, for those whose rows a cascade takes along with what goes with a client."""
    going = dict.fromkeys(clients, "")
    grown = True
    while grown:
        grown = False
        for (_, table), of_table in keys.items():
            for key in of_table:
                cascades = key.get("options", {}).get("ondelete", "").upper() == "CASCADE"
                if cascades and table not in going and key["referred_table"] in going:
                    going[table], grown = key["referred_table"], True
    return {table: parent for table, parent in going.items() if parent and parent not in clients}


def _is_alone_unique(inspector: Any, table: str, schema: str | None, column: str) -> bool:
    found = [key["column_names"] for key in inspector.get_unique_constraints(table, schema)]
    found += [index["column_names"] for index in inspector.get_indexes(table, schema) if index["unique"]]
    return [column] in found
