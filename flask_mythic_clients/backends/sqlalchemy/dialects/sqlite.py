"""SQLite: one writer at a time, so the write lock comes first and writers take turns."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

import sqlalchemy as sa

from .standard import WAIT, Dialect, Verdict

_TIME = "%Y-%m-%d %H:%M:%f000"  # as SQLAlchemy writes a DateTime; its clock knows milliseconds


class SQLite(Dialect):
    """Its own lock is polled: some who wait for it never get it while others come and go."""

    skips_rows = True
    locks_rows = False
    began = now = sa.func.strftime(_TIME, "now")
    verdicts: ClassVar = {
        **dict.fromkeys(("SQLITE_BUSY", "SQLITE_LOCKED"), Verdict.BUSY),
        **dict.fromkeys(("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN"), Verdict.AWAY),
        "SQLITE_CONSTRAINT_TRIGGER": Verdict.REFUSED,
    }

    @contextmanager
    def _connected(self, engine: sa.Engine, isolation: Any = None) -> Iterator[sa.Connection]:  # noqa: ARG002
        """Fulfil `Dialect._connected`; it has but one isolation.

        Foreign keys are enforced, and no lock is waited for longer than elsewhere: both are properties of
        the connection, which goes back to the host's pool as it was. Within a transaction the first could
        not be set, so it is done before SQLAlchemy, or a listener of the host's, begins one.
        """
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            always_begun = getattr(driver, "autocommit", None) is False  # since Python 3.12, if the host asks
            if always_begun:
                driver.autocommit = True  # ends the transaction that stands open
                driver.autocommit = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL
            begins = driver.isolation_level
            ((enforced,),) = driver.execute("PRAGMA foreign_keys").fetchall()
            ((wait,),) = driver.execute("PRAGMA busy_timeout").fetchall()
            driver.isolation_level = ""  # not the AUTOCOMMIT of a host
            driver.execute("PRAGMA foreign_keys = ON")
            driver.execute(f"PRAGMA busy_timeout = {WAIT * 1000}")
            try:
                yield connection
            finally:
                if not connection.invalidated:
                    driver.rollback()  # a COMMIT that failed leaves the transaction open, and closing too
                    driver.isolation_level = begins
                    driver.execute(f"PRAGMA foreign_keys = {enforced}")
                    driver.execute(f"PRAGMA busy_timeout = {wait}")
                    if always_begun:
                        driver.autocommit = False

    def lock(self, connection: sa.Connection, ledger: sa.Table) -> None:
        """Fulfil `Dialect.lock`: a reader that becomes a writer fails."""
        connection.execute(sa.update(ledger).where(ledger.c.id == 0).values(actor=""))  # no such

    def ago(self, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago`."""
        return sa.func.strftime(_TIME, "now", f"-{duration.total_seconds():.3f} seconds")

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


_WORDS = {
    "no such table": Verdict.OUTDATED,
    "no such column": Verdict.OUTDATED,
    "has no column named": Verdict.OUTDATED,
    "foreign key mismatch": Verdict.CONSTRAINT,
    "because it is a view": Verdict.REFUSED,
    "integer overflow": Verdict.REFUSED,
}
