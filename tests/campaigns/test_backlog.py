"""Campaign "backlog": four reconciles at once on a large backlog, and not everything lets them.

One of them is killed. One entry is refused by Redis, whose user here may not touch it; the host holds one
client's record and another one's row, all the time; and clients are deleted by requests meanwhile.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_mythic_clients import MythicClients
from flask_mythic_clients.backends.redis import RedisStore
from tests.hosts import KeyValue
from tests.integration.scene import KV_KEYS

from .host import REPOSITORIES, db, document
from .served import ROOT, Answer, Eyes, Load, Served, percentile, serve

pytestmark = pytest.mark.timed

PROCESSES = 4
DEFAULT = 12000
FULL = 200_000
PATIENCE = 780  # seconds in which a reconcile of the full size has ended
MEBIBYTES = 200

CONNECTIONS = 4
PAUSE = 0.02  # seconds before each request of a connection: a load, not a flood
# Seconds that a request may take. A small run is CI's, whose machines are slow for a moment now and then.
SLOWEST, SLOWEST_ANYWHERE = 2, 4

ROWS = """
INSERT INTO clients (id, name, publishable_key, status)
SELECT '{name}-' || n, '', 'pk-{name}-' || n, {status} FROM generate_series({first}, {last}, {step}) n
"""
# As an outage of Redis leaves them: rows and records are of now, entries are old.
RECORDS = """
INSERT INTO client_deletions (client_id, action, actor, kv_keys, requested_at)
SELECT name || n, action, 'campaign',
       json_build_array('client:' || name || n, 'publishable_key:pk-' || name || n), clock_timestamp()
FROM generate_series({first}, {last}, 2) m,
     LATERAL (VALUES (m, 'gone-', 'hard'), (m + 1, 'off-', 'soft')) one (n, name, action)
ORDER BY n
"""
# What was settled, as often as it was, and by whom: no process that was killed can tell.
NOTED = """
CREATE TABLE settlings (record bigint, by text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO settlings VALUES (NEW.id, current_setting('application_name'));
    RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER UPDATE ON client_deletions FOR EACH ROW
    WHEN (NEW.settled_at IS DISTINCT FROM OLD.settled_at) EXECUTE FUNCTION note()
"""
AT_ONCE = 10_000  # keys in a pipeline


@pytest.fixture
def eyes(empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]) -> Iterator[Eyes]:
    """PostgreSQL and Redis, where a user "clerk" is to be made; it is gone afterwards."""
    url = empty_kv("redis").url
    assert url is not None
    with closing(Eyes(empty_database("postgresql"), url)) as eyes:
        eyes.prepare()
        yield eyes
        eyes.redis.acl_deluser("clerk")


@dataclass
class Backlog:
    """The clients: those whose records are pending, and the living."""

    gone: Sequence[str]
    off: Sequence[str]
    asked: Sequence[str]
    never: Sequence[str]
    poison: str = "poison"

    @property
    def held_record(self) -> str:
        """The client whose record the host holds."""
        return self.off[len(self.off) // 3]

    @property
    def held_row(self) -> str:
        """The client whose row the host holds, which keeps nobody from settling its record."""
        return self.off[len(self.off) // 2]

    def __len__(self) -> int:
        return len(self.gone) + len(self.off) + 1


def fill(eyes: Eyes, count: int) -> Backlog:
    """Make both stores' clients, four pending ones for each that is asked for and each that is not."""
    last, half = count - 1, count // 4 * 2
    with eyes.engine.begin() as connection:
        run = connection.exec_driver_sql
        run(NOTED)
        run(ROWS.format(name="off", status=False, first=1, last=last, step=2))
        for name in ("asked", "never"):
            run(ROWS.format(name=name, status=True, first=1, last=count // 4, step=1))
        run(RECORDS.format(first=0, last=half - 1))
    eyes.leave(["poison"], "hard")  # in the middle
    with eyes.engine.begin() as connection:
        connection.exec_driver_sql(RECORDS.format(first=half, last=last))
    with eyes.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum has done it while the backlog grew
    backlog = Backlog(
        gone=[f"gone-{n}" for n in range(0, count, 2)],
        off=[f"off-{n}" for n in range(1, count, 2)],
        asked=[f"asked-{n}" for n in range(1, count // 4 + 1)],
        never=[f"never-{n}" for n in range(1, count // 4 + 1)],
    )
    ids = [*backlog.gone, *backlog.off, *backlog.asked, *backlog.never]
    for some in (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE)):
        entries = {f"client:{id}": document(id, True) for id in some}
        eyes.redis.mset(entries | {f"publishable_key:pk-{id}": id for id in some})
    eyes.ids += ids
    assert len(eyes.half_deleted()) == eyes.pending() == len(backlog)
    return backlog


def may_touch(eyes: Eyes, *documents: str) -> None:
    """Let the service's user of Redis touch these documents of clients, and no others."""
    keys = [*documents, "publishable_key:*", "mythic:*"]
    eyes.redis.acl_setuser("clerk", enabled=True, nopass=True, reset=True, categories=["+@all"], keys=keys)


def create_app() -> Flask:
    """Return the app of the reconciles: the campaigns' host has a store around Redis that keeps no mark."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    app.config["MYTHIC_CLIENTS_KV_KEYS"] = KV_KEYS
    db.init_app(app)
    MythicClients(app, repository=REPOSITORIES["clients"], kv=RedisStore.from_url(os.environ["REDIS_URL"]))
    return app


def mark(eyes: Eyes) -> str | None:
    """Return how far Redis remembers what was done."""
    redis: Any = eyes.redis
    found = redis.keys("mythic:clients:*:mark")
    return f"{redis.get(found[0])}" if found else None


class Reconcile:
    """One in a process of its own, under a name; what it used and said is there when it has ended."""

    def __init__(self, served: Served, name: str) -> None:
        self.name = name  # also its connection's in the database
        self.mebibytes = 0.0
        self.seconds = 0.0
        self.said = ""
        self.logged = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", __name__, "mythic-clients", "reconcile", "--json"],
            cwd=ROOT,
            env=served.environment | {"PGAPPNAME": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._watching = threading.Thread(target=self._watch, args=[time.monotonic()])
        self._watching.start()

    def finish(self) -> dict[str, Any]:
        """Wait for its end, and return what it has done; nothing of one that was killed."""
        self._watching.join()
        assert self.process.returncode in (0, 1, -signal.SIGKILL), self.logged
        done: dict[str, Any] = json.loads(self.said or "{}")
        return done

    def _watch(self, began: float) -> None:
        while True:
            self._look_at_memory()
            try:
                self.said, self.logged = self.process.communicate(timeout=0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() - began > PATIENCE:
                    self.process.kill()
                continue
            self.seconds = time.monotonic() - began
            return

    def _look_at_memory(self) -> None:
        # Not by getrusage, which begins with the memory of the process that was forked: this one's.
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
            self.mebibytes = int(peak[1]) / 1024


@contextmanager
def held_by_the_host(eyes: Eyes, backlog: Backlog) -> Iterator[sa.Connection]:
    """Hold a record and a row in a transaction of the host's."""
    with eyes.engine.connect() as host:
        for table, column, id in (
            ("clients", "id", backlog.held_row),
            ("client_deletions", "client_id", backlog.held_record),
        ):
            held = sa.text(f"SELECT id FROM {table} WHERE {column} = :id FOR UPDATE")
            assert len(host.scalars(held, {"id": id}).all()) == 1
        yield host


def start_at_once(eyes: Eyes, host: sa.Connection, served: Served) -> list[Reconcile]:
    """Start the four, each held back until all have come to the ledger."""
    line = host.begin_nested()
    host.execute(sa.text("LOCK TABLE client_deletions IN ACCESS EXCLUSIVE MODE"))
    reconciles = [Reconcile(served, f"reconcile {number}") for number in range(PROCESSES)]
    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    deadline = time.monotonic() + 60
    try:
        while _look(eyes, waiting) < PROCESSES:
            assert time.monotonic() < deadline, "Not all of them came to the ledger."
            time.sleep(0.02)
    finally:
        line.rollback()  # the table's lock alone: what was held before still is
    return reconciles


def kill_amid_a_page(eyes: Eyes, reconciles: Sequence[Reconcile], settled: int) -> Reconcile:
    """Kill one when so much is settled in all, while it holds records that it has stamped, not committed."""
    so_far = sa.text("SELECT count(*) FROM settlings")
    amid = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = :name AND state = 'idle in transaction' AND backend_xid IS NOT NULL"
    )
    while running := [each for each in reconciles if each.process.poll() is None]:
        for each in running if _look(eyes, so_far) >= settled else ():
            each.process.send_signal(signal.SIGSTOP)  # so that what is seen stays so
            if _look(eyes, amid, name=each.name):
                each.process.kill()
                return each
            each.process.send_signal(signal.SIGCONT)
        time.sleep(0.003)
    raise AssertionError("They came to their end before one could be killed.")


def _look(eyes: Eyes, query: sa.TextClause, **parameters: str) -> int:
    with eyes.engine.connect() as connection:
        return int(connection.scalar(query, parameters) or 0)


def unsettled(eyes: Eyes) -> list[str]:
    """Return the clients of the pending records."""
    c = eyes.ledger.c
    with eyes.engine.connect() as connection:
        return sorted(connection.scalars(sa.select(c.client_id).where(c.settled_at.is_(None))))


def settled_by(eyes: Eyes) -> "Counter[str]":
    """Count what each has settled."""
    with eyes.engine.connect() as connection:
        query = sa.text("SELECT by, count(*) FROM settlings GROUP BY by")
        return Counter(dict(map(tuple, connection.execute(query))))


def not_settled_once(eyes: Eyes) -> int:
    """Count the records that were settled twice; or never, though they seem to be."""
    query = """
    SELECT count(*) FROM (SELECT record, count(*) AS times FROM settlings GROUP BY record) noted
    FULL JOIN (SELECT id FROM client_deletions WHERE settled_at IS NOT NULL) settled ON record = id
    WHERE times IS DISTINCT FROM 1 OR id IS NULL
    """
    return _look(eyes, sa.text(query))


def check_answers(eyes: Eyes, answers: Sequence[Answer]) -> None:
    """Check that what was asked for is done, told as the contract says, and recorded once."""
    assert [answer for answer in answers if not answer.is_documented()] == []
    statuses, records = eyes.statuses(), eyes.records()
    seen = set[str]()
    for answer in sorted(answers, key=lambda answer: answer.status or 0):
        # A second hard delete finds nobody: there may be more time than clients.
        again = answer.client_id in seen and answer.action == "hard"
        assert answer.status == 200 or (again and answer.status == 404), answer
        seen.add(answer.client_id)
        assert statuses.get(answer.client_id) == {"soft": False, "hard": None}[answer.action]
        assert records[answer.client_id, answer.action] == 1


def check_untouched(eyes: Eyes, ids: Sequence[str]) -> None:
    """Check that nobody has touched these; their entries are checked with all the others'."""
    statuses = eyes.statuses()
    assert [id for id in ids if not statuses.get(id)] == []
    assert {id for id, _ in eyes.records()}.isdisjoint(ids)


def test_a_large_backlog_is_settled_but_for_what_is_refused_or_held(
    eyes: Eyes, size: Callable[[int], int], report: Callable[..., None]
) -> None:
    count = size(DEFAULT) // 4 * 4
    may_touch(eyes, *(f"client:{name}-*" for name in ("gone", "off", "asked", "never")))
    database_url, redis_url = eyes.urls
    with serve(database_url, redis_url.replace("redis://", "redis://clerk:x@"), threads=8) as served:
        # As it was before the outage: there is a mark, so not all of the ledger has to be done again.
        assert Reconcile(served, "first").finish()["failed"] == 0
        before = mark(eyes)
        assert before is not None
        backlog, numbers = fill(eyes, count), itertools.count()

        def plan() -> tuple[str, str]:
            time.sleep(PAUSE)
            number = next(numbers) % len(backlog.asked)
            return ("soft", "hard")[number % 2], backlog.asked[number]

        with held_by_the_host(eyes, backlog) as host:
            four = start_at_once(eyes, host, served)
            began = time.monotonic()
            with Load(served, CONNECTIONS, plan) as load:
                try:
                    victim = kill_amid_a_page(eyes, four, count // 8)
                finally:
                    done = [each.finish() for each in four]
            seconds = time.monotonic() - began
            left_by_the_four = len(unsettled(eyes))

            # A minute later, as it were. What the dead one held is free, if nobody has found it yet.
            next_minute = Reconcile(served, "next minute")
            done.append(next_minute.finish())
            left, half = unsettled(eyes), sorted(eyes.half_deleted())
        with eyes.engine.connect() as connection:
            c = eyes.ledger.c
            query = sa.select(c.attempts, c.last_error).where(c.client_id == backlog.poison)
            attempts, error = connection.execute(query).one()

        may_touch(eyes, "client:*")
        last = Reconcile(served, "last")
        done.append(last.finish())
        again = Reconcile(served, "again")
        done.append(again.finish())

    by = settled_by(eyes)
    processes = [*four, next_minute, last, again]
    times = [answer.seconds for answer in load.answers]
    report(
        pending=len(backlog),
        settled_by_each_of_four=[by[each.name] for each in four],
        settled_in_all=sum(by[each.name] for each in processes),
        verified_by_each=[each.get("verified") for each in done],
        failed_of_each=[each.get("failed") for each in done],
        left_by_the_four=left_by_the_four,
        left_in_the_next_minute=left,
        attempts_at_the_poison=attempts,
        not_settled_once=not_settled_once(eyes),
        half_deleted_at_last=len(eyes.half_deleted()),
    )
    report(
        seconds_of_the_four=round(seconds, 1),
        seconds_of_each=[round(each.seconds, 1) for each in processes],
        peak_MiB_of_each=[round(each.mebibytes) for each in processes],
        requests=len(load.answers),
        answers=dict(load.statuses()),
        seconds_p50_p99_max="/".join(f"{percentile(times, share):.2f}" for share in (0.5, 0.99, 1)),
    )
    assert victim.process.returncode == -signal.SIGKILL
    ended = [each.process.returncode for each in processes if each is not victim]
    assert ended == [1] * PROCESSES + [0, 0]
    assert done[PROCESSES]["failed"] >= 3  # those two, and whose row is held: it cannot be looked at again
    assert left == half == sorted([backlog.poison, backlog.held_record])
    assert attempts >= 1
    assert error == "redis.exceptions.NoPermissionError"
    assert (eyes.pending(), eyes.half_deleted(), not_settled_once(eyes)) == (0, [], 0)
    assert by["last"] == 2
    assert mark(eyes) != before
    check_answers(eyes, load.answers)
    check_untouched(eyes, backlog.never)
    assert max(times) < (SLOWEST if count >= FULL else SLOWEST_ANYWHERE)
    assert max(each.mebibytes for each in processes) < MEBIBYTES
