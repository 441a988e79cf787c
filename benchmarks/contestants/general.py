"""The package, its entries named by a function of the host's: the general path, the unit of work."""

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


def entries(client: Client) -> dict[str, None]:
    """Return a client's entries, whose values the host alone knows: as the templates of `package` do."""
    return {f"client:{client.id}": None, f"publishable_key:{client.publishable_key}": None}


def create_app() -> Flask:
    """Return the app."""
    settings = Settings.from_environment()
    app = make_app(db, settings)
    app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {ACTOR: settings.key_digest}
    MythicClients(app, repository=repository, kv=RedisStore.from_url(settings.redis_url), entries=entries)
    return app
