"""The same with an outbox: a row in the same transaction, the entries after it, a second commit when done."""

from datetime import UTC, datetime

import redis
from flask import Flask, Response, request
from flask_httpauth import HTTPTokenAuth
from flask_sqlalchemy import SQLAlchemy

from .. import wire
from .flask_host import answer, make_app, make_auth
from .models import ClientColumns, DeletionColumns
from .settings import Settings

db = SQLAlchemy()


class Client(ClientColumns, db.Model):
    """A client of the host's."""


class Deletion(DeletionColumns, db.Model):
    """What was done to a client, and whether the entries have followed."""


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
            return finish_what_is_left(client_id, store)
        deletion = record(client, hard, auth)
        if hard:
            db.session.delete(client)
        else:
            client.status = False
        db.session.flush()
        id, keys = deletion.id, deletion.kv_keys
        db.session.commit()
        if hard:
            store.delete(*keys)
        # Not on the object, which would be read again first.
        db.session.execute(db.update(Deletion).filter_by(id=id).values(settled_at=datetime.now(UTC)))
        db.session.commit()
        return answer(wire.DELETED[hard])

    return app


def record(client: Client, hard: bool, auth: HTTPTokenAuth) -> Deletion:
    """Add the outbox row to the session."""
    deletion = Deletion(
        client_id=client.id,
        action="hard" if hard else "soft",
        actor=auth.current_user(),
        kv_keys=[f"client:{client.id}", f"publishable_key:{client.publishable_key}"],
        requested_at=datetime.now(UTC),
    )
    db.session.add(deletion)
    return deletion


def finish_what_is_left(client_id: str, store: redis.Redis) -> Response:
    """Settle what an earlier request left of a client that is gone; a 404 where it left nothing."""
    left = db.session.scalars(
        db.select(Deletion).filter_by(client_id=client_id, action="hard", settled_at=None)
    ).all()
    if not left:
        return answer(wire.NOT_FOUND, 404)
    for deletion in left:
        store.delete(*deletion.kv_keys)
        deletion.settled_at = datetime.now(UTC)
    db.session.commit()
    return answer(wire.DELETED[True])
