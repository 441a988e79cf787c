"""Rows that a removal would leave behind: no foreign key would stop it, and none would take them along."""

import re
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import RelationshipDirection, Session

from ...errors import ConfigurationError
from ...model import Finding
from .rows import ClientRows

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


class Loose:
    """Columns that are named as if they referred to a client, and have no foreign key."""

    def __init__(self, rows: ClientRows, ignore: Collection[str]) -> None:
        self._rows = rows
        self._ignore = ignore

    def findings(self, session: Session, kind: str) -> list[Finding]:
        """Return them, and what of `ignore=` names none."""
        clients, named = self._rows.id.table, sorted(self._ignore)
        declared, found = self._declared(), list[Finding]()
        for table, column in self._columns(session.connection(), kind):
            name = f"{table}.{column}"
            if name in named:
                named.remove(name)
                continue
            problem = (
                f"It is named as if it referred to {clients}, and has no foreign key: its rows would stay."
            )
            if name in declared:
                problem = f"The model has a foreign key there to {declared[name]}, and the database has none."
            fix = (
                "Make the foreign key; or remove the rows in before=; and where they are meant to stay, name "
                f"it in SQLAlchemyRepository(…, ignore=[{name!r}])."
            )
            found.append(Finding(name, problem, fix))
        for name in named:
            problem = "ignore= names it, but it is no column that would be told."
            found.append(Finding(name, problem, "Take it out, or mend the name.", breaks=False))
        return found

    def _columns(self, connection: sa.Connection, kind: str) -> Iterator[tuple[str, str]]:
        """Yield table and column of all that are named so and that nothing looks after."""
        inspector = sa.inspect(connection)
        names, looked_after = self._names(kind), set(self._looked_after())
        own = {(column.table.schema, column.table.name, column.name) for column in self._keys()}
        schemas = {table.schema for table in self._rows.model.metadata.tables.values()}
        for schema in sorted(schemas | {self._rows.id.table.schema}, key=str):
            keys: Any = inspector.get_multi_foreign_keys(schema=schema)
            columns: Any = inspector.get_multi_columns(schema=schema)
            for (_, table), of_table in sorted(columns.items(), key=lambda item: item[0][1]):
                there = [column["name"] for column in of_table]
                if _LEDGERS.issubset(there):
                    continue
                foreign = {n for key in keys.get((schema, table), ()) for n in key["constrained_columns"]}
                for column in there:
                    at = (schema, table, column)
                    if column not in foreign and at not in own | looked_after and _is_named(column, names):
                        yield (f"{schema}.{table}" if schema else table), column

    def _names(self, kind: str) -> set[str]:
        """Return how a column is called that refers to this kind of client: in small letters, without '_'."""
        clients = {kind} if kind != "clients" else set()
        clients |= {self._rows.model.__name__, *(table.name for table in self._rows.mapper.tables)}
        one = {word for name in clients for word in _singulars("".join(_words(name)))}
        keys = {"id", *("".join(_words(column.name)) for column in self._keys())}
        return {client + key for client in one for key in keys}

    def _keys(self) -> list[sa.Column[Any]]:
        """Return the columns by which a client is named."""
        tables: Any = self._rows.mapper.tables
        return [self._rows.id, *(column for table in tables for column in table.primary_key)]

    def _looked_after(self) -> Iterator[tuple[str | None, str, str]]:
        """Yield what the ORM removes, or sets to null, by a relationship that needs no foreign key."""
        for related in self._rows.mapper.relationships:
            if (
                related.direction is RelationshipDirection.MANYTOONE
                or related.viewonly
                or related.passive_deletes
            ):
                continue
            for _, column in related.synchronize_pairs:
                yield column.table.schema, column.table.name, column.name

    def _declared(self) -> dict[str, str]:
        """Return column → table for the foreign keys that the models have to a client."""
        clients = {table.fullname for table in self._rows.mapper.tables}
        found = {}
        for table in self._rows.model.metadata.tables.values():
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


def _is_named(column: str, names: Collection[str]) -> bool:
    """Whether a column is called so, or with words before that, as `owner_tenant_id`."""
    words = _words(column)
    return any("".join(words[at:]) in names for at in range(len(words)))
