"""A host app on Flask and Flask-SQLAlchemy, as the contestants by hand and this package are mounted on it."""

import json
from typing import Any

from flask import Flask, Response
from flask_httpauth import HTTPTokenAuth
from flask_sqlalchemy import SQLAlchemy

from .. import wire
from .settings import ACTOR, POOL, Settings


def make_app(db: SQLAlchemy, settings: Settings) -> Flask:
    """Return an app whose database is the one of the settings."""
    app = Flask("host")
    app.config["SQLALCHEMY_DATABASE_URI"] = settings.database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = POOL
    db.init_app(app)
    return app


def make_auth(settings: Settings) -> HTTPTokenAuth:
    """Return the guard of a view, by Flask-HTTPAuth."""
    auth = HTTPTokenAuth(scheme="Bearer", realm="clients")

    @auth.verify_token
    def verify(token: str) -> str | None:
        return ACTOR if settings.is_admin(token) else None

    @auth.error_handler
    def refuse(status: int) -> Response:
        return answer(wire.UNAUTHORIZED, status)

    return auth


def answer(body: dict[str, Any], status: int = 200) -> Response:
    """Return an answer of the wire contract."""
    return Response(json.dumps(body), status, wire.NO_STORE, mimetype="application/json")
