"""An app that is traced as docs/tracing.md has it, in a process of its own: what is instrumented stays so.

`python -m tests.deploy.traced DATABASE_URL REDIS_URL` prints what was exported, and what would be without the
page's exporter.
"""

import json
import sys
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients import MythicClients
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from ..documents import TRACING, blocks
from ..integration.scene import AWAY, Tap

db = SQLAlchemy()


class Account(db.Model):
    __tablename__ = "accounts"
    number: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(80))
    api_token: Mapped[str] = mapped_column(sa.String(80), unique=True)
    enabled: Mapped[bool] = mapped_column(default=True)

    def entry_values(self) -> dict[str, str]:
        return {f"account:{self.number}": self.name}


class Order(db.Model):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_token: Mapped[str] = mapped_column(sa.ForeignKey("accounts.api_token"))


def main(database_url: str, redis_url: str) -> None:
    """Do what can be done to a client, and print the spans of each."""
    key, tap = create_key(), Tap(RedisStore.from_url(redis_url))
    repository = SQLAlchemyRepository(db, Account, id="number", status="enabled")
    clients = MythicClients(repository=repository, kv=tap)
    page: dict[str, Any] = {"clients": clients}
    for block in blocks(TRACING, "python"):
        exec(compile(block, "docs/tracing.md", "exec"), page)
    exported, raw = InMemorySpanExporter(), InMemorySpanExporter()

    app = Flask("traced")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database_url,
        MYTHIC_CLIENTS_ADMIN_KEYS={"tests": digest(key)},
        MYTHIC_CLIENTS_KV_KEYS=["account:{id}", "token:{api_token}"],
    )
    provider = page["trace"](app, exported)
    provider.add_span_processor(SimpleSpanProcessor(raw))
    db.init_app(app)
    clients.init_app(app)

    def spans(did: Any) -> dict[str, Any]:
        provider.force_flush()
        told = {
            "status": getattr(did, "status_code", None),
            "spans": list(map(_told, exported.get_finished_spans())),
            "raw": list(map(_told, raw.get_finished_spans())),
        }
        exported.clear()
        raw.clear()
        return told

    def delete(path: str) -> dict[str, Any]:
        with app.test_client() as caller:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            return spans(caller.delete(f"/api/v1/clients/{path}", headers=headers))

    with app.app_context():
        db.create_all()
        for number in ("first", "acme", "globex", "initech"):
            db.session.add(Account(number=number, name=f"Name-of-{number}", api_token=f"secret-of-{number}"))
        db.session.flush()
        db.session.add(Order(id=1, account_token="secret-of-globex"))
        db.session.commit()
        db.session.remove()
    delete("first?hard=true")
    told = {
        "hard": delete("acme?hard=true"),
        "soft": delete("globex"),
        "refused": delete("globex?hard=true"),
    }
    tap.store = AWAY
    told["away"] = delete("initech?hard=true")
    tap.store = RedisStore.from_url(redis_url)
    with app.app_context():
        told["reconcile"] = spans(page["reconcile"](provider))
    json.dump({"key": key, "digest": digest(key), "told": told}, sys.stdout)


def _told(span: Any) -> dict[str, Any]:
    """Return all that an exporter could tell of a span."""
    return {**json.loads(span.to_json(indent=None)), "start": span.start_time}


if __name__ == "__main__":
    main(*sys.argv[1:])
