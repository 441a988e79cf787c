"""What most write on FastAPI: SQLAlchemy's asyncio on asyncpg, and redis.asyncio. As little is guaranteed."""

import json
from typing import Annotated, Any

import redis.asyncio
from fastapi import Depends, FastAPI, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from .. import wire
from .models import ClientColumns
from .settings import POOL, Settings


class Base(DeclarativeBase):
    """The host's models."""


class Client(ClientColumns, Base):
    """A client of the host's."""


METADATA = Base.metadata
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def create_app() -> FastAPI:
    """Return the app; its connections are made in the loop that serves."""
    settings = Settings.from_environment()
    url = make_url(settings.database_url).set(drivername="postgresql+asyncpg")
    sessions = async_sessionmaker(create_async_engine(url, **POOL))
    store = redis.asyncio.Redis.from_url(settings.redis_url)
    app = FastAPI()

    @app.delete("/api/v1/clients/{client_id}")
    async def delete_client(client_id: str, credentials: Credentials, hard: bool = False) -> Response:
        if credentials is None or not settings.is_admin(credentials.credentials):
            return answer(wire.UNAUTHORIZED, 401, {"WWW-Authenticate": 'Bearer realm="clients"'})
        async with sessions() as session:
            client = await session.get(Client, client_id)
            if client is None:
                return answer(wire.NOT_FOUND, 404)
            keys = [f"client:{client.id}", f"publishable_key:{client.publishable_key}"]
            if hard:
                await session.delete(client)
            else:
                client.status = False
            await session.commit()
        if hard:
            await store.delete(*keys)
        return answer(wire.DELETED[hard])

    return app


def answer(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer of the wire contract."""
    return Response(json.dumps(body), status, wire.NO_STORE | (headers or {}), "application/json")
