"""Many clients at once, by a list or a purge: each once, in both stores, and none stops the others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import mapped_column, relationship

from flask_mythic_clients import HardDeleteForbiddenError, StoreError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.errors import InvalidReasonError
from flask_mythic_clients.many import AT_ONCE
from flask_mythic_clients.model import Outcome, Result

from ..hosts import Gate, Host, client_model, make_host, mounting

P, M, S = "postgresql", "mariadb", "sqlite"
IDS = [f"c{number:04}" for number in range(AT_ONCE + 203)]  # a batch, and a part
DAY = 86_400
# Where the host has more to do, each client is changed alone.
_HAS_MORE_TO_DO: dict[str, Any] = {"before": lambda session, row, action: None}
# What a repository was given, and the call after which something happens before the client's step 1.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "in_bulk": ({}, "inactive"),
    "alone": (_HAS_MORE_TO_DO, "record_each"),
}


def add(host: Host, store: MemoryStore, *ids: str, **columns: Any) -> None:
    with host.flask.app_context(), host.db.engine.begin() as connection:
        rows = [{"id": id, "name": id, "status": True, **columns} for id in ids]
        connection.execute(sa.insert(host.model.__table__), rows)
    for id in ids:
        store.set(f"client:{id}", "cached")


def results(outcomes: Iterator[Outcome]) -> dict[str, Result]:
    found = list(outcomes)
    told = {outcome.client_id: outcome.result for outcome in found}
    assert len(told) == len(found)
    return told


def delete_each(host: Host, *ids: str, hard: bool = True) -> dict[str, Result]:
    with host.flask.app_context():
        return results(host.clients.service.delete_each(ids, hard=hard, actor="tests", reason="why"))


def purge(host: Host, days: float = 30, **options: Any) -> dict[str, Result]:
    with host.flask.app_context():
        given = {"older_than": timedelta(days=days), "actor": "tests", "reason": "why", **options}
        return results(host.clients.service.purge(**given))


def entries(store: MemoryStore) -> set[str]:
    return {key.removeprefix("client:") for key in store._entries if key.startswith("client:")}


def actions(host: Host, id: str) -> list[tuple[str, str | None, bool]]:
    return [(record.action, record.reason, record.settled_at is not None) for record in host.records(id)]


class TestDeleteEach:
    @pytest.mark.parametrize("hard", [False, True])
    def test_each_goes_in_both_stores_and_has_a_record(
        self, mount: Callable[..., Host], store: MemoryStore, hard: bool
    ) -> None:
        host = mount(config={"MYTHIC_CLIENTS_SOFT_DELETE_ENTRIES": "remove"})
        add(host, store, *IDS, "other")
        assert delete_each(host, *IDS, hard=hard) == dict.fromkeys(IDS, Result.DONE)
        rows = {row.id: row.status for row in host.rows()}
        assert rows == {"other": True} | ({} if hard else dict.fromkeys(IDS, False))
        assert entries(store) == {"other"}
        for id in (IDS[0], IDS[700], IDS[-1]):
            assert actions(host, id) == [("hard" if hard else "soft", "why", True)]
        with host.flask.app_context():
            assert host.clients.service.backlog().pending == 0

    def test_what_cannot_go_is_told_and_the_rest_goes(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id")))
        host = mount(db=db, model=client_model(db))
        add(host, store, *IDS[:40])
        with host.flask.app_context(), db.engine.begin() as connection:
            held = [{"client_id": IDS[3]}, {"client_id": IDS[30]}]
            connection.execute(sa.insert(db.metadata.tables["orders"]), held)
        failed = dict.fromkeys((IDS[3], IDS[30], "nobody", "no id", IDS[50]), Result.FAILED)
        asked = [*IDS[:40], "nobody", "no id", IDS[50]]
        with host.flask.app_context():
            outcomes = list(host.clients.service.delete_each(asked, hard=True, actor="tests"))
        assert [outcome.client_id for outcome in outcomes] == asked
        assert results(iter(outcomes)) == dict.fromkeys(IDS[:40], Result.DONE) | failed
        causes = {outcome.client_id: outcome.cause or "" for outcome in outcomes}
        assert "orders.client_id" in causes[IDS[3]]
        assert "no such client" in causes["nobody"]
        assert "255" in causes["no id"]
        assert {row.id for row in host.rows()} == entries(store) == {IDS[3], IDS[30]}

    def test_a_repeat_finishes_what_an_outage_has_left(self, database_url: str, store: MemoryStore) -> None:
        gate = Gate(store)
        with mounting(database_url, gate) as mount:
            host = mount()
            add(host, store, *IDS)
            gate.closed = True
            with pytest.raises(StoreError):
                delete_each(host, *IDS)
            assert len(host.rows()) == len(IDS) - AT_ONCE
            gate.closed = False
            assert delete_each(host, *IDS) == dict.fromkeys(IDS, Result.DONE)
            assert host.rows() == []
            assert entries(store) == set()

    def test_models_whose_rows_the_orm_removes_go_one_by_one(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.Integer, primary_key=True)}
        columns["client_id"] = mapped_column(sa.ForeignKey("clients.id"))
        order = type("Order", (db.Model,), {"__tablename__": "orders", **columns})
        host = mount(db=db, model=client_model(db, orders=relationship(order, cascade="all")))
        add(host, store, *IDS[:20])
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.execute(
                sa.insert(db.metadata.tables["orders"]), [{"client_id": id} for id in IDS[:20]]
            )
        assert delete_each(host, *IDS[:20]) == dict.fromkeys(IDS[:20], Result.DONE)
        with host.flask.app_context(), db.engine.connect() as connection:
            assert connection.execute(sa.select(db.metadata.tables["orders"])).all() == []
        assert host.rows() == []

    def test_the_guard_holds_for_many_too(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        host = mount(config={"MYTHIC_CLIENTS_HARD_DELETE": "after-soft-delete"})
        add(host, store, "a", "b")
        host.delete("b")
        assert delete_each(host, "a", "b") == {"a": Result.FAILED, "b": Result.DONE}
        assert [row.id for row in host.rows()] == ["a"]
        denying = mount(config={"MYTHIC_CLIENTS_HARD_DELETE": "deny"})
        assert delete_each(denying, "a") == {"a": Result.FAILED}
        with denying.flask.app_context(), pytest.raises(HardDeleteForbiddenError):
            next(denying.clients.service.purge(older_than=timedelta(0), actor="tests"))

    def test_a_reason_that_the_ledger_does_not_take_changes_nothing(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        add(host, store, "a")
        service = host.clients
        with host.flask.app_context():
            for call in (
                lambda: service.service.delete_each(["a"], hard=True, actor="tests", reason=""),
                lambda: service.service.purge(older_than=timedelta(0), actor="tests", reason="\n"),
            ):
                with pytest.raises(InvalidReasonError):
                    next(call())
        assert [row.status for row in host.rows()] == [True]


class TestColumns:
    @pytest.mark.parametrize("name", ["t", "tuple", "count", "index", "_mapping"])
    def test_one_may_be_called_as_what_a_row_of_sqlalchemys_has(
        self, mount: Callable[..., Host], store: MemoryStore, name: str
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.String(40), primary_key=True), "status": mapped_column(sa.Boolean)}
        columns[name] = mapped_column(sa.String(40))
        model = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
        host = mount(db=db, model=model, config={"MYTHIC_CLIENTS_KV_KEYS": [f"of:{{{name}}}"]})
        for id in ("bulk", "hard", "soft"):
            host.add(id=id, status=True, **{name: f"{id}'s"})
            store.set(f"of:{id}'s", "cached")
        assert delete_each(host, "bulk") == {"bulk": Result.DONE}
        assert host.delete("hard?hard=true").status_code == 200
        assert host.delete("soft").status_code == 200
        for id in ("bulk", "hard", "soft"):
            assert host.records(id)[0].kv_keys == (f"of:{id}'s",)
        assert [store.get(f"of:{id}'s") for id in ("bulk", "hard", "soft")] == [None, None, "cached"]


class TestTriggers:
    """What a trigger keeps is no success, in a batch either."""

    PLANTED: ClassVar = {
        P: (
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.id = 'c0003' THEN RETURN NULL; END IF; RETURN OLD; END $$",
            "CREATE TRIGGER keep BEFORE DELETE ON clients FOR EACH ROW EXECUTE FUNCTION keep()",
        ),
        S: (
            "CREATE TRIGGER keep BEFORE DELETE ON clients WHEN OLD.id = 'c0003'"
            " BEGIN SELECT RAISE(IGNORE); END",
        ),
        M: (
            "CREATE TRIGGER keep BEFORE DELETE ON clients FOR EACH ROW"
            " IF OLD.id = 'c0003' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 's3cret'; END IF",
        ),
    }

    def test_it_is_told_for_whom_and_the_rest_goes(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        add(host, store, *IDS[:20])
        with host.flask.app_context(), host.db.engine.begin() as connection:
            for statement in self.PLANTED[connection.dialect.name.replace("mysql", M)]:
                connection.exec_driver_sql(statement)
        told = delete_each(host, *IDS[:20])
        assert told == dict.fromkeys(IDS[:20], Result.DONE) | {"c0003": Result.FAILED}
        assert [row.id for row in host.rows()] == ["c0003"]
        assert entries(store) == {"c0003"}
        assert actions(host, "c0003") == []

    def test_one_that_puts_a_row_back_at_the_commit_is_found(
        self, empty_database: Callable[[str], str], store: MemoryStore
    ) -> None:
        with mounting(empty_database(P), store) as mount:
            host = mount()
            add(host, store, *IDS[:5])
            with host.flask.app_context(), host.db.engine.begin() as connection:
                connection.exec_driver_sql(
                    "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.id = 'c0003'"
                    " THEN INSERT INTO clients SELECT OLD.*; END IF; RETURN NULL; END $$"
                )
                connection.exec_driver_sql(
                    "CREATE CONSTRAINT TRIGGER back AFTER DELETE ON clients DEFERRABLE INITIALLY DEFERRED"
                    " FOR EACH ROW EXECUTE FUNCTION back()"
                )
            assert delete_each(host, *IDS[:5])["c0003"] is Result.FAILED
            assert [row.id for row in host.rows()] == ["c0003"]

    def test_other_clients_that_would_go_along_stop_their_own_alone(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        parent = mapped_column(sa.ForeignKey("clients.id", ondelete="CASCADE"))
        host = mount(db=db, model=client_model(db, parent_id=parent))
        add(host, store, *IDS[:9])
        add(host, store, "child", parent_id="c0003")
        told = delete_each(host, *IDS[:9])
        assert told == dict.fromkeys(IDS[:9], Result.DONE) | {"c0003": Result.FAILED}
        assert {row.id for row in host.rows()} == {"c0003", "child"}


class TestPurge:
    def test_those_go_whose_soft_delete_is_old_and_no_others(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        add(host, store, *IDS, "active")
        add(host, store, "unknown", status=False)
        delete_each(host, *IDS, hard=False)
        host.let_time_pass(31 * DAY)
        add(host, store, "young")
        host.delete("young")
        with host.flask.app_context():
            host.clients.service.restore(IDS[0], actor="tests")
        with host.flask.app_context():
            would = results(host.clients.service.would_purge(older_than=timedelta(days=30)))
        expected = dict.fromkeys(IDS[1:], Result.DONE) | {"unknown": Result.UNRECORDED}
        assert purge(host) == would == expected
        assert {row.id for row in host.rows()} == entries(store) == {IDS[0], "active", "young", "unknown"}
        assert actions(host, IDS[5]) == [("soft", "why", True), ("hard", "why", True)]
        assert purge(host) == {"unknown": Result.UNRECORDED}
        assert purge(host, include_unrecorded=True) == {"unknown": Result.DONE}

    @pytest.mark.parametrize("limit", [1, AT_ONCE, AT_ONCE + 100])
    def test_no_more_are_tried_than_the_limit_says(
        self, mount: Callable[..., Host], store: MemoryStore, limit: int
    ) -> None:
        host = mount()
        add(host, store, *IDS)
        delete_each(host, *IDS, hard=False)
        host.let_time_pass(31 * DAY)
        with host.flask.app_context():
            would = results(host.clients.service.would_purge(older_than=timedelta(days=30), limit=limit))
        assert purge(host, limit=limit) == would == dict.fromkeys(IDS[:limit], Result.DONE)
        assert len(host.rows()) == len(IDS) - limit

    @pytest.mark.parametrize("type_", [sa.DateTime(), sa.DateTime(timezone=True)], ids=["naive", "aware"])
    def test_a_status_that_is_a_time_is_its_own_age(
        self, mount: Callable[..., Host], store: MemoryStore, type_: Any
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.String(40), primary_key=True), "name": mapped_column(sa.String(40))}
        columns["status"] = mapped_column(type_, nullable=True)
        host = mount(db=db, model=type("Client", (db.Model,), {"__tablename__": "clients", **columns}))
        now = datetime.now(UTC)
        at = now if type_.timezone else now.replace(tzinfo=None)
        add(host, store, "old", status=at - timedelta(days=31))
        add(host, store, "young", status=at - timedelta(days=29))
        add(host, store, "active", status=None)
        assert purge(host) == {"old": Result.DONE}
        assert {row.id for row in host.rows()} == entries(store) == {"young", "active"}

    def test_of_a_model_of_two_tables_the_right_ones_go(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.String(40), primary_key=True), "kind": mapped_column(sa.String(40))}
        told = {"polymorphic_on": "kind", "polymorphic_identity": "party"}
        party = type("Party", (db.Model,), {"__tablename__": "parties", **columns, "__mapper_args__": told})
        key = mapped_column(sa.ForeignKey("parties.id"), primary_key=True)
        own = {"id": key, "status": mapped_column(sa.Boolean), "__tablename__": "clients"}
        told = {"polymorphic_identity": "client"}
        host = mount(db=db, model=type("Client", (party,), {**own, "__mapper_args__": told}))
        for number in range(30):
            host.add(id=f"c{number}", status=True)
        asked = [f"c{number}" for number in range(20)]
        assert delete_each(host, *asked, hard=False) == dict.fromkeys(asked, Result.DONE)
        host.let_time_pass(31 * DAY)
        assert purge(host) == dict.fromkeys(asked, Result.DONE)
        assert {row.id for row in host.rows()} == {f"c{number}" for number in range(20, 30)}

    def test_rows_of_the_table_that_are_no_clients_are_not_looked_at(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.String(40), primary_key=True), "kind": mapped_column(sa.String(40))}
        columns["status"] = mapped_column(sa.Boolean)
        told = {"polymorphic_on": "kind", "polymorphic_identity": "party"}
        party = type("Party", (db.Model,), {"__tablename__": "parties", **columns, "__mapper_args__": told})
        model = type("Client", (party,), {"__mapper_args__": {"polymorphic_identity": "client"}})
        host = mount(db=db, model=model)
        host.add(id="client", status=True)
        with host.flask.app_context():
            db.session.add(party(id="other", status=False))
            db.session.commit()
        host.delete("client")
        host.let_time_pass(31 * DAY)
        assert purge(host, include_unrecorded=True) == {"client": Result.DONE}
        with host.flask.app_context():
            assert [row.id for row in db.session.scalars(db.select(party))] == ["other"]

    @pytest.mark.parametrize("database_url", [P, M], indirect=True)
    def test_one_that_another_transaction_holds_is_left_to_it_at_once(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount()
        add(host, store, *IDS[:10])
        delete_each(host, *IDS[:10], hard=False)
        host.let_time_pass(31 * DAY)
        with host.flask.app_context(), host.db.engine.connect() as other:
            other.exec_driver_sql("SELECT 1 FROM clients WHERE id = 'c0003' FOR UPDATE")
            assert purge(host) == dict.fromkeys(IDS[:10], Result.DONE) | {"c0003": Result.HELD}
        assert purge(host) == {"c0003": Result.DONE}

    def test_two_at_once_take_each_client_once(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        host = mount()
        add(host, store, *IDS)
        delete_each(host, *IDS, hard=False)
        host.let_time_pass(31 * DAY)
        begun, told = Event(), list[dict[str, Result]]()

        def other() -> None:
            begun.wait(10)
            told.append(purge(host))

        thread = Thread(target=other)
        thread.start()
        begun.set()
        told.append(purge(host))
        thread.join()
        done = [id for each in told for id, result in each.items() if result is Result.DONE]
        assert sorted(done) == sorted(set(done))
        assert {row.id for row in host.rows()} == {id for id in IDS if id not in done}
        purge(host)
        assert host.rows() == []
        assert entries(store) == set()
        assert [len(host.records(id)) for id in IDS[::100]] == [2] * len(IDS[::100])

    @pytest.mark.parametrize("way", ["in_bulk", "alone"])
    @pytest.mark.parametrize("guard", ["allow", "after-soft-delete"])
    def test_one_that_is_restored_meanwhile_stays(
        self, mount: Callable[..., Host], store: MemoryStore, way: str, guard: str
    ) -> None:
        host = mount(columns=WAYS[way][0], config={"MYTHIC_CLIENTS_HARD_DELETE": guard})
        _purges_the_other(host, store, way, lambda: host.clients.service.restore("a", actor="tests"))
        assert {row.id: row.status for row in host.rows()} == {"a": True}

    @pytest.mark.parametrize("way", ["in_bulk", "alone"])
    def test_one_that_is_soft_deleted_anew_meanwhile_stays(
        self, mount: Callable[..., Host], store: MemoryStore, way: str
    ) -> None:
        host = mount(columns=WAYS[way][0])

        def anew() -> None:
            host.clients.service.restore("a", actor="tests")
            host.clients.service.soft_delete("a", actor="tests")

        _purges_the_other(host, store, way, anew)
        assert {row.id: row.status for row in host.rows()} == {"a": False}
        assert purge(host) == {}

    @pytest.mark.parametrize("way", ["in_bulk", "alone"])
    def test_one_of_whom_nobody_knows_any_more_since_when_stays(
        self, mount: Callable[..., Host], store: MemoryStore, way: str
    ) -> None:
        host = mount(columns=WAYS[way][0])

        def by_another() -> None:
            host.clients.service.restore("a", actor="tests")
            with host.db.engine.begin() as connection:
                connection.execute(sa.update(host.model.__table__).values(status=False))

        _purges_the_other(host, store, way, by_another)
        assert purge(host) == {"a": Result.UNRECORDED}
        assert purge(host, include_unrecorded=True) == {"a": Result.DONE}

    @pytest.mark.parametrize("way", ["in_bulk", "alone"])
    def test_one_whose_own_time_is_young_meanwhile_stays(
        self, mount: Callable[..., Host], store: MemoryStore, way: str
    ) -> None:
        db = SQLAlchemy()
        columns = {"id": mapped_column(sa.String(40), primary_key=True), "name": mapped_column(sa.String(40))}
        columns["status"] = mapped_column(sa.DateTime(), nullable=True)
        model = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
        given, call = WAYS[way]
        host = mount(columns=given, db=db, model=model)
        now = datetime.now(UTC).replace(tzinfo=None)
        add(host, store, "a", "b", status=now - timedelta(days=31))

        def anew() -> None:
            with host.db.engine.begin() as connection:
                table: Any = host.model.__table__
                connection.execute(sa.update(table).where(table.c.id == "a").values(status=now))

        with meanwhile(host, call, anew):
            assert purge(host) == {"b": Result.DONE}
        assert [row.id for row in host.rows()] == ["a"]

    def test_what_has_no_id_is_no_client(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        db = SQLAlchemy()
        columns = {
            "number": mapped_column(sa.Integer, primary_key=True),
            "name": mapped_column(sa.String(40)),
        }
        columns["id"] = mapped_column(sa.String(40), unique=True)
        columns["status"] = mapped_column(sa.Boolean)
        host = mount(db=db, model=type("Client", (db.Model,), {"__tablename__": "clients", **columns}))
        add(host, store, "None", "a")
        delete_each(host, "a", hard=False)
        host.let_time_pass(31 * DAY)
        host.delete("None")
        with host.flask.app_context(), host.db.engine.begin() as connection:
            rows = [{"id": None, "name": "", "status": False}] * (AT_ONCE + 1)
            connection.execute(sa.insert(host.model.__table__), rows)
        assert purge(host) == {"a": Result.DONE}
        assert [row.id for row in host.rows() if row.id] == ["None"]

    @pytest.mark.parametrize("way", WAYS)
    def test_an_id_that_the_contract_forbids_is_told_and_stays(
        self, mount: Callable[..., Host], store: MemoryStore, way: str
    ) -> None:
        """A record of it could not be replayed, nor asked for."""
        host = mount(columns=WAYS[way][0])
        add(host, store, "a", "bob@example.com", "Zoë", status=False)
        told = purge(host, days=0, include_unrecorded=True)
        assert told == {"a": Result.DONE, "bob@example.com": Result.FAILED, "Zoë": Result.FAILED}
        assert {row.id for row in host.rows()} == {"bob@example.com", "Zoë"}

    def test_one_whose_restore_is_pending_is_not_told_as_removed(
        self, database_url: str, store: MemoryStore
    ) -> None:
        gate = Gate(store)
        host = make_host(database_url, gate, columns=WAYS["alone"][0])

        def restored_in_an_outage() -> None:
            gate.closed = True
            with pytest.raises(StoreError):
                host.clients.service.restore("a", actor="tests")
            gate.closed = False

        _purges_the_other(host, store, "alone", restored_in_an_outage)
        assert {row.id: row.status for row in host.rows()} == {"a": True}
        host.close()


def _purges_the_other(host: Host, store: MemoryStore, way: str, act: Callable[[], object]) -> None:
    """Purge two, of whom something happens to `a` after it was chosen: `b` alone goes."""
    add(host, store, "a", "b")
    delete_each(host, "a", "b", hard=False)
    host.let_time_pass(31 * DAY)
    with meanwhile(host, WAYS[way][1], act):
        assert purge(host) == {"b": Result.DONE}


@contextmanager
def meanwhile(host: Host, call: str, act: Callable[[], object]) -> Iterator[None]:
    """Let something happen once, after that call of the repository: a client was chosen to be purged."""
    with host.flask.app_context():
        repository: Any = host.clients.service._repository
    asked = getattr(repository, call)

    def and_then(*args: Any, **options: Any) -> Any:
        told = asked(*args, **options)
        setattr(repository, call, asked)
        act()
        return told

    setattr(repository, call, and_then)
    yield
