"""Several statements in one round trip, and in one transaction, where a database takes them as a compound."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from .ready import Ready, Rows, filled, translated


class Compound:
    """Statements, and what stands between them; `answers` are those that give rows, in their order."""

    def __init__(self, parts: Sequence[str | Ready], answers: Sequence[Ready]) -> None:
        self.text = " ".join(part.strip() if isinstance(part, str) else part.text for part in parts)
        self.answers = answers
        readies = [part for part in parts if isinstance(part, Ready)]
        self._slots = [slot for ready in readies for slot in ready.slots]
        self.is_ready = all(ready.is_ready for ready in readies)
        """Whether no value of it is to be computed in Python each time."""

    def values(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what the driver takes for these parameters."""
        return tuple(filled(self._slots, given))


class Compounds:
    """Stands for a connection on which compounds are sent: each is a transaction, or begins one."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self._driver: Any = connection.dialect.dbapi

    def send(self, compound: Compound, given: Mapping[str, Any]) -> list[Rows]:
        """Return the rows of each statement that gave some; raises SQLAlchemy's errors."""
        result: Any = self.connection.exec_driver_sql(compound.text, compound.values(given))
        if not result.returns_rows:
            return []
        cursor, found = result.cursor, list[Rows]()
        try:
            # To the last, which tells of an error after the first.
            while cursor.description is not None:
                found.append(compound.answers[len(found)].rows(cursor))
                if not cursor.nextset():
                    break
        except self._driver.Error as error:
            driver: Any = self.connection.connection.driver_connection
            raise translated(error, self.connection, driver) from error
        finally:
            result.close()
        return found

    def commit(self) -> None:
        """Do nothing: a compound that stands alone has committed."""
