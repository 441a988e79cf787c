"""The columns of the host's clients, and those of an outbox written by hand."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, String
from sqlalchemy.orm import Mapped, mapped_column


class ClientColumns:
    """A client."""

    __tablename__ = "clients"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    publishable_key: Mapped[str] = mapped_column(String(255), unique=True)
    status: Mapped[bool] = mapped_column(default=True)


class DeletionColumns:
    """A row of the outbox, with an index by which a later job finds what is not settled."""

    __tablename__ = "client_deletions"

    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(String(255), index=True)
    action: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(64))
    kv_keys: Mapped[Any] = mapped_column(JSON)
    requested_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    settled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), index=True)
