"""MariaDB: no UPDATE … RETURNING, collations that ignore case, and an isolation set by hand."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .standard import Dialect

# How long a settler waits for whoever holds a record of its clients. A key-value store that hangs makes a
# queue, in which each holds a connection of the host's pool; those who wait longer get their 503.
_WAIT = "WAIT 1"  # whole seconds only


class MariaDB(Dialect):
    """Locks the records by a SELECT of their own, then stamps them by their ids."""

    isolation = None
    conflicts = frozenset({1213})
    refusals = frozenset({4025})  # a CHECK is an operational error to its drivers
    missing = frozenset({1146, 1054})

    def begin(self, connection: sa.Connection) -> None:
        """Fulfil `Dialect.begin`.

        Not by the engine's option: that asks four times, and reports a dead connection in the driver's
        own words. The second statement is for hosts in AUTOCOMMIT.
        """
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql("START TRANSACTION")

    def roll_back(self, connection: sa.Connection) -> None:
        """Fulfil `Dialect.roll_back`: SQLAlchemy would not, for a host in AUTOCOMMIT."""
        connection.exec_driver_sql("ROLLBACK")

    def stamp(
        self,
        session: Session,
        ledger: sa.Table,
        where: sa.ColumnElement[bool],
        column: str,
        clock: Callable[[], datetime],
    ) -> list[sa.Row[Any]]:
        """Fulfil `Dialect.stamp`."""
        query = sa.select(ledger).where(where).order_by(ledger.c.id).with_for_update()
        rows = list(session.execute(query.suffix_with(_WAIT, dialect="mariadb")))
        if not rows:
            return rows
        by_id = ledger.c.id.in_([row.id for row in rows])
        session.execute(sa.update(ledger).where(by_id).values({column: clock()}))
        return list(session.execute(sa.select(ledger).where(by_id).order_by(ledger.c.id)))

    def same(self, column: sa.Column[Any], key: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Fulfil `Dialect.same`: its usual collations find "Acme" where "acme" is asked for."""
        same = super().same(column, key)
        if not isinstance(column.type, sa.String):
            return same
        # As text first: so it is in the character set of the connection, as the key is.
        text = sa.cast(column, sa.CHAR)
        return same & (sa.cast(text, sa.LargeBinary) == sa.cast(key, sa.LargeBinary))
