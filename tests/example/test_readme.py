"""Every code block of the README and of the guide's pages does what it says."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.config import Settings
from flask_mythic_clients.rights import Route

from ..documents import GUIDE, ROOT, blocks
from ..hosts import KeyValue
from .conftest import Example

PREFIX = "MYTHIC_CLIENTS_"


CALLERS = {
    # tool, language, what tells the block, file name, command
    "curl": ("curl", "sh", "curl", "call.sh", ["sh"]),
    "requests": (sys.executable, "python", "import requests", "call.py", [sys.executable]),
    "fetch": ("node", "javascript", "fetch", "call.mjs", ["node"]),
    "go": ("go", "go", "net/http", "call.go", ["go", "run"]),
    "ruby": ("ruby", "ruby", "Net::HTTP", "call.rb", ["ruby"]),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_a_documented_caller_deletes_for_good(caller: str, server: Example) -> None:
    assert _call(caller, server, restores=False) == "{success:true,deleted:true,hard:true}"
    assert server.get("demo-1").status_code == 404


@pytest.mark.parametrize("caller", CALLERS)
def test_a_documented_caller_restores(caller: str, example: Example) -> None:
    example.environment["MYTHIC_CLIENTS_ROUTES"] = "delete,restore"
    example.start()
    assert example.delete("demo-1").status_code == 200
    assert _call(caller, example, restores=True) == "{success:true,restored:true}"
    assert example.get("demo-1").json()["status"] is True


def _call(caller: str, server: Example, *, restores: bool) -> str:
    """Run the README's call in a language; return what it prints, which each does in its own way."""
    tool, language, mark, name, command = CALLERS[caller]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed, so the {caller} example cannot run.")
    [text] = [text for text in blocks(GUIDE, language, mark) if ("/restore" in text) is restores]
    (server.folder / name).write_text(text.replace("http://127.0.0.1:8000", server.url))
    server.environment["GOCACHE"] = str(server.folder / "go-cache")
    called = server.run(*command, name)
    assert called.returncode == 0, called
    return re.sub(r"[\s'\"]", "", called.stdout).lower()


def test_the_python_blocks_run_in_their_order(
    tmp_path: Path,
    empty_kv: Callable[[str], KeyValue],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kv, key = empty_kv("either"), create_key()
    monkeypatch.setenv("MYTHIC_CLIENTS_ADMIN_KEYS", f"ops={digest(key)}")
    mount, *others = [text for text in blocks(GUIDE, "python") if "import requests" not in text]
    # A block may make its own `clients`, so each starts from the first block anew.
    for text in ["", *others]:
        names: dict[str, Any] = {"__name__": "app", "my_secret_manager": lambda: {key}}
        source = f"{mount}\n{text}".replace("redis://localhost:6379/0", kv.url or "")
        source = source.replace("sqlite:///accounts.db", f"sqlite:///{tmp_path / 'accounts.db'}")
        if "entries=entries" in text:
            source = re.sub(r".*MYTHIC_CLIENTS_KV_KEYS.*\n", "", source)
        exec(compile(source, "README.md", "exec"), names)
        _delete_an_account(names, key, kv)
        if "close_account" in text:
            with names["app"].app_context():
                assert names["close_account"]("nobody", "ops") == "There is no account nobody."
        if "test_a_closed_account" in text:
            names["test_a_closed_account_has_left_the_cache"]()
        if "mount_organizations" in text:
            app = names["create_app"]()
            names["mount_organizations"](app)
            assert app.test_client().delete("/api/v1/organizations/7").status_code == 401
        if "tell_billing" in text:
            assert "acme was removed by ops" in caplog.text
        if "verify_key" in text:
            assert [names["verify_key"](token) for token in (key, "wrong")] == ["ops", None]
        if "publish" in text:
            app = names["create_app"]()  # a new one: after its first request an app takes no more routes
            names["publish"](app)
            assert list(app.test_client().get("/openapi.json").json["paths"]) == ["/api/v1/clients/{id}"]
        if "mount_docs" in text:
            app = names["create_app"]()
            names["mount_docs"](app)
            assert "/api/v1/clients/{id}" in app.test_client().get("/internal/docs").text
        if "limit_guesses" in text:
            app = names["create_app"]()
            names["limit_guesses"](app)
            statuses = [app.test_client().delete("/api/v1/clients/x").status_code for _ in range(31)]
            assert statuses == [401] * 30 + [429]
        names["clients"]._kv.close()


def _delete_an_account(names: dict[str, Any], key: str, kv: KeyValue) -> None:
    app, db = names["create_app"](names["clients"]), names["db"]
    app.logger.setLevel("INFO")
    names["app"] = app
    with app.app_context():
        db.drop_all()
        db.create_all()
        db.session.add(names["Account"](number="acme", name="Acme"))
        db.session.commit()
        kv.raw.set("account:acme", "cached")
        answer = app.test_client().delete(
            "/api/v1/clients/acme?hard=true", headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 200, answer.data
        assert kv.raw.get("account:acme") is None
        db.session.remove()
        db.engine.dispose()


def test_the_config_table_is_that_of_the_settings() -> None:
    rows = re.findall(rf"^\| `({PREFIX}\w+)` \| `(.*?)` \|", GUIDE, re.MULTILINE)
    defaults = Settings()
    shown = {
        "admin_keys": lambda value: str(dict(value)),
        "kv_keys": lambda value: str(list(value)).replace("'", '"'),
        "routes": lambda value: str(list(map(str, value))).replace("'", '"'),
        "verify_after": lambda value: str(round(value.total_seconds())),
        "keys_kept": lambda value: str(round(value.total_seconds())),
    }
    expected = [
        (f"{PREFIX}{field.name.upper()}", shown.get(field.name, str)(getattr(defaults, field.name)))
        for field in dataclasses.fields(Settings)
    ]
    assert rows == expected


def test_every_command_of_the_readme_exists_and_no_other(server: Example) -> None:
    documented = re.findall(r"flask --app app mythic-clients (\S+)", "\n".join(blocks(GUIDE, "sh")))
    listed = re.findall(
        r"^  ([a-z-]+)  ", server.flask("--help").stdout.partition("Commands:")[2], re.MULTILINE
    )
    assert sorted(set(documented)) == sorted(listed)


# All in one process: the start of Python would be most of it.
RUN = """
import json, sys
from example_app import create_app
runner = create_app().test_cli_runner()
ran = [runner.invoke(args=["mythic-clients", *words]) for words in json.loads(sys.argv[1])]
print(json.dumps([(each.exit_code, each.output) for each in ran]))
"""


def test_the_commands_of_the_readme_run(server: Example) -> None:
    """In their order, each with the README's words; what asks is answered."""
    [text] = blocks(GUIDE, "sh", "mythic-clients history")
    server.delete("demo-1")
    commands = []
    for line in text.splitlines():
        arguments = line.split("#")[0].split("mythic-clients ")[1].strip()
        arguments = arguments.replace("ID...", "demo-1").replace("ID", "demo-2").replace("NAME", "ops")
        commands.append(shlex.split(arguments))
    ran = server.run(sys.executable, "-c", RUN, json.dumps(commands))
    assert ran.returncode == 0, ran
    # Nobody is there to type the id, so the hard delete is refused.
    refused = (["delete", "--hard", "demo-1"], ["history", "--receipt", "demo-2"])
    for words, (code, output) in zip(commands, json.loads(ran.stdout), strict=True):
        assert code == (1 if words in refused else 0), (words, output)
    assert server.get("demo-1").json()["status"] is True


def test_the_table_of_answers_is_the_servers(server: Example) -> None:
    rows = dict(re.findall(r"^\| .* \| (\d{3}) \| `(\{.*\})` \|$", GUIDE, re.MULTILINE))
    bodies = re.findall(r"^\| .* \| \d{3} \| `(\{.*\})` \|$", GUIDE, re.MULTILINE)
    soft, hard = server.delete("demo-1"), server.delete("demo-1", hard=True)
    assert [soft.text, hard.text] == bodies[:2]
    assert server.delete("demo-1").text == rows["404"]
    assert requests.delete(f"{server.url}/api/v1/clients/demo-1", timeout=10).text == rows["401"]


def test_the_table_of_more_routes_is_the_servers(example: Example) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+) \{prefix\}([^`[]*)[^`]*` \| `(\{.*?\})`", GUIDE, re.MULTILINE)
    names = [name for name, *_ in rows]
    assert names == [route.value for route in Route if route is not Route.DELETE]
    example.environment["MYTHIC_CLIENTS_ROUTES"] = ",".join(["delete", *names])
    example.start()
    example.delete("demo-1")
    for name, method, path, body in rows:
        url = f"{example.url}/api/v1{path.format(id='demo-1')}"
        headers = {"Authorization": f"Bearer {example.key}"}
        answer = requests.request(method, url, headers=headers, timeout=10)
        assert (answer.status_code, name) == (200, name)
        assert list(answer.json()) == re.findall(r'"(\w+)":', body)


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z0-9.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test", "clean"} <= set(targets)
    assert set(re.findall(r"^`?make ([a-z-]+)", GUIDE, re.MULTILINE)) <= set(targets)
