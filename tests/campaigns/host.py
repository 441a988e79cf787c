"""A host to be served, killed and cut off; a header tells a request at which moment its process shall die.

A moment is the time just before or just after a statement, a commit or a call of the key-value store. A
request that gets through answers with the moments it came through, in `X-Moments`.
"""

import os
import signal
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response, g, request
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients import ClientNotFoundError, MythicClients, StoreError
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.ports import KeyValueStore
from tests.integration import scene
from tests.integration.scene import KV_KEYS, OURS, Told

db = SQLAlchemy()

# The kinds of client, each with a table and a ledger of its own: ours, and others by how they tell a status.
# On the watched ones there are listeners, so that they go through the unit of work.
KINDS = {
    "clients": OURS,
    "times": Told("time"),
    "words": Told("text"),
    "watched_times": Told("time", "listeners"),
    "watched_words": Told("text", "listeners"),
}
MODELS = {kind: told.map(db, kind) for kind, told in KINDS.items()}
LEDGERS = {kind: "client_deletions" if kind == "clients" else f"{kind}_deletions" for kind in KINDS}
REPOSITORIES = {
    kind: SQLAlchemyRepository(db, MODELS[kind], status=told.status, ledger=LEDGERS[kind])
    for kind, told in KINDS.items()
}
document = partial(scene.document, name="")


def kind_of(client_id: str) -> str:
    """Return a client's kind, which its id ends with: `gone-7-times`; `clients` where it does not."""
    kind = client_id.rpartition("-")[2]
    return kind if kind in KINDS else "clients"


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def pass_moment(name: str) -> None:
    """Note the moment; die if it is the one."""
    if "moments" in g:
        g.moments.append(name)
        if len(g.moments) == g.die_at:
            kill()


class MomentStore:
    """A key-value store whose calls have two moments."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    def apply(self, *, remove: Collection[str], overwrite: Mapping[str, str | bytes]) -> set[str]:
        """Fulfil `ports.KeyValueStore.apply`."""
        pass_moment("before the KV call")
        found = self._store.apply(remove=remove, overwrite=overwrite)
        pass_moment("after the KV call")
        return found


def create_app() -> Flask:
    """Return the host on the stores that DATABASE_URL and REDIS_URL name; the tables are there already."""
    app = Flask(__name__)
    settings = {
        "ADMIN_KEYS": {"campaign": os.environ["ADMIN_KEY_DIGEST"]},
        "KV_KEYS": KV_KEYS,
        "VERIFY_AFTER": int(os.environ.get("VERIFY_AFTER", "60")),
    }
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    app.config.update(
        {f"MYTHIC_{kind}_{name}".upper(): settings[name] for kind in KINDS for name in settings}
    )
    db.init_app(app)
    store = MomentStore(RedisStore.from_url(os.environ["REDIS_URL"]))
    clients = {
        kind: MythicClients(app, repository=repository, kv=store, name=kind)
        for kind, repository in REPOSITORIES.items()
    }
    with app.app_context():
        _watch(db.engine)

    @app.before_request
    def count_moments() -> None:
        if "X-Die-At" in request.headers:
            g.moments, g.die_at = [], int(request.headers["X-Die-At"])

    @app.after_request
    def tell_moments(answer: Response) -> Response:
        if "moments" in g:
            answer.headers["X-Moments"] = "; ".join(g.moments)
        return answer

    # For the routes below; the package's own route has its own answers.
    @app.errorhandler(ClientNotFoundError)
    def not_found(error: ClientNotFoundError) -> Any:
        return {"error": str(error)}, 404

    @app.errorhandler(StoreError)
    def unavailable(error: StoreError) -> Any:
        return {"error": str(error)}, 503

    @app.post("/restore/<client_id>")
    def restore(client_id: str) -> Any:
        clients[kind_of(client_id)].service.restore(client_id, actor="campaign")
        return {"restored": client_id}

    @app.post("/reconcile/<kind>")
    def reconcile(kind: str) -> Any:
        return asdict(clients[kind].service.reconcile())

    @app.post("/die/<int:milliseconds>")
    def die(milliseconds: int) -> Any:
        threading.Timer(milliseconds / 1000, kill).start()
        return {"dies in ms": milliseconds}

    @app.get("/pid")
    def pid() -> Any:
        return {"pid": os.getpid()}

    return app


def _watch(engine: sa.Engine) -> None:
    def around(name: str, do: Callable[..., None]) -> Callable[..., None]:
        def done(*arguments: Any) -> None:
            pass_moment(f"before {name}")
            do(*arguments)
            pass_moment(f"after {name}")

        return done

    @sa.event.listens_for(engine, "before_cursor_execute")
    def before(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        pass_moment(f"before {_short(statement)}")

    @sa.event.listens_for(engine, "after_cursor_execute")
    def after(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        pass_moment(f"after {_short(statement)}")

    engine.dialect.do_commit = around("COMMIT", engine.dialect.do_commit)  # type: ignore[method-assign]


def _short(statement: str) -> str:
    words = " ".join(statement.split())
    return words if len(words) <= 40 else words[:40] + "..."
