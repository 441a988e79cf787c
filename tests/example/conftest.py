"""The example server, run as its user runs it: a process of its own, in a folder of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[2]


class Example:
    """A folder with the example in it, and what runs there."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.url = ""
        self.output = ""
        self.key = ""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DATABASE_URL", "REDIS_URL") and not name.startswith(("MYTHIC_", "FLASK_"))
        }
        self.environment = inherited | {"PYTHONUNBUFFERED": "1"} | environment
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the server on a free port, and read what it prints until it serves."""
        self.process = self.spawn(sys.executable, "-m", "example_app", "--port", "0")
        lines = []
        for line in self.process.stdout or ():
            lines.append(line)
            if serving := re.match(r"Serving on (\S+);", line):
                self.url = serving[1]
                break
        self.output = "".join(lines)
        assert self.url, self.output
        if key := re.search(r"^  (mythic_\S+)$", self.output, re.MULTILINE):
            self.key = key[1]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        """Stop what runs; return the rest of its output."""
        assert self.process is not None
        self.process.send_signal(how)
        # A worker that is told to end while it starts is waited for by gunicorn for 30 seconds, then killed.
        rest, _ = self.process.communicate(timeout=45)
        self.process = None
        return rest

    def spawn(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command in the folder."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command in the folder to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | {"ADMIN_KEY": self.key},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    def flask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the package, beside the server."""
        return self.run(sys.executable, "-m", "flask", "--app", "example_app", "mythic-clients", *arguments)

    def get(self, client_id: str) -> requests.Response:
        """Read a client through the example's own route."""
        return requests.get(f"{self.url}/api/v1/clients/{client_id}", timeout=10)

    def delete(self, client_id: str, hard: bool = False) -> requests.Response:
        """Delete a client."""
        return requests.delete(
            f"{self.url}/api/v1/clients/{client_id}",
            params={"hard": "true"} if hard else None,
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
            timeout=10,
        )


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    """The example on embedded stores, not yet started."""
    shutil.copytree(ROOT / "example_app", tmp_path / "example_app")
    example = Example(tmp_path)
    yield example
    if example.process is not None:
        example.stop()


@pytest.fixture
def server(example: Example) -> Example:
    """The example on embedded stores, serving."""
    example.start()
    return example
