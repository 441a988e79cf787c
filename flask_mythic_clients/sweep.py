"""A step, taken for all clients of whom something is to be done: none of them holds up the others."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from . import logs
from .errors import BusyError, EntriesRefusedError, ForeignError, is_of_the_app
from .model import Holding
from .ports import DeletionSteps
from .repair import PageAfter, pages


class Step(Protocol):
    """Does what is to be done for clients, in a transaction."""

    def __call__(self, client_ids: Collection[str], /, *, wait: bool) -> Holding:
        """Return what was held; without `wait`, a client that others hold is left."""
        ...


class Sweep:
    """Takes a step for pages of records, or for a list of clients."""

    def __init__(self, repository: DeletionSteps) -> None:
        self._repository = repository

    def all(self, step: Step, page_after: PageAfter) -> "Swept":
        """Take the step for all clients on the pages."""
        swept = Swept()
        # First what nobody holds, so that many reconcile side by side; then what its holder has not finished.
        for wait in (False, True):
            before = None
            for page in pages(page_after):
                todo = page
                while client_ids := sorted({record.client_id for record in todo} - swept.left):
                    self._repository.make_durable()
                    try:
                        swept += self.take(partial(step, wait=wait), client_ids)
                        break
                    except BusyError:
                        still = {record.id for record in page_after(after=before)}
                        rest = [record for record in todo if record.id in still]
                        if len(rest) == len(todo):
                            return swept + self._left_to_others(page_after, swept.left)
                        todo = rest  # others get on with it; a database that locks as a whole was theirs
                before = page[-1]
        return swept

    def take(self, step: Callable[[Sequence[str]], Holding], client_ids: Sequence[str]) -> "Swept":
        """Take the step for these; leave, with a note, whose entries cannot be named or are refused.

        Raises StoreError, BusyError too.
        """
        try:
            return Swept(len(step(client_ids).records))
        except EntriesRefusedError as error:
            refused = error.client_ids or frozenset(client_ids)
            swept = self._leave(refused, error.__cause__ or error, logs.refused)
            others = [client_id for client_id in client_ids if client_id not in refused]
            return swept + self.take(step, others) if others else swept
        except Exception as error:  # the host's rule for entries failed: find out for whom, finish the others
            if not is_of_the_app(error):
                raise
            if len(client_ids) > 1:
                half = len(client_ids) // 2
                return self.take(step, client_ids[:half]) + self.take(step, client_ids[half:])
            return self._leave(client_ids, ForeignError.told(error), logs.failed)

    def _left_to_others(self, page_after: PageAfter, known: Collection[str]) -> "Swept":
        """Return what is still to be done; one wait in vain is enough, or each held one would cost one."""
        left = {record.client_id for page in pages(page_after) for record in page} - set(known)
        logs.left_to_others(left)
        return Swept(left=frozenset(left))

    def _leave(
        self,
        client_ids: Collection[str],
        error: BaseException,
        log: Callable[[Collection[str], BaseException], None],
    ) -> "Swept":
        """Note that these could not be reconciled."""
        log(client_ids, error)
        with suppress(BusyError):
            self._repository.note_failure(client_ids, f"{error}")
        return Swept(left=frozenset(client_ids))


@dataclass(frozen=True)
class Swept:
    """How many records a step has done, and the clients it had to leave."""

    records: int = 0
    left: frozenset[str] = frozenset()

    def __add__(self, other: "Swept") -> "Swept":
        return Swept(self.records + other.records, self.left | other.left)
