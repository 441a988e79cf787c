"""Two kinds of client in one app and one database: each has its own of everything."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_mythic_clients import (
    ConfigurationError,
    DeletionRecord,
    KeyValueStoreError,
    MythicClients,
    RepositoryError,
    client_hard_deleted,
    client_soft_deleted,
    openapi_document,
)
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.memory import MemoryRepository, MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository

from ..hosts import client_model

KEYS = {"clients": create_key(), "organizations": create_key()}
CONFIG = {
    "MYTHIC_CLIENTS_ADMIN_KEYS": {"ops": digest(KEYS["clients"])},
    "MYTHIC_ORGANIZATIONS_ADMIN_KEYS": {"boss": digest(KEYS["organizations"])},
    "MYTHIC_ORGANIZATIONS_KV_KEYS": "organization:{id}",
    "MYTHIC_ORGANIZATIONS_URL_PREFIX": "/internal",
    "MYTHIC_ORGANIZATIONS_HARD_DELETE": "after-soft-delete",
}
PATHS = {"clients": "/api/v1/clients", "organizations": "/internal/organizations"}


class _Host:
    """An app with clients and organizations, which have the same ids."""

    def __init__(self, url: str) -> None:
        self.db, self.store, self.app = SQLAlchemy(), MemoryStore(), Flask("host")
        self.app.config.update(CONFIG, SQLALCHEMY_DATABASE_URI=url)
        self.db.init_app(self.app)
        self.models: dict[str, Any] = {}
        self.mounted: dict[str, MythicClients] = {}
        for kind, ledger in (("clients", "client_deletions"), ("organizations", "organization_deletions")):
            model = type(kind, (ClientMixin, self.db.Model), {"__tablename__": kind})
            repository = SQLAlchemyRepository(self.db, model, ledger=ledger)
            self.mounted[kind] = MythicClients(self.app, repository=repository, kv=self.store, name=kind)
            self.models[kind] = model
        with self.app.app_context():
            self.db.create_all()
            for model in self.models.values():
                self.db.session.add(model(id="acme"))
            self.db.session.commit()
        for key in ("client:acme", "organization:acme"):
            self.store.set(key, "value")

    def delete(self, kind: str, query: str = "", key: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {key or KEYS[kind]}"}
        return self.app.test_client().delete(f"{PATHS[kind]}/acme{query}", headers=headers)

    def statuses(self) -> dict[str, bool | None]:
        with self.app.app_context():
            models = self.models.items()
            return {kind: self.db.session.scalar(sa.select(model.status)) for kind, model in models}

    def history(self, kind: str) -> list[tuple[str, str, str]]:
        with self.app.app_context():
            return [(r.kind, r.action, r.actor) for r in self.mounted[kind].service.history("acme")]

    def run(self, *arguments: str) -> Any:
        return self.app.test_cli_runner().invoke(args=arguments)


@pytest.fixture
def host(database_url: str) -> Iterator[_Host]:
    host = _Host(database_url)
    yield host
    with host.app.app_context():
        host.db.engine.dispose()


def test_each_is_deleted_by_its_own_route_and_leaves_the_other(host: _Host) -> None:
    assert host.delete("organizations").status_code == 200
    assert host.statuses() == {"clients": True, "organizations": False}
    assert host.delete("organizations", "?hard=true").status_code == 200
    assert host.statuses() == {"clients": True, "organizations": None}
    assert (host.store.get("organization:acme"), host.store.get("client:acme")) == (None, "value")
    assert host.delete("clients").status_code == 200
    assert host.history("clients") == [("clients", "soft", "ops")]
    assert host.history("organizations") == [("organizations", a, "boss") for a in ("soft", "hard")]


def test_reconcile_of_one_kind_leaves_the_other_kinds_records(host: _Host) -> None:
    host.store.apply = _away  # type: ignore[method-assign]
    for kind in KEYS:
        assert host.delete(kind).status_code == 503
    del host.store.apply  # type: ignore[method-assign]
    for kind, command in (("organizations", "mythic-organizations"), ("clients", "mythic-clients")):
        status = host.run(command, "status")
        assert (status.exit_code, status.stdout.split(",")[0]) == (1, "pending 1")
        assert f"flask {command} reconcile" in status.stderr
        assert host.run(command, "reconcile").stdout == "settled 1, verified 0, failed 0\n"
        with host.app.app_context():
            assert {record.kind for record in host.mounted[kind].service.pending()} == set()


def _away(**_: Any) -> set[str]:
    raise KeyValueStoreError


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestApart:
    def test_a_key_of_one_kind_opens_no_other(self, host: _Host) -> None:
        for kind, other in (("clients", "organizations"), ("organizations", "clients")):
            answer = host.delete(kind, key=KEYS[other])
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == f'Bearer realm="{kind}", error="invalid_token"'

    def test_the_settings_are_its_own(self, host: _Host) -> None:
        assert host.delete("organizations", "?hard=true").status_code == 409
        assert host.delete("clients", "?hard=true").status_code == 200

    def test_the_commands_are_its_own(self, host: _Host) -> None:
        assert host.run("mythic-organizations", "delete", "acme").exit_code == 0
        assert host.statuses() == {"clients": True, "organizations": False}
        made = host.run("mythic-organizations", "create-key", "ops").stdout
        assert "MYTHIC_ORGANIZATIONS_ADMIN_KEYS=ops=sha256:" in made
        [record] = json.loads(host.run("mythic-organizations", "history", "acme", "--json").stdout)
        assert record["kind"] == "organizations"

    def test_a_signals_record_tells_the_kind(self, host: _Host) -> None:
        heard: list[tuple[str, str]] = []

        def hear(_app: Flask, record: DeletionRecord) -> None:
            heard.append((record.kind, record.action))

        with client_soft_deleted.connected_to(hear), client_hard_deleted.connected_to(hear):
            host.delete("organizations")
            host.delete("organizations", "?hard=true")
            host.delete("clients")
        assert heard == [("organizations", "soft"), ("organizations", "hard"), ("clients", "soft")]

    def test_the_documents_can_be_merged(self, host: _Host) -> None:
        first, second = openapi_document(), openapi_document("/internal", name="organizations")
        assert list(second["paths"]) == ["/internal/organizations/{id}"]
        operations = [document["paths"].popitem()[1]["delete"] for document in (first, second)]
        assert [each["operationId"] for each in operations] == ["deleteClient", "deleteOrganizations"]
        challenge = operations[1]["responses"]["401"]["headers"]["WWW-Authenticate"]["schema"]["pattern"]
        assert challenge == '^Bearer realm="organizations"'

    def test_one_kind_is_not_mounted_twice(self, host: _Host) -> None:
        second = MythicClients(repository=MemoryRepository(), kv=host.store, name="organizations")
        with pytest.raises(ConfigurationError, match="for organizations: call init_app once, and pass name="):
            second.init_app(host.app)


class TestRefusedAtStartUp:
    @pytest.mark.parametrize(
        "name",
        ["", "Clients", "my-clients", "1clients", "clients/x", "_x", "x_", "a__b", None, 1, ["clients"]],
    )
    def test_a_name_that_is_no_routes(self, name: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"^name= takes a plural such as 'organizations'"):
            MythicClients(repository=MemoryRepository(), kv=MemoryStore(), name=name)
        with pytest.raises(ConfigurationError, match=r"^name= takes"):
            openapi_document(name=name)

    def test_a_name_of_two_words(self) -> None:
        app = Flask("host")
        app.config["MYTHIC_SERVICE_ACCOUNTS_KV_KEYS"] = "account:{id}"
        MythicClients(app, repository=MemoryRepository(), kv=MemoryStore(), name="service_accounts")
        assert [rule.rule for rule in app.url_map.iter_rules()][-1] == "/api/v1/service_accounts/<client_id>"
        assert "mythic-service-accounts" in app.cli.commands

    def test_a_second_kind_that_does_not_name_its_entries(self) -> None:
        second = MythicClients(repository=MemoryRepository(), kv=MemoryStore(), name="organizations")
        with pytest.raises(ConfigurationError, match=r"^MYTHIC_ORGANIZATIONS_KV_KEYS is missing"):
            second.init_app(Flask("host"))

    def test_another_kinds_setting_is_none_of_ours_and_an_unknown_one_of_its_is_named(self) -> None:
        app = Flask("host")
        app.config.update(MYTHIC_ORGANIZATIONS_KV_KEYS="o:{id}", MYTHIC_ORGANIZATIONS_KV_KEY="o:{id}")
        MythicClients(app, repository=MemoryRepository(), kv=MemoryStore())
        second = MythicClients(repository=MemoryRepository(), kv=MemoryStore(), name="organizations")
        with pytest.raises(ConfigurationError, match=r"^MYTHIC_ORGANIZATIONS_KV_KEY is no setting"):
            second.init_app(app)

    def test_a_kind_whose_name_begins_with_anothers_and_the_error_tells_so(self) -> None:
        app = Flask("host")
        app.config.update(MYTHIC_CLIENTS_EU_KV_KEYS="eu:{id}")
        told = "The name of another kind must not begin with 'clients_'."
        with pytest.raises(ConfigurationError, match=f"^MYTHIC_CLIENTS_EU_KV_KEYS is no setting.*{told}$"):
            MythicClients(app, repository=MemoryRepository(), kv=MemoryStore())

    @pytest.mark.parametrize("argument", ["entries", "verify_key"])
    def test_what_is_no_function(self, argument: str) -> None:
        options: Any = {argument: "client:{id}"}
        with pytest.raises(ConfigurationError, match=rf"^{argument}= takes a function, not str"):
            MythicClients(repository=MemoryRepository(), kv=MemoryStore(), **options)

    @pytest.mark.parametrize("argument", ["entries", "verify_key"])
    def test_a_function_that_is_async(self, argument: str) -> None:
        async def later(_: Any) -> None:
            """Do nothing."""

        options: Any = {argument: later}
        with pytest.raises(ConfigurationError, match=rf"^{argument}= takes a function that is not async"):
            MythicClients(repository=MemoryRepository(), kv=MemoryStore(), **options)

    def test_an_id_that_is_no_name(self) -> None:
        db = SQLAlchemy()
        model: Any = client_model(db)
        with pytest.raises(ConfigurationError, match=r"^Client has no column .*: pass id="):
            SQLAlchemyRepository(db, model, id=model.id)

    @pytest.mark.parametrize("ledger", ["", "Deletions", "audit.deletions", "x" * 49, "1x", "a b", None, 7])
    def test_a_name_that_is_no_tables(self, ledger: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"^ledger= takes the name of a table"):
            SQLAlchemyRepository(SQLAlchemy(), ledger=ledger)

    def test_a_ledger_that_is_the_clients_own_table(self) -> None:
        with pytest.raises(ConfigurationError, match="The table clients already exists"):
            SQLAlchemyRepository(SQLAlchemy(), ledger="clients")


def test_on_metadata_of_their_own_the_second_to_come_to_a_ledger_is_refused(database_url: str) -> None:
    """Its reconcile would take the first kind's records for those of clients that are gone."""
    engine = sa.create_engine(database_url)
    repositories: dict[str, SQLAlchemyRepository] = {}
    for kind in ("clients", "organizations"):
        base = type("Base", (DeclarativeBase,), {})
        model = type(kind, (ClientMixin, base), {"__tablename__": kind})
        repositories[kind] = SQLAlchemyRepository(engine, model)
        base.metadata.create_all(engine)
    assert repositories["clients"].history("acme") == []
    with pytest.raises(ConfigurationError, match=r"^The table client_deletions already exists for something"):
        repositories["organizations"].history("acme")
    assert repositories["clients"].history("acme") == []
    engine.dispose()


def test_a_missing_ledger_is_named(database_url: str, empty_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(database_url)
    base = type("Base", (DeclarativeBase,), {})
    model = type("Organization", (ClientMixin, base), {"__tablename__": "organizations"})
    repository = SQLAlchemyRepository(engine, model, ledger="organization_deletions")
    model.__table__.create(engine)  # type: ignore[attr-defined]
    with pytest.raises(RepositoryError, match=r"lacks organization_deletions: make it as your app makes its"):
        repository.history("acme")
    engine.dispose()


def test_two_ledgers_in_one_database_have_addresses_of_their_own() -> None:
    """By these they are told apart in the key-value store."""
    addresses = set()
    engine = sa.create_engine("sqlite:///shared.db")
    for ledger in ("a_deletions", "b_deletions"):
        base = type("Base", (DeclarativeBase,), {})
        model = type("Account", (ClientMixin, base), {"__tablename__": "accounts"})
        addresses.add(SQLAlchemyRepository(engine, model, ledger=ledger).address())
    assert len(addresses) == 2
    engine.dispose()
