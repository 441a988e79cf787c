"""What most write: get, change or delete, commit, then remove the entries. A crash in between leaves half."""

import redis
from flask import Flask, Response, request
from flask_sqlalchemy import SQLAlchemy

from .. import wire
from .flask_host import answer, make_app, make_auth
from .models import ClientColumns
from .settings import Settings

db = SQLAlchemy()


class Client(ClientColumns, db.Model):
    """A client of the host's."""


METADATA = db.metadata


def create_app() -> Flask:
    """Return the app."""
    settings = Settings.from_environment()
    app, auth = make_app(db, settings), make_auth(settings)
    store = redis.Redis.from_url(settings.redis_url)

    @app.delete("/api/v1/clients/<client_id>")
    @auth.login_required
    def delete_client(client_id: str) -> Response:
        hard = request.args.get("hard") == "true"
        client = db.session.get(Client, client_id)
        if client is None:
            return answer(wire.NOT_FOUND, 404)
        keys = [f"client:{client.id}", f"publishable_key:{client.publishable_key}"]
        if hard:
            db.session.delete(client)
        else:
            client.status = False
        db.session.commit()
        if hard:
            store.delete(*keys)
        return answer(wire.DELETED[hard])

    return app
