"""The database's clock is the only one: a worker's may be minutes behind it, or years ahead."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from flask_mythic_clients.model import Action
from tests.hosts import KeyValue

from .scene import Scene, make_scene

WINDOW = 60  # the default

# To this process the database's clock is one that goes wrong, as that of a worker goes to the database.
AHEAD = pytest.mark.parametrize(
    "ahead", [timedelta(seconds=-90), timedelta(days=3650)], ids=["90 s behind", "ten years ahead"]
)


def _shift_postgresql(connection: Any, seconds: float) -> None:
    """Let functions of our own be found before those of the server."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA IF NOT EXISTS shifted")
        for name in ("clock_timestamp", "statement_timestamp"):
            body = f"SELECT pg_catalog.{name}() + interval '{seconds} seconds'"
            function = f"CREATE OR REPLACE FUNCTION shifted.{name}() RETURNS timestamptz LANGUAGE sql STABLE"
            cursor.execute(f"{function} AS $${body}$$")
        cursor.execute("SET search_path = shifted, public, pg_catalog")
    connection.commit()


def _shift_mariadb(connection: Any, seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET timestamp = UNIX_TIMESTAMP(NOW(6)) + {seconds}")  # it stands still from now on


def _shift_sqlite(connection: Any, seconds: float) -> None:
    def strftime(form: str, now: str, *modifiers: str) -> str:
        assert now == "now"
        moved = sum(float(modifier.split()[0]) for modifier in modifiers) + seconds
        return (datetime.now(UTC) + timedelta(seconds=moved)).strftime("%Y-%m-%d %H:%M:%S.%f")

    connection.create_function("strftime", -1, strftime)


SHIFT = {"postgresql": _shift_postgresql, "mariadb": _shift_mariadb, "sqlite": _shift_sqlite}


@pytest.fixture
def scene(database_url: str, empty_kv: Callable[[str], KeyValue], ahead: timedelta) -> Iterator[Scene]:
    """Client `acme` on a database whose clock is not this process's."""
    with make_scene(database_url, empty_kv("memory")) as scene:
        shift = SHIFT[scene.kind]
        with scene.host.flask.app_context():
            engine = scene.host.db.engine
        engine.dispose()
        sa.event.listen(engine, "connect", lambda dbapi, _: shift(dbapi, ahead.total_seconds()))
        scene.add()
        yield scene


@AHEAD
@pytest.mark.parametrize("action", [Action.SOFT, Action.HARD])
def test_all_times_of_a_record_are_the_databases(scene: Scene, ahead: timedelta, action: Action) -> None:
    slack = timedelta(seconds=20)  # MariaDB's clock stands still since the connection was made
    earliest = datetime.now(UTC) + ahead - slack
    scene.act(action)
    (settled,) = scene.host.records("acme")
    scene.host.let_time_pass(WINDOW + 1)
    assert scene.reconcile().verified == 1
    (verified,) = scene.host.records("acme")
    times = [settled.requested_at, settled.settled_at, verified.verified_at]
    assert earliest <= times[0] <= times[1] <= times[2] <= datetime.now(UTC) + ahead + slack


@AHEAD
def test_the_verify_window_is_as_long_as_it_says(scene: Scene, ahead: timedelta) -> None:
    scene.act(Action.HARD)
    assert scene.reconcile().verified == 0
    scene.host.let_time_pass(WINDOW - 10)
    assert scene.reconcile().verified == 0
    scene.host.let_time_pass(11)
    assert scene.reconcile().verified == 1
