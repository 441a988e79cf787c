"""How the databases find the few unfinished records among very many: by an index, in its order."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sa

from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Action, DeletionRecord
from tests.hosts import KeyValue

from .scene import BOUNDED, IN_ONE, Scene, make_scene

MANY = 100_000
FEW = 20
PAGE = 500
COLUMNS = "client_id, action, actor, kv_keys, requested_at, settled_at, verified_at, digested_at"
INSERT = f"INSERT INTO client_deletions ({COLUMNS})"
VALUES = "'soft', 'tests', '[]', {then}, {settled}, {verified}, {digested}"
# {then} is a time that differs from row to row, as in life: the planners count distinct values.
FILL = {
    "sqlite": "WITH RECURSIVE s(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM s WHERE seq < {rows}) "
    f"{INSERT} SELECT 'c' || seq, {VALUES} FROM s",
    "postgresql": f"{INSERT} SELECT 'c' || seq, {VALUES} FROM generate_series(1, {{rows}}) seq",
    "mariadb": f"{INSERT} SELECT concat('c', seq), {VALUES} FROM seq_1_to_{{rows}}",
}
THEN = {
    "sqlite": "datetime('2001-01-01', '+' || seq || ' seconds') || '.000000'",
    "postgresql": "timestamptz '2001-01-01Z' + seq * interval '1 second'",
    "mariadb": "'2001-01-01' + INTERVAL seq SECOND",
}
INDEX_IS_IN = {"sqlite": "detail", "postgresql": "Index Name", "mariadb": "key"}  # of a step of a plan
NULL = {"sqlite": "NULL", "postgresql": "NULL::timestamptz", "mariadb": "NULL"}


@pytest.fixture
def scene(database_url: str, empty_kv: Callable[[str], KeyValue]) -> Iterator[Scene]:
    """A ledger of many finished records, a few pending ones and a few that are not verified."""
    with make_scene(database_url, empty_kv("either")) as scene:
        scene.add()
        _fill(scene, finished=MANY, pending=FEW, unverified=FEW)
        yield scene


def _fill(scene: Scene, *, finished: int, pending: int, unverified: int, analyzed: bool = True) -> None:
    then, null = THEN[scene.kind], NULL[scene.kind]
    analyze = "ANALYZE TABLE" if scene.kind == "mariadb" else "ANALYZE"
    kinds = (
        (finished, then, then, then),
        (FEW, then, then, null),
        (pending, null, null, null),
        (unverified, then, null, null),
    )
    with scene.host.flask.app_context(), scene.host.db.engine.begin() as connection:
        for rows, settled, verified, digested in kinds:
            times = {"settled": settled, "verified": verified, "digested": digested}
            fill = FILL[scene.kind].format(rows=rows, then=then, **times)
            connection.exec_driver_sql(fill)
        if analyzed:
            connection.exec_driver_sql(f"{analyze} client_deletions").close()


def _ledger(scene: Scene) -> SQLAlchemyRepository:
    return SQLAlchemyRepository(scene.host.db, scene.host.model)


def _done(scene: Scene, since: datetime | None) -> Any:
    ledger = _ledger(scene)
    return ledger.done(since=since, before=ledger.now(), after=None)


DAY = timedelta(days=1)
LOOKS: dict[str, Callable[[Scene], Any]] = {
    "what is pending": lambda scene: list(scene.host.clients.service.pending()),
    "the backlog": lambda scene: scene.host.clients.service.backlog(),
    "all of reconcile": lambda scene: scene.host.clients.service.reconcile(),
    "what was done lately": lambda scene: _done(scene, since=_ledger(scene).now() - DAY),
    "what was ever done": lambda scene: _done(scene, since=None),
    "a request": lambda scene: scene.host.clients.service.soft_delete("acme", actor="tests"),
}


@pytest.mark.parametrize("look", LOOKS)
def test_no_statement_reads_or_sorts_the_whole_ledger(scene: Scene, look: str) -> None:
    with scene.host.flask.app_context():
        statements = _statements(scene, LOOKS[look])
        assert statements
        for statement, parameters in statements:
            CHECKS[scene.kind](_plan(scene, statement, parameters))


def test_a_page_of_a_large_backlog_is_not_sorted_and_begins_where_the_last_one_ended(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    """PostgreSQL must be told the whole order of the index, MariaDB what of it is not null."""
    with make_scene(database_url, empty_kv("memory")) as scene:
        _fill(scene, finished=FEW, pending=MANY, unverified=MANY)
        repository = SQLAlchemyRepository(scene.host.db, scene.host.model)
        with scene.host.flask.app_context():
            due = partial(repository.due, settled_for=timedelta())
            done = partial(repository.done, since=None, before=repository.now())
            for page in (repository.pending, due, done):
                first = page(after=None)
                for after in (None, first[-1]):
                    look = partial(page, after=after)
                    ((statement, parameters),) = _statements(scene, lambda _, look=look: look())
                    plan = f"{_plan(scene, statement, parameters)}"
                    assert not re.search("Sort|filesort|TEMP B-TREE", plan), (statement, plan)
                near_the_end = first[-1].settled_at and first[-1].settled_at + timedelta(seconds=MANY - 700)
                last = replace(first[-1], id=first[-1].id + MANY - 700, settled_at=near_the_end)
                ((statement, parameters),) = _statements(
                    scene, lambda _, look=page, last=last: look(after=last)
                )
                plan = _plan(scene, statement, parameters)
                if scene.kind == "postgresql":  # which reckons with the rows behind the page, too
                    plan = [{**node, "Plan Rows": 0} for node in plan]
                CHECKS[scene.kind](plan)


@pytest.mark.parametrize("wait", [True, False], ids=["waits", "leaves what is held"])
def test_a_verify_does_not_read_a_backlog_that_the_statistics_do_not_know(
    database_url: str, empty_kv: Callable[[str], KeyValue], wait: bool
) -> None:
    with make_scene(database_url, empty_kv("memory")) as scene:
        _fill(scene, finished=MANY, pending=FEW, unverified=FEW)
        _fill(scene, finished=FEW, pending=FEW, unverified=MANY, analyzed=False)
        repository = SQLAlchemyRepository(scene.host.db, scene.host.model)
        ids = [f"c{number}" for number in range(MANY // 2, MANY // 2 + FEW)]

        def verify(_scene: Scene) -> None:
            with repository.verify(ids, settled_for=timedelta(), wait=wait) as holding:
                assert len(holding.records) == FEW

        with scene.host.flask.app_context():
            statements = _statements(scene, verify)
            assert statements
            for statement, parameters in statements:
                plan = _plan(scene, statement, parameters)
                CHECKS[scene.kind](plan)
                used = [step.get(INDEX_IS_IN[scene.kind]) for step in plan]
                assert not [index for index in used if index and "_keyed" in index], plan


def _of_many(ids: list[str], repository: SQLAlchemyRepository) -> dict[str, Callable[[], Any]]:
    """Return what is asked of the ledger for many clients at once."""

    def held(hold: Callable[..., Any]) -> None:
        for wait in (True, False):
            with hold(ids, wait=wait):
                pass

    of_each = [DeletionRecord(1, id, Action.SOFT, "tests", (), repository.now()) for id in ids]
    return {
        "who is inactive": partial(repository.inactive, for_at_least=timedelta(), after=None),
        "what is lacking": partial(repository.lacking, of_each),
        "what is old": partial(repository.prune, verified_before=None, kept=timedelta(), after=None),
        "what is pending": partial(held, repository.settle),
        "what is to be verified": partial(held, partial(repository.verify, settled_for=timedelta())),
    }


def test_of_many_clients_the_records_are_found_where_there_are_no_statistics(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue]
) -> None:
    """PostgreSQL takes the ids of clients for few that recur; what a transaction sets belongs to the plan."""
    with make_scene(empty_database("postgresql"), empty_kv("memory")) as scene, ExitStack() as stack:
        host, ids = scene.host, [f"c{number}" for number in range(1, PAGE + 1)]
        _fill(scene, finished=MANY, pending=FEW, unverified=MANY, analyzed=False)
        stack.enter_context(host.flask.app_context())
        host.db.session.add_all(host.model(id=id, name="", publishable_key=id, status=False) for id in ids)
        host.db.session.commit()
        plans: dict[str, Any] = {}

        def note(_conn: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
            if statement.startswith(("SELECT", "UPDATE")) and "client_deletions" in statement:
                with cursor.connection.cursor() as other:
                    other.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
                    plans[statement] = list(_nodes(other.fetchone()[0][0]["Plan"]))

        sa.event.listen(host.db.engine, "before_cursor_execute", note)
        read_whole = set()
        for what, ask in _of_many(ids, SQLAlchemyRepository(host.db, host.model)).items():
            plans.clear()
            ask()
            assert plans, what
            if any(node["Node Type"] == "Seq Scan" for nodes in plans.values() for node in nodes):
                read_whole.add(what)
        assert read_whole == set()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_who_holds_a_client_among_many_holds_no_record_of_the_next_one(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], database: str
) -> None:
    with make_scene(empty_database(database), empty_kv("memory")) as scene:
        scene.add("acme")
        assert scene.host.delete("acme").status_code == 200
        _fill(scene, finished=MANY, pending=FEW, unverified=FEW)
        repository = SQLAlchemyRepository(scene.host.db, scene.host.model)
        verify = partial(repository.verify, settled_for=timedelta())
        with scene.host.flask.app_context():
            for mine, others in [(verify, verify), (verify, repository.settle), (repository.settle, verify)]:
                with mine(["acme"]), others(["c1"], wait=False) as held:
                    assert [record.client_id for record in held.records] == ["c1"]


def test_a_reconcile_finds_the_few_among_the_many(scene: Scene) -> None:
    done = scene.reconcile()
    # What was just settled is too young to be verified.
    assert (done.settled, done.verified, done.failed) == (FEW, FEW, 0)
    # Those that were verified long ago have lost their keys.
    assert _ledger_counts(scene) == (MANY + FEW, FEW + FEW)
    scene.act(Action.SOFT)
    assert scene.agrees()


def _ledger_counts(scene: Scene) -> tuple[int, int]:
    """Count the records that have no keys any more, and those that have."""
    with scene.second_connection() as connection:
        counted = connection.execute(sa.text("SELECT count(digested_at), count(*) FROM client_deletions"))
        without, every = counted.one()
        return without, every - without


def _statements(scene: Scene, look: Callable[[Scene], Any]) -> list[tuple[str, Any]]:
    """Take what is really sent: the plans are made afterwards."""
    found: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        parameters = parameters[0] if isinstance(parameters, list) else parameters  # of many, the first
        for text, given in _parts(statement, parameters):
            if "client_deletions" in text and not text.startswith("INSERT"):
                found.append((text, given))

    engine = scene.host.db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    look(scene)
    sa.event.remove(engine, "before_cursor_execute", note)
    return [pair for pair in found if "changed AS" not in pair[0]]


def _parts(statement: str, parameters: Any) -> Iterator[tuple[str, Any]]:
    """Yield a statement, or those of a compound, each with its parameters."""
    if not statement.startswith(IN_ONE):
        yield statement.removeprefix(BOUNDED), parameters
        return
    left = iter(parameters)
    for part in statement.split(";"):
        mine = tuple(islice(left, part.count("%s")))
        if known := re.search("(INSERT|UPDATE|DELETE|SELECT) .*", part, re.DOTALL):
            text = known[0].replace("mythic_stamp", "UTC_TIMESTAMP(6)")
            yield text, mine


def _plan(scene: Scene, statement: str, parameters: Any) -> Any:
    """Return the rows of a plan; of PostgreSQL's the nodes."""
    options = {"sqlite": "QUERY PLAN", "postgresql": "(ANALYZE, FORMAT JSON)", "mariadb": ""}[scene.kind]
    with scene.host.db.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN {options} {statement}", parameters)
        rows = plan.mappings().all()
        connection.rollback()  # ANALYZE executes
    if scene.kind != "postgresql":
        return rows
    [plan] = [row["QUERY PLAN"] for row in rows]
    return list(_nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))


def _check_sqlite(rows: Any) -> None:
    plan = [row["detail"] for row in rows]
    by_id = "SEARCH client_deletions USING INTEGER PRIMARY KEY (rowid=?)"
    assert any("INDEX ix_client_deletions" in step or step == by_id for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step], plan


def _check_postgresql(nodes: Any) -> None:
    assert any("Index" in node["Node Type"] for node in nodes), nodes
    for node in nodes:
        assert node["Node Type"] != "Seq Scan", nodes
        # Sorting a few is a matter of taste, sorting the ledger is not.
        seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        assert max(node["Plan Rows"], seen) < 1000, nodes


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _check_mariadb(rows: Any) -> None:
    for row in rows:
        assert row["type"] not in ("ALL", "index"), rows
        assert row["key"] is not None, rows
        assert int(row["rows"]) < 1000, rows


CHECKS = {"sqlite": _check_sqlite, "postgresql": _check_postgresql, "mariadb": _check_mariadb}
