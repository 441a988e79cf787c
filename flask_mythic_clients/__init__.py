"""Delete clients from a database and a key-value store: reversible by default, permanent on demand."""

from .errors import (
    BusyError,
    ChangeRefusedError,
    ClientError,
    ClientInUseError,
    ClientNotFoundError,
    ConfigurationError,
    ConstraintError,
    DatabaseRefusedError,
    EntriesRefusedError,
    HardDeleteForbiddenError,
    InvalidActorError,
    InvalidClientIdError,
    InvalidReasonError,
    InvalidRequestIdError,
    KeyValueStoreError,
    MappingError,
    MythicClientsError,
    OtherClientsError,
    RepositoryError,
    StoreError,
    WrongEntriesError,
)
from .extension import MythicClients
from .model import DeletionRecord
from .openapi import openapi_document
from .signals import client_hard_deleted, client_restored, client_soft_deleted

__all__ = [
    "BusyError",
    "ChangeRefusedError",
    "ClientError",
    "ClientInUseError",
    "ClientNotFoundError",
    "ConfigurationError",
    "ConstraintError",
    "DatabaseRefusedError",
    "DeletionRecord",
    "EntriesRefusedError",
    "HardDeleteForbiddenError",
    "InvalidActorError",
    "InvalidClientIdError",
    "InvalidReasonError",
    "InvalidRequestIdError",
    "KeyValueStoreError",
    "MappingError",
    "MythicClients",
    "MythicClientsError",
    "OtherClientsError",
    "RepositoryError",
    "StoreError",
    "WrongEntriesError",
    "client_hard_deleted",
    "client_restored",
    "client_soft_deleted",
    "openapi_document",
]
