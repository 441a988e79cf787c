"""The repository: transactions of its own, and every SQLAlchemy error translated."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from threading import Lock
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session

from ...entries import EntryRule
from ...errors import ClientInUseError, ConfigurationError, ConstraintError, RepositoryError
from ...model import Action, Backlog, Change, Client, DeletionRecord, Holding, Preview
from ...ports import Clock
from .ledger import Ledger, ledger_table
from .mixin import ClientMixin
from .preview import preview
from .recorder import Recorder
from .rows import ClientRows

_T = TypeVar("_T")
_TRIES = 5
_TURN_SECONDS = 5
_OUTDATED = "The database lacks a table or a column: run db.create_all() or your migrations."
_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")


class SQLAlchemyRepository:
    """Clients in a table of the host's, the ledger beside it in the same database.

    `db` alone means a model of ours, `repository.model`, in the table `clients`. `id` and `status` are
    attributes of the host's model; a status of NULL counts as false. Works inside an application context,
    on the engine of the model's `__bind_key__`; never touches `db.session`.
    Raises ConfigurationError where the model has no such columns, or the id is not unique.
    """

    def __init__(
        self, db: SQLAlchemy, model: type[Any] | None = None, *, id: str = "id", status: str = "status"
    ) -> None:
        if not isinstance(db, SQLAlchemy):
            raise ConfigurationError(f"Pass the Flask-SQLAlchemy object of your app, not {db!r}.")
        ours: Any = model or type("Client", (ClientMixin, db.Model), {"__tablename__": "clients"})
        self.model = ours
        self._db = db
        self._rows = ClientRows(self.model, id, status)
        self._ledger = Ledger(ledger_table(self.model.metadata, self.model))
        self._recorder = Recorder(self._rows, self._ledger)
        self._turns: WeakKeyDictionary[sa.Engine, Lock] = WeakKeyDictionary()

    def record(self, change: Change, entries: EntryRule) -> bool:
        """Fulfil `ports.DeletionSteps.record`."""
        alone = self._recorder.is_one_statement(change.action, entries, self._engine.dialect)

        def step() -> bool:
            # A single statement is a transaction by itself: one round trip instead of three.
            with self._turn(), self._session(autocommit=alone) as session:
                recorded = self._recorder.record(session, change, entries)
                session.commit()
                return recorded

        with _translated(change):
            return _retrying(step)

    @contextmanager
    def settle(self, client_ids: Collection[str], *, clock: Clock, wait: bool = True) -> Iterator[Holding]:
        """Fulfil `ports.DeletionSteps.settle`."""
        stamp = partial(self._ledger.settle, client_ids=client_ids, clock=clock, wait=wait)
        with self._hold(client_ids if wait else None, None, stamp) as held:
            yield held

    @contextmanager
    def verify(
        self, client_ids: Collection[str], *, at: datetime, settled_before: datetime, wait: bool = True
    ) -> Iterator[Holding]:
        """Fulfil `ports.DeletionSteps.verify`."""
        stamp = partial(
            self._ledger.verify, client_ids=client_ids, at=at, settled_before=settled_before, wait=wait
        )
        with self._hold(client_ids if wait else None, "share", stamp) as held:
            yield held

    def unfinished(
        self, *, settled_before: datetime | None, after: DeletionRecord | None
    ) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.unfinished`."""
        return self._read(lambda session: self._ledger.unfinished(session, settled_before, after))

    def history(self, client_id: str) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        return self._read(lambda session: self._ledger.history(session, client_id))

    def backlog(self) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        return self._read(self._ledger.backlog)

    def clients(self) -> Iterator[Client]:
        """Fulfil `ports.ClientDirectory.clients`; reads page by page."""
        after: Client | None = None
        while page := self._read(lambda session: self._rows.page(session, after)):  # noqa: B023 - called at once
            yield from page
            after = page[-1]

    def preview(self, client_id: str, entries: EntryRule) -> Preview | None:
        """Fulfil `ports.ClientDirectory.preview`."""
        return self._read(lambda session: preview(session, self._rows, client_id, entries))

    def check_columns(self, names: Collection[str]) -> None:
        """Fulfil `ports.ClientDirectory.check_columns`."""
        self._rows.check_columns(names)

    @property
    def _engine(self) -> sa.Engine:
        engine = self._db.engines[self.model.metadata.info.get("bind_key")]
        if engine.dialect.name not in _DIALECTS:
            raise ConfigurationError(
                f"The order of steps is not proven on {engine.dialect.name}; use {', '.join(_DIALECTS)}."
            )
        return engine

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """On SQLite, let those who write through this repository come one by one; elsewhere do nothing.

        SQLite's own lock is polled: some who wait for it never get it while others come and go.
        """
        if self._engine.dialect.name != "sqlite":
            yield
            return
        lock = self._turns.setdefault(self._engine, Lock())
        if not lock.acquire(timeout=_TURN_SECONDS):
            raise RepositoryError("Another writer has held the database for too long.")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _session(self, *, autocommit: bool = False) -> Iterator[Session]:
        """Open a session at READ COMMITTED, whatever the host's default is; SQLite has but SERIALIZABLE."""
        engine, mariadb = self._engine, self._engine.dialect.name in ("mysql", "mariadb")
        if not mariadb:
            level = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "READ COMMITTED"
            engine = engine.execution_options(isolation_level="AUTOCOMMIT" if autocommit else level)
        with Session(engine, autoflush=False, expire_on_commit=False) as session:
            connection = session.connection()  # now: a wait for the pool must not come after a clock is read
            try:
                if mariadb:
                    # Not by the option above: that asks four times, and reports a dead connection in the
                    # driver's own words. The second statement is for hosts in AUTOCOMMIT.
                    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    connection.exec_driver_sql("START TRANSACTION")
                yield session
            except BaseException:
                # A COMMIT that failed on SQLite, and a host in AUTOCOMMIT, leave the transaction open, and
                # `close` leaves it so. A connection that is gone has none.
                with suppress(sa.exc.SQLAlchemyError):
                    if mariadb:
                        connection.exec_driver_sql("ROLLBACK")
                with suppress(sa.exc.SQLAlchemyError):
                    session.rollback()
                raise

    @contextmanager
    def _hold(
        self,
        client_ids: Collection[str] | None,
        lock: Literal["share"] | None,
        stamp: Callable[[Session], list[DeletionRecord]],
    ) -> Iterator[Holding]:
        """Stamp, then read the clients named, or else those whose records are held."""

        def acquire() -> tuple[ExitStack, Session, Holding]:
            with ExitStack() as stack:
                stack.enter_context(self._turn())
                session = stack.enter_context(self._session())
                records = stamp(session)  # first, for it waits: what is read after that is of now
                ids = {record.client_id for record in records} if client_ids is None else client_ids
                holding = Holding(tuple(records), self._rows.read(session, ids, lock))
                return stack.pop_all(), session, holding

        with _translated():
            stack, session, holding = _retrying(acquire)
        with stack:
            yield holding  # what the caller raises is the caller's
            with _translated():
                session.commit()

    def _read(self, query: Callable[[Session], _T]) -> _T:
        def read() -> _T:
            with self._session() as session:
                answer = query(session)
                session.commit()
                return answer

        with _translated():
            return _retrying(read)


@contextmanager
def _translated(change: Change | None = None) -> Iterator[None]:
    """Translate what a database says, in step 1 of a change or elsewhere."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        if change is not None and _is_refusal(error):
            refused = ClientInUseError if change.action is Action.HARD else ConstraintError
            raise refused(change.client_id) from error
        raise RepositoryError(_OUTDATED if _lacks_a_table(error) else None) from error


def _retrying(step: Callable[[], _T]) -> _T:
    """Take a step again after a deadlock or serialization failure, and once on a fresh connection.

    Every step is safe to repeat, also where the first try was committed and only its answer lost.
    """
    reconnected = False
    for _ in range(_TRIES - 1):
        try:
            return step()
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated and not reconnected:
                reconnected = True  # a dead connection of the pool, which is empty now
            elif not _is_conflict(error):
                raise
        time.sleep(random.uniform(0, 0.02))
    return step()


def _is_conflict(error: sa.exc.DBAPIError) -> bool:
    """Whether the database has rolled back one of two transactions that were in each other's way."""
    return not _codes(error).isdisjoint({"40001", "40P01", 1213})


def _is_refusal(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether a constraint forbids it; MariaDB's CHECK (4025) is an operational error to its drivers."""
    return isinstance(error, sa.exc.IntegrityError) or 4025 in _codes(error)


def _lacks_a_table(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether a table or a column is missing, which MariaDB and SQLite may call operational, as an outage."""
    codes = _codes(error)
    words = ("no such table", "no such column", "has no column named")
    return not codes.isdisjoint({"42P01", "42703", 1146, 1054}) or any(
        some in str(code) for code in codes for some in words
    )


def _codes(error: sa.exc.SQLAlchemyError) -> set[Any]:
    """Return psycopg's SQLSTATE, psycopg2's, MariaDB's number, and the text."""
    said = getattr(error, "orig", None)
    return {getattr(said, "sqlstate", None), getattr(said, "pgcode", None), *getattr(said, "args", ())}
