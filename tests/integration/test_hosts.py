"""Apps of others, with other extensions: the package is mounted in each, and walked from end to end."""

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, redirect, request, session
from flask_wtf import CSRFProtect

from flask_mythic_clients.backends.memory import MemoryStore
from tests.hosts import ADMIN_KEY, Host, mounting

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
# The apps of tests/hosts, and the id of a client of each.
IDS = {
    "flask_wtf": "acme-1",
    "flask_migrate": "7",
    "lite": "0b7e2c5e-6d0c-4c4e-9d55-6a2a1f3f8f10",
    "scoped_session": "ACME",
    "continuum": "9",
}
ACTIVE, CLOSED, GONE = ([True], True), ([False], False), ([], None)
# What is seen in every app: an answer, then what the app's page and the entry say of the client.
STORY = {
    "the app's own pages": [302, 200, 302, 200, 400, 404, 405],
    "those that answer otherwise since": [],
    "a wrong request without a key": (401, *ACTIVE),
    "a hard delete without a key": (401, *ACTIVE),
    "soft": (200, *CLOSED),
    "soft again": (200, *CLOSED),
    "restore": (0, *ACTIVE),
    "soft after that": (200, *CLOSED),
    "dry run": (0, *CLOSED),
    "the dry run names the entry": True,
    "hard": (200, *GONE),
    "hard again": (404, *GONE),
    "history": ["soft", "restore", "soft", "hard"],
    "status": (0, "pending 0, oldest -, due 0, overdue 0, failed 0, last reconcile -\n"),
}
# What the two apps with versions have kept: the recipe what was, Continuum what became of it. The first ones
# come from the app's own form.
VERSIONS = {
    "scoped_session": [
        [1, "Acme Ltd", True],
        [2, "Acme", True],
        [3, "Acme Ltd", True],
        [4, "Acme", True],
        [5, "Acme", False],
        [6, "Acme", True],
        [7, "Acme", False],
    ],
    "continuum": [
        [0, "Acme Ltd", True],
        [1, "Acme", True],
        [1, "Acme Ltd", True],
        [1, "Acme", True],
        [1, "Acme", False],
        [1, "Acme", True],
        [1, "Acme", False],
        [2, "Acme", False],
    ],
}


def walk(name: str, url: str, folder: Path) -> dict[str, Any]:
    """Use an app, mount the package in it, do everything once; return what was seen, as STORY has it."""
    host, id, store = _fresh(name), IDS[name], MemoryStore()
    with ExitStack() as stack:
        before = _start(host, stack, folder, url)
        pages_before = _pages(before, id)
        app = _start(host, stack, folder, url, store)
        pages = _pages(app, id)
        compared = zip(pages_before, pages, strict=True)
        browser, run = app.test_client(), app.test_cli_runner().invoke
        [template] = app.config["MYTHIC_CLIENTS_KV_KEYS"]
        key = template.format(id=id)
        store.set(key, '{"active": true}')

        def seen() -> tuple[Any, Any]:
            entry = store.get(key)
            return [row["active"] for row in browser.get("/").json], entry and json.loads(entry)["active"]

        def delete(query: str, headers: dict[str, str] = HEADERS) -> tuple[Any, ...]:
            answer = browser.delete(f"/api/v1/clients/{id}{query}", headers=headers)
            return answer.status_code, *seen()

        def command(*arguments: str) -> Any:
            return run(args=["mythic-clients", *arguments])

        return {
            "the app's own pages": [status for status, *_ in pages],
            "those that answer otherwise since": [pair for pair in compared if pair[0] != pair[1]],
            "a wrong request without a key": delete("?hard=1", {}),
            "a hard delete without a key": delete("?hard=true", {}),
            "soft": delete(""),
            "soft again": delete(""),
            "restore": (command("restore", id).exit_code, *seen()),
            "soft after that": delete(""),
            "dry run": (
                (tried := command("delete", "--hard", "--dry-run", "--show-keys", id)).exit_code,
                *seen(),
            ),
            "the dry run names the entry": f"entry {key}: would be removed\n" in tried.stdout,
            "hard": delete("?hard=true"),
            "hard again": delete("?hard=true"),
            "history": [each["action"] for each in json.loads(command("history", id, "--json").stdout)],
            "status": ((status := command("status")).exit_code, status.stdout),
            "versions": browser.get("/versions").json if name in VERSIONS else None,
        }


def _fresh(name: str) -> Any:
    """Import an app as a new process does, where nothing was mounted on its models yet."""
    sys.modules.pop(f"tests.hosts.{name}", None)
    return importlib.import_module(f"tests.hosts.{name}")


def _start(host: Any, stack: ExitStack, folder: Path, *stores: Any) -> Flask:
    """Make the app, and its tables where it leaves that to Flask-Migrate."""
    app: Flask = host.create_app(*stores)
    stack.callback(host.engine(app).dispose)
    if "db" in app.cli.commands:
        for command in ("migrate", "upgrade") if folder.exists() else ("init", "migrate", "upgrade"):
            done = app.test_cli_runner().invoke(args=["db", command, "--directory", f"{folder}"])
            assert done.exit_code == 0, done.output
    return app


def _pages(app: Flask, id: str) -> list[Any]:
    """Use the app's own pages; their answers are equal if what they did is."""
    browser = app.test_client()
    answers = []
    for name in ("Acme Ltd", "Acme"):
        form = {"id": id, "name": name, "csrf_token": _token(browser.get("/save").text)}
        answers += [browser.post("/save", data=form), browser.get("/")]
    answers += [browser.post("/save"), browser.get("/nowhere"), browser.delete("/")]
    return [(answer.status_code, dict(answer.headers), answer.text) for answer in answers]


def _token(page: str) -> str:
    """Return the token that Flask-WTF has put into a form, if it has."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    return found[1] if found else ""


# Flask-Migrate's own env.py calls it.
@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in IDS if name != "continuum"])
def test_the_package_works_in_the_app_and_leaves_its_pages_as_they_were(
    name: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Alembic's env.py would disable the loggers of all later tests.
    monkeypatch.setattr("logging.config.fileConfig", lambda *_, **__: None)
    assert walk(name, database_url, tmp_path / "migrations") == STORY | {"versions": VERSIONS.get(name)}


def test_the_package_works_beside_continuum_which_keeps_each_version(
    database_url: str, tmp_path: Path
) -> None:
    # A process of its own, as the app says; there, too, a warning is an error.
    warnings_are_errors: Any = {"initializer": warnings.simplefilter, "initargs": ("error",)}
    with ProcessPoolExecutor(1, get_context("spawn"), **warnings_are_errors) as process:
        told = process.submit(walk, "continuum", database_url, tmp_path / "migrations").result()
    assert told == STORY | {"versions": VERSIONS["continuum"]}


@pytest.mark.parametrize("query", ["", "?hard=true"], ids=["soft", "hard"])
def test_the_recipes_version_goes_back_with_the_change(query: str, database_url: str, tmp_path: Path) -> None:
    host, written = _fresh("scoped_session"), list[int]()
    with ExitStack() as stack:
        browser = _start(host, stack, tmp_path, database_url, MemoryStore()).test_client()
        browser.post("/save", data={"id": "ACME", "name": "Acme"})
        sa.event.listen(host.session, "after_flush", lambda flushed, _: written.append(len(flushed.new)))
        sa.event.listen(host.session, "before_commit", lambda _: 1 / 0)
        assert browser.delete(f"/api/v1/clients/ACME{query}", headers=HEADERS).status_code == 500
        assert written == [1]
        assert [row["active"] for row in browser.get("/").json] == [True]
        assert browser.get("/versions").json == []


class TestWhatTheReadmeSaysOfOtherGuards:
    @pytest.fixture
    def host(self, empty_database: Callable[[str], str]) -> Iterator[Host]:
        """A host with a form of its own."""
        with mounting(empty_database("sqlite"), MemoryStore()) as mount:
            host = mount(config={"SECRET_KEY": "of the tests"})
            host.add(id="acme")
            host.flask.add_url_rule("/form", view_func=lambda: "sent", methods=["POST"])
            yield host

    @pytest.mark.parametrize("line", [True, False], ids=["with the line", "without the line"])
    def test_a_csrf_guard_that_is_initialised_later_needs_the_line(self, host: Host, line: bool) -> None:
        csrf = CSRFProtect()
        csrf.init_app(host.flask)
        if line:
            csrf.exempt(host.flask.blueprints["mythic_clients"])
        statuses = [host.delete("acme", key=key).status_code for key in (None, ADMIN_KEY)]
        assert statuses == ([401, 200] if line else [400, 400])
        assert "The CSRF token is missing" in host.flask.test_client().post("/form").text

    @pytest.mark.parametrize("lines", [True, False], ids=["with the lines", "without the lines"])
    def test_a_guard_on_every_request_needs_the_lines(self, host: Host, lines: bool) -> None:
        @host.flask.before_request
        def require_login() -> Any:
            if lines and request.blueprint == "mythic_clients":
                return None
            return None if "user" in session else redirect("/login")

        statuses = [host.delete("acme", key=key).status_code for key in (None, ADMIN_KEY)]
        assert statuses == ([401, 200] if lines else [302, 302])
        browser = host.flask.test_client()
        assert [browser.post(path).status_code for path in ("/form", "/api/v1/clients/acme")] == [302, 302]
