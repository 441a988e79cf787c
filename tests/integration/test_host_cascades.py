"""What a hard delete does to the rows that refer to a client."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from flask_mythic_clients.backends.memory import MemoryStore

from ..hosts import Host, client_model, contents


def child_model(db: SQLAlchemy, name: str, **foreign_key: Any) -> Any:
    """Make a model whose rows refer to a client by `client_id`."""
    return type(
        name.capitalize(),
        (db.Model,),
        {
            "__tablename__": f"{name}s",
            "__annotations__": {"id": Mapped[int], "client_id": Mapped[str]},
            "id": mapped_column(primary_key=True),
            "client_id": mapped_column(sa.String(255), sa.ForeignKey("clients.id", **foreign_key)),
        },
    )


def insert(host: Host, *rows: Any) -> None:
    """Insert rows of any model."""
    with host.flask.app_context():
        host.db.session.add_all(rows)
        host.db.session.commit()


def count(host: Host, *tables: Any) -> list[int]:
    """Count the rows of tables or models."""
    with host.flask.app_context():
        return [
            host.db.session.scalar(host.db.select(sa.func.count()).select_from(table)) or 0
            for table in tables
        ]


class TestCascades:
    def test_children_of_an_orm_cascade_go_and_their_children_too(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()
        model = client_model(db, orders=relationship("Order", cascade="all, delete-orphan"))
        order = child_model(db, "order")
        lines = db.Table("lines", sa.Column("order_id", sa.ForeignKey("orders.id"), nullable=False))
        order.lines = relationship(
            type("Line", (db.Model,), {"__table__": lines, "__mapper_args__": {"primary_key": lines.c}}),
            cascade="all",
        )
        host = mount(db=db, model=model)
        insert(host, model(id="acme"), model(id="other"))
        insert(host, *(order(id=id, client_id=of) for id, of in ((1, "acme"), (2, "acme"), (3, "other"))))
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(lines.insert(), [{"order_id": 1}, {"order_id": 2}])
        assert host.delete("acme").status_code == 200
        assert count(host, order, lines) == [3, 2]
        assert host.delete("acme?hard=true").status_code == 200
        assert count(host, model, order, lines) == [1, 1, 0]

    @pytest.mark.parametrize("lazy", ["select", "joined", "selectin", "raise", "dynamic", "write_only"])
    def test_however_the_relationship_is_loaded(self, mount: Callable[..., Host], lazy: Any) -> None:
        db = SQLAlchemy()
        options = {"passive_deletes": True} if lazy == "write_only" else {}
        orders = relationship("Order", cascade="all, delete-orphan", lazy=lazy, **options)
        model = client_model(db, orders=orders)
        order = child_model(db, "order", ondelete="CASCADE" if options else None)
        host = mount(db=db, model=model)
        insert(host, model(id="acme"))
        insert(host, order(client_id="acme"), order(client_id="acme"))
        assert host.delete("acme").status_code == 200
        assert host.delete("acme?hard=true").status_code == 200
        assert count(host, model, order) == [0, 0]

    def test_rows_of_a_many_to_many_table_go_and_what_they_pointed_to_stays(
        self, mount: Callable[..., Host]
    ) -> None:
        db = SQLAlchemy()
        tagged = db.Table(
            "tagged",
            sa.Column("client_id", sa.ForeignKey("clients.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
        )
        model = client_model(db, tags=relationship("Tag", secondary=tagged))

        class Tag(db.Model):
            __tablename__ = "tags"
            id: Mapped[int] = mapped_column(primary_key=True)

        host = mount(db=db, model=model)
        insert(host, model(id="acme", tags=[Tag(), Tag()]))
        assert host.delete("acme?hard=true").status_code == 200
        assert count(host, model, tagged, Tag) == [0, 0, 2]

    def test_a_foreign_key_that_cascades_takes_one_statement(self, mount: Callable[..., Host]) -> None:
        db = SQLAlchemy()
        model = client_model(db, orders=relationship("Order", passive_deletes=True))
        order = child_model(db, "order", ondelete="CASCADE")
        host = mount(db=db, model=model)
        insert(host, model(id="acme"), model(id="planned"))
        assert host.delete("planned?hard=true").status_code == 200
        insert(host, order(client_id="acme"), order(client_id="acme"))
        statements: list[str] = []
        with host.flask.app_context():
            sa.event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        assert host.delete("acme?hard=true").status_code == 200
        assert not [statement for statement in statements if "orders" in statement]
        assert len([statement for statement in statements if "DELETE FROM clients" in statement]) == 1
        assert count(host, model, order) == [0, 0]

    @pytest.mark.parametrize("uselist", [True, False], ids=["one to many", "one to one"])
    @pytest.mark.parametrize("ondelete", [None, "CASCADE"])
    def test_children_that_nobody_looks_after_lose_their_key_as_the_hosts_orm_would_have_it(
        self, mount: Callable[..., Host], ondelete: str | None, uselist: bool
    ) -> None:
        db = SQLAlchemy()
        model = client_model(db, orders=relationship("Order", uselist=uselist))
        key = mapped_column(sa.String(255), sa.ForeignKey("clients.id", ondelete=ondelete))
        attributes = {"__tablename__": "orders", "__annotations__": {"id": Mapped[int]}, "client_id": key}
        order: Any = type("Order", (db.Model,), {**attributes, "id": mapped_column(primary_key=True)})
        host = mount(db=db, model=model)
        insert(host, model(id="acme"), model(id="other"))
        insert(host, order(id=1, client_id="acme"), order(id=2, client_id="other"))
        assert host.delete("acme?hard=true").status_code == 200
        with host.flask.app_context():
            rows = db.session.execute(sa.select(order.id, order.client_id).order_by(order.id)).all()
        assert [tuple(row) for row in rows] == [(1, None), (2, "other")]

    @pytest.mark.parametrize("kind", ["table", "relationship", "restrict", "beside a cascade"])
    def test_a_foreign_key_that_forbids_is_409_and_changes_nothing(
        self, mount: Callable[..., Host], store: MemoryStore, kind: str
    ) -> None:
        db = SQLAlchemy()
        relationships = {
            "relationship": {"orders": relationship("Order")},
            "beside a cascade": {"notes": relationship("Note", cascade="all, delete-orphan")},
        }
        model = client_model(db, **relationships.get(kind, {}))
        order = child_model(db, "order", ondelete="RESTRICT" if kind == "restrict" else None)
        note = child_model(db, "note", ondelete="CASCADE")
        host = mount(db=db, model=model)
        insert(host, model(id="acme"))
        insert(host, order(client_id="acme"), note(client_id="acme"))
        store.set("client:acme", "value", ex=1000)
        before = contents(host, store, "client:acme")
        with host.flask.app_context():
            preview = host.clients.service.preview("acme", hard=True)
        answer = host.delete("acme?hard=true")
        assert (answer.status_code, answer.json["error"]) == (409, "Conflict")
        assert preview.refused == answer.json["message"]
        assert contents(host, store, "client:acme") == before

    @pytest.mark.parametrize("listener", [False, True], ids=["statement", "unit of work"])
    def test_a_foreign_key_checked_at_commit_is_409_too(
        self, mount: Callable[..., Host], store: MemoryStore, database_url: str, listener: bool
    ) -> None:
        db = SQLAlchemy()
        at_commit = {"deferrable": True, "initially": "DEFERRED"}
        if database_url.startswith("mariadb"):
            at_commit = {}  # it has no such thing
        model, order = client_model(db), child_model(db, "order", **at_commit)
        if listener:
            sa.event.listen(model, "before_delete", lambda *_: None)
        host = mount(db=db, model=model)
        insert(host, model(id="acme"))
        insert(host, order(client_id="acme"))
        before = contents(host, store)
        with host.flask.app_context():
            preview = host.clients.service.preview("acme", hard=True)
        assert [each.fate for each in preview.dependents] == ["forbids it"]
        answer = host.delete("acme?hard=true")
        assert (answer.status_code, answer.json["error"]) == (409, "Conflict")
        assert preview.refused == answer.json["message"]
        # SQLite's failed COMMIT leaves the transaction open, on a connection that goes back to the pool.
        assert contents(host, store) == before
        host.add(id="another")
        assert host.delete("acme").status_code == 200


def test_a_preview_tells_each_kind_of_dependent_and_what_becomes_of_it(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    tags = db.Table("tags", sa.Column("id", sa.Integer, primary_key=True))
    tagged = db.Table(
        "tagged",
        # A key of another table's comes first.
        sa.Column("tag_id", sa.ForeignKey("tags.id")),
        sa.Column("client_id", sa.String(255), sa.ForeignKey("clients.id")),
    )
    tag = type("Tag", (db.Model,), {"__table__": tags})
    model = client_model(
        db,
        orders=relationship("Order", cascade="all, delete-orphan"),
        notes=relationship("Note"),
        tags=relationship(tag, secondary=tagged),
    )
    order, note = child_model(db, "order"), child_model(db, "note")
    visit, unused = child_model(db, "visit", ondelete="CASCADE"), child_model(db, "unused")
    note.__table__.c.client_id.nullable = True
    host = mount(db=db, model=model)
    insert(host, model(id="acme", tags=[tag(id=1)]), model(id="other"))
    rows = [order(id=1, client_id="acme"), order(id=2, client_id="acme"), note(id=1, client_id="acme")]
    insert(host, *rows, visit(id=1, client_id="acme"), unused(id=1, client_id="other"))
    fates = {
        "orders.client_id": (2, "removed"),
        "notes.client_id": (1, "set to NULL"),
        "tagged.client_id": (1, "removed"),
        "visits.client_id": (1, "removed"),
    }
    for hard in (True, False):
        with host.flask.app_context():
            preview = host.clients.service.preview("acme", hard=hard)
        assert preview.refused is None
        assert {each.column: (each.rows, each.fate) for each in preview.dependents} == {
            column: (rows, fate if hard else "kept") for column, (rows, fate) in fates.items()
        }
        assert count(host, model, order, note, tagged, visit) == [2, 2, 1, 1, 1]
    insert(host, unused(id=2, client_id="acme"))
    with host.flask.app_context():
        preview = host.clients.service.preview("acme", hard=True)
    assert "unuseds.client_id" in (preview.refused or "")
    assert {each.column: each.fate for each in preview.dependents} == {
        **dict.fromkeys(fates, "kept"),
        "unuseds.client_id": "forbids it",
    }
