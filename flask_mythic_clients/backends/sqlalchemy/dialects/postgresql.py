"""PostgreSQL: step 1 in one statement, and settings that travel with a statement."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from datetime import UTC, timedelta
from operator import methodcaller
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, OID, array

from ....model import Finding
from .direct import direct, is_possible
from .ready import Ready
from .standard import WAIT, Dialect, Verdict


def _set(lock_timeout: str, synchronous_commit: Any) -> sa.ColumnElement[bool]:
    """Return a condition that is always true, and is computed once, before a row is locked.

    So the settings, which hold until the end of the transaction, need no round trip of their own.
    """
    timeout = sa.func.set_config("lock_timeout", lock_timeout, True)
    commit = sa.func.set_config("synchronous_commit", synchronous_commit, True)
    return sa.select(sa.func.concat(timeout, commit)).scalar_subquery().is_not(None)


_DURABLE_COMMIT = sa.func.replace(sa.func.current_setting("synchronous_commit"), "off", "local")

_TRIGGER = sa.table(
    "pg_trigger",
    *map(sa.column, ("tgrelid", "tgtype", "tgconstrrelid", "tgenabled")),
    sa.column("tgisinternal", sa.Boolean),
    sa.column("tgdeferrable", sa.Boolean),
    schema="pg_catalog",
)
_CLASS = sa.table(
    "pg_class",
    sa.column("oid"),
    sa.column("relkind"),
    sa.column("relpersistence"),
    sa.column("relname"),
    sa.column("relispartition", sa.Boolean),
    sa.column("relhasrules", sa.Boolean),
    schema="pg_catalog",
)
_ATTRIBUTE = sa.table(
    "pg_attribute",
    *map(sa.column, ("attrelid", "attname", "attnum", "attidentity")),
    sa.column("attisdropped", sa.Boolean),
    schema="pg_catalog",
)
_EVENTS = {"INSERT": 4, "DELETE": 8, "UPDATE": 16}  # bits of tgtype


def _array(tables: sa.Select[Any]) -> sa.ColumnElement[Any]:
    return sa.func.array(tables.scalar_subquery(), type_=ARRAY(OID))


class PostgreSQL(Dialect):
    """Waits inside the UPDATE, but stamps no record that was made after that began."""

    oldest = (15,)
    one_statement = True
    skips_rows = True
    hides_rows = True
    uuid_is_text = True
    sorts_nulls = True
    began = sa.func.statement_timestamp()
    now = sa.func.clock_timestamp()
    aware = staticmethod(methodcaller("astimezone", UTC))
    # Where the host does not wait for the disk, this does: what is done to the key-value store cannot be
    # undone. Nothing else is changed: who waits for a standby still does, who does not must not begin to.
    step_1 = _set(f"{WAIT * 1000}ms", _DURABLE_COMMIT)
    # Short: a batch that meets a row that is held is halved, and each half that has it waits again.
    step_1_of_many = _set("100ms", _DURABLE_COMMIT)
    # No wait for the disk: a stamp that a crash loses is only made again. More than its deadlock_timeout is
    # waited, or a deadlock of two that settle would never be found out.
    step_2 = _set(f"{WAIT * 1250}ms", "off")
    # It writes something, if to nobody: who wrote nothing waits for nothing. Where no standby is waited for,
    # and all that was ever written is on the disk, there is nothing to wait for.
    durable = sa.select(sa.func.pg_logical_emit_message(sa.true(), "", "")).where(
        (sa.func.current_setting("synchronous_standby_names") != "")
        | (sa.func.pg_current_wal_insert_lsn() > sa.func.pg_current_wal_flush_lsn()),
        step_1,
    )
    records_given = sa.text(
        "SELECT client_id, action, actor, reason, request_id,"
        " coalesce(timezone('UTC', requested_at), statement_timestamp()) AS requested_at,"
        " CAST(kv_keys AS json) AS kv_keys"
        " FROM json_to_recordset(CAST(:of_records AS json)) AS given(client_id text, action text, actor text,"
        " reason text, request_id text, requested_at timestamp, kv_keys text)"
    ).columns()
    verdicts: ClassVar = {
        **dict.fromkeys(("40001", "40P01"), Verdict.CONFLICT),
        "55P03": Verdict.BUSY,
        "57014": Verdict.TOO_LONG,
        **dict.fromkeys(("42P01", "42703"), Verdict.OUTDATED),
        # No connection, no resources, an administrator's or the system's end of it; a standby.
        **dict.fromkeys(("08", "53", "57", "58", "25006"), Verdict.AWAY),
        "23": Verdict.CONSTRAINT,
        # No privilege, or a policy; a rule.
        **dict.fromkeys(("42501", "0A"), Verdict.REFUSED),
    }

    def is_direct(self, engine: sa.Engine) -> bool:
        """Fulfil `Dialect.is_direct`."""
        return is_possible(engine)

    def alone(self, engine: sa.Engine) -> AbstractContextManager[Any]:
        """Fulfil `Dialect.alone`."""
        return direct(engine, self.ready) if self.is_direct(engine) else super().alone(engine)

    def ready(self, statement: Any) -> Ready:
        """Fulfil `Dialect.ready`."""
        # With the server's own parameters: the driver reads the text of a long statement anew each time.
        return self.once(("ready", statement), lambda: Ready(statement, self.sqlalchemys, "numeric_dollar"))

    def by_index(self, connection: sa.Connection) -> None:
        """Fulfil `Dialect.by_index`: without statistics it takes the ids in a column for few that recur."""
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")

    def time_for(self, type_: Any) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.time_for`: it has columns that know their zone."""
        return self.now if getattr(type_, "timezone", False) else sa.func.timezone("UTC", self.now)

    def ago(self, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago`. Not by `now`: an index is of no use for what changes from row to row."""
        return self.began - sa.literal(duration, sa.Interval)

    def ago_as(self, type_: Any, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago_as`."""
        ago = self.ago(duration)
        return ago if getattr(type_, "timezone", False) else sa.func.timezone("UTC", ago)

    def watched(
        self, event: str, table: Any, ledger: Any, row: sa.Select[Any] | None = None
    ) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.watched`."""
        oid, of_ledger, of_trigger = self._oid(table), self._oid(ledger), _TRIGGER.c.tgrelid
        reached = sa.select(self._reached(table).cte("reached"))
        events = sa.case(
            (of_trigger == of_ledger, _EVENTS["INSERT"]),
            (of_trigger.in_(reached), _EVENTS["DELETE"] | _EVENTS["UPDATE"]),
            else_=_EVENTS[event],
        )
        # All in one look, by the index: each part of a statement costs as much as a row that it reads.
        tables = array[Any]([oid, of_ledger], type_=OID) + _array(reached)
        if row is not None:  # in a partition it has another
            tables = tables + _array(row)
        of_host = of_trigger == sa.any_(tables), ~_TRIGGER.c.tgisinternal
        called = sa.exists().where(*of_host, _TRIGGER.c.tgtype.op("&")(events) != 0)
        return called | sa.exists().where(_CLASS.c.oid.in_([oid, of_ledger]), _CLASS.c.relhasrules)

    def is_table(self, table: Any) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.is_table`."""
        return sa.exists().where(_CLASS.c.oid == self._oid(table), _CLASS.c.relkind.in_(["r", "p"]))

    def among(self, column: sa.Column[Any], name: str, type_: Any = None) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.among`: one parameter, so that the text is the same for any number of them."""
        type_ = type_ or column.type
        # Without a length: in an array SQLAlchemy would cast to it, which cuts a value off.
        item = sa.String() if isinstance(type_, sa.String) else type_
        return column == sa.any_(sa.bindparam(name, type_=ARRAY(item)))

    def goes_on(self, ledger: Any) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.goes_on`; a constraint is deferred by a trigger of its own."""
        c, oid = _TRIGGER.c, self._oid(ledger)
        called = sa.exists().where(c.tgdeferrable | ((c.tgrelid == oid) & ~c.tgisinternal))
        return called | sa.exists().where(_CLASS.c.oid == oid, _CLASS.c.relhasrules)

    def finish(self, connection: sa.Connection) -> None:
        """Fulfil `Dialect.finish`."""
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")

    def hides(self, connection: sa.Connection, table: Any) -> bool:
        """Fulfil `Dialect.hides`."""
        hidden = ~self.is_table(table) | self._has_policies(table)
        return bool(connection.scalar(sa.select(hidden)))

    def _has_policies(self, table: Any) -> sa.ColumnElement[bool]:
        return sa.func.row_security_active(self._oid(table), type_=sa.Boolean)

    def unsafe(self, connection: sa.Connection, tables: Sequence[Any]) -> Iterator[Finding]:
        """Fulfil `Dialect.unsafe`."""
        for name in ("fsync", "full_page_writes"):
            if connection.scalar(sa.select(sa.func.current_setting(name))) == "off":
                problem = f"{name} is off: a power cut may ruin what was committed."
                yield Finding("database", problem, "Set it to on, which is the default.")
        if connection.scalar(sa.select(sa.func.current_setting("session_replication_role"))) == "replica":
            problem = "session_replication_role is replica: no foreign key and no trigger does its work."
            yield Finding("database", problem, "Leave it at origin, for the app's user.")
        for table in tables:
            oid = self._oid(table)
            if connection.scalar(sa.select(_CLASS.c.relpersistence).where(_CLASS.c.oid == oid)) == "u":
                problem = "It is UNLOGGED: a crash empties it."
                yield Finding(f"{table}", problem, f"ALTER TABLE {self.name_of(table)} SET LOGGED")
            if connection.scalar(self._switched_off(table)):
                problem = "Triggers that carry out its foreign keys are switched off: rows are left behind."
                yield Finding(f"{table}", problem, f"ALTER TABLE {self.name_of(table)} ENABLE TRIGGER ALL")
            if connection.scalar(sa.select(self._has_policies(table))):
                problem = (
                    "Policies hide rows from the user of the database: those clients are answered with 404."
                )
                fix = f"Give that user a policy for all rows of {table}, or BYPASSRLS, if that is not meant."
                yield Finding(f"{table}", problem, fix, breaks=False)
            for sequence in connection.scalars(self._closed_sequences(table)):
                problem = "The user of the database may not draw the numbers of its rows."
                yield Finding(f"{table}", problem, f"GRANT USAGE ON SEQUENCE {sequence} TO that user.")
        if connection.dialect.driver == "psycopg" and not _keeps_prepared(connection.engine):
            yield Finding(
                "database",
                "A pooler gives a transaction another connection, where what was prepared is not known, or "
                "where its name is another statement's: then a wrong one is carried out.",
                'Pass connect_args={"prepare_threshold": None} to the engine, or let the pooler keep track '
                "(PgBouncer from version 1.21 on, max_prepared_statements).",
            )

    def partitions(self, connection: sa.Connection) -> Collection[str]:
        """Fulfil `Dialect.partitions`."""
        return set(connection.scalars(sa.select(_CLASS.c.relname).where(_CLASS.c.relispartition)))

    def _switched_off(self, table: Any) -> sa.Select[Any]:
        c = _TRIGGER.c
        return sa.select(sa.exists().where(c.tgrelid == self._oid(table), c.tgisinternal, c.tgenabled == "D"))

    def _closed_sequences(self, table: Any) -> sa.Select[Any]:
        """Find the sequences that number a table's rows, without a right to them; an IDENTITY needs none."""
        name = self.sqlalchemys.identifier_preparer.format_table(table)
        number = _ATTRIBUTE.c.attname
        sequence = sa.func.pg_get_serial_sequence(name, number)
        of_table = (
            _ATTRIBUTE.c.attrelid == self._oid(table),
            _ATTRIBUTE.c.attnum > 0,
            ~_ATTRIBUTE.c.attisdropped,
        )
        closed = ~sa.func.has_sequence_privilege(sequence, "USAGE", type_=sa.Boolean)
        return sa.select(sequence).where(
            *of_table, _ATTRIBUTE.c.attidentity == "", sequence.is_not(None), closed
        )

    def _reached(self, table: Any) -> sa.Select[Any]:
        """Find the tables that refer to one: by the internal triggers, which carry out foreign keys."""
        trigger = _TRIGGER.alias()
        of_table = trigger.c.tgrelid == self._oid(table)
        return sa.select(trigger.c.tgconstrrelid).where(of_table, trigger.c.tgisinternal)

    def _oid(self, table: Any) -> sa.ColumnElement[Any]:
        return sa.cast(sa.func.to_regclass(sa.literal(self.name_of(table), sa.String)), OID)

    def json_array(self, *items: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.json_array`; the standard's leaves nulls out."""
        return sa.func.json_build_array(*items)

    def code(self, said: Any) -> Any:
        """Fulfil `Dialect.code`: the SQLSTATE, psycopg's or psycopg2's."""
        return getattr(said, "sqlstate", None) or getattr(said, "pgcode", None)

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Fulfil `Dialect.verdict`: what the server does not say of itself, a trigger has said."""
        verdict = super().verdict(error)
        said = getattr(error, "orig", None)
        state = self.code(said)
        # A migration came after a statement was prepared: at the rollback the driver forgets that.
        if getattr(getattr(said, "diag", None), "source_function", None) == "RevalidateCachedQuery":
            return Verdict.CONFLICT
        if verdict is Verdict.UNKNOWN and state is not None and state[:2] not in _OF_ITSELF:
            return Verdict.REFUSED
        return verdict


def _keeps_prepared(engine: sa.Engine) -> bool:
    """Whether a connection knows what it has prepared, as it does unless a pooler gives it another's.

    The driver numbers what it prepares; so on one server's connection the second finds the first one's.
    """
    if not isinstance(engine.pool, (sa.QueuePool, sa.NullPool)):
        return True  # one that has no other connection to give
    errors = engine.dialect.loaded_dbapi.errors
    pool = engine.pool.recreate()
    try:
        for _ in range(2):
            with closing(pool.connect()) as connection:
                driver: Any = connection.driver_connection
                if driver.prepare_threshold is not None:
                    driver.execute("SELECT 1", prepare=True)
                    driver.commit()
                connection.invalidate()  # or the pool would give it again
    except errors.DuplicatePreparedStatement:
        return False
    except errors.Error:
        return True  # no other connection is to be had, so it cannot be asked
    finally:
        pool.dispose()
    return True


# Classes by which it tells of its own state, or of a statement that cannot be understood. All others tell of
# data, or are free for those who raise them (PostgreSQL, appendix A).
_OF_ITSELF = {
    *("00", "01", "02", "03", "09", "0B", "0L", "0P", "0Z", "24", "25", "26", "28"),
    *("2B", "2D", "34", "3B", "3D", "3F", "40", "42", "54", "72", "F0", "HV", "XX"),
}
