"""Which entries a client owns: by a rule of the host's, or by templates."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from flask_mythic_clients import ConfigurationError, wire
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin

from ..hosts import Gate, Host, KeyValue, client_model, contents, make_host, mounting


@pytest.fixture
def mount() -> Iterator[Callable[..., Host]]:
    """Make hosts that are closed after the test."""
    with mounting() as mount:
        yield mount


def make_model(db: SQLAlchemy) -> Any:
    """A model with a key that is not derived from its id, and a relationship the rule may walk."""

    class Client(ClientMixin, db.Model):
        __tablename__ = "clients"
        publishable_key: Mapped[str | None] = mapped_column(sa.String(40))
        domains = relationship("Domain", cascade="all, delete-orphan")

    class Domain(db.Model):
        __tablename__ = "domains"
        name: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
        client_id: Mapped[str] = mapped_column(sa.ForeignKey("clients.id"))

    Client.Domain = Domain
    return Client


def entries(row: Any) -> dict[str, str | None]:
    """A document that follows from the row, one key that does not, and what only the host knows."""
    owned: dict[str, str | None] = {
        f"doc:{row.id}": json.dumps({"on": row.status}),
        f"session:{row.id}": None,
    }
    if row.publishable_key:
        owned[f"pk:{row.publishable_key}"] = f"{row.id} {row.status}"
    return owned | dict.fromkeys(f"domain:{domain.name}" for domain in row.domains)


KEYS = ("doc:acme", "session:acme", "pk:k1", "domain:a.example", "domain:b.example")


class TestARuleOfTheHosts:
    @pytest.fixture
    def gate(self, kv: KeyValue) -> Gate:
        return Gate(kv.store)

    @pytest.fixture
    def host(self, database_url: str, kv: KeyValue, gate: Gate, mount: Callable[..., Host]) -> Host:
        db = SQLAlchemy()
        model = make_model(db)
        host = mount(database_url, gate, db=db, model=model, entries=entries)
        domains = [model.Domain(name="a.example"), model.Domain(name="b.example")]
        host.add(id="acme", publishable_key="k1", domains=domains)
        for key in KEYS:
            kv.raw.set(key, "value", ex=1000)
        kv.raw.set("doc:other", "value")
        return host

    def test_a_soft_delete_overwrites_what_follows_from_the_row_and_keeps_its_time_to_live(
        self, host: Host, kv: KeyValue
    ) -> None:
        assert host.delete("acme").status_code == 200
        expected = ['{"on": false}', "value", "acme False", "value", "value"]
        assert [kv.raw.get(key) for key in KEYS] == expected
        assert all(900 < kv.raw.ttl(key) <= 1000 for key in KEYS)
        assert [set(record.kv_keys) for record in host.records("acme")] == [set(KEYS)]

    def test_a_soft_delete_makes_no_entry(self, host: Host, kv: KeyValue) -> None:
        kv.store.apply(remove=KEYS, overwrite={})
        assert host.delete("acme").status_code == 200
        assert [kv.raw.get(key) for key in KEYS] == [None] * len(KEYS)

    def test_a_hard_delete_removes_all_that_the_client_owned(self, host: Host, kv: KeyValue) -> None:
        assert host.delete("acme?hard=true").status_code == 200
        assert [kv.raw.get(key) for key in KEYS] == [None] * len(KEYS)
        assert kv.raw.get("doc:other") == "value"

    def test_a_restore_writes_the_value_of_the_active_row(self, host: Host, kv: KeyValue) -> None:
        assert host.delete("acme").status_code == 200
        with host.flask.app_context():
            host.clients.service.restore("acme", actor="tests")
        assert [kv.raw.get(key) for key in KEYS[:3]] == ['{"on": true}', "value", "acme True"]

    def test_a_key_that_changed_hands_before_it_was_settled_is_removed_under_its_old_name(
        self, host: Host, kv: KeyValue, gate: Gate
    ) -> None:
        gate.closed = True
        assert host.delete("acme").status_code == 503
        with host.flask.app_context():
            row = host.db.session.get(host.model, "acme")
            assert row is not None
            row.publishable_key, row.domains = "k2", row.domains[:1]
            host.db.session.commit()
        kv.raw.set("pk:k2", "value")
        gate.closed = False
        assert host.delete("acme").status_code == 200
        # `pk:k2` is of no deletion record: who changes a key brings its entry along.
        assert [kv.raw.get(key) for key in (*KEYS, "pk:k2")] == [
            '{"on": false}',
            "value",
            None,
            "value",
            None,
            "value",
        ]

    def test_keys_recorded_before_the_row_went_are_removed_after_an_outage(
        self, host: Host, kv: KeyValue, gate: Gate
    ) -> None:
        gate.closed = True
        assert host.delete("acme?hard=true").status_code == 503
        assert [kv.raw.get(key) for key in KEYS] == ["value"] * len(KEYS)
        gate.closed = False
        with host.flask.app_context():
            assert host.clients.service.reconcile().settled == 1
        assert [kv.raw.get(key) for key in KEYS] == [None] * len(KEYS)


class TestTemplates:
    def test_a_template_with_a_null_column_is_no_key(
        self, database_url: str, mount: Callable[..., Host]
    ) -> None:
        db, store = SQLAlchemy(), MemoryStore()
        config = {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "pk:{publishable_key}"]}
        host = mount(database_url, store, db=db, model=make_model(db), config=config)
        host.add(id="bare")
        host.add(id="keyed", publishable_key="k1")
        store.set("pk:None", "value")
        assert host.delete("bare?hard=true").status_code == 200
        assert host.delete("keyed").status_code == 200
        assert [record.kv_keys for record in host.records("bare")] == [("client:bare",)]
        assert [record.kv_keys for record in host.records("keyed")] == [("client:keyed", "pk:k1")]
        assert store.get("pk:None") == "value"

    @pytest.mark.parametrize(
        "text", ["ü ☃ 😀", "'; DROP TABLE clients; --", '"\\n\\', "%(x)s {id} $1", "\n\t"]
    )
    def test_any_text_of_a_column_makes_the_key_it_spells(
        self, database_url: str, mount: Callable[..., Host], text: str
    ) -> None:
        db, store = SQLAlchemy(), MemoryStore()
        templates = ["ü:{publishable_key}", "{{%}}'\\n:{publishable_key}"]
        config = {"MYTHIC_CLIENTS_KV_KEYS": templates}
        host = mount(database_url, store, db=db, model=make_model(db), config=config)
        for path in ("acme", "acme?hard=true"):
            host.add(id="acme", publishable_key=text) if path == "acme" else None
            assert host.delete(path).status_code == 200
        assert [record.kv_keys for record in host.records("acme")] == [(f"ü:{text}", f"{{%}}'\\n:{text}")] * 2

    def test_beside_a_rule_they_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="MYTHIC_CLIENTS_KV_KEYS and entries"):
            make_host(
                "sqlite://",
                MemoryStore(),
                config={"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}"]},
                entries=lambda row: {},
            )


WRONG: dict[str, Callable[[str], Any]] = {
    "a text": lambda key: key,
    "a list": lambda key: [key],
    "an iterator": lambda key: iter([(key, None)]),
    "nothing": lambda _: None,
    "a key that is a number": lambda _: {7: None},
    "a key of bytes": lambda key: {key.encode(): None},
    "a value that is a dict": lambda key: {key: {"on": True}},
    "a value that is a truth": lambda key: {key: True},
}


@pytest.mark.parametrize("returned", WRONG)
class TestWhatCannotBeEntries:
    @pytest.mark.parametrize("flag", ["", "?hard=true"])
    def test_by_a_rule_it_is_refused_before_anything_is_changed(
        self, database_url: str, kv: KeyValue, returned: str, flag: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mounting(database_url, kv.store) as mount:
            host = mount(entries=lambda row: WRONG[returned](f"client:{row.id}"))
            host.add(id="acme")
            for key in ("client:acme", "c"):
                kv.raw.set(key, "kept")
            before = contents(host, kv.raw, "client:acme", "c")
            answer = host.delete(f"acme{flag}")
            assert (answer.status_code, answer.json["message"]) == (503, wire.MISCONFIGURED)
            assert "entries= returned " in caplog.text
            assert "acme" not in "".join(re.findall(r"entries= returned .*?\.", caplog.text))
            assert contents(host, kv.raw, "client:acme", "c") == before
            with host.flask.app_context():
                assert "entries= returned " in f"{host.clients.service.check()}"

    def test_by_the_row_it_leaves_that_client_pending_and_no_other(
        self, database_url: str, kv: KeyValue, returned: str
    ) -> None:
        def values(row: Any) -> Any:
            key = f"client:{row.id}"
            return WRONG[returned](key) if row.id in broken else {key: f"{row.status}"}

        db, broken = SQLAlchemy(), {"acme"}
        gate = Gate(kv.store)
        with mounting(database_url, gate) as mount:
            host = mount(db=db, model=client_model(db, entry_values=values))
            for id in ("acme", "other"):
                host.add(id=id)
                kv.raw.set(f"client:{id}", "True")
            answer = host.delete("acme")
            assert (answer.status_code, answer.json["message"]) == (503, wire.MISCONFIGURED)
            gate.closed = True
            assert host.delete("other").status_code == 503
            gate.closed = False
            with host.flask.app_context():
                service = host.clients.service
                done = service.reconcile()
                assert (done.settled, done.failed) == (1, 1)
                (failed,) = service.failed()
                assert "entry_values returned " in f"{failed.last_error}"
                assert kv.raw.get("client:other") in ("False", b"False")
                broken.clear()
                assert service.reconcile().failed == 0
            assert kv.raw.get("client:acme") in ("False", b"False")


def test_a_view_of_bytes_is_a_value_as_it_is_to_redis(database_url: str, kv: KeyValue) -> None:
    with mounting(database_url, kv.store) as mount:
        host = mount(entries=lambda row: {f"client:{row.id}": memoryview(f"{row.status}".encode())})
        host.add(id="acme")
        kv.raw.set("client:acme", "True")
        assert host.delete("acme").status_code == 200
        assert kv.raw.get("client:acme") in ("False", b"False", memoryview(b"False"))
