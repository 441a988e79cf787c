"""What the host attached to its model and to its engine: listeners, versions, inheritance, isolation."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, column_property, mapped_column
from sqlalchemy.orm.attributes import set_committed_value

from flask_mythic_clients import ConfigurationError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin

from ..hosts import Gate, Host, client_model, contents, mounting


class TestTheHostsCode:
    def test_listeners_of_a_delete_are_called(self, mount: Callable[..., Host]) -> None:
        db, called = SQLAlchemy(), []
        model = client_model(db)
        for event in ("before_delete", "after_delete"):

            @sa.event.listens_for(model, event)
            def note(_mapper: Any, connection: Any, row: Any, event: str = event) -> None:
                called.append((event, row.id, connection.scalar(sa.select(sa.func.count(model.id)))))

        host = mount(db=db, model=model)
        host.add(id="acme")
        assert host.delete("acme").status_code == 200
        assert called == []
        assert host.delete("acme?hard=true").status_code == 200
        assert called == [("before_delete", "acme", 1), ("after_delete", "acme", 0)]

    def test_listeners_of_an_update_are_called_by_a_soft_delete(self, mount: Callable[..., Host]) -> None:
        db, called = SQLAlchemy(), []
        model = client_model(db)
        sa.event.listen(model, "before_update", lambda _m, _c, row: called.append(row.status))
        host = mount(db=db, model=model)
        host.add(id="acme")
        for _ in range(2):
            assert host.delete("acme").status_code == 200
        assert called == [False]
        assert host.delete("acme?hard=true").status_code == 200
        assert called == [False]

    @pytest.mark.parametrize("of", ["the model", "the session"])
    def test_a_listener_that_changes_a_row_as_it_is_loaded_is_asked_which_entry_it_owns(
        self, database_url: str, store: MemoryStore, of: str
    ) -> None:
        """As one does that decrypts a column."""

        def decrypt(row: Any) -> None:
            set_committed_value(row, "token", row.token[::-1])

        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.String(40), primary_key=True), "status": mapped_column(sa.Boolean)}
        columns["token"] = mapped_column(sa.String(40))
        model = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
        if of == "the model":
            sa.event.listen(model, "load", lambda row, _: decrypt(row))
        else:
            sa.event.listen(db.session, "loaded_as_persistent", lambda _, row: decrypt(row))
        with mounting(database_url, store) as mount:
            host = mount(db=db, model=model, config={"MYTHIC_CLIENTS_KV_KEYS": ["token:{token}"]})
            host.add(id="acme", status=True, token="terces")
            store.set("token:secret", "cached")
            assert host.delete("acme?hard=true").status_code == 200
            assert store.get("token:secret") is None

    def test_a_listener_that_fails_leaves_both_stores_as_they_were(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        model = client_model(db)

        @sa.event.listens_for(model, "after_delete")
        def protect(*_: Any) -> None:
            raise PermissionError("protected")

        host = mount(db=db, model=model)
        host.add(id="acme")
        store.set("client:acme", "value")
        before = contents(host, store, "client:acme")
        assert host.delete("acme?hard=true").status_code == 500
        assert contents(host, store, "client:acme") == before

    def test_a_column_with_onupdate_is_updated_by_a_soft_delete(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            changes: Mapped[int] = mapped_column(default=0, onupdate=lambda: 1)
            stamped: Mapped[int] = mapped_column(default=0, onupdate=sa.literal_column("1 + 1"))

        host = mount(db=db, model=Client)
        host.add(id="acme")
        assert host.delete("acme").status_code == 200
        assert [(row.changes, row.stamped) for row in host.rows()] == [(1, 2)]

    def test_a_version_is_counted_up_and_a_stale_row_of_the_hosts_is_refused(
        self, mount: Callable[..., Host]
    ) -> None:
        db = SQLAlchemy()

        class Client(ClientMixin, db.Model):
            __tablename__ = "clients"
            version: Mapped[int] = mapped_column()
            __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own form

        host = mount(db=db, model=Client)
        host.add(id="acme")
        with host.flask.app_context():
            stale = db.session.get(Client, "acme")
            assert stale is not None
            stale.name = "stale"
            assert host.delete("acme").status_code == 200
            with pytest.raises(sa.orm.exc.StaleDataError):
                db.session.commit()
            db.session.rollback()
        assert [(row.version, row.status) for row in host.rows()] == [(2, False)]
        assert host.delete("acme?hard=true").status_code == 200
        assert host.rows() == []

    # An outer join must not be locked as a whole: PostgreSQL refuses that.
    @pytest.mark.parametrize(("mounted", "loads"), [("base", None), ("base", "*"), ("derived", None)])
    def test_a_client_of_two_joined_tables_is_deleted_wholly(
        self, mount: Callable[..., Host], store: MemoryStore, mounted: str, loads: Any
    ) -> None:
        db = SQLAlchemy()

        class Party(ClientMixin, db.Model):
            __tablename__ = "parties"
            kind: Mapped[str] = mapped_column(sa.String(20))
            __mapper_args__ = {  # noqa: RUF012 - SQLAlchemy's own form
                "polymorphic_on": "kind",
                "polymorphic_identity": "party",
                "with_polymorphic": loads,
            }

        class Company(Party):
            __tablename__ = "companies"
            id: Mapped[str] = mapped_column(sa.ForeignKey("parties.id"), primary_key=True)
            vat: Mapped[str] = mapped_column(sa.String(20))
            __mapper_args__ = {"polymorphic_identity": "company"}  # noqa: RUF012

        host = mount(db=db, model={"base": Party, "derived": Company}[mounted])
        with host.flask.app_context():
            rows = [Company(id="acme", vat="1"), Company(id="other", vat="2"), Party(id="person")]
            db.session.add_all(rows)
            db.session.commit()
        store.set("client:acme", "value")
        assert host.delete("person").status_code == (200 if mounted == "base" else 404)
        assert host.delete("acme").status_code == 200
        assert '"status": false' in str(store.get("client:acme"))
        assert host.delete("acme?hard=true").status_code == 200
        tables, _ = contents(host, store)
        assert (len(tables["parties"]), len(tables["companies"])) == (2, 1)
        assert store.get("client:acme") is None

    def test_a_client_of_two_tables_that_nothing_else_tells_apart_is_deleted_wholly(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        party = type("Party", (ClientMixin, db.Model), {"__tablename__": "parties"})
        foreign_key = mapped_column(sa.ForeignKey("parties.id"), primary_key=True)
        host = mount(
            db=db, model=type("Company", (party,), {"__tablename__": "companies", "id": foreign_key})
        )
        host.add(id="acme")
        assert host.delete("acme").status_code == 200
        assert [row.status for row in host.rows()] == [False]
        assert host.delete("acme?hard=true").status_code == 200
        tables, _ = contents(host, store)
        assert tables["parties"] == tables["companies"] == []

    def test_a_key_may_name_what_the_model_computes(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        model = client_model(db)
        model.slug = column_property(sa.func.lower(model.__table__.c.name))
        host = mount(db=db, model=model, config={"MYTHIC_CLIENTS_KV_KEYS": ["slug:{slug}"]})
        host.add(id="acme", name="ACME")
        store.set("slug:acme", "value")
        assert host.delete("acme?hard=true").status_code == 200
        assert [record.kv_keys for record in host.records("acme")] == [("slug:acme",)]
        assert store.get("slug:acme") is None


class TestTheHostsEngine:
    @pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
    def test_equal_deletes_at_serializable_have_one_effect(
        self, mount: Callable[..., Host], store: MemoryStore, path: str
    ) -> None:
        host = mount(config={"SQLALCHEMY_ENGINE_OPTIONS": {"isolation_level": "SERIALIZABLE"}})
        host.add(id="acme")
        store.set("client:acme", "value")
        with ThreadPoolExecutor(8) as pool:
            answers = Counter(answer.status_code for answer in pool.map(host.delete, [path] * 8))
        # Of eight that come at once, the last may have waited for too long where the machine is slow.
        assert answers.total() == answers[200] + answers[503] + (answers[404] if "hard" in path else 0)
        assert answers[200] >= 1
        assert [record.settled_at is None for record in host.records("acme")] == [False]
        assert (store.get("client:acme") is None) is ("hard" in path)

    @pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
    @pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
    def test_at_any_isolation_level_what_was_not_confirmed_stays_pending(
        self, database_url: str, store: MemoryStore, level: str, path: str
    ) -> None:
        gate = Gate(store)
        options = {"SQLALCHEMY_ENGINE_OPTIONS": {"isolation_level": level}}
        with mounting(database_url, gate) as mount:
            host = mount(config=options)
            host.add(id="acme")
            store.set("client:acme", "value")
            gate.closed = True
            assert host.delete(path).status_code == 503
            assert [record.settled_at for record in host.records("acme")] == [None]
            gate.closed = False
            with host.flask.app_context():
                assert host.clients.service.reconcile().settled == 1
            assert store.get("client:acme") != "value"

    @pytest.mark.parametrize("hook", [None, lambda session, row, action: None], ids=["plain", "hook"])
    @pytest.mark.parametrize(
        ("reads", "is_understood"),
        [(lambda text: text, True), (lambda text: tuple(json.loads(text)), True), (lambda text: 7, False)],
        ids=["as text", "as a tuple", "as a number"],
    )
    def test_one_that_reads_json_in_its_own_way_is_understood_or_refused(
        self, database_url: str, store: MemoryStore, hook: Any, reads: Any, is_understood: bool
    ) -> None:
        config = {"SQLALCHEMY_ENGINE_OPTIONS": {"json_deserializer": reads}}
        with mounting(database_url, store) as mount:
            host = mount(config=config, columns={"before": hook})
            for id in ("acme", "globex"):
                host.add(id=id)
                store.set(f"client:{id}", "cached")
            assert host.delete("acme?hard=true").status_code == (200 if is_understood else 503)
            assert (store.get("client:acme") is None) is is_understood
            with host.flask.app_context(), suppress(ConfigurationError):
                list(host.clients.service.delete_each(["globex"], hard=True, actor="tests"))
            assert (store.get("client:globex") is None) is is_understood
