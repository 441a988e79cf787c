"""What a hard delete would meet. Reads alone."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session

from ...entries import EntryRule
from ...model import Client, Dependent, Preview
from .dialects import Dialect
from .rows import ClientRows


def preview(
    session: Session, dialect: Dialect, rows: ClientRows, client_id: str, entries: EntryRule
) -> Preview | None:
    """Fulfil `ports.ClientDirectory.preview`."""
    client = rows.read(session, [client_id], dialect).get(client_id)
    if client is None:
        return None
    names = rows.mapper.columns.keys()
    return Preview(
        client=client,
        columns={name: getattr(client.row, name) for name in names},
        dependents=tuple(_dependents(session, rows.mapper, client)),
        kv_keys=tuple(entries(client)),
    )


def _dependents(session: Session, mapper: Mapper[Any], client: Client) -> Iterator[Dependent]:
    clients: Any = mapper.local_table
    for table in clients.metadata.sorted_tables:
        for key in table.foreign_keys:
            # By name: `key.column` raises where another key names a table the host has not defined.
            if key.target_fullname.rpartition(".")[0] != clients.fullname:
                continue
            value = getattr(client.row, mapper.get_property_by_column(key.column).key)
            count = sa.select(sa.func.count()).select_from(table).where(key.parent == value)
            if rows := session.connection().scalars(count).one():
                yield Dependent(f"{table.fullname}.{key.parent.name}", rows, _on_delete(mapper, key))


def _on_delete(mapper: Mapper[Any], key: sa.ForeignKey) -> str:
    for related in mapper.relationships:
        if related.secondary is key.parent.table:
            return "ORM CASCADE"
        if related.cascade.delete and related.mapper.local_table is key.parent.table:
            return "ORM CASCADE"
    return key.ondelete or "NO ACTION"
