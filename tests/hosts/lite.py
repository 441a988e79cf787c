"""A host with Flask-SQLAlchemy-Lite, whose models are plain SQLAlchemy."""

import json
import uuid
from typing import Any

import sqlalchemy as sa
from flask import Flask, redirect, request
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository, Status
from flask_mythic_clients.ports import KeyValueStore

from . import ADMIN_KEY

db = SQLAlchemy()


class Base(DeclarativeBase):
    pass


class Tenant(Base):
    __tablename__ = "tenants"
    key: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80))
    state: Mapped[str] = mapped_column(sa.String(20), default="normal")

    def told(self) -> dict[str, Any]:
        return {"id": f"{self.key}", "name": self.name, "active": self.state == "normal"}

    def entry_values(self) -> dict[str, str]:
        return {f"tenant:{self.key}": json.dumps(self.told())}


def create_app(database_url: str, store: KeyValueStore | None = None) -> Flask:
    """Make the app; without a store as it was before the package was mounted."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_ENGINES"] = {"default": database_url}
    db.init_app(app)
    if store is not None:
        app.config.update(
            MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)}, MYTHIC_CLIENTS_KV_KEYS=["tenant:{id}"]
        )
        status = Status("state", active="normal", deleted="archived")
        repository = SQLAlchemyRepository(db, Tenant, id="key", status=status)
        MythicClients(app, repository=repository, kv=store)
    _add_pages(app)
    with app.app_context():
        Base.metadata.create_all(db.engine)
    return app


def engine(app: Flask) -> sa.Engine:
    with app.app_context():
        return db.engine


def _add_pages(app: Flask) -> None:
    @app.get("/")
    def index() -> Any:
        return [tenant.told() for tenant in db.session.scalars(sa.select(Tenant))]

    @app.post("/save")
    def save() -> Any:
        db.session.merge(Tenant(key=uuid.UUID(request.form["id"]), name=request.form["name"]))
        db.session.commit()
        return redirect("/")

    @app.errorhandler(404)
    def nothing_here(error: Exception) -> Any:
        return "There is no such page.", 404
