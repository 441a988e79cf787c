"""What goes to psycopg past SQLAlchemy is as safe as what goes through it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from flask_mythic_clients.backends.sqlalchemy import Status, both_steps
from flask_mythic_clients.errors import MythicClientsError
from flask_mythic_clients.model import Action
from tests.hosts import KeyValue, mounting

from .scene import AWAY, CONFIG, OURS, Scene, Told, make_scene


@pytest.fixture(params=[OURS, Told(path="listeners")], ids=str)
def open_scene(
    request: pytest.FixtureRequest, empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> Callable[..., Any]:
    """Client `acme`, and one connection; a first deletion of each kind has shown that the direct way fits.

    With listeners that is the way of step 2 alone.
    """

    @contextmanager
    def open_with(**options: Any) -> Iterator[Scene]:
        config = {**CONFIG, "SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 1, "max_overflow": 0, **options}}
        stores = empty_database("postgresql"), empty_kv("either")
        with make_scene(*stores, request.param, config=config) as scene:
            for action in (Action.SOFT, Action.HARD):
                scene.add(f"first-{action}")
                scene.act(action, f"first-{action}")
            scene.add()
            yield scene

    return open_with


@contextmanager
def _driver(scene: Scene) -> Iterator[Any]:
    with scene.host.flask.app_context(), scene.host.db.engine.connect() as connection:
        yield connection.connection.driver_connection


def _between_steps(scene: Scene, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act once, after step 1 and before what is sent next."""
    acts = iter([act] if scene.told.path == "listeners" else [lambda: None, act])  # or step 1 is sent so, too
    pipelining = both_steps.pipelining

    @contextmanager
    def delayed(*arguments: Any) -> Iterator[Any]:
        with pipelining(*arguments) as direct:
            send = direct.send

            def sending(*statements: Any) -> Any:
                next(acts, lambda: None)()
                return send(*statements)

            direct.send = sending
            yield direct

    monkeypatch.setattr(both_steps, "pipelining", delayed)


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE", "READ COMMITTED"])
def test_the_pool_gets_its_connection_back_as_it_was(open_scene: Callable[..., Any], level: str) -> None:
    answers = {"acme": 200, "globex": 503, "nobody": 404}
    with open_scene(isolation_level=level) as scene:
        scene.add("globex")
        with _driver(scene) as driver:
            before = (driver.autocommit, driver.isolation_level, driver.info.backend_pid)
        store = scene.tap.store
        for id, query in product(answers, ("", "?hard=true")):
            scene.tap.store = AWAY if id == "globex" else store
            assert scene.host.delete(f"{id}{query}").status_code == answers[id], (id, query)
            with _driver(scene) as driver:
                assert (driver.autocommit, driver.isolation_level, driver.info.backend_pid) == before
                assert driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_an_error_of_the_driver_that_the_hosts_code_raises_is_the_hosts(
    open_scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_scene() as scene:

        def entry_values(row: Any) -> dict[str, str]:
            raise psycopg.OperationalError("a database of the host's own")

        monkeypatch.setattr(scene.host.model, "entry_values", entry_values)
        with (
            scene.host.flask.app_context(),
            pytest.raises(psycopg.OperationalError, match="of the host's own"),
        ):
            scene.host.clients.service.soft_delete("acme", actor="tests")
        monkeypatch.undo()
        # With listeners none: step 1 itself asks for the keys.
        recorded = 0 if scene.told.path == "listeners" else 1
        assert len(scene.host.records("acme")) == recorded
        assert scene.reconcile().settled == recorded


def test_a_removal_that_a_reconcile_has_settled_meanwhile_is_a_success(
    open_scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_scene(pool_size=2) as scene:
        scene.tap.store, store = AWAY, scene.tap.store
        assert scene.host.delete("acme").status_code == 503  # so that the removal is not alone
        scene.tap.store = store
        _between_steps(scene, monkeypatch, scene.reconcile)
        assert scene.host.delete("acme?hard=true").status_code == 200
        assert [record.settled_at is not None for record in scene.host.records("acme")] == [True, True]


def test_a_connection_that_breaks_between_two_trips_is_no_failure(
    open_scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_scene(pool_size=2) as scene:

        def cut() -> None:
            ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            with scene.engine.connect() as connection:
                connection.execute(sa.text(f"{ours} AND datname = current_database()"))

        _between_steps(scene, monkeypatch, cut)
        assert scene.host.delete("nobody").status_code == 404
        assert scene.host.delete("acme").status_code == 200


def test_what_the_direct_way_cannot_do_is_left_to_the_general_one(
    open_scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_scene() as scene:

        def fail() -> None:
            raise sa.exc.ProgrammingError("", None, psycopg.errors.InvalidSqlStatementName())

        _between_steps(scene, monkeypatch, fail)
        assert scene.host.delete("nobody").status_code == 404
        scene.tap.store, store = AWAY, scene.tap.store
        assert scene.host.delete("acme").status_code == 503  # so that the removal is not alone
        scene.tap.store = store
        _between_steps(scene, monkeypatch, fail)
        assert scene.host.delete("acme?hard=true").status_code == 200
        assert scene.agrees()


def test_a_model_whose_attributes_have_no_plain_names_is_read_as_it_is(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    db, store = SQLAlchemy(), empty_kv("memory").raw
    columns = {"id": sa.Column(sa.String(64), primary_key=True), "_slug": sa.Column("slug", sa.String(64))}
    columns["_active"] = sa.Column("class", sa.Boolean, nullable=False, default=True)
    model = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
    config = {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "slug:{_slug}"]}
    with mounting(empty_database("postgresql"), store) as mount:
        host = mount(db=db, model=model, columns={"status": "_active"}, config=config)
        host.add(id="acme", _slug="a-slug")
        for path in ("acme", "acme", "acme?hard=true"):
            assert host.delete(path).status_code == 200
        assert [record.kv_keys for record in host.records("acme")] == [("client:acme", "slug:a-slug")] * 2


def test_a_value_that_the_model_cannot_read_is_told_as_on_the_general_way(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    db, store = SQLAlchemy(), empty_kv("memory").raw
    columns = {"id": sa.Column(sa.String(64), primary_key=True)}
    columns["state"] = sa.Column(sa.Enum("on", "off", native_enum=False), nullable=False, default="on")
    model = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
    with mounting(empty_database("postgresql"), store) as mount:
        host = mount(db=db, model=model, columns={"status": Status("state", active="on", deleted="off")})
        host.add(id="acme")
        with host.flask.app_context():
            db.session.execute(sa.text("UPDATE clients SET state = 'odd'"))
            db.session.commit()
            caught = []
            for _ in range(2):
                with pytest.raises(MythicClientsError) as error:
                    host.clients.service.restore("acme", actor="tests")
                caught.append((type(error.value), str(error.value)))
                sa.event.listen(db.engine, "before_cursor_execute", lambda *_: None)
    assert caught[0] == caught[1]


@pytest.mark.parametrize("open_scene", [OURS], indirect=True, ids=str)
def test_what_is_always_the_same_is_no_parameter(open_scene: Callable[..., Any]) -> None:
    with open_scene() as scene:
        with _driver(scene) as driver:
            found = driver.execute(
                "SELECT cardinality(parameter_types), statement FROM pg_prepared_statements"
            )
            prepared = {statement: number for number, statement in found if "client_deletions" in statement}
            driver.rollback()
        # The key; the id, who, why, and the request's id.
        assert max(number for statement, number in prepared.items() if "INSERT" in statement) == 5
        assert max(number for statement, number in prepared.items() if "INSERT" not in statement) == 2
