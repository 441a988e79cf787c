"""`python -m benchmarks.many`: many clients a second, beside bare SQL, and a loop over the ORM."""

import argparse
import json
import pickle
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import redis
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_mythic_clients import MythicClients
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.many import batches
from flask_mythic_clients.model import DeletionRecord, Result
from flask_mythic_clients.options import seldom_collected

from . import machine, stores
from .figures import ratios, spread
from .processes import ROOT

OUT = ROOT / "build" / "benchmarks"
_NAME = "many"
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


class Knowing(type("Base", (DeclarativeBase,), {})):  # type: ignore[misc]
    """The same client, whose row knows what its entry says: so an audit has something to compare."""

    __tablename__ = "clients"
    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    status: Mapped[bool]

    def entry_values(self) -> dict[str, str]:
        """Name the entry, and its value."""
        return {f"client:{self.id}": "x"}


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
        self.number = number
        self._mounted = {model: self._mount(model, redis_url) for model in (Client, Knowing)}
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)

    def _mount(self, model: Any, redis_url: str) -> tuple[Flask, MythicClients]:
        app = Flask("host")
        app.config["MYTHIC_CLIENTS_ADMIN_KEYS"] = {"ops": "sha256:" + "0" * 64}
        app.config["MYTHIC_CLIENTS_VERIFY_AFTER"] = 0
        repository = SQLAlchemyRepository(self.engine, model)
        return app, MythicClients(app, repository=repository, kv=RedisStore.from_url(redis_url))

    @contextmanager
    def service(self, model: Any = Client) -> Iterator[Any]:
        """Give the package's service, as the commands have it."""
        app, clients = self._mounted[model]
        with app.app_context(), seldom_collected():  # as by a command
            yield clients.service

    def ids(self, number: int | None = None) -> Iterator[list[str]]:
        """Iterate over batches of all ids, or of so many: a list of all would be counted as memory."""
        return batches(f"c{index:08}" for index in range(number or self.number))

    def fill(self, *, active: bool) -> None:
        """Make all clients anew, with their entries; none of them recorded."""
        self.store.flushdb()
        with self.engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(sa.delete(table))
            for some in self.ids():
                connection.execute(sa.insert(Client), [{"id": id, "status": active} for id in some])
                pipeline = self.store.pipeline(transaction=False)
                for id in some:
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
        for some in self.ids():
            with self.engine.begin() as connection:
                connection.execute(_REMOVE, {"ids": some})
            pipeline = self.store.pipeline(transaction=False)
            for id in some:
                pipeline.unlink(f"client:{id}")
            pipeline.execute()
            with self.engine.begin() as connection:
                connection.execute(_STAMP, {"ids": some})
        return self.number

    def loop(self) -> int:
        """Remove some by a loop over the ORM: get, delete, commit, remove the entry."""
        number = self.number // _OF_THE_LOOP
        with Session(self.engine) as session:
            for id in chain.from_iterable(self.ids(number)):
                session.delete(session.get_one(Client, id))
                session.commit()
                self.store.delete(f"client:{id}")
        return number


def main() -> int:
    """Measure; return 1 where something was left undone."""
    options = _options()
    described, done = machine.describe(), list[Done]()
    # A phase takes minutes: so long no database goes without looking at its tables.
    with stores.started("postgresql", "-c", "autovacuum=on") as found:
        bench = Bench(found.create_database(_NAME), found.redis.url, options.clients)
        for number in range(options.rounds):
            done += _round(bench, number)
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
    total = bench.number

    def timed(name: str, act: Callable[[], int], left: Callable[[int], int]) -> Done:
        began = time.perf_counter()
        count = act()
        a_second = count / (time.perf_counter() - began)
        print(f"round {number + 1}, {name}: {a_second:.0f} a second", file=sys.stderr, flush=True)
        return Done(number, name, a_second, left(count))

    def gone(count: int) -> int:
        return bench.left() - 2 * (total - count)

    bench.fill(active=False)
    yield timed("loop over the ORM", bench.loop, gone)
    bench.fill(active=False)
    yield timed("bare SQL", bench.bare, gone)
    bench.fill(active=False)
    with bench.service() as service, TemporaryFile() as file:
        everybody = {"older_than": timedelta(0), "include_unrecorded": True, "actor": "bench"}
        yield timed("purge", lambda: _count(service.purge(**everybody)), gone)
        bench.settle_down()
        exported = _Exported(file, service.records())
        bench.fill(active=True)  # as a backup that knows of nothing
        with bench.service(Knowing) as knowing:
            looks = knowing.audit(min_age=timedelta())
            wrong = list[Any]()
            yield timed(
                "audit (keys)",
                lambda: sum(_keys(looks, wrong)),
                lambda count: 2 * total - count + len(wrong),
            )
        yield timed("replay", lambda: _count(service.replay(exported)), gone)
        for _ in range(2):  # the mark of the first is older than what it verifies
            service.reconcile()
        bench.settle_down()
        yield timed(
            "forget", lambda: sum(service.forget(older_than=timedelta(0))), lambda count: total - count
        )


class _Exported:
    """Records in a file, as an export is."""

    def __init__(self, file: IO[bytes], records: Iterable[DeletionRecord]) -> None:
        self._file = file
        for record in records:
            pickle.dump(record, file)

    def __iter__(self) -> Iterator[DeletionRecord]:
        self._file.seek(0)
        with suppress(EOFError):
            while True:
                yield pickle.load(self._file)


def _keys(looks: Any, wrong: list[Any]) -> Iterator[int]:
    """Yield how many keys are looked at: of rows, each of which has one, and of the store."""
    for looked in looks:
        wrong += looked.found
        yield looked.clients + looked.entries


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
