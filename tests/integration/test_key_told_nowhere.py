"""The admin key is told nowhere, however much is logged: a search for it, and for every part of it."""

import gc
import logging
import pprint
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from werkzeug.serving import make_server

from flask_mythic_clients import client_soft_deleted
from flask_mythic_clients.auth import AdminKeys, create_key, digest
from flask_mythic_clients.config import Settings
from tests.hosts import ADMIN_KEY, Host, KeyValue, mounting

from .scene import AWAY, Tap

PART = 10  # characters; so many of a key in a row do not occur by chance
SECRET = ADMIN_KEY.removeprefix("mythic_")
NEARLY = ADMIN_KEY[:-1] + ("0" if ADMIN_KEY[-1] != "0" else "1")  # a slip of the pen tells the key as well
WRONG = (NEARLY, ADMIN_KEY[:-5], f"{ADMIN_KEY}=", f"token={ADMIN_KEY}", ADMIN_KEY.upper(), f"{ADMIN_KEY}\xfc")
COMMANDS = ("list", "status", "history acme", "reconcile", "delete globex", "restore absent")
LOGGERS = ("host", "werkzeug", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "redis")
SIGNS = (  # of all that happens; without them the search would mean nothing
    *(
        "DELETE /api/v1/clients/acme",
        "INSERT INTO client_deletions",
        "DROP TABLE client_deletions",
        "'tests'",
    ),
    *("503: ", "Connection refused", "Traceback", "the host's function failed", "the secret manager is away"),
)


def parts_found(text: str) -> set[str]:
    """Return the parts of the key that the text holds; in any case."""
    parts = {SECRET[at : at + PART].lower() for at in range(len(SECRET) - PART + 1)}
    return {part for part in parts if part in text.lower()}


def test_a_part_of_the_key_would_be_found() -> None:
    assert parts_found(f"a token ending in {ADMIN_KEY[-12:]}")
    assert parts_found(SECRET[5:15].upper())
    assert not parts_found(f"{digest(ADMIN_KEY)} {create_key()}")


def confused(token: str) -> str | None:
    """Verify keys as a host does whose secret manager is away."""
    if token == ADMIN_KEY:
        raise RuntimeError("the secret manager is away")
    return None


@pytest.fixture
def kv(empty_kv: Callable[[str], KeyValue]) -> KeyValue:
    return empty_kv("either")


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture) -> None:
    """Everybody logs all there is; SQLAlchemy with its parameters and rows, as under `echo="debug"`."""
    caplog.set_level(logging.DEBUG)
    for name in {*LOGGERS, *logging.root.manager.loggerDict}:
        caplog.set_level(logging.DEBUG, logger=name)


@pytest.fixture
def mount(database_url: str, kv: KeyValue) -> Iterator[Callable[..., Host]]:
    config = {"DEBUG": True, "PROPAGATE_EXCEPTIONS": False}
    with mounting(database_url) as mount:
        yield lambda store, **options: mount(store, config=config, **options)


@contextmanager
def serving(host: Host) -> Iterator[int]:
    """Run the host on Werkzeug's own server, which has a log too; give its port."""
    server = make_server("127.0.0.1", 0, host.flask)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serve(host: Host, *requests: tuple[str, str]) -> list[int]:
    """Send requests, each a path and a key; return the statuses."""
    statuses = []
    with serving(host) as port:
        for path, key in requests:
            with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                headers = {"Authorization": f"Bearer {key}"}
                connection.request("DELETE", f"/api/v1/clients/{path}", headers=headers)
                response = connection.getresponse()
                assert parts_found(response.read().decode() + str(response.headers)) == set()
                statuses.append(response.status)
    return statuses


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("the host's function failed")


def test_the_key_is_in_no_log_and_no_output(
    loud: None,
    mount: Callable[..., Host],
    kv: KeyValue,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tap = Tap(kv.store)
    host = mount(tap)
    for id in ("acme", "globex"):
        host.add(id=id, name=id)
        kv.raw.set(f"client:{id}", "cached")
    with client_soft_deleted.connected_to(fail):
        paths = ("acme", "acme?hard=true", "acme", "a.b", "acme?hard=1")
        assert serve(host, *((path, ADMIN_KEY) for path in paths)) == [200, 200, 404, 400, 400]
    assert set(serve(host, *(("globex", key) for key in WRONG))) == {401}
    tap.store = AWAY
    assert serve(host, ("globex", ADMIN_KEY)) == [503]
    tap.store = kv.store
    output = "".join(run(host, command) for command in COMMANDS)
    with host.flask.app_context():
        host.db.metadata.tables["client_deletions"].drop(host.db.engine)
    assert serve(host, ("globex", ADMIN_KEY)) == [503]
    output += run(host, "status")

    lost = mount(kv.store, verify_key=confused)
    assert serve(lost, ("acme", ADMIN_KEY), ("acme", NEARLY)) == [500, 401]
    broken = mount(kv.store, entries=fail)
    broken.add(id="broken", name="broken")
    assert serve(broken, ("broken?hard=true", ADMIN_KEY)) == [500]
    unhandled = mount(AWAY)
    unhandled.flask.error_handler_spec.pop("mythic_clients")  # so that its errors are logged, cause and all
    unhandled.add(id="away", name="away")
    assert serve(unhandled, ("away", ADMIN_KEY)) == [500]

    told = caplog.text + "".join(capfd.readouterr()) + output
    assert [sign for sign in SIGNS if sign not in told] == []
    assert parts_found(told) == set()


def run(host: Host, command: str) -> str:
    result = host.flask.test_cli_runner().invoke(args=["mythic-clients", *command.split()])
    return result.output + result.stderr


@pytest.mark.server
def test_the_key_is_in_no_store(mount: Callable[..., Host], kv: KeyValue) -> None:
    host = mount(kv.store)
    host.add(id="acme", name="Acme")
    kv.raw.set("client:acme", "cached")
    assert serve(host, ("acme", ADMIN_KEY), ("acme", NEARLY)) == [200, 401]
    rows = ""
    with host.flask.app_context(), host.db.engine.connect() as connection:
        for table in host.db.metadata.sorted_tables:
            rows += repr(connection.execute(host.db.select(table)).all())
    assert "tests" in rows  # the actor
    entries = [(key, kv.raw.get(key)) for key in kv.raw.scan_iter()]
    assert entries
    assert parts_found(rows + repr(entries)) == set()


def test_the_key_is_in_no_representation_and_kept_by_no_object(
    mount: Callable[..., Host], kv: KeyValue
) -> None:
    host = mount(kv.store)
    host.add(id="acme", name="Acme")
    answer = host.delete("acme")
    assert (answer.status_code, host.delete("acme", key=NEARLY).status_code) == (200, 401)
    app, service = host.flask, host.flask.extensions["mythic_clients"]
    shown: list[Any] = [
        *(host.clients, vars(host.clients), service, vars(service), kv.store, answer, answer.request),
        *(app, app.blueprints, app.extensions, app.cli.commands, app.view_functions, dict(app.config)),
        *(Settings.from_config(app.config), host.records("acme")),
    ]
    assert "sha256:" in pprint.pformat(shown)  # what is kept of the key
    assert parts_found(pprint.pformat(shown)) == set()

    kept = list(reachable(app))
    assert any(isinstance(each, AdminKeys) for each in kept)
    texts = [text for text in kept if isinstance(text, str | bytes)]
    assert digest(ADMIN_KEY) in texts
    assert [text for text in texts if parts_found(str(text))] == []


def reachable(root: object) -> Iterator[object]:
    """Give all objects that one keeps alive; not by way of modules or logs, where the tests keep the key."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        each = waiting.pop()
        yield each
        is_module = isinstance(each, dict) and "__builtins__" in each
        if is_module or isinstance(each, ModuleType | logging.Logger):
            continue
        for child in gc.get_referents(each):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
