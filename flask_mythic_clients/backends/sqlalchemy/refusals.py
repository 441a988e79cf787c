"""What is said where the database or the mapping says no: names from look-ups of our own.

Never what it said itself: a text of the database, of a trigger or of the ORM may hold a client's values.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import RelationshipDirection, Session

from ...errors import (
    ChangeRefusedError,
    ClientInUseError,
    ConstraintError,
    DatabaseRefusedError,
    MappingError,
    OtherClientsError,
)
from ...model import Change, Client
from .dialects import Dialect, Verdict
from .rows import ClientRows


def refusal(verdict: Verdict, change: Change, rows: ClientRows, columns: Sequence[str]) -> ChangeRefusedError:
    """Return the error for a change that something forbids; `columns` are those that a look-up has found."""
    error, hint = _SAID[verdict]
    if verdict is Verdict.CONSTRAINT and columns:
        error = ClientInUseError
    table = rows.id.table
    where = f"Look at {', '.join(columns)}." if columns else f"Look at the table {table}{hint}."
    refused = error(change.client_id, f"{error.__doc__} {where}")
    refused.columns = columns
    return refused


_SAID: dict[Verdict, tuple[type[ChangeRefusedError], str]] = {
    Verdict.CONSTRAINT: (ConstraintError, ""),
    Verdict.REFUSED: (DatabaseRefusedError, ", and at those that change with it"),
    Verdict.KEPT: (DatabaseRefusedError, ": the row was let be as it was, and no reason was given"),
    Verdict.MAPPING: (MappingError, ", and at the relationships of its model"),
}


def taken_along(client_id: str, others: Sequence[str]) -> ChangeRefusedError:
    """Return the error for a removal that would remove other clients, told as `table id`."""
    named = ", ".join(others[:_NAMED]) + (" and others" if len(others) > _NAMED else "")
    message = f"{OtherClientsError.__doc__} Look at {named}: remove those first, or part them from this one."
    return OtherClientsError(client_id, message)


_NAMED = 5


def holding_back(session: Session, dialect: Dialect, rows: ClientRows, client_id: str) -> list[str]:
    """Return the columns, as `table.column`, by which foreign keys of the database forbid a removal."""
    client = rows.read(session, [client_id], dialect).get(client_id)
    found = referring(session, rows, client) if client else []
    # Of what the ORM looks after only where there is nothing else.
    touched = set(touched_by_the_orm(rows))
    return [column for column in found if column not in touched] or found


def referring(session: Session, rows: ClientRows, client: Client) -> list[str]:
    """Return the columns of the database by which others refer to a client: first those that forbid."""
    inspector = sa.inspect(session.connection())
    found: dict[str, str] = {}
    for clients in rows.mapper.tables:
        for (schema, name), keys in inspector.get_multi_foreign_keys(schema=clients.schema).items():
            for key in keys:
                if (key["referred_schema"], key["referred_table"]) != (clients.schema, clients.name):
                    continue
                columns: list[Any] = [sa.column(column) for column in key["constrained_columns"]]
                table = sa.table(name, *columns, schema=schema)
                values = rows.values(client, clients, key["referred_columns"])
                refers = [column == value for column, value in zip(columns, values, strict=True)]
                one = sa.select(sa.literal(1)).select_from(table).where(*refers).limit(1)
                if session.connection().execute(one).first() is not None:
                    found |= {f"{table}.{column.name}": _on_delete(key) for column in columns}
    # What a cascade takes along does not forbid; nor does, as a rule, what may be set to null.
    return sorted(name for name, does in found.items() if does == "NO ACTION") or sorted(found)


def _on_delete(key: Any) -> str:
    does = key.get("options", {}).get("ondelete", "NO ACTION").upper()
    return "NO ACTION" if does == "RESTRICT" else does


def touched_by_the_orm(rows: ClientRows) -> Iterator[str]:
    """Yield the columns, as `table.column`, that the ORM would change to remove a client."""
    for related in rows.mapper.relationships:
        if related.direction is not RelationshipDirection.MANYTOONE and not related.passive_deletes:
            yield from sorted(f"{column.table}.{column.name}" for _, column in related.synchronize_pairs)
