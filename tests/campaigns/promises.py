"""What must hold in every schedule, watched from outside the package while it runs.

=========== =========================================================================================
agreement   when all is over, reconcile alone makes the stores agree, in at most two rounds
settled     while nothing is pending, the entries are the row's, except those a host wrote since
removal     a hard delete that returns, or finds no client, leaves no entry the store has not confirmed
            as gone (or as the newer client's) since the row was removed
confirmed   an operation that returns leaves no record pending that was made before its settling
held        the entries are touched by one who holds the client, and records that name the entries, or none;
            but who has removed the row may remove them without
one record  a change of the row has one record; no change has none
outcome     an operation ends as documented; with a StoreError exactly where a store failed it, with a
            refusal exactly where the database kept the row
progress    some operation can always go on
=========== =========================================================================================
"""

from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from flask_mythic_clients.errors import ClientNotFoundError, DatabaseRefusedError, StoreError
from flask_mythic_clients.model import Action, DeletionRecord, Reconciliation
from flask_mythic_clients.service import DeletionService

from .programs import HOSTS, KEYS, KNOWN, RULE, WINDOW, End, value
from .stores import Blocked, Row, Stores, secret

if TYPE_CHECKING:
    from .world import Operation

_ROUNDS = 2  # one settles what is pending and verifies the rest; one verifies what the first has settled


class Promises:
    """Keeps what the promises need to know of the past, and those that the last step broke."""

    def __init__(self, stale: Iterable[str] = (), written: Iterable[str] = ()) -> None:
        self.stale = frozenset(stale)  # entries of a removed row that the store has not confirmed as gone
        self.written = frozenset(written)  # entries that a host, or a late command, wrote last
        self.broken: tuple[tuple[str, str], ...] = ()

    def check(self, rule: str, holds: bool, otherwise: str) -> None:
        """Note a promise that is broken."""
        if not holds:
            self.broken += ((rule, otherwise),)

    def stepped(self, before: Row, after: Row, records: int, *, at_step_1: bool) -> None:
        """Watch the row, and how many records are new, over one step of the service."""
        changed = before != after
        self.check("one record", records == changed, f"{before} became {after} with {records} records")
        self.check("one record", at_step_1 or not changed, "the row changed in another step than record")
        if changed and after is None:
            self.stale = frozenset(KEYS)

    def touched(
        self, keys: Collection[str], operation: "Operation", held: Collection[str], *, removes: bool
    ) -> None:
        """Watch a command to the key-value store as it is sent."""
        transaction = operation.transaction
        if transaction is None and removes and operation.removed:
            return
        named = {key for record in (transaction.records if transaction else ()) for key in record.kv_keys}
        named = named or set(KEYS)  # one who holds no record writes what the row, which it holds, owns
        holds = transaction is not None and transaction.holds and bool(held)
        self.check("held", holds, "the client is not held")
        self.check("held", named.issuperset(keys), f"no held record names {set(keys) - named}")

    def confirmed(self, keys: Collection[str], operations: Iterable["Operation"]) -> None:
        """Watch a command that the key-value store has confirmed."""
        self.stale -= frozenset(keys)
        for operation in operations:
            operation.owed -= frozenset(keys)

    def after_step(self, stores: Stores) -> None:
        """Check what must hold between any two steps."""
        if any(record.settled_at is None for record in stores.repository._records.values()):
            return
        for key, wrong in disagreements(stores.row, stores.entries).items():
            self.check("settled", key in self.written, f"nothing is pending, and {wrong}")

    def ended(self, operation: "Operation", end: End, records: Iterable[DeletionRecord]) -> None:
        """Check how an operation ended, and what it leaves."""
        raised, kind = end.raised, operation.kind
        allowed: type[Exception] = StoreError if operation.failed else ClientNotFoundError
        if operation.kept:
            allowed = DatabaseRefusedError
        documented = isinstance(raised, allowed) or (
            raised is None and not (operation.failed or operation.kept)
        )
        self.check("outcome", documented, f"{kind} ended with {raised!r}")
        if kind == "reconcile":
            complete = end.returned is not None and end.returned.failed == 0
            left = operation.failed or operation.refused
            self.check("outcome", complete or left, f"{kind} ended with {end}")
        if operation.seen is None or isinstance(raised, StoreError):
            return
        if kind == Action.HARD:
            self.check("removal", not operation.owed, f"hard ended, not confirmed: {sorted(operation.owed)}")
        pending = [r.id for r in records if r.id <= operation.seen and r.settled_at is None]
        self.check("confirmed", not pending, f"{kind} ended, still pending: {pending}")

    def over(self, stores: Stores, *, remembers: bool) -> None:
        """Let the window pass, reconcile, and check that nothing is left to be done.

        Where the key-value store has no mark, no reconcile looks twice, which would hide what is wrong.
        """
        self.broken = ()
        for number in range(1, _ROUNDS + 1):
            stores.let_pass(2 * WINDOW)
            try:
                done = _reconcile(stores, remembers)
            except Blocked:
                self.check("agreement", False, f"round {number} of reconcile waits for ever")
                return
            self.check("agreement", done.failed == 0, f"round {number} of reconcile: {done}")
            for wrong in disagreements(stores.row, stores.entries, hosts=False).values():
                self.check("agreement", False, f"after round {number} of reconcile {wrong}")
        left = [record.id for record in stores.records if record.verified_at is None]
        self.check("agreement", not left, f"{_ROUNDS} rounds of reconcile left {left}")
        self.check("agreement", not stores.held, "a client is held for ever")


def _reconcile(stores: Stores, remembers: bool) -> Reconciliation:
    kv = stores.kv if remembers else SimpleNamespace(apply=stores.kv.apply)
    return DeletionService(stores.repository, kv, RULE, verify_after=WINDOW).reconcile()


def disagreements(row: Row, entries: dict[str, str], *, hosts: bool = True) -> dict[str, str]:
    """Return what is wrong with which entry; an absent one never is.

    Without `hosts`, let the entry be whose value only the host knows, while there is a row: one of an older
    client of the same id, written back by a slow reader, cannot be told from the newer client's own.
    """
    right = {} if row is None else {KNOWN: value(*row), HOSTS: secret(row[0])}
    if row is not None and not hosts:
        right[HOSTS] = entries.get(HOSTS, "")
    return {
        key: f"{key} is {entry}, and the row {row}"
        for key, entry in entries.items()
        if entry != right.get(key)
    }
