"""The repository: the port, each method one step in a transaction."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session

from ...entries import EntryRule, KeyTemplates
from ...errors import (
    BusyError,
    ChangeRefusedError,
    ClientError,
    ConfigurationError,
    StatementTimeoutError,
    StoreError,
)
from ...model import (
    Action,
    Backlog,
    Batch,
    Change,
    Client,
    DeletionRecord,
    Finding,
    Holding,
    Inactive,
    Preview,
    Recorded,
)
from ...ports import Begun
from .ages import inactive
from .both_steps import BothSteps
from .bulk import Bulk, prune
from .cascades import Cascades
from .check import Check
from .dialects import Dialect, Verdict, dialect_of
from .engines import Database, address, engines_of
from .ledger import LEDGER, Ledger, ledger_table, shared
from .loose import Loose, check_ignored
from .mixin import ClientMixin
from .owners import chosen, owners
from .preview import Trial
from .recorder import (
    Hook,
    KeptError,
    OneStatement,
    Plan,
    Recorder,
    TakenAlongError,
    Unchanged,
    check_hook,
)
from .refusals import holding_back, refusal, taken_along, touched_by_the_orm
from .rows import PAGE, ClientRows, metadata_of
from .sessions import HostSession, sessions_of
from .status import Status
from .transactions import RefusedError, Transactions, UndecidedError

# Those alive: clients of one kind may go along with another's.
_UNTOLD = (None, "", ":memory:")
_REPOSITORIES: "WeakSet[SQLAlchemyRepository]" = WeakSet()


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
    change, and in a dry run, which is undone, so it touches that session alone. What it raises rolls all
    back; a ClientError is then the answer.

    `ignore` names columns, as `table.column`, whose rows are meant to stay when their client is removed: that
    no foreign key is there `check` tells no more.

    Raises ConfigurationError where the model has no such columns, or the id is not unique.
    """

    def __init__(
        self,
        db: Database,
        model: type[Any] | None = None,
        *,
        id: str = "id",
        status: str | Status = "status",
        ledger: str = LEDGER,
        session: HostSession | None = None,
        before: Hook | None = None,
        ignore: Collection[str] = (),
    ) -> None:
        if model is None and isinstance(db, SQLAlchemy):
            model = type("Client", (ClientMixin, db.Model), {"__tablename__": "clients"})
        metadata = metadata_of(model)
        self._engines, self._bind_key = engines_of(db, model, metadata)
        if model is None:
            raise ConfigurationError(
                "model is missing: pass the model of your clients. Only Flask-SQLAlchemy brings one of ours."
            )
        self.model: Any = model
        self._rows = ClientRows(self.model, id, status)
        before, sessions = check_hook(before), sessions_of(db, session)
        self._ledger = Ledger(ledger_table(metadata, self.model, ledger))
        self._dialects: WeakKeyDictionary[sa.Engine, Dialect] = WeakKeyDictionary()
        self._recorder = Recorder(
            self._rows,
            self._ledger.table,
            before=before,
            sessions=sessions,
            cascades=partial(Cascades, self._rows, self._kinds),
        )
        self._loose = Loose(self._rows, check_ignored(ignore))
        self._both_steps = BothSteps(self._rows, self._ledger)
        _REPOSITORIES.add(self)

    def record(self, change: Change, entries: EntryRule) -> Recorded | None:
        """Fulfil `ports.DeletionSteps.record`."""
        transactions = self._transactions()
        key = self._rows.key_of(change.client_id, transactions.dialect)
        if key is None:
            return None
        with self._refusals(change, transactions):
            dialect = transactions.dialect
            plan = self._recorder.plan(dialect, change, entries)
            try:
                taken = self._take(transactions, plan, key, change, entries)
            except UndecidedError as undecided:
                plan = self._recorder.plan_again(dialect, change, entries, undecided)
                taken = self._take(transactions, plan, key, change, entries)
            return taken if isinstance(taken, Recorded) else None

    def _take(
        self, transactions: Transactions, plan: Plan, key: Any, change: Change, entries: EntryRule
    ) -> Recorded | Unchanged | None:
        step = partial(plan.take, key=key, change=change, entries=entries)
        taken: Recorded | Unchanged | None = transactions.write(step, change.client_id, plan.begin)
        return taken

    @contextmanager
    def record_and_settle(self, change: Change, entries: EntryRule) -> Iterator[Begun | None]:
        """Fulfil `ports.QuickSteps.record_and_settle`."""
        transactions = self._transactions()
        dialect = transactions.dialect
        key = self._rows.key_of(change.client_id, dialect)
        if key is None:
            yield None
            return
        plan = self._recorder.plan(dialect, change, entries)
        given: Any = {"plan": plan, "key": key, "change": change}
        if isinstance(plan, OneStatement):
            if not (is_direct := plan.is_direct(transactions.engine)):
                yield None
                return
            begin: Callable[..., Any] = partial(self._both_steps.pipelined, **given)
        else:
            is_direct = dialect.is_direct(transactions.engine)
            given |= {"entries": entries, "refusals": transactions.refusals, "is_direct": is_direct}
            begin = partial(self._both_steps.in_turn, **given)
        with (
            self._refusals(change, transactions),
            transactions.at_once(begin, change.client_id, knows=not is_direct) as begun,
        ):
            yield begun

    def record_each(self, changes: Sequence[Change], entries: EntryRule) -> Batch | None:
        """Fulfil `ports.BulkSteps.record_each`."""
        transactions, action = self._transactions(), changes[0].action
        dialect = transactions.dialect
        kind = (self, action)
        plans = dialect.plans.setdefault(entries, {})
        while True:
            if kind not in plans:
                plans[kind] = self._bulk(dialect, action, entries, self._recorder.has_more_to_do(action))
            try:
                step = partial(plans[kind].take, changes=changes)
                batch: Batch = transactions.write(step, "", dialect.statements)
                return batch
            except UndecidedError:
                plans[kind] = self._bulk(dialect, action, entries, each_alone=True)
            except (KeptError, RefusedError, StatementTimeoutError):  # fewer may take less
                return None

    def inactive(self, *, for_at_least: timedelta, after: Inactive | None) -> Sequence[Inactive]:
        """Fulfil `ports.BulkSteps.inactive`."""
        query = partial(inactive, rows=self._rows, ledger=self._ledger.table)
        return self._transactions().ask(partial(query, for_at_least=for_at_least, after=after))

    def records(self, *, since: datetime | None, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.Archive.records`."""
        return self._transactions().ask(partial(self._ledger.every, since=since, after=after))

    def lacking(self, records: Sequence[DeletionRecord]) -> Sequence[DeletionRecord]:
        """Fulfil `ports.Archive.lacking`."""
        return self._transactions().ask(partial(self._ledger.lacking, records=records))

    def prune(
        self, *, verified_before: datetime | None, kept: timedelta, after: int | None
    ) -> tuple[int, int | None]:
        """Fulfil `ports.Archive.prune`."""
        step = partial(prune, rows=self._rows, ledger=self._ledger.table, verified_before=verified_before)
        return self._transactions().ask(partial(step, kept=kept, after=after))

    def make_durable(self) -> None:
        """Fulfil `ports.DeletionSteps.make_durable`."""
        transactions = self._transactions()
        if (query := transactions.dialect.durable) is not None:
            transactions.ask(lambda connection, _: connection.execute(query), alone=True)

    def settle(self, client_ids: Collection[str], *, wait: bool = True) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.settle`."""
        stamp = partial(self._ledger.settle, client_ids=client_ids, wait=wait)
        step = partial(self._hold, stamp=stamp, client_ids=client_ids if wait else None, lock=None)
        return self._transactions().hold(step, client_ids)

    def settle_alone(self, record: DeletionRecord) -> DeletionRecord | None:
        """Fulfil `ports.DeletionSteps.settle_alone`."""
        transactions = self._transactions()
        stamp = partial(self._ledger.settle_alone, record=record)
        return transactions.ask(stamp, alone=True)

    def verify(
        self, client_ids: Collection[str], *, settled_for: timedelta, wait: bool = True
    ) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.verify`."""
        stamp = partial(self._ledger.verify, client_ids=client_ids, settled_for=settled_for)
        if wait:
            step = partial(self._hold, stamp=partial(stamp, leave=None), client_ids=client_ids, lock="share")
        else:
            step = partial(self._hold_free, stamp=stamp)
        return self._transactions().hold(step, client_ids)

    def note_failure(self, client_ids: Collection[str], error: str) -> None:
        """Fulfil `ports.DeletionSteps.note_failure`."""
        self._transactions().ask(partial(self._ledger.note_failure, client_ids=client_ids, error=error))

    def forget_keys(self, *, verified_before: datetime | None, kept: timedelta) -> int:
        """Fulfil `ports.DeletionSteps.forget_keys`."""
        forget = partial(self._ledger.forget_keys, verified_before=verified_before, kept=kept)
        return self._transactions().ask(forget)

    def hold(self, client_ids: Collection[str], *, wait: bool = True) -> AbstractContextManager[Holding]:
        """Fulfil `ports.DeletionSteps.hold`."""
        step = partial(self._hold_rows, client_ids=client_ids, lock="share" if wait else "free")
        return self._transactions().hold(step, client_ids)

    def pending(self, *, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.pending`."""
        return self._transactions().ask(partial(self._ledger.pending, after=after))

    def due(self, *, settled_for: timedelta, after: DeletionRecord | None) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.due`."""
        return self._transactions().ask(partial(self._ledger.due, settled_for=settled_for, after=after))

    def done(
        self, *, since: datetime | None, before: datetime, after: DeletionRecord | None
    ) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.done`."""
        return self._transactions().ask(partial(self._ledger.done, since=since, before=before, after=after))

    def has_forgotten(self, *, since: datetime) -> bool:
        """Fulfil `ports.DeletionLedger.has_forgotten`."""
        return self._transactions().ask(partial(self._ledger.has_forgotten, since=since))

    def history(self, client_id: str) -> Sequence[DeletionRecord]:
        """Fulfil `ports.DeletionLedger.history`."""
        return self._transactions().ask(partial(self._ledger.history, client_id=client_id))

    def backlog(self, *, settled_for: timedelta) -> Backlog:
        """Fulfil `ports.DeletionLedger.backlog`."""
        return self._transactions().ask(partial(self._ledger.backlog, settled_for=settled_for))

    def now(self) -> datetime:
        """Fulfil `ports.DeletionLedger.now`."""
        return self._transactions().ask(self._ledger.now)

    def address(self) -> str:
        """Fulfil `ports.DeletionLedger.address`."""
        return f"{address(self._transactions().engine)}|{self._ledger.table}"  # several may share a database

    def clients(self) -> Iterator[Client]:
        """Fulfil `ports.ClientDirectory.clients`; reads page by page."""
        after: Client | None = None
        while page := self._transactions().read(partial(self._rows.page, after=after)):
            yield from page
            after = page[-1]

    def sample(self, number: int) -> Iterator[Client]:
        """Fulfil `ports.AuditedRepository.sample`; reads page by page."""
        transactions = self._transactions()
        client_ids = transactions.ask(partial(chosen, rows=self._rows, number=number))
        for at in range(0, len(client_ids), PAGE):
            read = partial(self._read, client_ids=client_ids[at : at + PAGE])
            yield from transactions.read(read).values()

    def fitting(self, column: str, texts: Collection[str]) -> Collection[str]:
        """Fulfil `ports.AuditedRepository.fitting`."""
        dialect = self._transactions().dialect
        return [text for text in texts if self._rows.value_of(column, text, dialect) is not None]

    def owners(self, columns: Sequence[str], among: Collection[str]) -> set[tuple[str | None, ...]]:
        """Fulfil `ports.AuditedRepository.owners`."""
        return self._transactions().ask(partial(owners, rows=self._rows, names=columns, among=among))

    def preview(self, change: Change, entries: EntryRule) -> Preview | None:
        """Fulfil `ports.ClientDirectory.preview`."""
        transactions = self._transactions()
        dialect = transactions.dialect
        key = self._rows.key_of(change.client_id, dialect)
        if key is None:
            return None
        plan = self._recorder.general(dialect, change)
        trial = Trial(self._rows, self._ledger.table, dialect, plan)
        step = partial(trial.take, key=key, change=change, entries=entries)
        try:
            with self._refusals(change, transactions):
                return transactions.write(step, change.client_id, plan.begin, undo=True)
        except ClientError as error:
            return trial.refused(error)

    def check_database(self, kind: str, entries: EntryRule, *, removes: bool) -> Iterator[Finding]:
        """Fulfil `ports.CheckedRepository.check_database`."""
        check = Check(self._transactions(), self._rows, self._ledger.table, self._loose)
        return check.findings(kind, entries, removes=removes)

    def check_columns(self, names: Collection[str]) -> None:
        """Fulfil `ports.ClientDirectory.check_columns`."""
        self._rows.check_columns(names)

    def _bulk(self, dialect: Dialect, action: Action, entries: EntryRule, each_alone: bool) -> Bulk:
        templates = entries if isinstance(entries, KeyTemplates) else None
        given = (self._rows, self._ledger.table, dialect, action, templates)
        cascades = self._recorder.cascades_in(dialect)
        return Bulk(*given, cascades, each_alone=each_alone or templates is None)

    def _transactions(self) -> Transactions:
        engine = self._engine()
        tables = (self._ledger.table, *self._rows.mapper.tables)
        return Transactions(engine, self._dialects.get(engine) or self._meet(engine), tables)

    def _engine(self) -> sa.Engine:
        try:
            return self._engines()[self._bind_key]
        except (KeyError, RuntimeError, sa.exc.UnboundExecutionError) as error:
            raise ConfigurationError(
                f"db has no engine for {self.model.__name__} in this app: call its init_app, and configure "
                f"the engine {self._bind_key or 'default'!r}."
            ) from error

    def _kinds(self) -> list[ClientRows]:
        """Return the rows of all kinds of client in this database, this one's among them."""
        here = self._where()
        return [other._rows for other in set(_REPOSITORIES) if other._where() == here]

    def _where(self) -> str | sa.Engine | None:
        """Return where the database is, for several engines lead to one; the engine where nobody can tell."""
        try:
            engine = self._engine()
            return address(engine) if engine.url.host or engine.url.database not in _UNTOLD else engine
        except Exception:  # it is of another app, or the host's function fails: nobody is deleted there now
            return None

    def _meet(self, engine: sa.Engine) -> Dialect:
        """Return the dialect of an engine not seen before.

        Raises ConfigurationError where the ledger there is another kind's, made on another metadata.
        """
        dialect, clients = dialect_of(engine), self._rows.id.table
        if dialect.ledgers.setdefault(f"{self._ledger.table}", f"{clients}") != f"{clients}":
            raise shared(f"{self._ledger.table}", f"{clients}")
        return self._dialects.setdefault(engine, dialect)

    def _hold(
        self,
        session: Session,
        dialect: Dialect,
        *,
        stamp: Callable[[sa.Connection, Dialect], list[DeletionRecord]],
        client_ids: Collection[str] | None,
        lock: Literal["share"] | None,
    ) -> Holding:
        """Stamp, then read the clients named, or else those whose records are held."""
        # First, for it waits: what is read after that is of now.
        records = stamp(session.connection(), dialect)
        if client_ids is None:
            client_ids = {record.client_id for record in records}
        clients = self._rows.read(session, client_ids, dialect, lock)
        if client_ids and not clients and not records and lock is None:
            # Removed since the stamp, perhaps: then its record, which the stamp missed, is there by now.
            records = stamp(session.connection(), dialect)
            clients = self._rows.read(session, client_ids, dialect) if records else clients
        if lock is not None and records and self._unlocked(session, dialect, client_ids, clients):
            raise BusyError  # a policy lets nobody lock it, so its records are not to be stamped
        return Holding(tuple(records), clients)

    def _read(self, session: Session, dialect: Dialect, client_ids: Collection[str]) -> dict[str, Client]:
        return self._rows.read(session, client_ids, dialect)

    def _hold_rows(
        self,
        session: Session,
        dialect: Dialect,
        *,
        client_ids: Collection[str],
        lock: Literal["share", "free"],
    ) -> Holding:
        """Lock the rows alone."""
        dialect.lock(session.connection(), self._ledger.table)
        clients = self._rows.read(session, client_ids, dialect, lock)
        return Holding((), clients, frozenset(self._unlocked(session, dialect, client_ids, clients)))

    def _hold_free(
        self, session: Session, dialect: Dialect, *, stamp: Callable[..., list[DeletionRecord]]
    ) -> Holding:
        """Lock records and rows that nobody else holds, stamp the records."""
        clients: dict[str, Client] = {}

        def leave(client_ids: Collection[str]) -> Collection[str]:
            clients.update(self._rows.read(session, client_ids, dialect, "free"))
            return self._unlocked(session, dialect, client_ids, clients)

        return Holding(tuple(stamp(session.connection(), dialect, leave=leave)), clients)

    def _unlocked(
        self, session: Session, dialect: Dialect, client_ids: Collection[str], locked: Collection[str]
    ) -> Collection[str]:
        """Return the clients that have a row, though no lock was had on it: it is held, not gone."""
        missing = [client_id for client_id in client_ids if client_id not in locked]
        return self._rows.read(session, missing, dialect) if missing else ()

    @contextmanager
    def _refusals(self, change: Change, transactions: Transactions) -> Iterator[None]:
        """Raise the errors of the port for what forbids a change."""
        try:
            yield
        except RefusedError as refused:
            raise self._refusal(refused.verdict, change, transactions) from refused.__cause__
        except KeptError:
            raise self._refusal(Verdict.KEPT, change, transactions) from None
        except TakenAlongError as taken:
            raise taken_along(change.client_id, taken.clients) from None

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
