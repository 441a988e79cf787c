"""The repository: the port, each method one step in a transaction."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session

from ...entries import EntryRule
from ...errors import ChangeRefusedError, ConfigurationError, StoreError
from ...model import Action, Backlog, Change, Client, DeletionRecord, Holding, Preview
from .dialects import KNOWN, Dialect, Verdict, dialect_of
from .engines import Database, engines_of
from .ledger import Ledger, ledger_table
from .mixin import ClientMixin
from .preview import preview
from .recorder import Hook, KeptError, Recorder, UndecidedError
from .refusals import holding_back, refusal, touched_by_the_orm
from .rows import ClientRows
from .status import Status
from .transactions import RefusedError, Transactions


class SQLAlchemyRepository:
    """Clients in a table of the host's, the ledger beside it in the same database.

    `db` is Flask-SQLAlchemy's object, Flask-SQLAlchemy-Lite's, an Engine, or a function that returns one.
    Flask-SQLAlchemy's alone means a model of ours, `repository.model`, in the table `clients`. `id` and
    `status` are attributes of the host's model. A status is a Boolean (true is active, NULL is not), a
    nullable time (NULL is active; a soft delete writes the database's), or a `Status` of any other column.
    Works inside an application context, on the engine of the model's `__bind_key__`; never touches the host's
    session.

    `before(session, row, action)` is called in step 1's transaction, before the row is changed: to clean up
    what refers to it, to free a unique name, to write an audit row. It may be called again for the same
    change, so it touches that session alone. What it raises rolls all back; a ClientError is then the answer.

    Raises ConfigurationError where the model has no such columns, or the id is not unique.
    """

    def __init__(
        self,
        db: Database,
        model: type[Any] | None = None,
        *,
        id: str = "id",
        status: str | Status = "status",
        before: Hook | None = None,
    ) -> None:
        if model is None and isinstance(db, SQLAlchemy):
            model = type("Client", (ClientMixin, db.Model), {"__tablename__": "clients"})
        metadata = getattr(model, "metadata", sa.MetaData())
        self._engines, self._bind_key = engines_of(db, metadata)
        if model is None:
            raise ConfigurationError(
                "Pass the model of your clients: only Flask-SQLAlchemy brings one of ours."
            )
        self.model: Any = model
        self._rows = ClientRows(self.model, id, status)
        self._ledger = Ledger(ledger_table(metadata, self.model))
        if before is not None and not callable(before):
            raise ConfigurationError(
                f"before= takes a function of a session, a row and an action, not {type(before).__name__}."
            )
        self._recorder = Recorder(self._rows, self._ledger.table, before)

    def record(self, change: Change, entries: EntryRule) -> bool:
        """Fulfil `ports.DeletionSteps.record`."""
        transactions = self._transactions()
        key = self._rows.key_of(change.client_id, transactions.dialect)
        if key is None:
            return False
        plan = self._recorder.plan(transactions.dialect, change, entries)
        try:
            try:
                step = partial(plan.take, key=key, change=change, entries=entries)
                return transactions.write(step, change.client_id, alone=plan.alone)
            except UndecidedError as undecided:
                plan = self._recorder.plan_again(transactions.dialect, change, entries, undecided)
            step = partial(plan.take, key=key, change=change, entries=entries)
            return transactions.write(step, change.client_id, alone=plan.alone)
        except RefusedError as refused:
            raise self._refusal(refused.verdict, change, transactions) from refused.__cause__
        except KeptError:
            raise self._refusal(Verdict.KEPT, change, transactions) from None

    def settle(self, client_ids: Collection[str], *, wait: bool = True) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.settle`."""
        stamp = partial(self._ledger.settle, client_ids=client_ids, wait=wait)
        step = partial(self._hold, stamp=stamp, client_ids=client_ids if wait else None, lock=None)
        return self._transactions().hold(step, client_ids)

    def verify(
        self, client_ids: Collection[str], *, settled_for: timedelta, wait: bool = True
    ) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.verify`."""
        stamp = partial(self._ledger.verify, client_ids=client_ids, settled_for=settled_for, wait=wait)
        step = partial(self._hold, stamp=stamp, client_ids=client_ids if wait else None, lock="share")
        return self._transactions().hold(step, client_ids)

    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.pending`."""
        return self._transactions().read(partial(self._ledger.pending, after=after))

    def due(self, *, settled_for: timedelta, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.due`."""
        return self._transactions().read(partial(self._ledger.due, settled_for=settled_for, after=after))

    def history(self, client_id: str) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        return self._transactions().read(partial(self._ledger.history, client_id=client_id))

    def backlog(self) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        return self._transactions().read(self._ledger.backlog)

    def clients(self) -> Iterator[Client]:
        """Fulfil `ports.ClientDirectory.clients`; reads page by page."""
        after: Client | None = None
        while page := self._transactions().read(partial(self._rows.page, after=after)):
            yield from page
            after = page[-1]

    def preview(self, client_id: str, entries: EntryRule) -> Preview | None:
        """Fulfil `ports.ClientDirectory.preview`."""
        look = partial(preview, rows=self._rows, client_id=client_id, entries=entries)
        return self._transactions().read(look)

    def check_columns(self, names: Collection[str]) -> None:
        """Fulfil `ports.ClientDirectory.check_columns`."""
        self._rows.check_columns(names)

    def _transactions(self) -> Transactions:
        engine = self._engines()[self._bind_key]
        tables = (self._ledger.table, *self._rows.mapper.tables)
        return Transactions(engine, KNOWN.get(engine) or dialect_of(engine), tables)

    def _hold(
        self,
        session: Session,
        dialect: Dialect,
        *,
        stamp: Callable[[Session, Dialect], list[DeletionRecord]],
        client_ids: Collection[str] | None,
        lock: Literal["share"] | None,
    ) -> Holding:
        """Stamp, then read the clients named, or else those whose records are held."""
        records = stamp(session, dialect)  # first, for it waits: what is read after that is of now
        if client_ids is None:
            client_ids = {record.client_id for record in records}
        return Holding(tuple(records), self._rows.read(session, client_ids, dialect, lock))

    def _refusal(self, verdict: Verdict, change: Change, transactions: Transactions) -> ChangeRefusedError:
        """Look up what forbids a change, now that it is rolled back."""
        columns: Sequence[str] = ()
        if verdict is Verdict.MAPPING:
            columns = list(touched_by_the_orm(self._rows))
        elif verdict is Verdict.CONSTRAINT and change.action is Action.HARD:
            with suppress(StoreError):  # then without names
                look = partial(holding_back, rows=self._rows, client_id=change.client_id)
                columns = transactions.read(look)
        return refusal(verdict, change, self._rows, columns)
