"""A repeated soft delete or restore writes its entries again: who repeats it may have seen a wrong one."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import ClientMixin
from tests.hosts import Gate, Host, mounting

TEMPLATES = {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "token:{token}"]}


def _model(db: SQLAlchemy) -> Any:
    class Client(ClientMixin, db.Model):
        __tablename__ = "clients"
        token: Mapped[str] = mapped_column(sa.String(20), default="first")

    return Client


def _set(host: Host, **columns: Any) -> None:
    """Change the row past the package."""
    with host.flask.app_context(), host.db.engine.begin() as connection:
        connection.execute(sa.update(host.model.__table__).values(columns))


@pytest.fixture
def soft_deleted(mount: Callable[..., Host], store: MemoryStore) -> Host:
    """A host with one client that has been soft-deleted and settled."""
    db = SQLAlchemy()
    host = mount(db=db, model=_model(db), config=TEMPLATES)
    host.add(id="acme", name="Acme")
    assert host.delete("acme").status_code == 200
    return host


def test_an_entry_that_is_wrong_is_written_again_and_nothing_recorded(
    soft_deleted: Host, store: MemoryStore
) -> None:
    store.set("client:acme", '{"status": true}', ex=60)
    assert soft_deleted.delete("acme").status_code == 200
    assert '"status": false' in str(store.get("client:acme"))
    assert store.ttl("client:acme") > 0
    assert [(r.action, r.verified_at) for r in soft_deleted.records("acme")] == [("soft", None)]


def test_an_absent_entry_is_not_made(soft_deleted: Host, store: MemoryStore) -> None:
    assert soft_deleted.delete("acme").status_code == 200
    assert store.get("client:acme") is None


def test_a_repeated_restore_does_the_same(soft_deleted: Host, store: MemoryStore) -> None:
    with soft_deleted.flask.app_context():
        soft_deleted.clients.service.restore("acme", actor="tests")
        store.set("client:acme", '{"status": false}')
        soft_deleted.clients.service.restore("acme", actor="tests")
    assert '"status": true' in str(store.get("client:acme"))
    assert [record.action for record in soft_deleted.records("acme")] == ["soft", "restore"]


def test_without_the_store_it_is_a_503_and_a_repeat_of_that_writes(
    database_url: str, store: MemoryStore
) -> None:
    gate, db = Gate(store), SQLAlchemy()
    with mounting(database_url, gate) as mount:
        host = mount(db=db, model=_model(db), config=TEMPLATES)
        host.add(id="acme", name="Acme")
        assert host.delete("acme").status_code == 200
        store.set("client:acme", '{"status": true}')
        gate.closed = True
        assert host.delete("acme").status_code == 503
        gate.closed = False
        assert host.delete("acme").status_code == 200
        assert '"status": false' in str(store.get("client:acme"))
        assert [record.settled_at is None for record in host.records("acme")] == [False]


def test_the_keys_are_those_of_the_row_as_it_is(mount: Callable[..., Host], store: MemoryStore) -> None:
    db = SQLAlchemy()
    config = {**TEMPLATES, "MYTHIC_CLIENTS_SOFT_DELETE_ENTRIES": "remove"}
    host = mount(db=db, model=_model(db), config=config)
    host.add(id="acme", name="Acme")
    assert host.delete("acme").status_code == 200
    _set(host, token="second")
    for key in ("client:acme", "token:first", "token:second"):
        store.set(key, "filled on a miss")
    assert host.delete("acme").status_code == 200
    # The first one may be another client's by now.
    assert [store.get(key) for key in ("client:acme", "token:first", "token:second")] == [
        *(None, "filled on a miss", None)
    ]


def test_a_row_that_another_transaction_holds_is_a_503_within_seconds(
    soft_deleted: Host, store: MemoryStore
) -> None:
    store.set("client:acme", "wrong")
    with soft_deleted.flask.app_context(), soft_deleted.db.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.text("SELECT id FROM clients FOR UPDATE"))
        answer = soft_deleted.delete("acme")
        connection.rollback()
    assert answer.status_code == 503
    assert store.get("client:acme") == "wrong"
    assert soft_deleted.delete("acme").status_code == 200
