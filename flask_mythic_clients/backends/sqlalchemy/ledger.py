"""The ledger table, and what is read from it."""

import re
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session

from ...errors import ConfigurationError, RepositoryError
from ...model import Action, Backlog, DeletionRecord
from .dialects import Dialect

_PAGE = 100
_SAID = 255  # characters of what went wrong that are kept

LEDGER = "client_deletions"
# Its indexes' names are longer, and PostgreSQL has 63 characters for one.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")

# Whose ledger a table is. Not in `Table.info`: Alembic writes that into the migrations it generates.
_models: WeakKeyDictionary[sa.Table, type] = WeakKeyDictionary()

# Ids are compared to the letter. MariaDB's usual collations find "Acme" where "acme" is asked for.
_CLIENT_ID = sa.String(255).with_variant(
    mysql.VARCHAR(255, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def ledger_table(metadata: sa.MetaData, model: type, name: str) -> sa.Table:
    """Return the ledger of a model, made on the host's metadata so that its migrations see it.

    Each kind of client has one of its own, since equal ids of two kinds could not be told apart: raises
    ConfigurationError for a table that is another's, and for a name that not every database takes.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"ledger= takes the name of a table, up to 48 small letters, digits and '_', not {name!r}."
        )
    key = f"{metadata.schema}.{name}" if metadata.schema else name
    if (table := metadata.tables.get(key)) is not None:
        if _models.get(table) is not model:
            raise shared(key, model.__name__)
        return table
    table = sa.Table(
        name,
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("client_id", _CLIENT_ID, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("kv_keys", sa.JSON(), nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
        sa.Column("verified_at", _TIME),
        sa.Column("attempts", sa.Integer()),
        sa.Column("last_error", sa.String(_SAID)),
        # What is pending for a client; its history.
        sa.Index(f"ix_{name}_client", "client_id", "settled_at"),
        # What is pending at all (both null), and what is to be verified; in the order of the pages.
        sa.Index(f"ix_{name}_unfinished", "verified_at", "settled_at", "id"),
    )
    _models[table] = model
    return table


def shared(ledger: str, clients: str) -> ConfigurationError:
    """Return the error for a ledger that is something else already."""
    return ConfigurationError(
        f"The table {ledger} already exists for something other than {clients}: pass "
        "SQLAlchemyRepository(…, ledger=…) with a name of its own."
    )


class Ledger:
    """Reads and stamps records in a transaction that the caller owns."""

    def __init__(self, table: sa.Table) -> None:
        self.table = table
        self._pending = table.c.verified_at.is_(None) & table.c.settled_at.is_(None)

    def settle(
        self, session: Session, dialect: Dialect, client_ids: Collection[str], wait: bool
    ) -> list[DeletionRecord]:
        """Lock and stamp the pending records of the clients; waits for whoever holds one, or leaves it."""
        pending: sa.ColumnElement[bool] = self.table.c.client_id.in_(
            client_ids
        ) & self.table.c.settled_at.is_(None)
        if not wait:
            pending = self._free(session, dialect, pending, lambda _: ())
        return self._stamped(session, dialect, pending, "settled_at")

    def verify(
        self,
        session: Session,
        dialect: Dialect,
        client_ids: Collection[str],
        settled_for: timedelta,
        leave: Callable[[Collection[str]], Collection[str]] | None,
    ) -> list[DeletionRecord]:
        """Lock and stamp the clients' records that are due; waits, or leaves those that somebody else holds.

        `leave` is asked, in place of waiting, which of the clients whose records are locked are left, too.
        """
        due: sa.ColumnElement[bool] = self.table.c.client_id.in_(client_ids) & self._due(dialect, settled_for)
        if leave is not None:
            due = self._free(session, dialect, due, leave)
        return self._stamped(session, dialect, due, "verified_at")

    def note_failure(
        self, session: Session, dialect: Dialect, client_ids: Collection[str], error: str
    ) -> None:
        """Fulfil `ports.DeletionSteps.note_failure`."""
        dialect.lock(session, self.table)
        c = self.table.c
        update = sa.update(self.table).where(
            c.client_id.in_(client_ids), c.verified_at.is_(None), dialect.step_2
        )
        attempts = sa.func.coalesce(c.attempts, 0) + 1
        session.connection().execute(update.values(attempts=attempts, last_error=error[:_SAID]))

    def none(self, session: Session, dialect: Dialect) -> list[DeletionRecord]:
        """Lock no record, but what must be locked before a row is."""
        dialect.lock(session, self.table)
        return []

    def pending(
        self, session: Session, dialect: Dialect, after: DeletionRecord | None
    ) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.pending`."""
        query = self._page(self._pending)
        if after is not None:
            query = query.where(self.table.c.id > after.id)
        return _records(dialect, session.connection().execute(query))

    def due(
        self, session: Session, dialect: Dialect, settled_for: timedelta, after: DeletionRecord | None
    ) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.due`."""
        query, c = self._page(self._due(dialect, settled_for)), self.table.c
        if after is not None:
            query = query.where(sa.tuple_(c.settled_at, c.id) > sa.tuple_(after.settled_at, after.id))
        return _records(dialect, session.connection().execute(query))

    def history(self, session: Session, dialect: Dialect, client_id: str) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        c = self.table.c
        query = sa.select(self.table).where(c.client_id == client_id).order_by(c.id)
        return _records(dialect, session.connection().execute(query))

    def backlog(self, session: Session, dialect: Dialect) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        query = sa.select(sa.func.count(), sa.func.min(self.table.c.requested_at)).where(self._pending)
        pending, oldest = session.connection().execute(query).one()
        return Backlog(pending, oldest and dialect.aware(oldest))

    def _due(self, dialect: Dialect, settled_for: timedelta) -> sa.ColumnElement[bool]:
        c = self.table.c
        return c.verified_at.is_(None) & (c.settled_at <= dialect.ago(settled_for))

    def _page(self, where: sa.ColumnElement[bool]) -> sa.Select[Any]:
        c = self.table.c
        # The order of the index, also where its first columns are all null.
        return sa.select(self.table).where(where).order_by(c.verified_at, c.settled_at, c.id).limit(_PAGE)

    def _stamped(
        self, session: Session, dialect: Dialect, where: sa.ColumnElement[bool], column: str
    ) -> list[DeletionRecord]:
        """Lock and stamp records; raises RepositoryError where the database lets them be as they were."""
        rows = dialect.stamp(session, self.table, where, column)
        if rows or not dialect.skips_rows:
            return list(map(partial(_record, dialect.aware), rows))
        left = sa.select(sa.literal(1)).where(where).limit(1)
        if session.connection().execute(left).first() is not None:
            rows = dialect.stamp(session, self.table, where, column)  # one that was made just now
            if not rows:
                raise RepositoryError(
                    f"The database let the records in {self.table} be as they were, and gave no reason: this "
                    "is no outage, look for a trigger or a rule."
                )
        return _records(dialect, rows)

    def _free(
        self,
        session: Session,
        dialect: Dialect,
        where: sa.ColumnElement[bool],
        leave: Callable[[Collection[str]], Collection[str]],
    ) -> sa.ColumnElement[bool]:
        """Lock records that nobody holds; leave those of clients of which somebody else holds one.

        Two who hold one each of a client's records would write its entries side by side. What was locked
        of such a client stays so until the end of the transaction.
        """
        dialect.lock(session, self.table)
        c = self.table.c
        query = sa.select(c.id, c.client_id).where(where)
        mine = {id for id, _ in session.connection().execute(query.with_for_update(skip_locked=True))}
        # Another's record, and one made since.
        every = session.connection().execute(query).all()
        disputed = {client_id for id, client_id in every if id not in mine}
        disputed |= set(leave({client_id for _, client_id in every} - disputed))
        # By their ids: MariaDB also waits for records that it only comes across, by another index.
        return c.id.in_([id for id, client_id in every if client_id not in disputed])


def _records(dialect: Dialect, rows: Iterable[sa.Row[Any]]) -> list[DeletionRecord]:
    return list(map(partial(_record, dialect.aware), rows))


def _record(aware: Callable[[Any], Any], row: sa.Row[Any]) -> DeletionRecord:
    keys = row.kv_keys
    if None in keys:  # a template whose column was null wrote a null
        keys = [key for key in keys if key is not None]
    return DeletionRecord(
        id=row.id,
        client_id=row.client_id,
        action=Action(row.action),
        actor=row.actor,
        kv_keys=tuple(keys),
        requested_at=aware(row.requested_at),
        settled_at=row.settled_at and aware(row.settled_at),
        verified_at=row.verified_at and aware(row.verified_at),
        attempts=row.attempts or 0,
        last_error=row.last_error,
    )
