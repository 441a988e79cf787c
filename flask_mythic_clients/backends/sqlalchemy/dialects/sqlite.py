"""SQLite: one writer at a time, so the write lock comes first and writers take turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

import sqlalchemy as sa

from ....model import Finding
from .ready import Often, Ready, is_unheard, translated
from .standard import WAIT, Dialect, Verdict, connected

_NORMAL, _FULL = 1, 2
# What holds for a connection, by what the host has there.
_OURS: Mapping[str, Callable[[int], int]] = {
    "busy_timeout": lambda _: WAIT * 1000,  # first: the others may have to wait
    "foreign_keys": lambda _: 1,
    "synchronous": lambda hosts: max(hosts, _FULL),
}
_HOSTS = "mythic_hosts"
_TIME = "%Y-%m-%d %H:%M:%f000"  # as SQLAlchemy writes a DateTime; its clock knows milliseconds

_TEMPORARY = sa.table("sqlite_temp_master", sa.column("type"))


class SQLite(Dialect):
    """Its own lock is polled: some who wait for it never get it while others come and go."""

    skips_rows = True
    locks_rows = False
    defers_alone = True
    grants = False
    oldest = (3, 35)
    began = now = sa.func.strftime(_TIME, "now")
    records_given = (
        sa.text(
            "SELECT json_extract(value, '$.client_id'), json_extract(value, '$.action'),"
            " json_extract(value, '$.actor'), json_extract(value, '$.reason'),"
            " json_extract(value, '$.request_id'),"
            " coalesce(json_extract(value, '$.requested_at'), strftime(:of_format, 'now')),"
            " json_extract(value, '$.kv_keys') FROM json_each(:of_records)"
        )
        .bindparams(of_format=_TIME)
        .columns()
    )
    verdicts: ClassVar = {
        **dict.fromkeys(("SQLITE_BUSY", "SQLITE_LOCKED"), Verdict.BUSY),
        **dict.fromkeys(("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_READONLY"), Verdict.AWAY),
        "SQLITE_CONSTRAINT_TRIGGER": Verdict.REFUSED,
    }

    @contextmanager
    def _connected(self, engine: sa.Engine, isolation: Any = None) -> Iterator[sa.Connection]:  # noqa: ARG002
        """Fulfil `Dialect._connected`; it has but one isolation.

        Foreign keys are enforced, no lock is waited for longer than elsewhere, and a commit waits for the
        disk: properties of the connection, which goes back to the host's pool as it was. Within a transaction
        some could not be set, so it is done before SQLAlchemy, or a listener of the host's, begins one.
        """
        with connected(engine) as connection:
            driver: Any = connection.connection.driver_connection
            always_begun = getattr(driver, "autocommit", None) is False  # since Python 3.12, if the host asks
            if always_begun:
                driver.autocommit = True  # ends the transaction that stands open
                driver.autocommit = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL
            begins = driver.isolation_level
            driver.isolation_level = ""  # not the AUTOCOMMIT of a host
            hosts = connection.info[_HOSTS] = dict[str, Any]()
            try:
                try:
                    for name, ours in _OURS.items():
                        found = hosts[name] = _pragma(driver, name)
                        if (wanted := ours(found)) != found:
                            driver.execute(f"PRAGMA {name} = {wanted}")
                except connection.dialect.loaded_dbapi.Error as error:
                    raise translated(error, connection, driver) from error  # another holds the file
                yield connection
            finally:
                if not connection.invalidated:
                    driver.rollback()  # a COMMIT that failed leaves the transaction open, and closing too
                    driver.isolation_level = begins
                    for name, value in hosts.items():
                        # `again` may have changed the one.
                        if name == "synchronous" or _OURS[name](value) != value:
                            driver.execute(f"PRAGMA {name} = {value}")
                    if always_begun:
                        driver.autocommit = False

    @contextmanager
    def again(self, connection: sa.Connection) -> Iterator[None]:
        """Fulfil `Dialect.again`: a step 2, which need not wait for the disk.

        A stamp that a crash loses is only made again. Only a write-ahead log loses no more by that.
        """
        driver: Any = connection.connection.driver_connection
        try:
            if _pragma(driver, "journal_mode") == "wal":
                driver.execute(f"PRAGMA synchronous = {_NORMAL}")
        except connection.dialect.loaded_dbapi.Error as error:
            raise translated(error, connection, driver) from error
        yield

    @contextmanager
    def alone(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """Fulfil `Dialect.alone`."""
        with self.statements(engine) as connection, self.again(connection):
            yield connection

    def often(self, connection: sa.Connection) -> Any:
        """Fulfil `Dialect.often`: of what a request takes here, SQLAlchemy's own part is large."""
        if connection.dialect.driver != "pysqlite" or not is_unheard(connection.engine):
            return connection
        return Often(connection, self.ready)

    def ready(self, statement: Any) -> Ready:
        """Fulfil `Dialect.ready`."""
        return self.once(("ready", statement), lambda: Ready(statement, self.sqlalchemys, "qmark"))

    def lock(self, connection: sa.Connection, ledger: sa.Table) -> None:
        """Fulfil `Dialect.lock`: a reader that becomes a writer fails."""
        write = self.once(
            ("lock", ledger), lambda: sa.update(ledger).where(ledger.c.id == 0).values(actor="")
        )
        connection.execute(write)  # no such record

    def goes_on(self, ledger: Any) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.goes_on`."""
        c = sa.table("sqlite_master", sa.column("type"), sa.column("tbl_name"), schema=ledger.schema).c
        found = sa.exists().where(c.type == "trigger", sa.func.lower(c.tbl_name) == ledger.name.lower())
        temporary = sa.exists().where(_TEMPORARY.c.type == "trigger")
        return found | temporary

    def unsafe(self, connection: sa.Connection, tables: Sequence[Any]) -> Iterator[Finding]:  # noqa: ARG002
        """Fulfil `Dialect.unsafe`: what holds for the host's own connections."""
        files = connection.exec_driver_sql("PRAGMA database_list").all()
        if not any(file for _, name, file in files if name == "main"):
            yield Finding("database", "It lies in memory, and is gone with the process.", "Use a file.")
            return
        journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        if journal in ("off", "memory"):
            problem = f"journal_mode is {journal}: a transaction that a crash ends is half done."
            yield Finding("database", problem, "Use WAL, or DELETE, which is the default.")
        if connection.info[_HOSTS]["synchronous"] == 0:
            problem = "synchronous is OFF: a power cut may ruin the file, with all that is in it."
            yield Finding("database", problem, "Use NORMAL with WAL, or FULL, which is the default.")

    def ago(self, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago`."""
        return sa.func.strftime(_TIME, "now", f"-{duration.total_seconds():.3f} seconds")

    def same(self, column: sa.Column[Any], key: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.same`: a column may be made to ignore case, in the database alone."""
        same = super().same(column, key)
        return same & (column.collate("BINARY") == key) if isinstance(column.type, sa.String) else same

    def code(self, said: Any) -> Any:
        """Fulfil `Dialect.code`: the name of the code, in full where it tells constraints apart."""
        name = getattr(said, "sqlite_errorname", "")
        return name if name.startswith("SQLITE_CONSTRAINT") else "_".join(name.split("_")[:2]) or None

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Fulfil `Dialect.verdict`: for some it has words, and one code."""
        verdict = super().verdict(error)
        said = str(getattr(error, "orig", ""))
        if verdict is Verdict.REFUSED and said == "FOREIGN KEY constraint failed":
            return Verdict.CONSTRAINT  # RESTRICT is a trigger to it
        if verdict is not Verdict.UNKNOWN:
            return verdict
        return next((meant for words, meant in _WORDS.items() if words in said), verdict)


def _pragma(driver: Any, name: str) -> Any:
    ((value,),) = driver.execute(f"PRAGMA {name}").fetchall()
    return value


_WORDS = {
    "no such table": Verdict.OUTDATED,
    "no such column": Verdict.OUTDATED,
    "has no column named": Verdict.OUTDATED,
    "foreign key mismatch": Verdict.CONSTRAINT,
    "because it is a view": Verdict.REFUSED,
    "integer overflow": Verdict.REFUSED,
}
