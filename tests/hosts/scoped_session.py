"""A host with plain SQLAlchemy, whose session class keeps what each customer was.

Its listener is a small one of the kind that SQLAlchemy's documentation has as a versioning recipe.
"""

import json
from typing import Any

import sqlalchemy as sa
from flask import Flask, redirect, request
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.ports import KeyValueStore

from . import ADMIN_KEY

session = scoped_session(sessionmaker())


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    code: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80))
    is_active: Mapped[bool] = mapped_column(default=True)
    version: Mapped[int] = mapped_column(default=1)

    def told(self) -> dict[str, Any]:
        return {"id": self.code, "name": self.name, "active": self.is_active}

    def entry_values(self) -> dict[str, str]:
        return {f"customer:{self.code}": json.dumps(self.told())}


class CustomerWas(Base):
    """What a customer was before a change or its removal."""

    __tablename__ = "customers_history"
    code: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(80))
    is_active: Mapped[bool]


@sa.event.listens_for(session, "before_flush")
def keep_what_was(session: Session, *_: Any) -> None:
    changed = [row for row in session.dirty if session.is_modified(row)]
    for row in (*changed, *session.deleted):
        if isinstance(row, Customer):
            old = {each.key: (each.history.deleted or [each.value])[0] for each in sa.inspect(row).attrs}
            session.add(CustomerWas(**old))
    for row in changed:
        row.version += 1


def create_app(database_url: str, store: KeyValueStore | None = None) -> Flask:
    """Make the app; without a store as it was before the package was mounted."""
    app = Flask(__name__)
    session.configure(bind=sa.create_engine(database_url))
    app.teardown_appcontext(lambda _: session.remove())
    if store is not None:
        app.config.update(
            MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)}, MYTHIC_CLIENTS_KV_KEYS=["customer:{id}"]
        )
        repository = SQLAlchemyRepository(
            lambda: engine(app), Customer, id="code", status="is_active", session=session
        )
        MythicClients(app, repository=repository, kv=store)
    _add_pages(app)
    Base.metadata.create_all(engine(app))
    return app


def engine(app: Flask) -> sa.Engine:
    return session.session_factory.kw["bind"]


def _add_pages(app: Flask) -> None:
    @app.get("/")
    def index() -> Any:
        return [customer.told() for customer in session.scalars(sa.select(Customer))]

    @app.post("/save")
    def save() -> Any:
        session.merge(Customer(code=request.form["id"], name=request.form["name"]))
        session.commit()
        return redirect("/")

    @app.get("/versions")
    def versions() -> Any:
        kept = session.scalars(sa.select(CustomerWas).order_by(CustomerWas.version))
        return [[was.version, was.name, was.is_active] for was in kept]

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Any:
        return "Something went wrong.", getattr(error, "code", 500)
