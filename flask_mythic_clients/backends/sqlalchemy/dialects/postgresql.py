"""PostgreSQL: step 1 in one statement, and settings that travel with the UPDATE."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .standard import Dialect

_WAIT = "1250ms"  # more than its deadlock_timeout, or a deadlock would never be found out

# A condition of the UPDATE that is always true, and is computed once, before a row is locked: so it needs no
# round trip of its own. No wait for the disk at commit: a stamp that a crash loses is only made again.
_LOCAL_SETTINGS = (
    sa.select(
        sa.func.concat(
            sa.func.set_config("lock_timeout", _WAIT, True),
            sa.func.set_config("synchronous_commit", "off", True),
        )
    )
    .scalar_subquery()
    .is_not(None)
)


class PostgreSQL(Dialect):
    """Waits inside the UPDATE, but stamps no record that was made after that began."""

    one_statement = True
    uuid_is_text = True
    conflicts = frozenset({"40001", "40P01"})
    missing = frozenset({"42P01", "42703"})

    def stamp(
        self,
        session: Session,
        ledger: sa.Table,
        where: sa.ColumnElement[bool],
        column: str,
        clock: Callable[[], datetime],
    ) -> list[sa.Row[Any]]:
        """Fulfil `Dialect.stamp`."""
        return super().stamp(session, ledger, where & _LOCAL_SETTINGS, column, clock)

    def json_array(self, *items: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Fulfil `Dialect.json_array`; the standard's leaves nulls out."""
        return sa.func.json_build_array(*items)
