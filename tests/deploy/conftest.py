"""An app in a folder, as a user deploys it, with something to do for each command that must run regularly."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_mythic_clients import MythicClients, StoreError
from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from ..documents import README, blocks
from ..hosts import Host, KeyValue

AWAY = RedisStore.from_url("redis://127.0.0.1:1/0", timeout=0.2)  # nobody listens on port 1
DAY = 24 * 3600


@dataclass(frozen=True)
class Deployed:
    """The README's app: `app.py`, `.venv` and `env`, and eyes on its stores.

    The removal of acme is pending, old was soft-deleted 40 days ago, and that of gone was verified long ago.
    """

    folder: Path
    key: str
    host: Host
    raw: Any
    app: Callable[..., Flask]
    """Makes the app once more, with further settings."""

    def run(self, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the folder, with little of an environment, as a scheduler has it."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={"PATH": os.defpath, "HOME": f"{self.folder}", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def placed(self, text: str) -> str:
        """Return a text of the documentation with the paths of this folder in place of its own."""
        moved = {"/srv/app": "", "/etc/mythic-clients.env": "/mythic-clients.env", "/backup": "/backup"}
        for path, here in moved.items():
            text = text.replace(path, f"{self.folder}{here}")
        return text

    def did(self, command: str) -> bool:
        """Whether the command has done what there was for it."""
        with self.host.flask.app_context():
            service = self.host.clients.service
            match command:
                case "reconcile":
                    return self.raw.get("account:acme") is None and service.backlog().pending == 0
                case "purge":
                    return self.raw.get("account:old") is None and "old" not in self._accounts()
                case "forget":
                    return service.history("gone") == []
                case "export":
                    file = self.folder / "backup" / "deletions"
                    kept = file.read_text().splitlines() if file.exists() else ()
                    return {json.loads(line)["client_id"] for line in kept} >= {"acme", "old"}
        raise AssertionError(command)

    def _accounts(self) -> set[str]:
        return {row.number for row in self.host.rows()}


@pytest.fixture
def deployed(tmp_path: Path, empty_kv: Callable[[str], KeyValue]) -> Deployed:
    """The app on SQLite and a real Redis or Valkey."""
    kv = empty_kv("either")
    if kv.url is None:
        pytest.skip("A quick run starts no server.")
    key, keys = create_key(), "MYTHIC_CLIENTS_ADMIN_KEYS"
    source = blocks(README, "python")[0].replace("redis://localhost:6379/0", kv.url)
    source = source.replace("sqlite:///accounts.db", f"sqlite:///{tmp_path / 'accounts.db'}")
    (tmp_path / "app.py").write_text(source)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "env").write_text(f"export {keys}='ops={digest(key)}'\n")
    (tmp_path / "mythic-clients.env").write_text(f"{keys}=ops={digest(key)}\n")
    (tmp_path / "backup").mkdir()
    names: dict[str, Any] = {"__name__": "app"}
    exec(compile(source, "app.py", "exec"), names)
    host = _with_something_to_do(names, kv)

    def app(**settings: str) -> Flask:
        given = "    db.init_app(app)\n"
        more = f"    app.config.update({settings!r})\n{given}"
        again: dict[str, Any] = {"__name__": "app"}
        exec(compile(source.replace(given, more), "app.py", "exec"), again)
        made: Flask = again["create_app"]()
        return made

    return Deployed(tmp_path, key, host, kv.raw, app)


def _with_something_to_do(names: dict[str, Any], kv: KeyValue) -> Host:
    repository = SQLAlchemyRepository(names["db"], names["Account"], id="number", status="enabled")

    def mounted(store: Any) -> Host:
        clients = MythicClients(repository=repository, kv=store)
        return Host(names["create_app"](clients), names["db"], names["Account"], clients)

    host, with_store_away = mounted(kv.store), mounted(AWAY)
    with host.flask.app_context():
        names["db"].create_all()
    for number in ("acme", "old", "gone"):
        host.add(number=number, name=number.title())
        kv.raw.set(f"account:{number}", "cached")
    with host.flask.app_context():
        service = host.clients.service
        service.hard_delete("gone", actor="tests")
        host.let_time_pass(120)
        service.reconcile()
        host.let_time_pass(500 * DAY)
        service.soft_delete("old", actor="tests")
        host.let_time_pass(40 * DAY)
    with with_store_away.flask.app_context(), suppress(StoreError):
        with_store_away.clients.service.hard_delete("acme", actor="tests")
    return host
