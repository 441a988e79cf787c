"""Joins the parts. The only toucher of `app.extensions`."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask, current_app

from .auth import AdminKeys, VerifyKey
from .cli import create_group
from .config import ADMIN_KEYS, KV_KEYS, Settings, naming
from .entries import Entries, EntryFunction, EntryRule, KeyTemplates
from .errors import ConfigurationError
from .ports import ClientRepository, KeyValueStore
from .service import DeletionService
from .signals import announce
from .views import create_blueprint

logger = logging.getLogger(__package__)

_NAME = "mythic_clients"


class MythicClients:
    """Deletes clients from a repository and a key-value store; one object may serve several apps.

    `entries` names a client's entries where templates cannot: it gets the row and returns key → value,
    or key → None where only the host knows the value. `verify_key` replaces the list of admin keys: it
    gets the bearer token and returns the actor's name, or None.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        repository: ClientRepository,
        kv: KeyValueStore,
        entries: Callable[[Any], Entries] | None = None,
        verify_key: VerifyKey | None = None,
    ) -> None:
        if not callable(getattr(repository, "record", None)):
            raise ConfigurationError(
                f"repository= takes a ClientRepository, not {type(repository).__name__}."
            )
        if not callable(getattr(kv, "apply", None)):
            raise ConfigurationError(f"kv= takes a KeyValueStore, not {type(kv).__name__}.")
        self._repository = repository
        self._kv = kv
        self._entries = entries
        self._verify_key = verify_key
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the route and the commands; joins, and does no I/O.

        Raises ConfigurationError for a wrong setting, and for a second call on one app.
        """
        if _NAME in app.extensions:
            raise ConfigurationError("MythicClients is already registered on this app: call init_app once.")
        settings = Settings.from_config(app.config)
        service = DeletionService(
            self._repository,
            self._kv,
            self._rule(app, settings),
            guard=settings.hard_delete,
            soft_delete_entries=settings.soft_delete_entries,
            verify_after=settings.verify_after,
            on_settled=partial(announce, app),
        )
        verify_key = self._verify_key or AdminKeys(settings.admin_keys)
        app.register_blueprint(
            create_blueprint(service, verify_key, settings.url_prefix, settings.retry_after)
        )
        app.cli.add_command(create_group(service))
        app.extensions[_NAME] = service
        if self._verify_key is None and not settings.admin_keys:
            logger.warning(
                "%s is empty: every request is refused with 401. "
                "Make a key with `flask mythic-clients create-key NAME`.",
                ADMIN_KEYS,
            )

    @property
    def service(self) -> DeletionService:
        """The service of the current app, for routes and jobs of the host's own."""
        if _NAME not in current_app.extensions:
            raise ConfigurationError("MythicClients is not registered on this app: call init_app(app) first.")
        service: DeletionService = current_app.extensions[_NAME]
        return service

    def _rule(self, app: Flask, settings: Settings) -> EntryRule:
        if self._entries is None:
            templates = KeyTemplates(settings.kv_keys)
            with naming(KV_KEYS):
                self._repository.check_columns(templates.columns)
            return templates
        if KV_KEYS in app.config:
            raise ConfigurationError(
                f"{KV_KEYS} and entries=… both say which entries a client owns: keep one of them."
            )
        return EntryFunction(self._entries)
