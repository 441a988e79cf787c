"""The example server: the package mounted in a small Flask app.

`python -m example_app` starts it on embedded stores; `gunicorn "example_app:create_app()"` and
`flask --app example_app mythic-clients …` use the stores that DATABASE_URL and REDIS_URL name.
"""

import os
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort

from flask_mythic_clients import MythicClients, openapi_document
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.docs_page import docs_page

from . import stores
from .console import create_console
from .models import Client, db, prepare_tables

KEYS_FILE = "admin-keys.txt"
ROUTES = ["delete", "restore", "history", "preview", "status"]
ENTRIES_LIVE = 3600  # seconds


def create_app(memory: MemoryStore | None = None, *, valkey: stores.EmbeddedValkey | None = None) -> Flask:
    """Return the app; creates the instance folder and the tables where they are missing.

    `memory` stands in for the key-value store where there is none; other processes do not see it.
    `valkey` is the key-value store that this process runs, if the console may pull its plug.
    """
    app = Flask(__name__)
    instance = Path(app.instance_path)
    instance.mkdir(parents=True, exist_ok=True)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=stores.database_url(),
        MYTHIC_CLIENTS_ADMIN_KEYS=_admin_keys(instance),
        MYTHIC_CLIENTS_KV_KEYS=["client:{id}", "publishable_key:{publishable_key}"],
        MYTHIC_CLIENTS_ROUTES=ROUTES,
    )
    app.config.update(
        {name: value for name, value in os.environ.items() if name.startswith("MYTHIC_CLIENTS_")}
    )
    db.init_app(app)
    url = stores.redis_url(instance)
    store = memory or RedisStore.from_url(url)
    clients = MythicClients(repository=SQLAlchemyRepository(db, Client), kv=store)
    clients.init_app(app)
    app.register_blueprint(docs_page())
    with app.app_context():
        prepare_tables(memory or stores.connect(url))
    if valkey is not None:
        valkey.keep_copy()
    app.register_blueprint(create_console(app.config, clients, store, valkey))

    @app.get("/api/v1/clients/<client_id>")
    def show(client_id: str) -> Response:
        """Answer from the key-value store, as a hot path does; fill it from the database on a miss."""
        key, source = f"client:{client_id}", "key-value store"

        def load() -> str | None:
            nonlocal source
            source = "database"
            client = db.session.get(Client, client_id, populate_existing=True)
            return client.entry_values().get(key) if client else None  # none: MariaDB finds an id in any case

        document = store.fetch(key, load, expire=ENTRIES_LIVE)
        if document is None:
            abort(404)
        return Response(document, mimetype="application/json", headers={"X-Answered-From": source})

    @app.get("/api/v1/openapi.json")
    def document() -> dict[str, Any]:
        """Tell of the package's routes; not of the one above, which is the example's own."""
        return openapi_document(routes=app.config["MYTHIC_CLIENTS_ROUTES"])

    return app


def _admin_keys(instance: Path) -> str:
    """Return name=digest pairs, from the file of the first start."""
    file = instance / KEYS_FILE
    return file.read_text() if file.exists() else ""
