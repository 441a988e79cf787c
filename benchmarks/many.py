"""`python -m benchmarks.many`: many clients a second, beside bare SQL, and a loop over the ORM."""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_mythic_clients import MythicClients
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Result

from . import machine, stores
from .figures import ratios, spread
from .processes import ROOT

OUT = ROOT / "build" / "benchmarks"
_NAME = "many"
_AT_ONCE = 500
_OF_THE_LOOP = 10  # it does a part of the work, for it is slow

_REMOVE = sa.text(
    "WITH gone AS (DELETE FROM clients WHERE id = ANY(:ids) RETURNING id)"
    " INSERT INTO client_deletions (client_id, action, actor, kv_keys, requested_at)"
    " SELECT id, 'hard', 'bench', json_build_array('client:' || id), now() FROM gone"
)
_STAMP = sa.text(
    "UPDATE client_deletions SET settled_at = now() WHERE client_id = ANY(:ids) AND settled_at IS NULL"
)

Base: Any = type("Base", (DeclarativeBase,), {})


class Client(Base):
    """A client with one entry, `client:{id}`."""

    __tablename__ = "clients"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    status: Mapped[bool]


@dataclass(frozen=True)
class Done:
    """How many a second in a round; `left` are rows and entries that should be gone, or back, and are not."""

    round: int
    name: str
    a_second: float
    left: int


class Bench:
    """Clients in a database and a key-value store, the package mounted on both."""

    def __init__(self, url: sa.URL, redis_url: str, number: int) -> None:
        self.engine = sa.create_engine(url)
        self.store = redis.Redis.from_url(redis_url)
        self.ids = [f"c{index:08}" for index in range(number)]
        self._app = Flask("host")
        self._app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {"ops": "sha256:" + "0" * 64}
        self._app.config["MYTHIC_CLIENTS_VERIFY_AFTER"] = 0
        repository = SQLAlchemyRepository(self.engine, Client)
        self._clients = MythicClients(self._app, repository=repository, kv=RedisStore.from_url(redis_url))
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)

    @contextmanager
    def service(self) -> Iterator[Any]:
        """Give the package's service."""
        with self._app.app_context():
            yield self._clients.service

    def fill(self, *, active: bool) -> None:
        """Make all clients anew, with their entries; none of them recorded."""
        self.store.flushdb()
        with self.engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(sa.delete(table))
            rows = [{"id": id, "status": active} for id in self.ids]
            for at in range(0, len(rows), 10_000):
                connection.execute(sa.insert(Client), rows[at : at + 10_000])
        pipeline = self.store.pipeline(transaction=False)
        for id in self.ids:
            pipeline.set(f"client:{id}", "x")
        pipeline.execute()
        self.settle_down()

    def settle_down(self) -> None:
        """Let the database know its tables, as it would in a minute, so that it does so in no phase."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")

    def left(self) -> int:
        """Count rows and entries."""
        with self.engine.connect() as connection:
            rows = connection.scalar(sa.select(sa.func.count()).select_from(Client)) or 0
        return int(rows) + sum(1 for _ in self.store.scan_iter("client:*", count=10_000))

    def bare(self) -> int:
        """Do the same work by arrays and a pipeline: remove and record, then the entries, then the stamp."""
        for at in range(0, len(self.ids), _AT_ONCE):
            some = self.ids[at : at + _AT_ONCE]
            with self.engine.begin() as connection:
                connection.execute(_REMOVE, {"ids": some})
            pipeline = self.store.pipeline(transaction=False)
            for id in some:
                pipeline.unlink(f"client:{id}")
            pipeline.execute()
            with self.engine.begin() as connection:
                connection.execute(_STAMP, {"ids": some})
        return len(self.ids)

    def loop(self) -> int:
        """Remove some by a loop over the ORM: get, delete, commit, remove the entry."""
        some = self.ids[: len(self.ids) // _OF_THE_LOOP]
        with Session(self.engine) as session:
            for id in some:
                session.delete(session.get_one(Client, id))
                session.commit()
                self.store.delete(f"client:{id}")
        return len(some)


def main() -> int:
    """Measure; return 1 where something was left undone."""
    options = _options()
    described, done = machine.describe(), list[Done]()
    with stores.started("postgresql") as found:
        bench = Bench(found.create_database(_NAME), found.redis.url, options.clients)
        for number in range(options.rounds):
            done += _round(bench, number)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        bench.engine.dispose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    text = _text(described, done, options.clients, peak)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "many.txt").write_text(text)
    whole = {
        "machine": described,
        "clients": options.clients,
        "peak_mb": peak,
        "done": list(map(asdict, done)),
    }
    (options.out / "many.json").write_text(json.dumps(whole, indent=1) + "\n")
    return 1 if any(each.left for each in done) else 0


def _round(bench: Bench, number: int) -> Iterator[Done]:
    total = len(bench.ids)

    def timed(name: str, act: Callable[[], int], left: Callable[[int], int]) -> Done:
        began = time.perf_counter()
        count = act()
        a_second = count / (time.perf_counter() - began)
        return Done(number, name, a_second, left(count))

    def gone(count: int) -> int:
        return bench.left() - 2 * (total - count)

    bench.fill(active=False)
    yield timed("loop over the ORM", bench.loop, gone)
    bench.fill(active=False)
    yield timed("bare SQL", bench.bare, gone)
    bench.fill(active=False)
    with bench.service() as service:
        everybody = {"older_than": timedelta(0), "include_unrecorded": True, "actor": "bench"}
        yield timed("purge", lambda: _count(service.purge(**everybody)), gone)
        bench.settle_down()
        exported = list(service.records())
        bench.fill(active=True)  # as a backup that knows of nothing
        yield timed("replay", lambda: _count(service.replay(exported)), gone)
        for _ in range(2):  # the mark of the first is older than what it verifies
            service.reconcile()
        bench.settle_down()
        yield timed(
            "forget", lambda: sum(service.forget(older_than=timedelta(0))), lambda count: total - count
        )


def _count(outcomes: Any) -> int:
    return sum(outcome.result is Result.DONE for outcome in outcomes)


def _text(described: Any, done: list[Done], clients: int, peak: float) -> str:
    lines = [
        f"{described['cpu']}, {described['cores']} cores, {described['file_system']}; "
        f"Python {described['python']}; load before: {described['load_before']:.1f}",
        f"{clients} clients, PostgreSQL, Redis; medians, of the ratios with quartiles; peak {peak:.0f} MiB",
        "",
        f"{'':<20}{'a second':>10}  × loop over the ORM     × bare SQL",
    ]
    for name in dict.fromkeys(each.name for each in done):
        own = {each.round: each.a_second for each in done if each.name == name}
        told = [f"{name:<20}{spread(list(own.values())).median:>10.0f}"]
        for base in ("loop over the ORM", "bare SQL"):
            found = ratios(own, {each.round: each.a_second for each in done if each.name == base})
            told.append(f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})" if found else "")
        left = sum(each.left for each in done if each.name == name)
        lines.append(
            f"{told[0]}  {told[1]:<22}  {told[2]}{f'  LEFT UNDONE: {left}' if left else ''}".rstrip()
        )
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    parser.add_argument("--clients", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the files (build/benchmarks)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
