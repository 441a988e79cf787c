"""Who waits for a client's records waits for a while, and leaves them pending."""

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from flask_mythic_clients import BusyError
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from ..hosts import KeyValue
from .scene import AWAY, CONFIG, make_scene

LOCK = sa.text("SELECT id FROM client_deletions WHERE client_id = 'acme' FOR UPDATE")


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_request_gives_up_on_records_that_another_holds(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], database: str
) -> None:
    url = empty_database(database)
    with make_scene(url, empty_kv("either")) as scene:
        store, scene.tap.store = scene.tap.store, AWAY
        scene.add("acme")
        assert scene.host.delete("acme?hard=true").status_code == 503
        scene.tap.store = store
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as holder:
            holder.execute(LOCK)
            began = time.monotonic()
            assert scene.host.delete("acme?hard=true").status_code == 503
            assert 0.8 < time.monotonic() - began < 4
            assert scene.tap.calls == 1
        assert scene.host.delete("acme?hard=true").status_code == 200
        assert scene.host.delete("acme?hard=true").status_code == 404


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_a_dry_run_gives_up_on_a_row_that_another_holds(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], database: str, hard: bool
) -> None:
    with make_scene(empty_database(database), empty_kv("memory")) as scene:
        scene.add("acme")
        with scene.host.flask.app_context():
            preview = scene.host.clients.service.preview
            with scene.second_connection() as holder:
                holder.exec_driver_sql("UPDATE clients SET name = 'held' WHERE id = 'acme'")
                began = time.monotonic()
                with pytest.raises(BusyError):
                    preview("acme", hard=hard)
                assert 0.8 < time.monotonic() - began < 4
                holder.rollback()
            assert preview("acme", hard=hard).refused is None


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_who_does_not_wait_is_not_kept_by_the_plan_of_a_small_table(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], database: str
) -> None:
    """MariaDB finds the records by another index there, and comes across that of `acme`."""
    with make_scene(empty_database(database), empty_kv("memory")) as scene:
        for id in ("acme", "other"):
            scene.add(id)
            assert scene.host.delete(id).status_code == 200
        repository = SQLAlchemyRepository(scene.host.db, scene.host.model)
        verify = partial(repository.verify, settled_for=timedelta())
        with scene.host.flask.app_context(), verify(["acme"]), verify(["acme", "other"], wait=False) as held:
            assert [record.client_id for record in held.records] == ["other"]


@pytest.mark.parametrize("path", ["acme", "acme?hard=true"])
def test_a_pool_that_has_no_connection_left_is_a_503(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], path: str
) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    config = {**CONFIG, "SQLALCHEMY_ENGINE_OPTIONS": options}
    with make_scene(empty_database("postgresql"), empty_kv("either"), config=config) as scene:
        scene.add("acme")
        with scene.host.flask.app_context():
            engine = scene.host.db.engine
        with engine.connect():
            assert scene.host.delete(path).status_code == 503
        assert scene.host.delete(path).status_code == 200
        assert scene.agrees()


def test_on_sqlite_a_writer_gives_up_on_a_turn_that_does_not_come(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_mythic_clients.backends.sqlalchemy.dialects.turns._TURN_SECONDS", 0.3)
    with make_scene(empty_database("sqlite"), empty_kv("memory")) as scene, ThreadPoolExecutor(1) as other:
        scene.add("acme")
        scene.add("other")
        answers = []
        scene.tap.before = lambda: answers.append(other.submit(scene.host.delete, "other").result())
        assert scene.host.delete("acme").status_code == 200  # it writes while the other waits
        scene.tap.before = lambda: None
        assert [answer.status_code for answer in answers] == [503]
        assert scene.status("other") is True
        assert scene.host.delete("other").status_code == 200


@pytest.mark.parametrize("path", ["acme", "acme?hard=true", "nobody"])
def test_a_new_connection_to_a_file_that_another_holds_waits_no_longer(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], path: str
) -> None:
    url = empty_database("sqlite")
    with make_scene(url, empty_kv("memory")) as scene:
        scene.add("acme")
        scene.host.close()  # of the pool: the next one has to read the file
        with closing(sqlite3.connect(sa.make_url(url).database or "")) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            assert scene.host.delete(path).status_code == 503
            assert 0.8 < time.monotonic() - began < 4
        assert scene.host.delete("acme?hard=true").status_code == 200
