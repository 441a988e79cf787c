"""A host with Flask-WTF: every form of its own needs a token."""

import json
from typing import Any

import sqlalchemy as sa
from flask import Flask, redirect, render_template_string
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect, FlaskForm
from flask_wtf.csrf import CSRFError
from sqlalchemy.orm import Mapped, mapped_column
from wtforms import StringField
from wtforms.validators import DataRequired

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import digest
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.ports import KeyValueStore

from . import ADMIN_KEY

FORM = '<form method="post">{{ form.csrf_token }}{{ form.id }}{{ form.name }}<button>Save</button></form>'

db = SQLAlchemy()
csrf = CSRFProtect()


class Account(db.Model):
    __tablename__ = "accounts"
    number: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80))
    enabled: Mapped[bool] = mapped_column(default=True)

    def told(self) -> dict[str, Any]:
        return {"id": self.number, "name": self.name, "active": self.enabled}

    def entry_values(self) -> dict[str, str]:
        return {f"account:{self.number}": json.dumps(self.told())}


class AccountForm(FlaskForm):
    id = StringField(validators=[DataRequired()])
    name = StringField(validators=[DataRequired()])


def create_app(database_url: str, store: KeyValueStore | None = None) -> Flask:
    """Make the app; without a store as it was before the package was mounted."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=database_url, SECRET_KEY="of the tests")
    db.init_app(app)
    csrf.init_app(app)
    if store is not None:
        app.config.update(
            MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(ADMIN_KEY)}, MYTHIC_CLIENTS_KV_KEYS=["account:{id}"]
        )
        repository = SQLAlchemyRepository(db, Account, id="number", status="enabled")
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
        return [account.told() for account in db.session.scalars(db.select(Account))]

    @app.route("/save", methods=["GET", "POST"])
    def save() -> Any:
        form = AccountForm()
        if not form.validate_on_submit():
            return render_template_string(FORM, form=form)
        db.session.merge(Account(number=form.id.data, name=form.name.data))
        db.session.commit()
        return redirect("/")

    @app.errorhandler(CSRFError)
    def not_our_form(error: CSRFError) -> Any:
        return f"This is no form of ours. {error.description}", 400
