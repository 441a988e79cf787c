"""Rows found by what stands in the key of an entry, or at random: to compare them with a key-value store."""

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from ...errors import ConfigurationError
from .dialects import Dialect
from .rows import ClientRows


def owners(
    connection: sa.Connection,
    dialect: Dialect,
    *,
    rows: ClientRows,
    names: Sequence[str],
    among: Collection[str],
) -> set[tuple[str | None, ...]]:
    """Fulfil `ports.AuditedRepository.owners`."""
    columns = [rows.column(name) for name in names]
    tables: Any = {column.table for column in columns}
    for table in tables:
        if dialect.hides(connection, table):
            raise ConfigurationError(f"A policy, or a view, may hide rows of {table}.")
    found = (rows.value_of(names[0], text, dialect) for text in among)
    values = dialect.holdable(connection, columns[0], [value for value in found if value is not None])
    integer = isinstance(columns[0].type, sa.Integer)
    type_: Any = sa.BigInteger() if integer else columns[0].type
    if rows.is_plain(names[0], dialect):
        named = dialect.among(columns[0], "of_values", type_)
    else:
        named = columns[0].in_(sa.bindparam("of_values", type_=type_, expanding=True))
    query = sa.select(*columns).distinct().where(named)
    # Of the table itself, if that has all: so rows count, too, that the model leaves to another one.
    query = query.select_from(*tables if len(tables) == 1 else [rows.mapper.selectable])
    return {
        tuple(
            None if value is None else rows.id_of(value) if name == "id" else f"{value}"
            for name, value in zip(names, row, strict=True)
        )
        for row in connection.execute(query, {"of_values": values}).all()
    }


def chosen(connection: sa.Connection, dialect: Dialect, *, rows: ClientRows, number: int) -> list[str]:
    """Return the ids of so many clients, chosen at random."""
    query = rows.all_of(sa.select(rows.id)).where(rows.id.is_not(None)).order_by(dialect.random).limit(number)
    return list(map(rows.id_of, connection.scalars(query)))
