"""The ledger table, and what is read from it."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from ...errors import ConfigurationError, RepositoryError
from ...model import OVERDUE, Action, Backlog, DeletionRecord
from .dialects import Dialect, Stamp

_PAGE = 500
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
        sa.Column("reason", sa.Text()),
        sa.Column("request_id", sa.String(128)),
        # A list; or an object, which has their digests alone.
        sa.Column("kv_keys", sa.JSON(), nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
        sa.Column("verified_at", _TIME),
        sa.Column("attempts", sa.Integer()),
        sa.Column("last_error", sa.String(_SAID)),
        sa.Column("digested_at", _TIME),
        # What is pending for a client; its history.
        sa.Index(f"ix_{name}_client", "client_id", "settled_at"),
        # Of what has its keys: what is pending at all (both null), what is to be verified, what was done
        # since a time, what may lose its keys; in the order of the pages.
        sa.Index(f"ix_{name}_keyed", "digested_at", "verified_at", "settled_at", "id"),
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
        self._keyed = table.c.digested_at.is_(None)
        self._unverified = self._keyed & table.c.verified_at.is_(None)
        self._pending = self._unverified & table.c.settled_at.is_(None)
        self.of_client = table.c.client_id == sa.bindparam("of_client_id")
        self._pending_of_client = self.of_client & table.c.settled_at.is_(None)
        self.one_pending = sa.select(table.c.id).where(self._pending_of_client).limit(1)
        """A query that gives a row while anything is pending for the client `of_client_id`."""

    def settle(
        self, connection: sa.Connection, dialect: Dialect, client_ids: Collection[str], wait: bool
    ) -> list[DeletionRecord]:
        """Lock and stamp the pending records of the clients; waits for whoever holds one, or leaves it."""
        if wait and len(client_ids) == 1:
            (client_id,) = client_ids
            of_one = partial(self._stamp, dialect, self._pending_of_client, "settled_at")
            stamp = dialect.once((self, "settle one"), of_one)
            return stamp(connection, {"of_client_id": client_id})
        named, of_clients = self._named(connection, dialect, client_ids)
        pending = named & self.table.c.settled_at.is_(None)
        if wait:
            stamp = dialect.once((self, "settle"), lambda: self._stamp(dialect, pending, "settled_at"))
            return stamp(connection, of_clients)
        return self._stamp_free(connection, dialect, pending, of_clients, "settled_at", lambda _: ())

    def settling(self, dialect: Dialect) -> Any:
        """Return the statement that stamps one client's pending records."""
        return dialect.stamping(self.table, self._pending_of_client, "settled_at")

    def records(self, dialect: Dialect, rows: Iterable[Any]) -> list[DeletionRecord]:
        """Return stamped rows as records, in their order."""
        return _records(dialect, sorted(rows, key=attrgetter("id")))

    def settle_alone(
        self, connection: sa.Connection, dialect: Dialect, record: DeletionRecord
    ) -> DeletionRecord | None:
        """Fulfil `ports.DeletionSteps.settle_alone`."""
        stamp = dialect.once((self, "settle_alone"), lambda: self._stamp_alone(dialect))
        stamped = stamp(connection, {"of_id": record.id, "of_client_id": record.client_id})
        return replace(record, settled_at=dialect.aware(stamped[0].settled_at)) if stamped else None

    def verify(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        client_ids: Collection[str],
        settled_for: timedelta,
        leave: Callable[[Collection[str]], Collection[str]] | None,
    ) -> list[DeletionRecord]:
        """Lock and stamp the clients' records that are due; waits, or leaves those that somebody else holds.

        `leave` is asked, in place of waiting, which of the clients whose records are locked are left, too.
        """
        named, of_clients = self._named(connection, dialect, client_ids)
        # Said so that no index knows it. By that of all that is due each page would cost as much as the
        # backlog, and a planner whose statistics are older than that takes it; in a range of one client's
        # times MariaDB locks the next client's first record, too.
        due_at = sa.case((self._unverified, self.table.c.settled_at))
        due = named & (due_at <= dialect.ago(settled_for))
        if leave is None:
            return self._stamp(dialect, due, "verified_at")(connection, of_clients)
        return self._stamp_free(connection, dialect, due, of_clients, "verified_at", leave)

    def note_failure(
        self, connection: sa.Connection, dialect: Dialect, client_ids: Collection[str], error: str
    ) -> None:
        """Fulfil `ports.DeletionSteps.note_failure`."""
        dialect.lock(connection, self.table)
        c = self.table.c
        update = sa.update(self.table).where(
            c.client_id.in_(client_ids), c.verified_at.is_(None), dialect.step_2
        )
        attempts = sa.func.coalesce(c.attempts, 0) + 1
        connection.execute(update.values(attempts=attempts, last_error=error[:_SAID]))

    def pending(
        self, connection: sa.Connection, dialect: Dialect, after: DeletionRecord | None
    ) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.pending`."""
        query = self._page(dialect, self._pending, "id", after=after)
        return _records(dialect, connection.execute(query).all())

    def due(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        settled_for: timedelta,
        after: DeletionRecord | None,
    ) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.due`."""
        query = self._page(dialect, self._due(dialect, settled_for), "settled_at", "id", after=after)
        return _records(dialect, connection.execute(query).all())

    def done(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        since: datetime | None,
        before: datetime,
        after: DeletionRecord | None,
    ) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.done`: first what is not verified, in the order of the index."""
        c = self.table.c
        if after is None or after.verified_at is None:
            settled = self._unverified & self._within(c.settled_at, since, before)
            query = self._page(dialect, settled, "settled_at", "id", after=after)
            if found := _records(dialect, connection.execute(query).all()):
                return found
            after = None
        verified = self._keyed & self._within(c.verified_at, since, before)
        query = self._page(dialect, verified, "verified_at", "settled_at", "id", after=after)
        return _records(dialect, connection.execute(query).all())

    def forget_keys(
        self, connection: sa.Connection, dialect: Dialect, verified_before: datetime | None, kept: timedelta
    ) -> int:
        """Keep digests alone of the keys of a page of records; return how many it were."""
        dialect.lock(connection, self.table)
        c = self.table.c
        old = self._keyed & (c.verified_at <= dialect.ago(kept))
        if verified_before is not None:
            old &= c.verified_at < verified_before
        query = self._page(dialect, old, "verified_at", "settled_at", "id")
        found = connection.execute(query.with_only_columns(c.id, c.kv_keys)).all()
        every = sorted((id, kept_keys(keys)) for id, keys in found)
        digests = [{"of_id": id, "kv_keys": _digests(keys)} for id, keys in every]
        if digests:
            of_id = sa.update(self.table).where(c.id == sa.bindparam("of_id"), self._keyed, dialect.step_2)
            connection.execute(of_id.values(digested_at=dialect.now), digests)
        return len(digests)

    def every(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        since: datetime | None,
        after: DeletionRecord | None,
    ) -> list[DeletionRecord]:
        """Fulfil `ports.Archive.records`."""
        c = self.table.c
        query = sa.select(self.table).order_by(c.id).limit(_PAGE)
        if since is not None:
            query = query.where(c.requested_at >= since.astimezone(UTC))
        if after is not None:
            query = query.where(c.id > after.id)
        return _records(dialect, connection.execute(query).all())

    def lacking(
        self, connection: sa.Connection, dialect: Dialect, records: Sequence[DeletionRecord]
    ) -> list[DeletionRecord]:
        """Fulfil `ports.Archive.lacking`."""
        dialect.by_index(connection)
        there = recorded(connection, dialect, self.table, {record.client_id for record in records})
        return [
            record
            for record in records
            if (record.client_id, record.action, record.requested_at) not in there
        ]

    def has_forgotten(self, connection: sa.Connection, dialect: Dialect, since: datetime) -> bool:  # noqa: ARG002
        """Fulfil `ports.DeletionLedger.has_forgotten`."""
        c = self.table.c
        # Keys go after the verify: so the index finds the few.
        query = sa.select(c.id).where(c.digested_at >= since, c.verified_at >= since).limit(1)
        return connection.execute(query).first() is not None

    def now(self, connection: sa.Connection, dialect: Dialect) -> datetime:
        """Fulfil `ports.DeletionLedger.now`."""
        read: Any = connection.scalar(sa.select(sa.type_coerce(dialect.now, _TIME)))
        now: datetime = dialect.aware(read)
        return now

    def history(self, connection: sa.Connection, dialect: Dialect, client_id: str) -> list[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        c = self.table.c
        query = sa.select(self.table).where(c.client_id == client_id).order_by(c.id)
        return _records(dialect, connection.execute(query).all())

    def backlog(self, connection: sa.Connection, dialect: Dialect, settled_for: timedelta) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        c = self.table.c
        of_pending = sa.case((self._pending, c.requested_at))
        query = sa.select(
            sa.type_coerce(dialect.now, _TIME),
            sa.func.count(of_pending),
            sa.func.min(of_pending),
            sa.func.count(sa.case((self._due(dialect, settled_for), 1))),
            sa.func.count(sa.case((self._due(dialect, settled_for + OVERDUE), 1))),
            sa.func.count(sa.case(((c.attempts > 0) & (self._pending | self._due(dialect, settled_for)), 1))),
        ).where(self._unverified)
        now, pending, oldest, due, overdue, failed = connection.execute(query).one()
        age = dialect.aware(now) - dialect.aware(oldest) if oldest else None
        return Backlog(pending, age, due, overdue, failed)

    def _within(
        self, column: sa.ColumnElement[Any], since: datetime | None, before: datetime
    ) -> sa.ColumnElement[bool]:
        return column < before if since is None else (column >= since) & (column < before)

    def _due(self, dialect: Dialect, settled_for: timedelta) -> sa.ColumnElement[bool]:
        c = self.table.c
        return self._unverified & (c.settled_at <= dialect.ago(settled_for))

    def _page(
        self,
        dialect: Dialect,
        where: sa.ColumnElement[bool],
        *order: str,
        after: DeletionRecord | None = None,
    ) -> sa.Select[Any]:
        """Return a page in the order of the index, of which `where` says what comes before `order`: nulls."""
        c = self.table.c
        columns = [c[name] for name in order]
        by = (c.digested_at, c.verified_at, c.settled_at, c.id) if dialect.sorts_nulls else columns
        query = sa.select(self.table).where(where).order_by(*by).limit(_PAGE)
        if after is None:
            return query
        last = [getattr(after, name) for name in order]
        # The first condition says no more, but the index of MariaDB can begin there.
        return query.where(columns[0] >= last[0], sa.tuple_(*columns) > sa.tuple_(*last))

    def _named(
        self, connection: sa.Connection, dialect: Dialect, client_ids: Collection[str]
    ) -> tuple[sa.ColumnElement[bool], Mapping[str, Any]]:
        """Return a condition for the records of these clients, and its parameters; they go by the index."""
        dialect.by_index(connection)
        named = dialect.among(self.table.c.client_id, "of_client_ids")
        return named, {"of_client_ids": list(client_ids)}

    def _stamp(
        self, dialect: Dialect, where: sa.ColumnElement[bool], column: str
    ) -> Callable[[sa.Connection, Mapping[str, Any]], list[DeletionRecord]]:
        """Make a step that locks and stamps records.

        It raises RepositoryError where the database lets them be as they were.
        """
        stamp = dialect.stamp(self.table, where, column)
        left = sa.select(self.table.c.id).where(where).order_by(self.table.c.id).limit(1)

        def step(connection: sa.Connection, parameters: Mapping[str, Any]) -> list[DeletionRecord]:
            seen = None
            while not (rows := stamp(connection, parameters)) and dialect.skips_rows:
                # Left over: made after the stamp began, so stamp again; or kept by a trigger, then twice.
                first = connection.execute(left, parameters).first()
                if first is None:
                    break
                if first.id == seen:
                    raise self._kept()
                seen = first.id
            return _records(dialect, rows)

        return step

    def _stamp_alone(self, dialect: Dialect) -> Stamp:
        """Make a step that stamps a record unless others have been about with its client."""
        mine, other = self.table.c, self.table.alias("other").c
        may_write = other.settled_at.is_(None) | (other.settled_at >= mine.requested_at)
        others = sa.exists().where(other.client_id == mine.client_id, other.id != mine.id, may_write)
        # Of a restored database the ids are given again.
        same = self.of_client & mine.settled_at.is_(None)
        return dialect.stamp_one(self.table, sa.bindparam("of_id"), same & ~others)

    def _stamp_free(
        self,
        connection: sa.Connection,
        dialect: Dialect,
        where: sa.ColumnElement[bool],
        parameters: Mapping[str, Any],
        column: str,
        leave: Callable[[Collection[str]], Collection[str]],
    ) -> list[DeletionRecord]:
        """Lock and stamp records that nobody holds; leave those of clients of which somebody else holds one.

        Two who hold one each of a client's records would write its entries side by side. What was locked
        of such a client stays so until the end of the transaction.
        """
        dialect.lock(connection, self.table)
        c = self.table.c
        query = sa.select(c.id, c.client_id).where(where)
        mine = {id for id, _ in connection.execute(query.with_for_update(skip_locked=True), parameters).all()}
        # Another's record, and one made since.
        every = connection.execute(sa.select(self.table).where(where), parameters).all()
        disputed = {row.client_id for row in every if row.id not in mine}
        disputed |= set(leave({row.client_id for row in every} - disputed))
        free = sorted((row for row in every if row.client_id not in disputed), key=attrgetter("id"))
        # By their ids: MariaDB also waits for records that it only comes across, by another index.
        stamp = dialect.once((self, "held", column), lambda: dialect.stamp_held(self.table, column))
        times = stamp(connection, [row.id for row in free]) if free else {}
        if free and not times:
            raise self._kept()
        stamped = _records(dialect, (row for row in free if row.id in times))
        return [replace(record, **{column: dialect.aware(times[record.id])}) for record in stamped]

    def _kept(self) -> RepositoryError:
        return RepositoryError(
            f"The database let the records in {self.table} be as they were, and gave no reason: "
            "this is no outage, look for a trigger or a rule."
        )


_ACTIONS = {action.value: action for action in Action}


def _digests(keys: Iterable[str | None]) -> dict[str, list[str]]:
    return {"sha256": [sha256(key.encode()).hexdigest() for key in keys if key is not None]}


def _records(dialect: Dialect, rows: Iterable[sa.Row[Any]]) -> list[DeletionRecord]:
    return list(map(partial(_record, dialect.aware), rows))


def recorded(
    connection: sa.Connection, dialect: Dialect, ledger: sa.Table, client_ids: Collection[str]
) -> set[tuple[str, str, datetime]]:
    """Return what was done to these clients: by whose id, what, and when it was asked for."""
    c = ledger.c
    query = sa.select(c.client_id, c.action, c.requested_at).where(
        dialect.among(c.client_id, "of_client_ids")
    )
    found = connection.execute(query, {"of_client_ids": list(client_ids)}).all()
    return {(client_id, action, dialect.aware(at)) for client_id, action, at in found}


def kept_keys(value: Any) -> Any:
    """Return what stands in `kv_keys`, as JSON has it, though the host's engine may read JSON in another way.

    Raises ConfigurationError for what that makes of it, if it is none.
    """
    if isinstance(value, (str, bytes)):
        value = json.loads(value)
    if not isinstance(value, (list, tuple)) and not (isinstance(value, dict) and "sha256" in value):
        raise ConfigurationError(
            f"The engine reads a JSON array as {type(value).__name__}: let its json_deserializer do as "
            "json.loads does."
        )
    return value


def _record(aware: Callable[[Any], Any], row: Iterable[Any]) -> DeletionRecord:
    # Of thousands the names would take longer to look up than all else here.
    id, client_id, action, actor, reason, request_id, kept, *rest = row
    kept = kept_keys(kept)
    requested_at, settled_at, verified_at, attempts, last_error, _ = rest
    keys, digests = ((), kept["sha256"]) if isinstance(kept, dict) else (kept, ())
    if None in keys:  # a template whose column was null wrote a null
        keys = [key for key in keys if key is not None]
    return DeletionRecord(
        id=id,
        client_id=client_id,
        action=_ACTIONS[action],
        actor=actor,
        kv_keys=tuple(keys),
        requested_at=aware(requested_at),
        settled_at=settled_at and aware(settled_at),
        verified_at=verified_at and aware(verified_at),
        attempts=attempts or 0,
        last_error=last_error,
        kv_digests=tuple(digests),
        reason=reason,
        request_id=request_id,
    )
