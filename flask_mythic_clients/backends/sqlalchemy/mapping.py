"""What in a host's mapping, or in its templates, makes deletions wrong, refused or slow."""

import re
from itertools import combinations
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import RelationshipDirection, Session

from ...entries import EntryRule, KeyTemplates
from ...errors import ForeignError
from ...model import Client, Finding
from .dialects import Dialect
from .recorder import reaches
from .rows import ClientRows

_SAMPLE = 100
_MANY = 1000


def of_templates(session: Session, rows: ClientRows, templates: KeyTemplates) -> list[Finding]:
    """Return where two clients may own one key: the removal of the one would take the other's entry."""
    found: list[Finding] = []
    for template in templates.each:
        names = {*template.columns}
        columns = {rows.column(name) for name in names}
        if "id" not in names and not _is_unique(session.connection(), columns):
            named = ", ".join(sorted(f"{rows.model.__name__}.{name}" for name in names))
            found.append(
                Finding(
                    f"{template}",
                    f"Two clients may own one such entry: {named} is not unique in the database.",
                    "Make it unique, or name {id} in the template too.",
                )
            )
        if "" in template.texts[1:-1]:
            problem = "Two clients may own one such entry: 'a' and 'bc' give the same text as 'ab' and 'c'."
            found.append(Finding(f"{template}", problem, "Write something between the two columns."))
    for one, other in combinations(templates.each, 2):
        if one.texts == other.texts and one != other:
            problem = f"Two clients may own one such entry: {other} has the same form."
            found.append(Finding(f"{one}", problem, "Begin each template in a way of its own."))
    return found


def of_entries(session: Session, dialect: Dialect, rows: ClientRows, entries: EntryRule) -> list[Finding]:
    """Return what the rule for entries, or the model's `entry_values`, does wrong for some clients."""
    subject = f"{rows.model.__name__}.entry_values" if isinstance(entries, KeyTemplates) else "entries="
    try:
        others = [_not_named(client, entries) for client in rows.page(session, dialect, None)[:_SAMPLE]]
    except sa.exc.SQLAlchemyError:
        raise
    except Exception as error:  # the host's
        problem = f"It, or the model, fails for a client ({ForeignError.told(error)})."
        return [Finding(subject, problem, "Mend it: deletions fail with it.")]
    if number := max(others, default=0):
        problem = f"It names entries that no template yields: {number} for a client."
        return [Finding(subject, problem, "Add templates for them: no deletion touches them.")]
    return []


def _not_named(client: Client, entries: EntryRule) -> int:
    """Return how many entries a client's row knows a value of, and the templates do not name."""
    named = entries(client)
    if not isinstance(entries, KeyTemplates) or not hasattr(client.row, "entry_values"):
        return 0
    # A template whose column is null yields no key; the value may be given all the same.
    empty = [each for each in entries.each if any(_is_null(client.row, name) for name in each.columns)]
    begins = tuple(each.texts[0] for each in empty if each.texts[0])
    others = [key for key in client.row.entry_values() if key not in named]
    return sum(not (isinstance(key, str) and begins and key.startswith(begins)) for key in others)


def of_relationships(session: Session, rows: ClientRows) -> list[Finding]:
    """Return the relationships by which a removal always fails, or loads very many rows."""
    found: list[Finding] = []
    connection = session.connection()
    tables = sa.inspect(connection)
    for related in rows.mapper.relationships:
        if (
            related.direction is RelationshipDirection.MANYTOONE
            or related.viewonly
            or related.passive_deletes
        ):
            continue
        subject = f"{related.parent.class_.__name__}.{related.key}"
        if related.lazy == "write_only":
            problem = "It is write-only, and without passive_deletes the ORM refuses each removal."
            fix = "Give it passive_deletes=True, and its foreign key ondelete='CASCADE' or 'SET NULL'."
            found.append(Finding(subject, problem, fix))
        elif reaches(related):
            column: Any = related.synchronize_pairs[0][1]
            if not tables.has_table(column.table.name, column.table.schema):
                continue
            number = sa.func.count()
            per_client = sa.select(number).where(column.is_not(None)).group_by(column)
            if connection.execute(per_client.having(number >= _MANY).limit(1)).first() is not None:
                problem = (
                    f"A removal loads each row: there is a client with {_MANY} or more in {column.table}."
                )
                fix = "Give it passive_deletes=True, and its foreign key ondelete='CASCADE' or 'SET NULL'."
                found.append(Finding(subject, problem, fix, breaks=False))
    return found


def _is_unique(connection: sa.Connection, columns: set[sa.Column[Any]]) -> bool:
    """Whether the database lets no two rows have the same values there; not so where only some rows count."""
    inspector = sa.inspect(connection)
    for table in {column.table for column in columns if isinstance(column, sa.Column)}:
        names = {column.name for column in columns if column.table is table}
        at: Any = (table.name, table.schema)
        sets: list[set[Any]] = [set(inspector.get_pk_constraint(*at)["constrained_columns"]) or {None}]
        sets += [set(key["column_names"]) for key in inspector.get_unique_constraints(*at)]
        every = {column["name"] for column in inspector.get_columns(*at)}
        sets += [_named(index, every) for index in inspector.get_indexes(*at) if index["unique"]]
        if any(key <= names for key in sets):
            return True
    return False


def _named(index: Any, columns: set[str]) -> set[Any]:
    """Return what a unique index makes unique: also that of which it has an expression."""
    options = index.get("dialect_options", {})
    if any(name.endswith("_where") and value is not None for name, value in options.items()):
        return {None}
    texts = index.get("expressions") or index["column_names"]
    return {word for text in texts for word in re.findall(r"\w+", f"{text}") if word in columns} or {None}


def _is_null(row: Any, name: str) -> bool:
    return name != "id" and getattr(row, name) is None
