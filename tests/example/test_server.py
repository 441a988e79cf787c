"""The quick start of the README, on embedded stores and on real servers."""

import json
import signal
import sys
import time
from collections.abc import Callable

import pytest
import requests

from flask_mythic_clients.auth import create_key, digest

from ..hosts import KeyValue
from .conftest import Example


def test_the_printed_key_and_curl_line_delete_a_demo_client(server: Example) -> None:
    assert server.get("demo-1").json() == {"id": "demo-1", "name": "Demo client 1", "status": True}
    line = next(line for line in server.output.splitlines() if "curl -X DELETE" in line)
    ran = server.run("sh", "-c", line)
    assert ran.stdout == '{"success": true, "deleted": true, "hard": false}', ran
    assert server.get("demo-1").json()["status"] is False
    assert server.get("demo-1").headers["X-Answered-From"] == "key-value store"


def test_a_hard_delete_leaves_nothing_in_either_store(server: Example) -> None:
    assert server.delete("demo-2", hard=True).json() == {"success": True, "deleted": True, "hard": True}
    assert server.get("demo-2").status_code == 404
    rows = json.loads(server.flask("list", "--json").stdout)
    assert [row["id"] for row in rows] == ["acme", "demo-1", "demo-3"]


def test_a_restart_loses_nothing_and_shows_no_key_again(server: Example) -> None:
    server.delete("demo-1")
    server.delete("demo-2", hard=True)
    key = server.key
    for how in (signal.SIGTERM, signal.SIGINT):
        server.stop(how)
        server.start()
        assert "mythic_" not in server.output
        assert server.key == key
        assert server.get("demo-1").json()["status"] is False
        assert server.get("demo-1").headers["X-Answered-From"] == "key-value store"
        assert server.get("demo-2").status_code == 404  # the demo clients are added once
        assert server.delete("demo-3").status_code == 200


def test_the_key_is_kept_nowhere(server: Example) -> None:
    server.delete("demo-1")
    rest = server.stop()
    assert server.key not in rest
    for file in server.folder.rglob("*"):
        if file.is_file() and not file.is_socket():
            assert server.key.encode() not in file.read_bytes(), file


def test_commands_beside_the_server_see_the_same_stores(server: Example) -> None:
    assert server.flask("delete", "demo-1").returncode == 0
    assert server.get("demo-1").json()["status"] is False
    assert server.flask("restore", "demo-1").returncode == 0
    assert server.get("demo-1").json()["status"] is True
    preview = json.loads(
        server.flask("delete", "demo-1", "--hard", "--dry-run", "--show-keys", "--json").stdout
    )
    assert preview["kv_keys"] == ["client:demo-1", "publishable_key:pk_demo_1"]
    assert server.flask("delete", "demo-1", "--hard", "--yes").returncode == 0
    assert server.get("demo-1").status_code == 404
    actions = [record["action"] for record in json.loads(server.flask("history", "demo-1", "--json").stdout)]
    assert actions == ["soft", "restore", "hard"]
    assert server.flask("status").returncode == 0


def test_a_command_without_the_server_does_not_claim_what_it_cannot_know(server: Example) -> None:
    server.stop()  # and with it the embedded key-value store
    deleted = server.flask("delete", "demo-1", "--hard", "--yes")
    assert deleted.returncode == 3, deleted
    assert server.flask("status").returncode == 1
    server.start()
    assert server.flask("reconcile").stdout == "settled 1, verified 0, failed 0\n"
    assert server.get("demo-1").status_code == 404


def test_every_setting_may_come_from_the_environment(example: Example) -> None:
    example.environment["MYTHIC_CLIENTS_HARD_DELETE"] = "deny"
    example.environment["MYTHIC_CLIENTS_RETRY_AFTER"] = "7"
    example.environment["MYTHIC_CLIENTS_KV_KEYS"] = "client:{id},publishable_key:{publishable_key}"
    example.start()
    answer = example.delete("demo-1", hard=True)
    assert (answer.status_code, answer.json()["message"]) == (
        409,
        "This service does not allow hard deletes.",
    )
    assert example.delete("demo-1").status_code == 200
    example.environment["MYTHIC_CLIENTS_RETRY"] = "7"
    refused = example.flask("list")
    assert refused.returncode != 0
    assert "MYTHIC_CLIENTS_RETRY is no setting" in refused.stderr


def test_a_long_instance_path_still_has_a_socket(example: Example) -> None:
    deep = example.folder / ("d" * 120)
    deep.mkdir()
    (example.folder / "example_app").rename(deep / "example_app")
    example.folder = deep
    example.start()
    assert example.delete("demo-1").status_code == 200


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_gunicorn_workers_start_at_once_on_an_empty_database(
    example: Example,
    database: str,
    empty_database: Callable[[str], str],
    empty_kv: Callable[[str], KeyValue],
) -> None:
    url = empty_database(database)
    # As a user writes it: without the driver's name.
    example.environment["DATABASE_URL"] = url.replace("+psycopg", "").replace("+pymysql", "")
    kv = empty_kv("either")
    example.environment["REDIS_URL"] = kv.url or ""
    example.key = create_key()
    example.environment["MYTHIC_CLIENTS_ADMIN_KEYS"] = f"ops={digest(example.key)}"
    example.process = example.spawn(
        *(
            sys.executable,
            "-m",
            "gunicorn",
            "--workers",
            "6",
            "--bind",
            "127.0.0.1:0",
            "example_app:create_app()",
        )
    )
    booted, lines = 0, []
    for line in example.process.stdout or ():
        lines.append(line)
        if "Listening at: " in line:
            example.url = line.split("Listening at: ")[1].split()[0]
        booted += "Booting worker" in line
        if booted == 6:
            break
    _wait_until_it_answers(example)
    assert example.delete("demo-1", hard=True).status_code == 200, lines
    assert kv.raw.get("client:demo-1") is None
    assert kv.raw.get("publishable_key:pk_demo_1") is None
    assert kv.raw.get("publishable_key:pk_demo_2") == "demo-2"
    time.sleep(0.5)  # for a worker that would fail late
    rest = example.stop()
    assert "Traceback" not in "".join(lines) + rest
    assert "Worker failed to boot" not in rest


def _wait_until_it_answers(example: Example) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if example.get("demo-2").status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    pytest.fail(f"no answer: {example.stop()}")
