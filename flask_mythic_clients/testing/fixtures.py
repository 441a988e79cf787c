"""What the tests of the repository contract stand on."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from threading import Event, Thread
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pytest

from ..entries import EntryFunction, KeyTemplates
from ..model import Action, Backlog, Change, DeletionRecord, Holding
from ..ports import ClientRepository

_T = TypeVar("_T")

# How long a test looks whether somebody waits. Far below the second after which SQLite gives up.
_HOLD = 0.2
# How long a test waits for what must come.
_PATIENCE = 20
_THREADS = 8
_MORE_THAN_A_PAGE = 120
# How long a record must have been settled: not at all, and longer than any test takes.
_AT_ONCE, _LONG = timedelta(), timedelta(hours=1)

_SOFT, _HARD, _RESTORE = Action.SOFT, Action.HARD, Action.RESTORE

_TEMPLATES = KeyTemplates(["client:{id}", "name:{name}"])
_FUNCTION = EntryFunction(lambda row: {f"name:{row.name}": None, f"label:{row.name}": "a value"})
_rules = pytest.mark.parametrize("rule", [_TEMPLATES, _FUNCTION], ids=["templates", "function"])
_actions = pytest.mark.parametrize("action", list(Action))


class AddClient(Protocol):
    """Inserts and commits a client with an id, a status and one more column, `name`, that may be None."""

    def __call__(self, client_id: str, /, *, status: bool = True, name: str | None = "a name") -> None:
        """Return when the client is there for everybody to see."""
        ...


class LetTimePass(Protocol):
    """Makes all times in the ledger lie further back."""

    def __call__(self, seconds: float, /) -> None:
        """Return when everybody sees it."""
        ...


class KeepRows(Protocol):
    """Makes the database keep the rows of all clients, as a trigger may, without an error."""

    def __call__(self) -> Collection[Action]:
        """Return the changes after which the rows are as they were."""
        ...


class RepositoryFixtures:
    """What a backend overrides; `ClientRepositoryContract` tells how."""

    ids: ClassVar[tuple[str, str, str]] = ("acme", "acme2", "zeta")
    """Ids of three clients, in the order in which the repository lists them."""

    lookalikes: ClassVar[Sequence[str]] = (
        *("Acme", "ACME", "acmE", "acm", "acme_", "acm_", "_cme", "acme-", "-acme", "4cme", "acme22"),
        *("acmeacme", "a", "A" * 255),
    )
    """What is none of the ids, however much it looks like one; all of them allowed by `check_client_id`."""

    @pytest.fixture
    def repository(self) -> Any:
        """Return the repository under test."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `repository` to return your ClientRepository, "
            "without clients and records. It may yield inside whatever context the repository needs."
        )

    @pytest.fixture
    def add_client(self) -> Any:
        """Return a way to insert clients."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `add_client` to return a callable "
            "(client_id, *, status=True, name='a name') that inserts a client and commits."
        )

    @pytest.fixture
    def let_time_pass(self) -> Any:
        """Return a way to make what is in the ledger older."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `let_time_pass` to return a callable (seconds) "
            "after which all times in the ledger lie that much further back: move them, or the clock."
        )

    @pytest.fixture
    def keep_rows(self) -> Any:
        """Return a way to make the database keep its rows."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `keep_rows` to return a callable that makes the "
            "database keep the rows of all clients without an error, as a trigger may, and returns the "
            "actions of which that is true; none where there is no such thing."
        )

    @pytest.fixture
    def context(self) -> Callable[[], AbstractContextManager[Any]]:
        """Return what a thread enters before it calls the repository, such as `app.app_context`."""
        return nullcontext

    @pytest.fixture
    def threads(self, context: Callable[[], AbstractContextManager[Any]]) -> Iterator["_Threads"]:
        """Start calls beside the test, each in a thread and a context of its own."""
        threads = _Threads(context)
        yield threads
        threads.join()


class _PlannedError(Exception):
    """What a test raises, and what no backend knows."""


class _Thread(Thread, Generic[_T]):
    """A call beside the test; a daemon, so that a backend that never answers cannot hold the run."""

    def __init__(self, call: Callable[[], _T], context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(daemon=True)
        self.entered = Event()
        self._call = call
        self._context = context
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._context():
                self._results.append(self._call())
        except BaseException as error:  # it belongs to the thread that asks for the result
            self._error = error

    def result(self) -> _T:
        self.join(_PATIENCE)
        assert not self.is_alive(), f"The repository did not answer within {_PATIENCE} seconds."
        if self._error is not None:
            raise self._error
        return self._results[0]


class _Threads:
    """The threads of one test."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._context = context
        self._started: list[_Thread[Any]] = []

    def start(self, call: Callable[[], _T]) -> _Thread[_T]:
        """Start a call."""
        thread = _Thread(call, self._context)
        self._started.append(thread)
        thread.start()
        return thread

    def settle(
        self,
        repository: ClientRepository,
        *client_ids: str,
        first: Callable[[], object] = lambda: None,
    ) -> _Thread[Holding]:
        """Start a settler, whose `entered` is set inside its block."""

        def settle() -> Holding:
            first()
            with repository.settle(client_ids) as holding:
                thread.entered.set()
                return holding

        thread = _Thread(settle, self._context)
        self._started.append(thread)
        thread.start()
        return thread

    def join(self) -> None:
        """Wait for the threads of a test that failed before it did."""
        for thread in self._started:
            thread.join(_PATIENCE)


def _change(
    client_id: str,
    action: Action,
    *,
    actor: str = "ops",
    only_if_inactive: bool = False,
    reason: str | None = None,
    request_id: str | None = None,
) -> Change:
    return Change(client_id, action, actor, only_if_inactive, reason, request_id)


def _record(repository: ClientRepository, client_id: str, *actions: Action) -> None:
    for action in actions:
        assert repository.record(_change(client_id, action), _TEMPLATES), action


def _settle(repository: ClientRepository, *client_ids: str, wait: bool = True) -> Holding:
    with repository.settle(client_ids, wait=wait) as holding:
        return holding


def _verify(
    repository: ClientRepository, *client_ids: str, settled_for: timedelta = _AT_ONCE, wait: bool = True
) -> Holding:
    with repository.verify(client_ids, settled_for=settled_for, wait=wait) as holding:
        return holding


def _backlog(repository: ClientRepository, settled_for: timedelta = _LONG) -> Backlog:
    return repository.backlog(settled_for=settled_for)


def _active(repository: ClientRepository) -> dict[str, bool]:
    return {client.id: client.active for client in repository.clients()}


def _states(repository: ClientRepository, client_id: str) -> list[tuple[Action, str]]:
    return [(record.action, _state(record)) for record in repository.history(client_id)]


def _state(record: DeletionRecord) -> str:
    if record.settled_at is None:
        return "pending" if record.verified_at is None else "verified, though never settled"
    return "settled" if record.verified_at is None else "verified"


def _walk(page_after: Callable[..., Sequence[DeletionRecord]], **options: Any) -> list[DeletionRecord]:
    """Read all pages; stop at the first record that comes twice."""
    walked: list[DeletionRecord] = []
    while page := page_after(after=walked[-1] if walked else None, **options):
        assert {record.id for record in page}.isdisjoint(record.id for record in walked)
        walked += page
    return walked


def _numbers(records: Iterable[DeletionRecord]) -> list[int]:
    """Tell a record by its actor, which is its number."""
    return [int(record.actor) for record in records]
