"""Every exception of the package.

::

    MythicClientsError
    ├── ConfigurationError            set up, or written, wrongly; the message names the fix
    │   └── WrongEntriesError             what the app's code returned as a client's entries is none
    ├── InvalidClientIdError          the id can be no client's
    ├── InvalidActorError             the name of who asks is no text that the ledger takes
    ├── InvalidReasonError            the reason is no text that the ledger takes
    ├── InvalidRequestIdError         nor is the request's id
    ├── ClientNotFoundError           no such client, and nothing pending for it
    ├── ChangeRefusedError            something forbids it; nothing has changed in either store
    │   ├── ClientInUseError              other rows (a foreign key)
    │   ├── ConstraintError               another constraint of the database
    │   ├── DatabaseRefusedError          a trigger, a rule or a policy, also one that only kept the row
    │   ├── MappingError                  the host's mapping
    │   ├── OtherClientsError             other clients would go along
    │   └── HardDeleteForbiddenError      the hard-delete guard
    └── StoreError                    a store did not confirm; the same call again is safe
        ├── RepositoryError               the database
        │   ├── BusyError                     another transaction held the client for too long
        │   └── StatementTimeoutError         a statement took longer than the database allows
        └── KeyValueStoreError            the key-value store
            └── EntriesRefusedError           it refused some entries, and did the rest

A docstring is its class's default message. No message quotes a driver, which may quote a client's keys and
values; nor does a cause, which is a `ForeignError`.
"""

from collections.abc import Iterable, Sequence


class MythicClientsError(Exception):
    """The client could not be processed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ConfigurationError(MythicClientsError):
    """The configuration is wrong."""


class WrongEntriesError(ConfigurationError):
    """What the app's code returned as a client's entries cannot be entries."""


class ClientError(MythicClientsError):
    """A refusal that concerns one client."""

    def __init__(self, client_id: str, message: str | None = None) -> None:
        super().__init__(message)
        self.client_id = client_id


class InvalidClientIdError(ClientError):
    """A client id is a text of 1 to 255 characters, each a letter a-z or A-Z, a digit, '_' or '-'."""


class InvalidActorError(ClientError):
    """An actor's name is a text of at least one character, without NUL and halves of characters."""


class InvalidReasonError(ClientError):
    """A reason is a text of 1 to 500 characters, none of them a control character."""


class InvalidRequestIdError(ClientError):
    """A request's id is a text of 1 to 128 characters, all of them of ASCII, and printable."""


class ClientNotFoundError(ClientError):
    """There is no such client, and nothing is pending for it."""


class ChangeRefusedError(ClientError):
    """Something forbids this change of the client."""

    columns: Sequence[str] = ()
    """Those that forbid it, as `table.column`, as far as they were found."""


class ClientInUseError(ChangeRefusedError):
    """Other rows refer to this client, and a foreign key forbids its removal."""


class ConstraintError(ChangeRefusedError):
    """A constraint of the database forbids this change of the client."""


class DatabaseRefusedError(ChangeRefusedError):
    """A trigger, a rule or a policy of the database forbids this change of the client."""


class MappingError(ChangeRefusedError):
    """The mapping of the model forbids this change of the client."""


class OtherClientsError(ChangeRefusedError):
    """A cascade would remove other clients along with this one, without a record of theirs."""


class HardDeleteForbiddenError(ChangeRefusedError):
    """The hard-delete guard of this service forbids the removal."""


class StoreError(MythicClientsError):
    """A store did not confirm."""

    record_id: int | None = None
    """That of the deletion record that is pending now, where step 1 was taken and that is known."""

    @property
    def cause(self) -> str:
        """What the driver raised, in a line; empty where no driver did."""
        return str(self.__cause__ or "").partition("\n")[0]


class RepositoryError(StoreError):
    """The database did not answer or did not confirm."""


class BusyError(RepositoryError):
    """Another transaction has held what this one needs in the database for too long."""


class StatementTimeoutError(RepositoryError):
    """A statement took longer than the database allows, or was cancelled."""


class KeyValueStoreError(StoreError):
    """The key-value store did not confirm: the entries may or may not have been changed."""


class EntriesRefusedError(KeyValueStoreError):
    """The key-value store refused some of the entries, and has done the rest."""

    def __init__(
        self, message: str | None = None, *, keys: Iterable[str] = (), removed: Iterable[str] = ()
    ) -> None:
        super().__init__(message)
        self.keys = frozenset(keys)
        self.removed = frozenset(removed)  # those that were there, and are gone
        self.client_ids: frozenset[str] = frozenset()

    def of(self, client_ids: Iterable[str]) -> None:
        """Say whose the refused entries are."""
        self.client_ids = frozenset(client_ids)


class ForeignError(Exception):
    """What code that is not ours raised, and where, without its text: that may hold a client's values."""

    def __init__(self, told: str, kind: type[BaseException]) -> None:
        super().__init__(told)
        self.kind = kind

    @classmethod
    def told(cls, error: BaseException, *details: object) -> "ForeignError":
        """Tell an error by its class, and by details that are known to hold no value of a client."""
        kind = type(error)
        if isinstance(error, WrongEntriesError):
            details = (*details, error)
        shown = [f"{kind.__module__}.{kind.__qualname__}", *filter(None, map(str, details))]
        return cls(" ".join(shown), kind).with_traceback(error.__traceback__)


def is_of_the_app(error: Exception) -> bool:
    """Whether the app's code is at fault, such as its rule for entries; so for others it may do well."""
    return isinstance(error, WrongEntriesError) or not isinstance(error, MythicClientsError)
