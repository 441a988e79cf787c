"""The example under gunicorn, whose workers are forks: with --preload, of a master that has made the app."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import requests
import sqlalchemy as sa

from flask_mythic_clients.auth import create_key, digest

from ..hosts import KeyValue
from .conftest import Example

IDS = [f"c{number}" for number in range(24)]
AT_ONCE = 12
WORKERS = {"gthread": ["--worker-class", "gthread", "--threads", "8"], "gevent": ["--worker-class", "gevent"]}


def _insert(url: str, kv: KeyValue) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    rows = [{"id": id, "name": "", "status": True, "publishable_key": f"pk-{id}"} for id in IDS]
    clients = sa.table("clients", *map(sa.column, rows[0]))
    with engine.begin() as connection:
        connection.execute(sa.insert(clients), rows)
    for id in IDS:
        kv.raw.set(f"client:{id}", "cached")
        kv.raw.set(f"publishable_key:pk-{id}", id)


@pytest.mark.parametrize(
    ("database", "workers", "preload"),
    [
        *(
            (database, workers, True)
            for database in ("sqlite", "postgresql", "mariadb")
            for workers in WORKERS
        ),
        ("sqlite", "gevent", False),
        ("postgresql", "gthread", False),
    ],
)
def test_no_connection_and_no_lock_outlives_a_fork(
    example: Example,
    database: str,
    workers: str,
    preload: bool,
    empty_database: Callable[[str], str],
    empty_kv: Callable[[str], KeyValue],
) -> None:
    url, kv = empty_database(database), empty_kv("redis")
    example.environment |= {"DATABASE_URL": url, "REDIS_URL": kv.url or ""}
    example.key = create_key()
    example.environment["MYTHIC_CLIENTS_ADMIN_KEYS"] = f"ops={digest(example.key)}"
    options = [*WORKERS[workers], *(["--preload"] if preload else []), "--workers", "2"]
    command = [sys.executable, "-m", "gunicorn", *options, "--bind", "127.0.0.1:0"]
    example.process = example.spawn(*command, "example_app:create_app()")
    lines = []
    for line in example.process.stdout or ():
        lines.append(line)
        if "Listening at: " in line:
            example.url = line.split("Listening at: ")[1].split()[0]
        if "Booting worker" in line and example.url:
            break
    _wait_until_it_answers(example)
    _insert(url, kv)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for hard in (False, True):
            began = time.monotonic()
            # All of one client at once, too: equal requests take turns.
            answers = threads.map(partial(example.delete, hard=hard), [*IDS, *[IDS[0]] * 6])
            statuses = [answer.status_code for answer in answers]
            assert statuses[1 : len(IDS)] == [200] * (len(IDS) - 1), statuses
            assert set(statuses) <= {200, 404}, statuses
            assert time.monotonic() - began < 10
    assert [kv.raw.get(f"client:{id}") for id in IDS] == [None] * len(IDS)
    rest = example.stop()
    assert "Traceback" not in "".join(lines) + rest


def _wait_until_it_answers(example: Example) -> None:
    for _ in range(300):
        try:
            if example.get("demo-2").status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    pytest.fail(f"no answer: {example.stop()}")
