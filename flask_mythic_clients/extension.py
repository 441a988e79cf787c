"""Joins the parts. The only toucher of `app.extensions`."""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Protocol

from flask import Blueprint, Flask, current_app

from .auth import AdminKeys, VerifyKey
from .cli import create_group
from .config import CLIENTS, Settings, check_kind, commands, naming, setting
from .entries import Entries, EntryFunction, EntryRule, KeyTemplates
from .errors import ConfigurationError
from .ports import ClientRepository, KeyValueStore
from .service import DeletionService
from .several import join
from .signals import announce
from .views import create_blueprint

logger = logging.getLogger(__package__)


class Watcher(Protocol):
    """Watches what is asked of the routes, as `metrics.Metrics` does."""

    def watch(self, kind: str, blueprint: Blueprint) -> None:
        """Take hold of the blueprint of a kind of client, before it is registered."""
        ...


class MythicClients:
    """Deletes clients from a repository and a key-value store; one object may serve several apps.

    `name` mounts a second kind of client beside the first, with routes, settings and commands of its own:
    "organizations" has `{prefix}/organizations/<id>`, `MYTHIC_ORGANIZATIONS_*`, `flask mythic-organizations`.
    `kv` is one key-value store or a list of them, all of which must confirm.
    `entries` names a client's entries where templates cannot: it gets the row and returns key → value,
    or key → None where only the host knows the value. `verify_key` replaces the list of admin keys: it
    gets the bearer token and returns the actor's name, or a pair of that and an iterable of rights, or None.
    `metrics` counts the requests, and measures them (`metrics.Metrics`).
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        repository: ClientRepository,
        kv: KeyValueStore | Sequence[KeyValueStore],
        name: str = CLIENTS,
        entries: Callable[[Any], Entries] | None = None,
        verify_key: VerifyKey | None = None,
        metrics: Watcher | None = None,
    ) -> None:
        if not callable(getattr(repository, "record", None)):
            raise ConfigurationError(
                f"repository= takes a ClientRepository, not {type(repository).__name__}."
            )
        stores: Sequence[Any] = kv if isinstance(kv, (list, tuple)) and kv else [kv]
        for store in stores:
            if not callable(getattr(store, "apply", None)):
                raise ConfigurationError(
                    f"kv= takes a KeyValueStore, or a list of some, not {type(store).__name__}."
                )
        for argument, function in (("entries", entries), ("verify_key", verify_key)):
            if function is not None and not callable(function):
                raise ConfigurationError(f"{argument}= takes a function, not {type(function).__name__}.")
            if iscoroutinefunction(function):
                raise ConfigurationError(f"{argument}= takes a function that is not async: nobody awaits it.")
        if metrics is not None and not callable(getattr(metrics, "watch", None)):
            raise ConfigurationError(f"metrics= takes a metrics.Metrics, not {type(metrics).__name__}.")
        self._kind = check_kind(name)
        self._repository = repository
        self._kv = join(stores)
        self._entries = entries
        self._verify_key = verify_key
        self._metrics = metrics
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register the routes and the commands; joins, and does no I/O.

        Raises ConfigurationError for a wrong setting, and for a second call on one app.
        """
        kind = self._kind
        if self._key in app.extensions:
            raise ConfigurationError(
                f"MythicClients is already registered on this app for {kind}: call init_app once, and pass "
                "name=… for a second kind of client."
            )
        settings = Settings.from_config(app.config, kind)
        service = DeletionService(
            self._repository,
            self._kv,
            self._rule(app, settings),
            kind=kind,
            guard=settings.hard_delete,
            soft_delete_entries=settings.soft_delete_entries,
            verify_after=settings.verify_after,
            keys_kept=settings.keys_kept,
            on_settled=partial(announce, app, kind),
        )
        verify_key = self._verify_key or AdminKeys(settings.admin_keys)
        blueprint = create_blueprint(kind, service, verify_key, settings)
        if self._metrics is not None:
            self._metrics.watch(kind, blueprint)
        app.register_blueprint(blueprint)
        if callable(exempt := getattr(app.extensions.get("csrf"), "exempt", None)):
            exempt(
                blueprint
            )  # Flask-WTF's guard, whose 400 would come before our 401: no cookie lets anybody in
        app.cli.add_command(create_group(kind, service))
        app.extensions[self._key] = service
        # Its own commands need no key, and one of them makes the first.
        if self._verify_key is None and not settings.admin_keys and commands(kind) not in sys.argv:
            logger.warning(
                "%s is empty: every request is refused with 401. Make a key with `flask %s create-key NAME`.",
                setting(kind, "admin_keys"),
                commands(kind),
            )

    @property
    def service(self) -> DeletionService:
        """The service of the current app, for routes and jobs of the host's own."""
        if self._key not in current_app.extensions:
            raise ConfigurationError("MythicClients is not registered on this app: call init_app(app) first.")
        service: DeletionService = current_app.extensions[self._key]
        return service

    @property
    def _key(self) -> str:
        return f"mythic_{self._kind}"

    def _rule(self, app: Flask, settings: Settings) -> EntryRule:
        key = setting(self._kind, "kv_keys")
        if self._entries is not None:
            if key in app.config:
                raise ConfigurationError(
                    f"{key} and entries=… both say which entries a client owns: keep one of them."
                )
            return EntryFunction(self._entries)
        if self._kind != CLIENTS and key not in app.config:
            # Not the default: clients of two kinds that have one id would share an entry.
            raise ConfigurationError(
                f"{key} is missing: name the entries of {self._kind}, such as ['organization:{{id}}']."
            )
        templates = KeyTemplates(settings.kv_keys)
        with naming(key):
            self._repository.check_columns(templates.columns)
        return templates
