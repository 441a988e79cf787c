"""The console's routes, and what its switches do to the embedded store; in a browser: tests/browser."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from example_app.stores import connect
from flask_mythic_clients.auth import create_key, digest

from ..hosts import KeyValue
from .conftest import Example

ROUTES = [
    ("GET", "state"),
    ("POST", "reconcile"),
    ("POST", "unplug"),
    ("POST", "plug-in"),
    ("POST", "forget"),
]


def _call(example: Example, method: str, name: str, key: str | None = None) -> requests.Response:
    headers = {"Authorization": f"Bearer {key or example.key}"}
    return requests.request(method, f"{example.url}/console/{name}", headers=headers, timeout=15)


def _state(example: Example) -> dict[str, Any]:
    answer = _call(example, "GET", "state")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    return dict(answer.json())


def _valkeys(folder: Path) -> list[int]:
    """Return the processes that run in the folder's data."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == f"{folder / 'instance' / 'valkey'}":
                found.append(int(process.name))
        except OSError:
            pass
    return found


def test_the_address_is_printed_first(server: Example) -> None:
    assert server.output.splitlines()[0] == f"The console: {server.url}"


def test_a_port_in_use_makes_no_key(server: Example) -> None:
    server.stop()
    (server.folder / "instance" / "admin-keys.txt").unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = server.run(sys.executable, "-m", "example_app", "--port", f"{port}")
    assert ran.returncode == 1
    assert f"Port {port} is in use" in ran.stderr
    assert not (server.folder / "instance" / "admin-keys.txt").exists()


def test_the_page_asks_nothing_of_others(server: Example) -> None:
    page = requests.get(server.url, timeout=10)
    assert page.headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert not re.search(
        r"<style|<script(?! type=\"module\" src=\"/static/)|style=|\son\w+=|https?://", page.text
    )
    for file in re.findall(r'(?:href|src)="(.*?)"', page.text):
        assert requests.get(f"{server.url}{file}", timeout=10).status_code == 200


@pytest.mark.parametrize(("method", "name"), ROUTES)
def test_a_route_takes_a_key_that_may_do_everything(method: str, name: str, example: Example) -> None:
    example.key, limited = create_key(), create_key()
    keys = f"ops={digest(example.key)},reader={digest(limited)};may=preview+history"
    example.environment["MYTHIC_CLIENTS_ADMIN_KEYS"] = keys
    example.start()
    refused = _call(example, method, name, "mythic_wrong")
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (
        401,
        'Bearer realm="console", error="invalid_token"',
    )
    assert requests.request(method, f"{example.url}/console/{name}", timeout=10).status_code == 401
    assert _call(example, method, name, limited).status_code == 403
    assert _state(example)["switch"]["plugged"] is True
    assert _call(example, method, name).status_code == 200


def test_a_store_that_is_plugged_in_again_has_lost_nothing(server: Example) -> None:
    server.delete("demo-1")
    before = _state(server)["clients"]
    [process] = _valkeys(server.folder)
    for _ in range(2):  # a switch that is pressed twice does no more
        assert _call(server, "POST", "unplug").status_code == 200
    assert _valkeys(server.folder) == []
    assert _state(server)["away"]
    assert server.get("demo-1").headers["X-Answered-From"] == "database"
    for _ in range(2):
        assert _call(server, "POST", "plug-in").status_code == 200
    assert _valkeys(server.folder) != [process]
    assert _state(server)["clients"] == before
    assert server.get("demo-1").headers["X-Answered-From"] == "key-value store"


def test_a_store_confirms_what_its_file_has(server: Example) -> None:
    # On a busy disk the default, everysec, confirms up to two seconds before: a kill, or a copy, lost those.
    store = connect(f"unix://{server.folder / 'instance' / 'valkey.sock'}")
    assert store.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_store_that_died_by_itself_is_plugged_in(server: Example) -> None:
    [process] = _valkeys(server.folder)
    os.kill(process, signal.SIGKILL)
    time.sleep(0.2)
    assert _state(server)["switch"]["plugged"] is False
    assert _call(server, "POST", "plug-in").status_code == 200
    assert _state(server)["away"] is None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("unplugged", [False, True])
def test_nothing_outlives_the_server(how: signal.Signals, unplugged: bool, server: Example) -> None:
    _call(server, "POST", "forget")
    if unplugged:
        _call(server, "POST", "unplug")
    assert len(_valkeys(server.folder)) == (0 if unplugged else 1)
    assert "Traceback" not in server.stop(how)
    assert _valkeys(server.folder) == []
    server.start()
    assert _state(server)["switch"]["plugged"] is True


def test_a_store_that_a_killed_server_left_is_ended(server: Example) -> None:
    server.delete("demo-1")
    [left] = _valkeys(server.folder)
    server.stop(signal.SIGKILL)
    assert _valkeys(server.folder) == [left]
    server.start()
    assert left not in _valkeys(server.folder)
    assert server.get("demo-1").headers["X-Answered-From"] == "key-value store"
    assert _state(server)["switch"]["plugged"] is True
    server.stop()
    assert _valkeys(server.folder) == []


def test_a_second_server_leaves_the_store_of_the_first_alone(server: Example) -> None:
    second = Example(server.folder)
    second.key = server.key
    for unplugged in (False, True):
        if unplugged:
            _call(server, "POST", "unplug")
        second.start()
        assert _state(second)["switch"] is None
        assert _call(second, "POST", "unplug").status_code == 404
        assert bool(_state(second)["away"]) is unplugged
        second.stop()
        assert len(_valkeys(server.folder)) == (0 if unplugged else 1)
    _call(server, "POST", "plug-in")
    assert _state(server)["away"] is None


def test_what_a_deletion_left_pending_is_told_while_the_store_is_away(server: Example) -> None:
    _call(server, "POST", "unplug")
    assert server.delete("demo-2", hard=True).status_code == 503
    state = _state(server)
    assert state["pending"] == 1
    [gone] = [client for client in state["clients"] if client["row"] == "gone"]
    assert gone == {
        "id": "demo-2",
        "name": "Demo client 2",
        "row": "gone",
        "entries": [
            {"key": "client:demo-2", "value": None, "verdict": "unknown"},
            {"key": "publishable_key:pk_demo_2", "value": None, "verdict": "unknown"},
        ],
    }
    assert _call(server, "POST", "reconcile").status_code == 503
    _call(server, "POST", "plug-in")
    assert _call(server, "POST", "reconcile").json() == {
        "settled": 1,
        "verified": 0,
        "failed": 0,
        "blind": False,
    }


def test_stores_of_the_environment_have_no_switches_and_tell_no_keys(
    example: Example, empty_kv: Callable[[str], KeyValue]
) -> None:
    kv = empty_kv("either")
    example.environment["REDIS_URL"] = kv.url or ""
    example.start()
    assert 'role="switch"' not in requests.get(example.url, timeout=10).text
    for _, name in ROUTES[2:]:
        assert _call(example, "POST", name).status_code == 404
    state = _state(example)
    assert state["switch"] is None
    assert state["clients"][0]["entries"] == [
        {"key": "client:…", "value": None, "verdict": "agrees"},
        {"key": "publishable_key:…", "value": None, "verdict": "agrees"},
    ]


def test_a_database_of_the_environment_has_no_switches(example: Example) -> None:
    example.environment["DATABASE_URL"] = f"sqlite:///{example.folder / 'other.db'}"
    example.start()
    assert _state(example)["switch"] is None
    assert len(_valkeys(example.folder)) == 1
    example.stop()
    assert _valkeys(example.folder) == []
