"""The package, mounted on a model of the host's, its entries named by key templates."""

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import MythicClients
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from .flask_host import make_app
from .models import ClientColumns
from .settings import ACTOR, Settings

db = SQLAlchemy()


class Client(ClientColumns, db.Model):
    """A client of the host's."""


repository = SQLAlchemyRepository(db, Client)
METADATA = db.metadata


def create_app() -> Flask:
    """Return the app."""
    settings = Settings.from_environment()
    app = make_app(db, settings)
    app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {ACTOR: settings.key_digest}
    app.config["MYTHIC_CLIENTS_KV_KEYS"] = ["client:{id}", "publishable_key:{publishable_key}"]
    MythicClients(app, repository=repository, kv=RedisStore.from_url(settings.redis_url))
    return app
