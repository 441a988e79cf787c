"""The errors: their tree, their messages, and that every method of a backend translates."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

import flask_mythic_clients
from flask_mythic_clients import ClientError, MythicClientsError, errors
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.entries import KeyTemplates
from flask_mythic_clients.errors import ForeignError, KeyValueStoreError, RepositoryError
from flask_mythic_clients.model import Action, Change, DeletionRecord
from flask_mythic_clients.ports import AuditedRepository, ClientRepository, ScannableStore

ERRORS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, MythicClientsError)
]


@pytest.mark.parametrize("error", ERRORS)
def test_the_docstring_is_the_default_message(error: type[MythicClientsError]) -> None:
    arguments = ("acme",) if issubclass(error, ClientError) else ()
    assert error.__doc__ == inspect.getdoc(error)
    assert str(error(*arguments)) == error.__doc__
    assert str(error(*arguments, "Another.")) == "Another."


@pytest.mark.parametrize("error", [error for error in ERRORS if issubclass(error, ClientError)])
def test_an_error_about_a_client_carries_its_id(error: type[ClientError]) -> None:
    assert error("acme").client_id == "acme"


def test_every_error_is_public() -> None:
    assert {error.__name__ for error in ERRORS} <= set(flask_mythic_clients.__all__)


def test_the_tree_that_is_drawn_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)([A-Z]\w+Error)\b", line):
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            if depth:
                drawn[found[2]] = (above[depth - 1], depth)
    assert drawn
    # ClientError cuts across the tree: it is there for `client_id`, and is not drawn.
    assert set(drawn) | {"MythicClientsError", "ClientError"} == {error.__name__ for error in ERRORS}
    for name, (parent, depth) in drawn.items():
        assert issubclass(getattr(errors, name), getattr(errors, parent)), (name, parent)
        related = [other for other in drawn if issubclass(getattr(errors, name), getattr(errors, other))]
        assert len(related) == depth, name


ARGUMENTS = {
    "change": Change("acme", Action.HARD, "tests"),
    "entries": KeyTemplates(["client:{id}"]),
    "client_ids": ["acme"],
    "error": "OSError",
    "client_id": "acme",
    "settled_for": timedelta(),
    "wait": True,
    "after": None,
    "since": datetime(2026, 1, 1, tzinfo=UTC),
    "before": datetime(2026, 1, 2, tzinfo=UTC),
    "verified_before": None,
    "kept": timedelta(),
    "record": DeletionRecord(
        1, "acme", Action.HARD, "tests", ("client:acme",), datetime(2026, 1, 1, tzinfo=UTC)
    ),
    "remove": ["client:acme"],
    "overwrite": {},
    "keys": ["client:acme"],
    "texts": ["client:", ""],
    "number": 7,
    "columns": ["id"],
    "among": ["acme"],
}
NO_IO = {"address", "check_columns", "fitting"}


def _methods(port: type) -> list[str]:
    names = [name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")]
    assert names
    return [name for name in names if name not in NO_IO]


def _call(method: Callable[..., Any]) -> None:
    """Call to the end: enter what is to be entered, read what is to be read."""
    found = method(**{name: ARGUMENTS[name] for name in inspect.signature(method).parameters})
    if isinstance(found, AbstractContextManager):
        with found:
            pass
    elif isinstance(found, Iterator):
        list(found)


@pytest.fixture(params=["away", "without tables"])
def repository(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[SQLAlchemyRepository]:
    """A repository whose database cannot be opened, or has no tables."""
    folder = "no/such/folder/" if request.param == "away" else ""
    db, app = SQLAlchemy(), Flask("host")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/{folder}test.db"
    repository = SQLAlchemyRepository(db)
    db.init_app(app)
    with app.app_context():
        yield repository
        db.engine.dispose()


@pytest.mark.parametrize("method", [*_methods(ClientRepository), *_methods(AuditedRepository)])
def test_every_method_of_the_repository_translates(repository: SQLAlchemyRepository, method: str) -> None:
    if method == "now" and "no/such" not in f"{repository._transactions().engine.url}":
        return  # it needs no table
    if method == "make_durable":
        return  # it has nothing to ask SQLite
    with pytest.raises(RepositoryError) as caught:
        _call(getattr(repository, method))
    assert isinstance(caught.value.__cause__, ForeignError)
    assert caught.value.cause.startswith("sqlite3.OperationalError")


@pytest.mark.parametrize("action", Action)
def test_every_action_translates_and_none_takes_an_outage_for_a_refusal(
    repository: SQLAlchemyRepository, action: Action
) -> None:
    change = Change("acme", action, "tests")
    with pytest.raises(RepositoryError):
        repository.record(change, KeyTemplates(["client:{id}"]))


@pytest.mark.parametrize("method", _methods(ScannableStore))
def test_every_method_of_the_redis_store_translates(method: str) -> None:
    with pytest.raises(KeyValueStoreError) as caught:
        _call(getattr(RedisStore.from_url("redis://127.0.0.1:1/0"), method))
    assert isinstance(caught.value.__cause__, ForeignError)
    assert caught.value.cause.startswith("redis.exceptions.ConnectionError")
