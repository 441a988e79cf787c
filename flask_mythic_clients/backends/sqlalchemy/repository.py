"""The repository: the port, each method one step in a transaction."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any, Literal

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session

from ...entries import EntryRule
from ...errors import ClientInUseError, ConfigurationError, ConstraintError
from ...model import Action, Backlog, Change, Client, DeletionRecord, Holding, Preview
from ...ports import Clock
from .dialects import Dialect, dialect_of
from .ledger import Ledger, ledger_table
from .mixin import ClientMixin
from .preview import preview
from .recorder import Recorder
from .rows import ClientRows
from .transactions import Transactions


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
        self._recorder = Recorder(self._rows, self._ledger.table)

    def record(self, change: Change, entries: EntryRule) -> bool:
        """Fulfil `ports.DeletionSteps.record`."""
        transactions = self._transactions()
        key = self._rows.key_of(change.client_id, transactions.dialect)
        if key is None:
            return False
        plan = self._recorder.plan(transactions.dialect, change, entries)
        step = partial(plan.take, key=key, change=change, entries=entries)
        refused = ClientInUseError if change.action is Action.HARD else ConstraintError
        return transactions.write(step, alone=plan.alone, refused=partial(refused, change.client_id))

    def settle(
        self, client_ids: Collection[str], *, clock: Clock, wait: bool = True
    ) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.settle`."""
        stamp = partial(self._ledger.settle, client_ids=client_ids, clock=clock, wait=wait)
        return self._hold(stamp, client_ids if wait else None, None)

    def verify(
        self, client_ids: Collection[str], *, at: datetime, settled_before: datetime, wait: bool = True
    ) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.verify`."""
        stamp = partial(
            self._ledger.verify, client_ids=client_ids, at=at, settled_before=settled_before, wait=wait
        )
        return self._hold(stamp, client_ids if wait else None, "share")

    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.pending`."""
        return self._transactions().read(partial(self._ledger.pending, after=after))

    def due(self, *, settled_before: datetime, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.due`."""
        return self._transactions().read(
            partial(self._ledger.due, settled_before=settled_before, after=after)
        )

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
        transactions = self._transactions()
        return transactions.read(
            lambda session: preview(session, self._rows, transactions.dialect, client_id, entries)
        )

    def check_columns(self, names: Collection[str]) -> None:
        """Fulfil `ports.ClientDirectory.check_columns`."""
        self._rows.check_columns(names)

    def _transactions(self) -> Transactions:
        engine = self._db.engines[self.model.metadata.info.get("bind_key")]
        return Transactions(engine, dialect_of(engine))

    def _hold(
        self,
        stamp: Callable[[Session, Dialect], list[DeletionRecord]],
        client_ids: Collection[str] | None,
        lock: Literal["share"] | None,
    ) -> AbstractContextManager[Holding]:
        """Stamp, then read the clients named, or else those whose records are held."""
        transactions = self._transactions()
        dialect = transactions.dialect

        def step(session: Session) -> Holding:
            records = stamp(session, dialect)  # first, for it waits: what is read after that is of now
            ids = {record.client_id for record in records} if client_ids is None else client_ids
            return Holding(tuple(records), self._rows.read(session, ids, dialect, lock))

        return transactions.hold(step)
