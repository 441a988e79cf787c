"""Beat sends the tasks, and a worker does their work."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from ..documents import SCHEDULERS, blocks
from ..example.conftest import ROOT
from .conftest import Deployed

SECONDS = 40  # by then both have started, and the tasks are done, also on a busy machine
OFTEN = """
from celery_tasks import celery

for name in ("reconcile", "purge", "forget"):
    celery.conf.beat_schedule[name]["schedule"] = 1
"""
EAGER = """
from celery.signals import task_retry
from celery_tasks import reconcile

retries = []
task_retry.connect(lambda **told: retries.append(told), weak=False)
done = reconcile.apply()
print(done.state, type(done.result).__name__, len(retries))
"""


@pytest.fixture
def broker(deployed: Deployed) -> Iterator[str]:
    """The URL of an empty database beside that of the entries."""
    pool = deployed.raw.connection_pool.connection_kwargs
    url = f"redis://{pool['host']}:{pool['port']}/1"
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
        yield url
        client.flushdb()


def test_a_worker_does_what_beat_sends(deployed: Deployed, broker: str) -> None:
    shutil.copy(ROOT / "deploy" / "celery_tasks.py", deployed.folder)
    (deployed.folder / "often.py").write_text(OFTEN)
    [text] = [text for text in blocks(SCHEDULERS, "sh") if "celery" in text]
    assert re.findall(r"export (\w+)=\S+/1$", text, re.MULTILINE) == ["CELERY_BROKER_URL"]
    worker, beat = (line.split() for line in text.splitlines() if line.startswith("celery "))
    beat = ["often" if word == "celery_tasks" else word for word in beat]
    commands = ("reconcile", "purge", "forget")
    assert not any(map(deployed.did, commands))
    with started(deployed, broker, worker, beat):
        deadline = time.monotonic() + SECONDS
        while not all(map(deployed.did, commands)) and time.monotonic() < deadline:
            time.sleep(0.2)
    logged = "".join(path.read_text() for path in deployed.folder.glob("*.log"))
    assert all(map(deployed.did, commands)), logged
    assert "Removed 1, failed 0." in logged
    assert "ERROR" not in logged
    with deployed.host.flask.app_context():
        assert deployed.host.clients.service.history("old")[-1].actor == "celery"


def test_a_task_that_meets_a_store_that_is_away_fails_and_is_not_tried_again(deployed: Deployed) -> None:
    shutil.copy(ROOT / "deploy" / "celery_tasks.py", deployed.folder)
    app = deployed.folder / "app.py"
    app.write_text(re.sub(r"redis://[^\"]+", "redis://127.0.0.1:1/0", app.read_text()))
    python = f"{deployed.folder}/.venv/bin/python"
    ran = deployed.run(python, "-c", EAGER, CELERY_BROKER_URL="memory://")
    assert ran.stdout.split() == ["FAILURE", "KeyValueStoreError", "0"], ran
    assert not deployed.did("reconcile")


@contextmanager
def started(deployed: Deployed, broker: str, *commands: list[str]) -> Iterator[None]:
    """Run commands of Celery beside each other, and end them."""
    environment = {"PATH": os.defpath, "CELERY_BROKER_URL": broker}
    processes = []
    try:
        for command in commands:
            with (deployed.folder / f"{command[3]}.log").open("wb") as log:
                program = f"{deployed.folder}/.venv/bin/{command[0]}"
                # A session of its own, to end the worker's children with it if it does not do so.
                process = subprocess.Popen(
                    [program, *command[1:]],
                    cwd=deployed.folder,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                processes.append(process)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
