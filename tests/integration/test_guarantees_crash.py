"""Promise 2: after a crash at any moment, `reconcile` alone makes both stores agree."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa

from flask_mythic_clients import StoreError, client_hard_deleted, client_restored, client_soft_deleted
from flask_mythic_clients.backends.redis import RedisStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.backends.sqlalchemy.dialects import compound, direct
from flask_mythic_clients.model import Action
from tests.hosts import KeyValue

from .scene import AWAY, CONFIG, EVERY, OURS, SOME, Crash, Scene, crash, make_scene, nothing

DONE = {Action.SOFT: False, Action.HARD: None, Action.RESTORE: True}


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, database_url: str, empty_kv: Callable[[str], KeyValue], action: Action
) -> Iterator[Scene]:
    """Client `acme`, in the state that the action changes."""
    with make_scene(database_url, empty_kv("either"), getattr(request, "param", OURS)) as scene:
        scene.add()
        if action is Action.RESTORE:
            scene.act(Action.SOFT)
        yield scene


@contextmanager
def _in_step_1(scene: Scene) -> Iterator[None]:
    """Its last statement was executed; committed only where the statement commits by itself."""

    def die(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("SET TRANSACTION", "START TRANSACTION")):
            raise Crash

    with scene.host.flask.app_context():
        engine = scene.host.db.engine
    sa.event.listen(engine, "after_cursor_execute", die)
    yield
    sa.event.remove(engine, "after_cursor_execute", die)


@contextmanager
def _after_step_1(_: Scene) -> Iterator[None]:
    record, both = SQLAlchemyRepository.record, SQLAlchemyRepository.record_and_settle

    def die(*arguments: Any) -> None:
        assert record(*arguments)
        raise Crash

    @contextmanager
    def die_in_both(*arguments: Any) -> Iterator[Any]:
        with both(*arguments) as begun:
            if begun is not None:
                raise Crash
            yield begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SQLAlchemyRepository, "record", die)
        patch.setattr(SQLAlchemyRepository, "record_and_settle", die_in_both)
        yield


@contextmanager
def _before_the_kv_call(scene: Scene) -> Iterator[None]:
    scene.tap.before = crash
    yield
    scene.tap.before = nothing


@contextmanager
def _after_the_kv_call(scene: Scene) -> Iterator[None]:
    scene.tap.after = crash
    yield
    scene.tap.after = nothing


@contextmanager
def _before_the_commit_of_step_2(scene: Scene) -> Iterator[None]:
    with _dying_at_commit(scene, committed=False):
        yield


@contextmanager
def _in_the_commit_of_step_2(scene: Scene) -> Iterator[None]:
    """The database has committed; its answer never arrives."""
    with _dying_at_commit(scene, committed=True):
        yield


@contextmanager
def _after_the_commit_of_step_2(_: Scene) -> Iterator[None]:
    def die(*_: object, **__: object) -> None:
        raise Crash

    with ExitStack() as stack:
        for signal_ in (client_soft_deleted, client_hard_deleted, client_restored):
            stack.enter_context(signal_.connected_to(die))
        yield


@contextmanager
def _dying_at_commit(scene: Scene, *, committed: bool) -> Iterator[None]:
    def do_commit(connection: Any) -> None:
        if tap.calls == calls:  # still in step 1
            commit(connection)
            return
        if committed:
            commit(connection)
        raise Crash

    def dying(send: Any) -> Any:
        """Be a statement that commits by itself."""

        def send_and_die(way: Any, *statements: Any) -> Any:
            if tap.calls == calls:
                return send(way, *statements)
            if committed:
                send(way, *statements)
            raise Crash

        return send_and_die

    tap, calls = scene.tap, scene.tap.calls  # no more of the scene: SQLAlchemy's caches keep what is patched
    with scene.host.flask.app_context(), pytest.MonkeyPatch.context() as patch:
        dialect = scene.host.db.engine.dialect
        commit = dialect.do_commit
        patch.setattr(dialect, "do_commit", do_commit)
        for way in (direct._Way, compound.Compounds):
            patch.setattr(way, "send", dying(way.send))
        yield


MOMENTS = [
    _in_step_1,
    _after_step_1,
    _before_the_kv_call,
    _after_the_kv_call,
    _before_the_commit_of_step_2,
    _in_the_commit_of_step_2,
    _after_the_commit_of_step_2,
]


SWITCHES = [Action.SOFT, Action.RESTORE]  # what writes a status
CASES = [
    *((*case, OURS) for case in product(Action, MOMENTS)),
    *((*case, SOME[n % len(SOME)]) for n, case in enumerate(product(SWITCHES, MOMENTS))),
]


@pytest.mark.parametrize(
    ("action", "moment", "scene"),
    CASES,
    indirect=["scene"],
    ids=lambda value: getattr(value, "__name__", f"{value}"),
)
def test_reconcile_alone_repairs_a_crash(
    scene: Scene, action: Action, moment: Callable[[Scene], Iterator[None]]
) -> None:
    before = scene.status()
    with moment(scene), pytest.raises(Crash):
        scene.act(action)
    gc.collect()  # no cursor outlives a process; here the traceback keeps one, and with it SQLite's lock
    if moment is not _in_step_1:
        assert scene.status() is DONE[action]
    scene.reconcile()
    assert scene.status() in (before, DONE[action])
    assert scene.agrees()
    if scene.status() is not None:  # and nothing stays locked
        scene.act(action)
        assert scene.status() is DONE[action]
        assert scene.agrees()


@pytest.mark.parametrize(
    ("action", "scene"),
    [*product(Action, [OURS]), *product([Action.RESTORE], EVERY)],
    indirect=["scene"],
    ids=str,
)
def test_reconcile_alone_repairs_an_outage_of_the_kv_store(scene: Scene, action: Action) -> None:
    scene.tap.store, real = AWAY, scene.tap.store
    with pytest.raises(StoreError):
        scene.act(action)
    with pytest.raises(StoreError):
        scene.reconcile()
    assert (scene.status(), scene.pending()) == (DONE[action], 1)
    scene.tap.store = real
    assert scene.reconcile().settled == 1
    assert scene.agrees()


@pytest.mark.parametrize("action", Action)
def test_an_answer_that_is_lost_after_the_kv_store_did_its_work_is_repaired(
    scene: Scene, action: Action
) -> None:
    def lose() -> None:
        raise StoreError

    scene.tap.after = lose
    with pytest.raises(StoreError):
        scene.act(action)
    scene.tap.after = nothing
    assert scene.pending() == 1
    scene.reconcile()
    assert scene.agrees()


@pytest.mark.parametrize(
    ("scene", "action"),
    [*product([OURS, *SOME], Action)],
    indirect=["scene"],
    ids=str,
)
def test_a_connection_that_breaks_when_all_is_committed_is_no_failure(
    scene: Scene, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks where it goes back to the pool, which rolls it back."""
    with scene.host.flask.app_context():
        dialect = scene.host.db.engine.dialect

    def broken(_connection: object) -> None:
        raise dialect.dbapi.OperationalError(2013, "gone")

    monkeypatch.setattr(dialect, "do_rollback", broken)
    scene.act(action)
    monkeypatch.undo()
    assert (scene.status(), scene.pending()) == (DONE[action], 0)
    assert scene.agrees()
    scene.add("next")
    scene.act(Action.HARD, "next")


@pytest.mark.server
@pytest.mark.parametrize("kill", ["before", "after"])
@pytest.mark.parametrize("action", [Action.HARD])
def test_reconcile_alone_repairs_a_kill_9(scene: Scene, action: Action, kill: str) -> None:
    _in_a_process(_act_and_be_killed, scene, action, kill, exitcode=-signal.SIGKILL)
    assert (scene.status(), scene.pending()) == (None, 1)
    scene.reconcile()
    assert scene.agrees()


@pytest.mark.server
@pytest.mark.parametrize("action", [Action.SOFT])
def test_reconcile_alone_repairs_an_exit_in_the_middle(scene: Scene, action: Action) -> None:
    _in_a_process(_act_and_exit, scene, action, "before", exitcode=7)
    assert (scene.status(), scene.pending()) == (False, 1)
    scene.reconcile()
    assert scene.agrees()


def _in_a_process(target: Callable[..., None], scene: Scene, *arguments: str, exitcode: int) -> None:
    raw = scene.raw.connection_pool.connection_kwargs
    redis_url = f"redis://{raw['host']}:{raw['port']}/{raw['db']}"
    # Not a fork: the child must not share the parent's connections.
    child = multiprocessing.get_context("spawn").Process(
        target=target, args=(scene.url, redis_url, *arguments)
    )
    child.start()
    child.join(60)
    assert child.exitcode == exitcode


def _act_and_be_killed(url: str, redis_url: str, action: Action, moment: str) -> None:
    _act_and(lambda: os.kill(os.getpid(), signal.SIGKILL), url, redis_url, action, moment)


def _act_and_exit(url: str, redis_url: str, action: Action, moment: str) -> None:
    _act_and(lambda: os._exit(7), url, redis_url, action, moment)


def _act_and(end: Callable[[], None], url: str, redis_url: str, action: Action, moment: str) -> None:
    kv = KeyValue(RedisStore.from_url(redis_url), None, redis_url)
    with make_scene(url, kv, config=CONFIG) as scene:
        setattr(scene.tap, moment, end)
        scene.act(action)
