"""A host with SQLAlchemy-Continuum, which keeps every version of its members.

Import it in a process of its own: `make_versioned` listens to every session, mapper and engine there is, and
the import of Continuum alone changes what a BigInteger is on SQLite.
"""

import json
from typing import Any

import sqlalchemy as sa
from flask import Flask, redirect, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, configure_mappers, mapped_column
from sqlalchemy_continuum import make_versioned, version_class

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository, Status
from flask_mythic_clients.ports import KeyValueStore

from . import ADMIN_KEY

make_versioned(user_cls=None)
db = SQLAlchemy()


class Member(db.Model):
    __tablename__ = "members"
    __versioned__ = {}  # noqa: RUF012 - Continuum's own form
    member_no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(80))
    is_deleted: Mapped[bool] = mapped_column(default=False)

    def told(self) -> dict[str, Any]:
        return {"id": self.member_no, "name": self.name, "active": not self.is_deleted}

    def entry_values(self) -> dict[str, str]:
        return {f"member:{self.member_no}": json.dumps(self.told())}


configure_mappers()  # only then there is a model of the versions, too


def create_app(database_url: str, store: KeyValueStore | None = None) -> Flask:
    """Make the app; without a store as it was before the package was mounted."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    if store is not None:
        app.config.update(
            MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)}, MYTHIC_CLIENTS_KV_KEYS=["member:{id}"]
        )
        status = Status("is_deleted", active=False, deleted=True)
        repository = SQLAlchemyRepository(db, Member, id="member_no", status=status)
        MythicClients(app, repository=repository, kv=store)
    _add_pages(app)
    with app.app_context():
        db.create_all()
    return app


def engine(app: Flask) -> sa.Engine:
    with app.app_context():
        return db.engine


def _add_pages(app: Flask) -> None:
    @app.get("/")
    def index() -> Any:
        return [member.told() for member in db.session.scalars(db.select(Member))]

    @app.post("/save")
    def save() -> Any:
        db.session.merge(Member(member_no=int(request.form["id"]), name=request.form["name"]))
        db.session.commit()
        return redirect("/")

    @app.get("/versions")
    def versions() -> Any:
        version = version_class(Member)
        kept = db.session.scalars(db.select(version).order_by(version.transaction_id))
        return [[each.operation_type, each.name, not each.is_deleted] for each in kept]
