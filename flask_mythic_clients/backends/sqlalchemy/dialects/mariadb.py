"""MariaDB: no UPDATE … RETURNING, collations that ignore case, and an isolation set by hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ....errors import ConfigurationError
from ....model import Finding
from ..sessions import Sessions, plain
from .compound import Compound, Compounds
from .ready import Ready
from .standard import AT_ONCE, WAIT, Dialect, Stamp, StampHeld, Verdict, connected, undone

_ISOLATION = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
# Before a statement, for that statement: how long it waits for a row, and for a table that a migration holds;
# and that a long IN stays one. As a join it would lock rows of others, which are not among its values.
_FOR = f"lock_wait_timeout={WAIT}, in_predicate_conversion_threshold=0 FOR "
_BOUNDED = f"SET STATEMENT innodb_lock_wait_timeout={WAIT}, {_FOR}"
_NOT_WAITING = f"SET STATEMENT innodb_lock_wait_timeout=0, {_FOR}"
_BEGUN = f"BEGIN NOT ATOMIC {_ISOLATION}; START TRANSACTION;"
_STAMP: Any = sa.literal_column("mythic_stamp", sa.DateTime)
_BEGUN_TO_STAMP = f"BEGIN NOT ATOMIC DECLARE {_STAMP} DATETIME(6); {_ISOLATION}; START TRANSACTION;"
_KEPT: sa.Select[Any] = sa.select(sa.literal_column("1").label("kept"))
_UNNUMBERED: sa.Select[Any] = sa.select(sa.literal_column("0").label("kept"))
_STATEMENTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "REPLACE", "SHOW")


class MariaDB(Dialect):
    """Locks the records by a SELECT of their own, then stamps them by their ids."""

    oldest = (10, 11)
    # That of the statement's beginning: who needs another takes another statement.
    random = sa.func.rand()
    began = now = sa.func.utc_timestamp(sa.text("6"))
    records_given = sa.text(
        "SELECT client_id, action, actor, reason, request_id,"
        " COALESCE(requested_at, UTC_TIMESTAMP(6)) AS requested_at, kv_keys"
        " FROM JSON_TABLE(:of_records, '$[*]' COLUMNS (client_id VARCHAR(255) PATH '$.client_id',"
        " action VARCHAR(16) PATH '$.action', actor TEXT PATH '$.actor', reason TEXT PATH '$.reason',"
        " request_id VARCHAR(128) PATH '$.request_id',"
        " requested_at DATETIME(6) PATH '$.requested_at', kv_keys LONGTEXT PATH '$.kv_keys')) AS given"
    ).columns()
    verdicts: ClassVar = {
        1213: Verdict.CONFLICT,
        1205: Verdict.BUSY,
        1969: Verdict.TOO_LONG,
        **dict.fromkeys((1146, 1054), Verdict.OUTDATED),
        # Nobody is let in, too many connections, shutting down, killed, no memory, no disk.
        **dict.fromkeys((1045, 1049, 1129, 1130, 1698, 1040, 1053, 1317, 1927), Verdict.AWAY),
        **dict.fromkeys((1037, 1038, 1041, 1021, 1114), Verdict.AWAY),
        **dict.fromkeys((1290, 1792, 1836), Verdict.AWAY),  # read-only, as what others have replaced
        4025: Verdict.CONSTRAINT,  # a CHECK; an operational error to its drivers
        # SIGNAL; a trigger that writes to its own table; values that a trigger has spoilt.
        **dict.fromkeys(
            (1644, 1442, 1264, 1265, 1366, 1406, 1690, 1364, 1365, 1292, 1242, 1643), Verdict.REFUSED
        ),
        # CHECK OPTION; no privilege, on a table, a column or at all; a table, or a view, that is read alone.
        **dict.fromkeys((1369, 1142, 1143, 1044, 1227, 1036, 1288), Verdict.REFUSED),
    }

    @contextmanager
    def transaction(self, engine: sa.Engine, sessions: Sessions = plain) -> Iterator[Session]:
        """Fulfil `Dialect.transaction`: begun within the session's own, which would else not commit it."""
        with (
            connected(engine) as connection,
            sessions(connection) as session,
            undone(session),
            _begun(session.connection()),
        ):
            yield session

    @contextmanager
    def statements(self, engine: sa.Engine, *, alone: bool = False) -> Iterator[sa.Connection]:  # noqa: ARG002
        """Fulfil `Dialect.statements`."""
        with connected(engine) as connection, undone(connection), _begun(connection):
            yield connection

    def again(self, connection: sa.Connection) -> AbstractContextManager[Any]:
        """Fulfil `Dialect.again`."""
        return _begun(connection)

    def alone(self, engine: sa.Engine) -> AbstractContextManager[Any]:
        """Fulfil `Dialect.alone`."""
        return self.compounds(engine) if self._takes_compounds else super().alone(engine)

    @contextmanager
    def compounds(self, engine: sa.Engine) -> Iterator[Compounds]:
        """Fulfil `Dialect.compounds`."""
        with connected(engine) as connection, undone(connection), _undone_by_hand(connection):
            yield Compounds(connection)

    def change_in_one(
        self, insert: Any, change: Any, kept: sa.Select[Any] | None, seen: Sequence[sa.Select[Any]]
    ) -> Compound | None:
        """Fulfil `Dialect.change_in_one`.

        Of an INSERT … RETURNING no ROW_COUNT is had. Its id tells, unless a trigger of the host's gives ids.
        """
        if not self._takes_compounds:
            return None
        inserted, changed, told = self._ready(insert), self._ready(change), self._ready(_KEPT)
        unnumbered, looks = self._ready(_UNNUMBERED), [self._ready(look) for look in seen]
        is_kept: list[str | Ready] = (
            ["ROW_COUNT() = 0"] if kept is None else ["EXISTS (", self._ready(kept), ")"]
        )
        parts = (
            *(_BEGUN, "DO LAST_INSERT_ID(0);", _BOUNDED, inserted, "; IF LAST_INSERT_ID() > 0 THEN"),
            *(_BOUNDED, changed, "; IF", *is_kept, "THEN ROLLBACK;", told, "; ELSE COMMIT; END IF;"),
            *("ELSE", unnumbered, ";"),
            *(part for look in looks for part in (look, ";")),
            "ROLLBACK; END IF; END",
        )
        compound = Compound(parts, (inserted, told, *looks))
        return compound if compound.is_ready else None

    def settle_in_one(
        self, ledger: sa.Table, of_client: sa.ColumnElement[bool], row: sa.Select[Any] | None
    ) -> Compound | None:
        """Fulfil `Dialect.settle_in_one`: locks, and stamps with a time read after that."""
        if not self._takes_compounds:
            return None
        pending = of_client & ledger.c.settled_at.is_(None)
        lock = self._ready(sa.select(ledger.c.id).where(pending).with_for_update())
        stamp = self._ready(sa.update(ledger).where(pending).values(settled_at=_STAMP))
        stamped = self._ready(sa.select(ledger).where(of_client, ledger.c.settled_at == _STAMP))
        rows = [] if row is None else [self._ready(row)]
        parts = (
            *(_BEGUN_TO_STAMP, _BOUNDED, lock, f"; SET {_STAMP} = UTC_TIMESTAMP(6);", _BOUNDED, stamp, ";"),
            *(stamped, ";", *(part for ready in rows for part in (ready, ";")), "END"),
        )
        return Compound(parts, (lock, stamped, *rows))

    def stamp(self, ledger: sa.Table, where: sa.ColumnElement[bool], column: str) -> Stamp:
        """Fulfil `Dialect.stamp`."""
        lock = sa.select(ledger.c.id).where(where).order_by(ledger.c.id).with_for_update()
        by_id = ledger.c.id.in_(sa.bindparam("of_ids", expanding=True))
        update = sa.update(ledger).where(by_id).values({column: self.now})
        stamped = sa.select(ledger).where(by_id).order_by(ledger.c.id)

        def step(connection: sa.Connection, parameters: Any) -> Sequence[sa.Row[Any]]:
            ids = {"of_ids": list(connection.scalars(lock, parameters))}
            if not ids["of_ids"]:
                return []
            connection.execute(update, ids)
            return connection.execute(stamped, ids).all()

        return step

    def stamp_held(self, ledger: sa.Table, column: str) -> StampHeld:
        """Fulfil `Dialect.stamp_held`."""
        time = sa.select(sa.type_coerce(self.now, ledger.c[column].type))
        update = sa.update(ledger).where(self.among(ledger.c.id, "of_ids"))
        stamp = update.values({column: sa.bindparam("of_time")})

        def step(connection: sa.Connection, ids: Sequence[int]) -> Mapping[int, Any]:
            at = connection.scalar(time)
            connection.execute(stamp, {"of_ids": ids, "of_time": at})
            return dict.fromkeys(ids, at)

        return step

    def stamp_one(self, ledger: sa.Table, id: Any, where: sa.ColumnElement[bool]) -> Stamp:
        """Fulfil `Dialect.stamp_one`."""
        update = sa.update(ledger).where(ledger.c.id == id, where).values(settled_at=self.now)
        stamped = sa.select(ledger.c.settled_at).where(ledger.c.id == id)
        if self._takes_compounds:
            told = self._ready(stamped)
            parts = (
                *(_BEGUN, _BOUNDED, self._ready(update), "; IF ROW_COUNT() > 0 THEN", told, "; COMMIT;"),
                "ELSE ROLLBACK; END IF; END",
            )
            compound = Compound(parts, [told])
            return partial(_sent_in_one, compound)

        def step(connection: sa.Connection, parameters: Any) -> Sequence[sa.Row[Any]]:
            done: Any = connection.execute(update, parameters)
            return connection.execute(stamped, parameters).all() if done.rowcount else []

        return step

    def unsafe(self, connection: sa.Connection, tables: Sequence[Any]) -> Iterator[Finding]:
        """Fulfil `Dialect.unsafe`."""
        flush = connection.exec_driver_sql("SELECT @@innodb_flush_log_at_trx_commit").scalar()
        if flush in (0, 2):
            problem = f"innodb_flush_log_at_trx_commit is {flush}: a power cut loses what was committed."
            yield Finding("database", problem, "Set it to 1, which is the default.")
        of_server = sa.table("TABLES", *map(sa.column, _OF_TABLES), schema="information_schema").c
        for table in tables:
            schema, name = of_server.TABLE_SCHEMA, of_server.TABLE_NAME
            at = (schema == (table.schema or sa.func.database()), name == table.name)
            kind = connection.scalar(sa.select(of_server.ENGINE).where(*at))
            if kind and kind != "InnoDB":
                problem = f"Its engine is {kind}, which has no transactions."
                yield Finding(f"{table}", problem, f"ALTER TABLE {self.name_of(table)} ENGINE=InnoDB")
        if not connection.exec_driver_sql("SELECT @@foreign_key_checks").scalar():
            problem = "foreign_key_checks is off: what a key should stop, or take along, is left behind."
            yield Finding("database", problem, "Leave it on, for the app's connections too.")

    def sees_all(self, connection: sa.Connection) -> bool:
        """Fulfil `Dialect.sees_all`."""
        grants = [f"{grant}" for grant in connection.exec_driver_sql("SHOW GRANTS").scalars()]
        database = connection.exec_driver_sql("SELECT DATABASE()").scalar()
        whole = (" ON *.* ", f" ON `{database}`.* ")
        return any(where in grant and "GRANT USAGE " not in grant for grant in grants for where in whole)

    @property
    def _takes_compounds(self) -> bool:
        return _takes_compounds(self.sqlalchemys)

    def _ready(self, statement: Any) -> Ready:
        return Ready(statement, self.sqlalchemys, "format", heard=True)

    def time_for(self, type_: Any) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.time_for`: a TIMESTAMP is kept in UTC, and written in the session's zone."""
        return sa.func.now(sa.text("6")) if isinstance(type_, sa.TIMESTAMP) else self.now

    def ago(self, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago`."""
        microseconds = duration // timedelta(microseconds=1)
        return sa.func.timestampadd(sa.text("MICROSECOND"), -microseconds, self.now)

    def ago_as(self, type_: Any, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago_as`."""
        microseconds = duration // timedelta(microseconds=1)
        return sa.func.timestampadd(sa.text("MICROSECOND"), -microseconds, self.time_for(type_))

    def holdable(self, connection: sa.Connection, column: sa.Column[Any], values: list[Any]) -> list[Any]:
        """Fulfil `Dialect.holdable`: an older column has a character set with few characters."""
        if all(not isinstance(value, str) or value.isascii() for value in values):
            return values
        table: Any = column.table
        at = {"of_schema": table.schema, "of_table": table.name, "of_column": column.name}
        holds = _HOLDS.get(f"{connection.scalar(_CHARACTER_SET, at)}")
        return values if holds is None else list(filter(holds, values))

    def same(self, column: sa.Column[Any], key: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.same`: its usual collations find "Acme" where "acme" is asked for."""
        same = super().same(column, key)
        if not isinstance(column.type, sa.String):
            return same
        # As text first: so it is in the character set of the connection, as the key is.
        text = sa.cast(column, sa.CHAR)
        return same & (sa.cast(text, sa.LargeBinary) == sa.cast(key, sa.LargeBinary))

    def code(self, said: Any) -> Any:
        """Fulfil `Dialect.code`: the number, the first that its drivers tell."""
        number = (getattr(said, "args", None) or [None])[0]
        return number if isinstance(number, int) else None

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Fulfil `Dialect.verdict`: some numbers are the driver's, and those of a SIGNAL the host's."""
        verdict = super().verdict(error)
        if verdict is Verdict.UNKNOWN and (number := self.code(getattr(error, "orig", None))) is not None:
            if number in _DRIVERS:
                return Verdict.AWAY
            if number >= _HOSTS or number < 0:  # PyMySQL reads a large one as negative
                return Verdict.REFUSED
        return verdict


_CHARACTER_SET = sa.text(
    "SELECT character_set_name FROM information_schema.columns WHERE table_schema = coalesce(:of_schema,"
    " database()) AND table_name = :of_table AND column_name = :of_column"
)


def _is_latin(text: str) -> bool:
    text = text.translate(_LATIN_TOO)
    return text.encode("cp1252", "ignore").decode("cp1252") == text


def _is_of_basic_plane(text: str) -> bool:
    return max(text, default="") <= "\uffff"


_LATIN_TOO = dict.fromkeys((0x81, 0x8D, 0x8F, 0x90, 0x9D))  # to MariaDB, not to Python
_HOLDS: Mapping[str, Callable[[str], bool]] = {
    "ascii": str.isascii,
    "latin1": _is_latin,
    **dict.fromkeys(("utf8mb3", "utf8"), _is_of_basic_plane),
}
"""Character set → whether it has all characters of a text. Others are not looked at."""


_OF_TABLES = ("TABLE_SCHEMA", "TABLE_NAME", "ENGINE")


def _takes_compounds(dialect: sa.Dialect) -> bool:
    return dialect.driver in ("pymysql", "mysqldb")


def _sent_in_one(compound: Compound, compounds: Any, parameters: Mapping[str, Any]) -> Sequence[Any]:
    stamped = compounds.send(compound, parameters)
    return stamped[0] if stamped else ()


@contextmanager
def _begun(connection: sa.Connection) -> Iterator[None]:
    """Set our isolation, and how long a statement waits.

    Not by the engine's option: that asks four times, and reports a dead connection in the driver's own words.
    """
    with _undone_by_hand(connection):
        if _takes_compounds(connection.dialect):
            connection.exec_driver_sql(f"{_BEGUN} END")
        else:
            connection.exec_driver_sql(_ISOLATION)
            connection.exec_driver_sql("START TRANSACTION")
        sa.event.listen(connection, "before_cursor_execute", _bound, retval=True)
        yield


@contextmanager
def _undone_by_hand(connection: sa.Connection) -> Iterator[None]:
    """Roll back whatever is raised: for hosts in AUTOCOMMIT SQLAlchemy does not."""
    if not getattr(connection.dialect, "is_mariadb", True):
        raise ConfigurationError("The order of steps is not proven on MySQL; use MariaDB.")
    try:
        yield
    except BaseException:
        with suppress(sa.exc.SQLAlchemyError):
            connection.exec_driver_sql("ROLLBACK")
        raise


_DRIVERS = range(2000, 3000)
_HOSTS = 5000  # the server's own end before


def _bound(
    _connection: object, _cursor: object, statement: str, parameters: Any, context: Any, _many: bool
) -> tuple[str, Any]:
    if not statement.startswith(_STATEMENTS):
        return statement, parameters
    at_once = context is not None and context.execution_options.get(AT_ONCE)
    return (_NOT_WAITING if at_once else _BOUNDED) + statement, parameters
