"""Whether a database has what a deletion relies on: asked, or tried and undone."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ...entries import EntryRule, KeyTemplates
from ...model import Finding
from .loose import Loose
from .mapping import of_entries, of_relationships, of_templates
from .recorder import reaches
from .rows import ClientRows
from .transactions import RefusedError, Transactions, missing

_T = TypeVar("_T")


class Check:
    """Looks at one database, for one kind of client."""

    def __init__(self, transactions: Transactions, rows: ClientRows, ledger: sa.Table, loose: Loose) -> None:
        self._transactions = transactions
        self._rows = rows
        self._ledger = ledger
        self._loose = loose

    def findings(self, kind: str, entries: EntryRule, *, removes: bool) -> Iterator[Finding]:
        """Yield them; raises RepositoryError where the database does not answer."""
        yield from self._ask(self._of_server)
        lacking = self._ask(self._lacking)
        yield from lacking
        if lacking:
            return  # what needs them would only fail
        yield from self._ask(self._of_indexes)
        refused = list(self._of_rights(removes))
        yield from refused
        if refused:
            return
        if isinstance(entries, KeyTemplates):
            yield from self._ask(partial(of_templates, rows=self._rows, templates=entries))
        of_rows = partial(of_entries, dialect=self._transactions.dialect)
        yield from self._ask(partial(of_rows, rows=self._rows, entries=entries))
        if removes:
            yield from self._ask(partial(of_relationships, rows=self._rows))
            loose = partial(self._loose.findings, dialect=self._transactions.dialect, kind=kind)
            yield from self._ask(loose)

    def _ask(self, query: Callable[[Session], list[Finding]]) -> list[Finding]:
        try:
            return self._try(query)
        except RefusedError as refused:
            problem = f"The database, or the mapping, refuses what is asked of it ({refused.__cause__})."
            return [Finding(f"{self._rows.id.table}", problem, "Mend that, and check again.")]

    def _lacking(self, session: Session) -> list[Finding]:
        fix = "Make it as your app makes its tables, or migrate."
        lacking = missing(session.connection(), self._transactions.tables)
        return [Finding(name, "The database lacks it.", fix) for name in lacking]

    def _try(self, step: Callable[[Session], _T]) -> _T:
        """Take a step, and undo it; raises RefusedError, too."""
        dialect = self._transactions.dialect

        def bounded(session: Session) -> _T:
            session.execute(sa.select(dialect.step_1))  # from now on waits have a limit
            return step(session)

        return self._transactions.write(bounded, "", dialect.transaction, undo=True)

    def _of_server(self, session: Session) -> list[Finding]:
        connection, dialect = session.connection(), self._transactions.dialect
        found = list(dialect.unsafe(connection, self._transactions.tables))
        version = connection.dialect.server_version_info
        if version is not None and version < dialect.oldest:
            told, oldest = (".".join(map(str, numbers)) for numbers in (version, dialect.oldest))
            problem = f"The order of steps is not tried on its version {told}."
            found.append(Finding("database", problem, f"Use {oldest} or a later one."))
        return found

    def _of_indexes(self, session: Session) -> list[Finding]:
        ledger = self._ledger
        indexes = sa.inspect(session.connection()).get_indexes(ledger.name, ledger.schema)
        there = [index["column_names"] for index in indexes]
        return [
            Finding(
                f"{ledger}",
                f"The database lacks its index {index.name}: each deletion reads the whole table.",
                "Make it as your app makes its tables, or migrate.",
                breaks=False,
            )
            for index in sorted(ledger.indexes, key=lambda index: str(index.name))
            if [column.name for column in index.columns] not in there
        ]

    def _of_rights(self, removes: bool) -> Iterator[Finding]:
        """Try what a deletion sends, on no row."""
        dialect = self._transactions.dialect
        for right, what, table, statement in _needed(self._rows, self._ledger, removes):
            try:
                self._try(partial(Session.execute, statement=statement))
            except RefusedError as refused:
                problem = f"The database does not let its user {what} ({refused.__cause__})."
                grant = (
                    f"GRANT {right} ON {dialect.name_of(table)} TO that user; or l" if dialect.grants else "L"
                )
                fix = f"{grant}ook for a trigger, a rule or a broken foreign key there."
                yield Finding(f"{table}", problem, fix)


def _needed(rows: ClientRows, ledger: sa.Table, removes: bool) -> Iterable[tuple[str, str, Any, Any]]:
    """Yield a right, what for, on which table, and a statement that needs it and finds no row."""
    nothing, c = sa.false(), ledger.c
    for table in rows.mapper.tables:
        columns = [column for column in rows.mapper.columns if getattr(column, "table", None) is table]
        yield "SELECT", "read it", table, sa.select(*columns).where(nothing)
        if removes:
            yield "DELETE", "remove its rows", table, sa.delete(table).where(nothing)
    for related in rows.mapper.relationships if removes else ():
        if not related.viewonly and reaches(related):
            column: Any = related.synchronize_pairs[0][1]
            yield "SELECT", "read it", column.table, sa.select(column).where(nothing)
            if related.cascade.delete or related.secondary is not None:
                yield "DELETE", "remove its rows", column.table, sa.delete(column.table).where(nothing)
            else:
                unlinked = sa.update(column.table).where(nothing).values({column: sa.null()})
                yield "UPDATE", "change its rows", column.table, unlinked
    status = rows.status.column
    yield (
        "UPDATE",
        "change its rows",
        status.table,
        sa.update(status.table).where(nothing).values({status: status}),
    )
    found = sa.select(rows.id).select_from(rows.mapper.selectable).where(nothing)
    held = found.with_for_update(read=True, of=rows.mapper.tables)
    yield "UPDATE", "lock its rows, as verify does", rows.id.table, held
    yield "SELECT", "read it", ledger, sa.select(ledger).where(nothing)
    written = [column for column in c if not column.primary_key]
    yield (
        "INSERT",
        "add to it",
        ledger,
        sa.insert(ledger).from_select(written, sa.select(*written).where(nothing)),
    )
    stamps = {
        column: column for column in (c.settled_at, c.verified_at, c.digested_at, c.kv_keys, c.attempts)
    }
    yield (
        "UPDATE",
        "change its rows",
        ledger,
        sa.update(ledger).where(nothing).values({**stamps, c.last_error: c.last_error}),
    )
