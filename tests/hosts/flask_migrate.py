"""A host with Flask-Migrate: its tables are made by `flask db upgrade`."""

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Flask, redirect, request
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.exceptions import HTTPException

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.ports import KeyValueStore

from . import ADMIN_KEY

db = SQLAlchemy()


class Organization(db.Model):
    __tablename__ = "organizations"
    org_id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80))
    closed_at: Mapped[datetime | None]

    def told(self) -> dict[str, Any]:
        return {"id": self.org_id, "name": self.name, "active": self.closed_at is None}

    def entry_values(self) -> dict[str, str]:
        return {f"organization:{self.org_id}": json.dumps(self.told())}


def create_app(database_url: str, store: KeyValueStore | None = None) -> Flask:
    """Make the app; without a store as it was before the package was mounted."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    Migrate(app, db)
    if store is not None:
        app.config.update(
            MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)},
            MYTHIC_CLIENTS_KV_KEYS=["organization:{id}"],
        )
        repository = SQLAlchemyRepository(db, Organization, id="org_id", status="closed_at")
        MythicClients(app, repository=repository, kv=store)
    _add_pages(app)
    return app


def engine(app: Flask) -> sa.Engine:
    with app.app_context():
        return db.engine


def _add_pages(app: Flask) -> None:
    @app.get("/")
    def index() -> Any:
        return [organization.told() for organization in db.session.scalars(db.select(Organization))]

    @app.post("/save")
    def save() -> Any:
        db.session.merge(Organization(org_id=int(request.form["id"]), name=request.form["name"]))
        db.session.commit()
        return redirect("/")

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Any:
        return {"problem": error.name}, error.code
