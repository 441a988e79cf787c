"""The ledger table `client_deletions`, and what is read from it."""

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session

from ...errors import ConfigurationError
from ...model import Action, Backlog, DeletionRecord
from ...ports import Clock

_PAGE = 100

# How long a settler waits for whoever holds a record of its clients. A key-value store that hangs makes a
# queue, in which each holds a connection of the host's pool; those who wait longer get their 503.
_MARIADB_WAIT = "WAIT 1"  # whole seconds only
_POSTGRESQL_WAIT = "1250ms"  # more than its deadlock_timeout, or a deadlock would never be found out

# A condition of the UPDATE that is always true, and is computed once, before a row is locked: so it needs no
# round trip of its own. No wait for the disk at commit: a stamp that a crash loses is only made again.
_LOCAL_SETTINGS = sa.select(
    sa.func.concat(
        sa.func.set_config("lock_timeout", _POSTGRESQL_WAIT, True),
        sa.func.set_config("synchronous_commit", "off", True),
    )
).scalar_subquery()

# Whose ledger a table is. Not in `Table.info`: Alembic writes that into the migrations it generates.
_models: WeakKeyDictionary[sa.Table, type] = WeakKeyDictionary()

# Ids are compared to the letter. MariaDB's usual collations find "Acme" where "acme" is asked for.
_CLIENT_ID = sa.String(255).with_variant(
    mysql.VARCHAR(255, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def ledger_table(metadata: sa.MetaData, model: type) -> sa.Table:
    """Return the ledger of a model, made on the host's metadata so that its migrations see it.

    One database has one ledger, and so one kind of client: a second one is a ConfigurationError,
    since equal ids of two kinds could not be told apart.
    """
    key = f"{metadata.schema}.client_deletions" if metadata.schema else "client_deletions"
    if (table := metadata.tables.get(key)) is not None:
        if _models.get(table) is not model:
            raise ConfigurationError(
                f"The table {key} already exists for something other than {model.__name__}. "
                "Give each kind of client its own database (__bind_key__)."
            )
        return table
    table = sa.Table(
        "client_deletions",
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("client_id", _CLIENT_ID, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("kv_keys", sa.JSON(), nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
        sa.Column("verified_at", _TIME),
        # What is pending for a client; its history.
        sa.Index("ix_client_deletions_client", "client_id", "settled_at"),
        # What is pending at all (both null), and what is to be verified; in the order of the pages.
        sa.Index("ix_client_deletions_unfinished", "verified_at", "settled_at", "id"),
    )
    _models[table] = model
    return table


class Ledger:
    """Reads and stamps records in a transaction that the caller owns."""

    def __init__(self, table: sa.Table) -> None:
        self.table = table
        self._pending = table.c.verified_at.is_(None) & table.c.settled_at.is_(None)

    def settle(
        self, session: Session, client_ids: Collection[str], clock: Clock, wait: bool
    ) -> list[DeletionRecord]:
        """Lock and stamp the pending records of the clients; waits for whoever holds one, or leaves it."""
        of_clients = self.table.c.client_id.in_(client_ids)
        return self._stamp(session, of_clients & self.table.c.settled_at.is_(None), "settled_at", clock, wait)

    def verify(
        self,
        session: Session,
        client_ids: Collection[str],
        at: datetime,
        settled_before: datetime,
        wait: bool,
    ) -> list[DeletionRecord]:
        """Lock and stamp the clients' settled records that nobody has verified."""
        due = self.table.c.client_id.in_(client_ids) & self._unverified(settled_before)
        return self._stamp(session, due, "verified_at", lambda: at, wait)

    def unfinished(
        self, session: Session, settled_before: datetime | None, after: DeletionRecord | None
    ) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.unfinished`."""
        c = self.table.c
        due = self._pending if settled_before is None else self._unverified(settled_before)
        query = sa.select(self.table).where(due).order_by(c.verified_at, c.settled_at, c.id).limit(_PAGE)
        if after is not None and after.settled_at is None:
            query = query.where(c.id > after.id)
        elif after is not None:
            query = query.where(sa.tuple_(c.settled_at, c.id) > sa.tuple_(after.settled_at, after.id))
        return [_record(row) for row in session.execute(query)]

    def history(self, session: Session, client_id: str) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        query = sa.select(self.table).where(self.table.c.client_id == client_id).order_by(self.table.c.id)
        return [_record(row) for row in session.execute(query)]

    def backlog(self, session: Session) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        query = sa.select(sa.func.count(), sa.func.min(self.table.c.requested_at)).where(self._pending)
        pending, oldest = session.execute(query).one()
        return Backlog(pending, _utc(oldest))

    def _unverified(self, settled_before: datetime) -> sa.ColumnElement[bool]:
        return self.table.c.verified_at.is_(None) & (self.table.c.settled_at <= settled_before)

    def take_write_lock(self, session: Session) -> None:
        """On SQLite, wait for the write lock; elsewhere rows are locked, and this does nothing."""
        if session.get_bind().dialect.name == "sqlite":
            session.execute(sa.update(self.table).where(self.table.c.id == 0).values(actor=""))  # no such

    def _stamp(
        self, session: Session, where: sa.ColumnElement[bool], column: str, clock: Clock, wait: bool
    ) -> list[DeletionRecord]:
        """Lock the records, read the clock, and stamp them.

        PostgreSQL waits inside the UPDATE, but stamps no record that was made after that began.
        """
        name = session.get_bind().dialect.name
        self.take_write_lock(session)
        if not wait:
            # By their ids: MariaDB also waits for records that it only comes across, by another index.
            where = self.table.c.id.in_(self._lock_what_is_free(session, where))
        if name in ("postgresql", "sqlite"):
            update = sa.update(self.table).where(where).values({column: clock()}).returning(self.table)
            if name == "postgresql":
                update = update.where(_LOCAL_SETTINGS.is_not(None))
            return sorted((_record(row) for row in session.execute(update)), key=lambda record: record.id)
        query = sa.select(self.table).where(where).order_by(self.table.c.id).with_for_update()
        query = query.suffix_with(_MARIADB_WAIT, dialect="mariadb")
        records = [_record(row) for row in session.execute(query)]
        stamp: dict[str, Any] = {column: clock()}
        if records:
            by_id = self.table.c.id.in_([record.id for record in records])
            session.execute(sa.update(self.table).where(by_id).values(stamp))
        return [replace(record, **stamp) for record in records]

    def _lock_what_is_free(self, session: Session, where: sa.ColumnElement[bool]) -> list[int]:
        """Lock records that nobody holds; return those of clients of which nobody else holds one.

        Two who hold one each of a client's records would write its entries side by side. What was locked
        of such a client stays so until the end of the transaction.
        """
        c = self.table.c
        query = sa.select(c.id, c.client_id).where(where)
        mine = {id for id, _ in session.execute(query.with_for_update(skip_locked=True))}
        # Another's record, and one made since.
        every = session.execute(query).all()
        disputed = {client_id for id, client_id in every if id not in mine}
        return [id for id, client_id in every if client_id not in disputed]


def _record(row: sa.Row[Any]) -> DeletionRecord:
    return DeletionRecord(
        id=row.id,
        client_id=row.client_id,
        action=Action(row.action),
        actor=row.actor,
        # A template whose column was null wrote a null.
        kv_keys=tuple(key for key in row.kv_keys if key is not None),
        requested_at=_utc(row.requested_at),
        settled_at=_utc(row.settled_at),
        verified_at=_utc(row.verified_at),
    )


def _utc(time: Any) -> Any:
    """Return a time as aware UTC; SQLite and MariaDB keep it without its zone. None stays None."""
    if time is None or time.tzinfo is not None:
        return time and time.astimezone(UTC)
    return time.replace(tzinfo=UTC)
