"""PostgreSQL: step 1 in one statement, and settings that travel with a statement."""

from datetime import timedelta
from typing import Any, ClassVar

import sqlalchemy as sa

from .standard import WAIT, Dialect, Verdict


def _set(lock_timeout: str, synchronous_commit: Any) -> sa.ColumnElement[bool]:
    """Return a condition that is always true, and is computed once, before a row is locked.

    So the settings, which hold until the end of the transaction, need no round trip of their own.
    """
    timeout = sa.func.set_config("lock_timeout", lock_timeout, True)
    commit = sa.func.set_config("synchronous_commit", synchronous_commit, True)
    return sa.select(sa.func.concat(timeout, commit)).scalar_subquery().is_not(None)


_SYNCHRONOUS_COMMIT = sa.func.current_setting("synchronous_commit")


class PostgreSQL(Dialect):
    """Waits inside the UPDATE, but stamps no record that was made after that began."""

    one_statement = True
    skips_rows = True
    hides_rows = True
    uuid_is_text = True
    began = sa.func.statement_timestamp()
    now = sa.func.clock_timestamp()
    # Where the host does not wait for the disk, this does: what is done to the key-value store cannot be
    # undone. Nothing else is changed: who waits for a standby still does, who does not must not begin to.
    step_1 = _set(f"{WAIT * 1000}ms", sa.func.replace(_SYNCHRONOUS_COMMIT, "off", "local"))
    # No wait for the disk: a stamp that a crash loses is only made again. More than its deadlock_timeout is
    # waited, or a deadlock of two that settle would never be found out.
    step_2 = _set(f"{WAIT * 1250}ms", "off")
    verdicts: ClassVar = {
        **dict.fromkeys(("40001", "40P01"), Verdict.CONFLICT),
        "55P03": Verdict.BUSY,
        **dict.fromkeys(("42P01", "42703"), Verdict.OUTDATED),
        # No connection, no resources, an administrator's or the system's end of it; a standby.
        **dict.fromkeys(("08", "53", "57", "58", "25006"), Verdict.AWAY),
        "23": Verdict.CONSTRAINT,
        # RAISE and its kin; values that a trigger has spoilt; what a trigger has changed; CHECK OPTION;
        # functions in other languages; a rule; no privilege, or a policy.
        **dict.fromkeys(("P0", "22", "27", "44", "38", "39", "0A", "42501"), Verdict.REFUSED),
    }

    def ago(self, duration: timedelta) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.ago`. Not by `now`: an index is of no use for what changes from row to row."""
        return self.began - sa.literal(duration, sa.Interval)

    def unwatched(self, *tables: Any) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.unwatched`."""
        name = self.sqlalchemys.identifier_preparer.format_table
        trigger = sa.table("pg_trigger", sa.column("tgrelid"), sa.column("tgisinternal"), schema="pg_catalog")
        watched = trigger.c.tgrelid.in_([sa.func.to_regclass(name(table)) for table in tables])
        # What is internal carries out foreign keys.
        return ~sa.exists().where(watched, ~trigger.c.tgisinternal)

    def json_array(self, *items: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.json_array`; the standard's leaves nulls out."""
        return sa.func.json_build_array(*items)

    def code(self, said: Any) -> Any:
        """Fulfil `Dialect.code`: the SQLSTATE, psycopg's or psycopg2's."""
        return getattr(said, "sqlstate", None) or getattr(said, "pgcode", None)

    def verdict(self, error: sa.exc.SQLAlchemyError) -> Verdict:
        """Fulfil `Dialect.verdict`: a SQLSTATE of a class that is nobody's is the host's own."""
        verdict = super().verdict(error)
        state = self.code(getattr(error, "orig", None))
        if verdict is Verdict.UNKNOWN and state is not None and state[0] in _ITS_OWN:
            return Verdict.REFUSED
        return verdict


# The standard leaves classes that begin with 5 to 9 or I to Z to whoever wants them (ISO/IEC 9075-2, 24.1);
# PostgreSQL's begin with 5, 7, P or X.
_ITS_OWN = "689IJKLMNOQRSTUVWYZ"
