"""Every exception of the package.

::

    MythicClientsError
    ├── ConfigurationError            refused at start-up; the message names the key and the fix
    ├── InvalidClientIdError          the id can be no client's
    ├── ClientNotFoundError           no such client, and nothing pending for it
    ├── ConstraintError               a constraint of the database forbids a soft delete or a restore
    ├── HardDeleteRefusedError        nothing has changed in either store
    │   ├── ClientInUseError              other rows forbid it (a foreign key)
    │   └── HardDeleteForbiddenError      the hard-delete guard forbids it
    └── StoreError                    a store did not confirm; the same call again is safe
        ├── RepositoryError               the database
        └── KeyValueStoreError            the key-value store

A docstring is its class's default message.
"""


class MythicClientsError(Exception):
    """The client could not be processed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ConfigurationError(MythicClientsError):
    """The configuration is wrong."""


class ClientError(MythicClientsError):
    """A refusal that concerns one client."""

    def __init__(self, client_id: str, message: str | None = None) -> None:
        super().__init__(message)
        self.client_id = client_id


class InvalidClientIdError(ClientError):
    """A client id is a text of 1 to 255 characters, each a letter a-z or A-Z, a digit, '_' or '-'."""


class ClientNotFoundError(ClientError):
    """There is no such client, and nothing is pending for it."""


class ConstraintError(ClientError):
    """A constraint of the database forbids this change of the client."""


class HardDeleteRefusedError(ClientError):
    """The client cannot be removed for good."""


class ClientInUseError(HardDeleteRefusedError):
    """Other rows refer to this client, and a foreign key forbids its removal."""


class HardDeleteForbiddenError(HardDeleteRefusedError):
    """The hard-delete guard of this service forbids the removal."""


class StoreError(MythicClientsError):
    """A store did not confirm."""

    @property
    def cause(self) -> str:
        """The first line of what the driver said; empty where it said nothing."""
        return str(self.__cause__ or "").partition("\n")[0]


class RepositoryError(StoreError):
    """The database did not answer or did not confirm."""


class KeyValueStoreError(StoreError):
    """The key-value store did not confirm: the entries may or may not have been changed."""
