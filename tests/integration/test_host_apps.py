"""How a host mounts the package: several apps, what init_app does and what it leaves to others."""

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import ConfigurationError, MythicClients
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin, SQLAlchemyRepository

from ..hosts import ADMIN_KEY, Host, mounting


@pytest.fixture
def mount(empty_database: Callable[[str], str]) -> Iterator[Callable[..., Host]]:
    """Make hosts on one SQLite database, where no other is named with memory stores."""
    with mounting(empty_database("sqlite")) as mount:
        yield lambda store=None, **options: mount(store or MemoryStore(), **options)


def delete(app: Flask, path: str, key: str) -> int:
    answer = app.test_client().delete(path, headers={"Authorization": f"Bearer {key}"})
    return int(answer.status_code)


class TestSeveralApps:
    KEYS = (create_key(), create_key())

    @pytest.fixture(params=["one object", "two objects"])
    def apps(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Flask, Flask]]:
        """Two apps whose databases, keys, prefixes and guards differ; the second deletes clients softly."""
        db = SQLAlchemy()
        self.stores = stores = (MemoryStore(), MemoryStore())
        repository = SQLAlchemyRepository(db)
        first = MythicClients(repository=repository, kv=stores[0])
        one = request.param == "one object"
        second = first if one else MythicClients(repository=repository, kv=stores[1])
        if one:
            self.stores = (stores[0], stores[0])
        self.clients = (first, second)
        self.model = repository.model
        apps = (Flask("first"), Flask("second"))
        for number, (app, clients) in enumerate(zip(apps, self.clients, strict=True)):
            app.config.update(
                SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / f'{number}.db'}",
                MYTHIC_CLIENTS_ADMIN_KEYS={f"admin-{number}": digest(self.KEYS[number])},
                MYTHIC_CLIENTS_URL_PREFIX=("", "/internal/v2")[number],
                MYTHIC_CLIENTS_HARD_DELETE=("allow", "deny")[number],
                MYTHIC_CLIENTS_KV_KEYS=[f"app{number}:{{id}}"],
            )
            db.init_app(app)
            clients.init_app(app)
            with app.app_context():
                db.create_all()
                db.session.add(self.model(id="acme"))
                db.session.commit()
            self.stores[number].set(f"app{number}:acme", "value")
        yield apps
        for app in apps:
            with app.app_context():
                db.engine.dispose()

    def test_each_has_its_own_keys_prefix_and_guard(self, apps: tuple[Flask, Flask]) -> None:
        first, second = apps
        assert delete(first, "/clients/acme", self.KEYS[1]) == 401
        assert delete(second, "/internal/v2/clients/acme", self.KEYS[0]) == 401
        assert delete(first, "/internal/v2/clients/acme", self.KEYS[0]) == 404
        assert delete(second, "/clients/acme", self.KEYS[1]) == 404
        assert delete(second, "/internal/v2/clients/acme?hard=true", self.KEYS[1]) == 409
        assert delete(first, "/clients/acme?hard=true", self.KEYS[0]) == 200

    def test_a_delete_in_one_is_none_in_the_other(self, apps: tuple[Flask, Flask]) -> None:
        first, second = apps
        assert delete(first, "/clients/acme?hard=true", self.KEYS[0]) == 200
        assert self.stores[0].get("app0:acme") is None
        assert self.stores[1].get("app1:acme") == "value"
        with first.app_context():
            assert [record.actor for record in self.clients[0].service.history("acme")] == ["admin-0"]
        with second.app_context():
            assert list(self.clients[1].service.history("acme")) == []
            assert [client.id for client in self.clients[1].service.clients()] == ["acme"]


class TestInitApp:
    def test_a_second_call_is_refused_and_the_first_still_works(self, mount: Callable[..., Host]) -> None:
        host = mount()
        host.add(id="acme")
        other = MythicClients(repository=SQLAlchemyRepository(host.db, host.model), kv=MemoryStore())
        for clients in (host.clients, other):
            with pytest.raises(ConfigurationError, match="already registered"):
                clients.init_app(host.flask)
        assert host.delete("acme?hard=true").status_code == 200
        assert [record.action for record in host.records("acme")] == ["hard"]

    def test_after_a_refused_setting_it_may_be_called_again(self) -> None:
        app, db = Flask("host"), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        app.config["MYTHIC_CLIENTS_KV_KEYS"] = ["client:{no_column}"]
        db.init_app(app)
        clients = MythicClients(repository=SQLAlchemyRepository(db), kv=MemoryStore())
        with pytest.raises(ConfigurationError, match="no_column"):
            clients.init_app(app)
        del app.config["MYTHIC_CLIENTS_KV_KEYS"]
        clients.init_app(app)
        assert delete(app, "/api/v1/clients/acme", ADMIN_KEY) == 401

    def test_the_constructor_may_be_given_the_app(self) -> None:
        app, db = Flask("host"), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = f"tests={digest(ADMIN_KEY)}"
        db.init_app(app)
        clients = MythicClients(app, repository=SQLAlchemyRepository(db), kv=MemoryStore())
        with app.app_context():
            db.create_all()
            assert list(clients.service.pending()) == []
        assert delete(app, "/api/v1/clients/acme", ADMIN_KEY) == 404
        with app.app_context():
            db.engine.dispose()

    @pytest.mark.parametrize("driver", ["postgresql+psycopg", "mariadb+pymysql"])
    def test_it_connects_to_no_server(self, driver: str) -> None:
        # The server's socket tells: a patched `socket` would not see what libpq does.
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            where = f"127.0.0.1:{server.getsockname()[1]}"
            app, db = Flask("host"), SQLAlchemy()
            app.config["SQLALCHEMY_DATABASE_URI"] = f"{driver}://user@{where}/test"
            db.init_app(app)
            MythicClients(
                app, repository=SQLAlchemyRepository(db), kv=RedisStore.from_url(f"redis://{where}")
            )
            with pytest.raises(BlockingIOError):
                server.accept()

    def test_it_makes_no_file_and_no_table(self, tmp_path: Path) -> None:
        app, db = Flask("host", instance_path=str(tmp_path / "instance")), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'test.db'}"
        db.init_app(app)
        before = list(tmp_path.rglob("*"))
        MythicClients(app, repository=SQLAlchemyRepository(db), kv=MemoryStore())
        assert list(tmp_path.rglob("*")) == before
        assert not (tmp_path / "test.db").exists()

    def test_nothing_of_the_host_is_replaced(self) -> None:
        app, db = Flask("host"), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        db.init_app(app)
        before = {name: getattr(app, name) for name in ("json", "response_class", "session_interface")}
        config = dict(app.config)
        MythicClients(app, repository=SQLAlchemyRepository(db), kv=MemoryStore())
        assert {name: getattr(app, name) for name in before} == before
        assert dict(app.config) == config
        assert None not in app.error_handler_spec
        assert not app.before_request_funcs
        assert not app.after_request_funcs


class TestAdminKeys:
    @pytest.mark.parametrize("config", [{}, ""])
    def test_without_one_every_request_is_401_and_the_log_says_why_once(
        self, caplog: pytest.LogCaptureFixture, config: Any
    ) -> None:
        app, db = Flask("host"), SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = config
        db.init_app(app)
        with caplog.at_level(logging.INFO):
            MythicClients(app, repository=SQLAlchemyRepository(db), kv=MemoryStore())
            for key in (ADMIN_KEY, "", "None", "x"):
                assert delete(app, "/api/v1/clients/acme", key) == 401
        logged = [record for record in caplog.records if record.name == "flask_mythic_clients"]
        why, *refusals = [record.getMessage() for record in logged]
        assert "MYTHIC_CLIENTS_ADMIN_KEYS is empty" in why
        assert [line[:4] for line in refusals] == ["401:"] * 4

    def test_two_at_once_each_act_under_their_own_name(self, mount: Callable[..., Host]) -> None:
        new = create_key()
        host = mount()
        app = Flask("rotating")
        app.config["SQLALCHEMY_DATABASE_URI"] = host.flask.config["SQLALCHEMY_DATABASE_URI"]
        app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = f"old={digest(ADMIN_KEY)}, new={digest(new)}"
        host.db.init_app(app)
        host.clients.init_app(app)
        host.add(id="acme")
        assert delete(app, "/api/v1/clients/acme", new) == 200
        assert delete(app, "/api/v1/clients/acme?hard=true", ADMIN_KEY) == 200
        assert [record.actor for record in host.records("acme")] == ["new", "old"]
        with app.app_context():
            host.db.engine.dispose()


class TestVerifyKey:
    def test_it_replaces_the_list_and_names_the_actor(self, mount: Callable[..., Host]) -> None:
        seen: list[str] = []
        host = mount(verify_key=lambda key: seen.append(key) or "Ünal, via SSO")
        host.add(id="acme")
        assert host.delete("acme", key="a.jwt.token").status_code == 200
        assert seen == ["a.jwt.token"]
        assert [record.actor for record in host.records("acme")] == ["Ünal, via SSO"]
        refusing = mount(verify_key=lambda key: None, db=SQLAlchemy())
        assert refusing.delete("acme", key=ADMIN_KEY).status_code == 401

    @pytest.mark.parametrize("result", [None, "", 0, 1, True, False, b"tests", ["tests"], object()])
    def test_what_is_no_name_is_401(self, mount: Callable[..., Host], result: Any) -> None:
        host = mount(verify_key=lambda key: result)
        host.add(id="acme")
        for path in ("acme", "acme?hard=true", "absent", "a.b"):
            assert host.delete(path).status_code == 401
        assert [row.status for row in host.rows()] == [True]

    def test_it_is_not_asked_where_no_token_was_sent(self, mount: Callable[..., Host]) -> None:
        host = mount(verify_key=lambda key: "anybody")
        for header in ({}, {"Authorization": "Bearer"}, {"Authorization": "Basic dGVzdHM6dGVzdHM="}):
            assert host.delete("acme", key=None, headers=header).status_code == 401


class TestTheHostsMetadata:
    def test_both_tables_lie_on_it(self) -> None:
        db = SQLAlchemy()
        SQLAlchemyRepository(db)
        assert set(db.metadata.tables) == {"clients", "client_deletions"}

    def test_a_second_kind_of_client_without_a_ledger_of_its_own_is_refused(self) -> None:
        db = SQLAlchemy()
        shop: Any = type("Shop", (ClientMixin, db.Model), {"__tablename__": "shops"})
        SQLAlchemyRepository(db, shop)
        user: Any = type("User", (ClientMixin, db.Model), {"__tablename__": "users"})
        with pytest.raises(ConfigurationError, match="ledger="):
            SQLAlchemyRepository(db, user)
        SQLAlchemyRepository(db, shop)  # the same kind again is no second one

    def test_a_table_of_the_hosts_with_the_ledgers_name_is_not_taken_over(self) -> None:
        db = SQLAlchemy()
        db.Table("client_deletions", db.Column("id", db.Integer, primary_key=True))
        with pytest.raises(ConfigurationError, match="client_deletions already exists"):
            SQLAlchemyRepository(db)


class TestTheService:
    def test_it_works_in_an_app_context_without_a_request(self, mount: Callable[..., Host]) -> None:
        store = MemoryStore()
        host = mount(store)
        host.add(id="acme", name="Acme")
        store.set("client:acme", "value")
        with host.flask.app_context():
            service = host.clients.service
            service.soft_delete("acme", actor="a job")
            service.restore("acme", actor="a job")
            assert store.get("client:acme") == '{"id": "acme", "name": "Acme", "status": true}'
            service.hard_delete("acme", actor="a job")
            assert [(r.action, r.actor) for r in service.history("acme")] == [
                ("soft", "a job"),
                ("restore", "a job"),
                ("hard", "a job"),
            ]
            assert list(service.pending()) == []
            assert (service.reconcile().settled, service.backlog().pending) == (0, 0)
        assert store.get("client:acme") is None

    def test_outside_an_app_context_it_says_so(self, mount: Callable[..., Host]) -> None:
        host = mount()
        with pytest.raises(RuntimeError, match="application context"):
            _ = host.clients.service
