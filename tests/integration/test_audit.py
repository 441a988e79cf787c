"""Both stores compared: what is out of line is told, and repaired, and what is in line is left alone."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients import StoreError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.errors import ConfigurationError
from flask_mythic_clients.model import Looked, Wrong
from flask_mythic_clients.sampling import in_line_at_least

from ..hosts import Host, client_model, mounting
from .test_archive import run

P, M, S = "postgresql", "mariadb", "sqlite"
KEYS = "MYTHIC_CLIENTS_KV_KEYS"
REMOVE = {"MYTHIC_CLIENTS_SOFT_DELETE_ENTRIES": "remove"}


def model_with_values(db: SQLAlchemy) -> Any:
    """Return a model that knows the value of `client:{id}`, and of no other entry."""

    class Client(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "clients"
        id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
        status: Mapped[bool] = mapped_column(default=True)
        token: Mapped[str | None] = mapped_column(sa.String(255))
        number: Mapped[int | None]
        since: Mapped[date | None]

        def entry_values(self) -> dict[str, str]:
            if self.token == "broken":
                raise ZeroDivisionError("secret")
            return {f"client:{self.id}": "active" if self.status else "inactive"}

    return Client


@pytest.fixture
def host(mount: Callable[..., Host]) -> Host:
    db = SQLAlchemy()
    return mount(db=db, model=model_with_values(db), config={KEYS: ["client:{id}", "token:{token}"]})


def looks(host: Host, **options: Any) -> list[Looked]:
    with host.flask.app_context():
        return list(host.clients.service.audit(**{"min_age": timedelta(), **options}))


def found(host: Host, **options: Any) -> dict[Any, Any]:
    """Return (client, key) → what is wrong, and whether it was repaired."""
    every = [out for looked in looks(host, **options) for out in looked.found]
    told = {(out.client_id, out.key): (out.wrong, out.repaired) for out in every}
    assert len(told) == len(every)
    return told


def wrong(told: dict[Any, Any]) -> dict[Any, Wrong]:
    return {at: what for at, (what, _) in told.items()}


def entries(store: MemoryStore) -> dict[str, Any]:
    found = {key: store.get(key) for key in sorted(store._entries)}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}


class TestBothWays:
    def test_stores_that_agree_are_left_as_they_are(self, host: Host, store: MemoryStore) -> None:
        host.add(id="a", token="t1")
        host.add(id="b", status=False)
        host.add(id="c", token="t3")  # without entries, which is allowed
        before = {"client:a": "active", "client:b": "inactive", "token:t1": "whatever", "other": "1"}
        for key, value in before.items():
            store.set(key, value, ex=900)
        for repair in (False, True):
            told = looks(host, repair=repair)
            assert [out for looked in told for out in looked.found] == []
            assert sum(looked.clients for looked in told) == 3
            assert sum(looked.entries for looked in told) == 3  # `other` is no template's
            assert [looked.note for looked in told if looked.note] == []
        assert entries(store) == before
        assert store.ttl("client:a") > 800

    def test_stale_values_and_entries_of_nobody_are_found_and_repaired(
        self, host: Host, store: MemoryStore
    ) -> None:
        host.add(id="a", token="t1")
        host.add(id="b", status=False, token="t2")
        store.set("client:a", "inactive", ex=900)
        store.set("client:b", "active")
        store.set("client:gone", "active")
        store.set("client:A", "active")  # to the letter
        for token in ("t1", "t2", "gone", "T1"):
            store.set(f"token:{token}", "x")
        store.set("client:not an id", "another's")
        expected = {
            ("a", "client:a"): Wrong.STALE,
            ("b", "client:b"): Wrong.STALE,
            ("gone", "client:gone"): Wrong.ORPHAN,
            ("A", "client:A"): Wrong.ORPHAN,
            (None, "token:gone"): Wrong.ORPHAN,
            (None, "token:T1"): Wrong.ORPHAN,
        }
        before = entries(store)
        assert found(host) == {at: (what, False) for at, what in expected.items()}
        assert entries(store) == before
        assert found(host, repair=True) == {at: (what, True) for at, what in expected.items()}
        assert entries(store) == {
            **{"client:a": "active", "client:b": "inactive", "token:t1": "x", "token:t2": "x"},
            "client:not an id": "another's",
        }
        assert store.ttl("client:a") > 800
        assert found(host) == {}

    def test_entries_of_the_inactive_are_to_be_gone_where_the_host_says_so(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        host = mount(db=db, model=model_with_values(db), config=REMOVE)
        host.add(id="a")
        host.add(id="b", status=False)
        store.set("client:a", "active")
        store.set("client:b", "inactive")
        assert wrong(found(host)) == {("b", "client:b"): Wrong.LEFT}
        assert found(host, repair=True) == {("b", "client:b"): (Wrong.LEFT, True)}
        assert list(entries(store)) == ["client:a"]

    def test_all_of_many_are_found(self, host: Host, store: MemoryStore) -> None:
        with host.flask.app_context(), host.db.engine.begin() as connection:
            rows = [{"id": f"c{number}", "status": True} for number in range(3210)]
            connection.execute(sa.insert(host.model.__table__), rows)
        for number in range(3210):
            store.set(f"client:c{number}", "active" if number % 2 else "stale")
            store.set(f"token:{number}", "nobody's")
        told = found(host, repair=True)
        assert len(told) == 1605 + 3210
        assert list(store._entries) == [f"client:c{number}" for number in range(3210)]
        assert {*entries(store).values()} == {"active"}

    def test_templates_of_several_columns_and_such_that_overlap(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        keys = ["c:{number}:{id}", "c:{id}", "t{token}:{id}", "{token}"]
        host = mount(db=db, model=model_with_values(db), config={KEYS: keys})
        host.add(id="a", number=7, token="x:y")
        host.add(id="b", number=8)
        for key in ("c:7:a", "c:a", "tx:y:a", "c:8:b"):
            store.set(key, "owned")
        for key in ("c:8:a", "c:zz", "tx:z:a", "t:b"):
            store.set(key, "nobody's")
        store.set("x:y", "cannot be told")
        told = looks(host, repair=True)
        assert sorted(f"{out.key}" for looked in told for out in looked.found) == [
            *("c:8:a", "c:zz", "t:b", "tx:z:a"),
        ]
        assert list(entries(store)) == ["c:7:a", "c:8:b", "c:a", "tx:y:a", "x:y"]
        assert [looked.note for looked in told if looked.note] == [
            "{token}: entries of nobody were not looked for. Any key may be made so."
        ]

    def test_a_column_of_numbers_owns_only_what_is_written_as_its_number(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        host = mount(db=db, model=model_with_values(db), config={KEYS: ["n:{number}"]})
        host.add(id="a", number=7)
        for key in ("n:7", "n:07", "n:8", "n:stats", "n:99999999999999999999", "n:\0"):
            store.set(key, "x")
        assert wrong(found(host, repair=True)) == {(None, "n:8"): Wrong.ORPHAN}
        assert len(entries(store)) == 5

    def test_what_a_template_owns_that_cannot_be_walked_is_left(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        keys = ["client:{id}", "client:{since}", "{token}", "token:{token}"]
        host = mount(db=db, model=model_with_values(db), config={KEYS: keys})
        host.add(id="a", token="client:secret", since=date(2024, 1, 1))
        owned = ["client:a", "client:2024-01-01", "client:secret", "token:client:secret"]
        for key in (*owned, "token:gone"):
            store.set(key, "active")
        told = looks(host, repair=True)
        assert [out.key for looked in told for out in looked.found] == ["token:gone"]
        assert sorted(store._entries) == sorted(owned)
        notes = [looked.note.partition(":")[0] for looked in told if looked.note]
        assert notes == ["client", "{token}"]

    @pytest.mark.parametrize("config", [{}, REMOVE])
    def test_an_entry_that_two_clients_own_is_told_and_left(
        self, mount: Callable[..., Host], store: MemoryStore, config: Any
    ) -> None:
        db = SQLAlchemy()

        class Client(db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "clients"
            id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
            status: Mapped[bool]
            email: Mapped[str] = mapped_column(sa.String(99))

            def entry_values(self) -> dict[str, str]:
                return {f"email:{self.email}": f"{self.id} {self.status}"}

        host = mount(db=db, model=Client, config={KEYS: ["email:{email}"], **config})
        host.add(id="new", status=True, email="e@x")
        host.add(id="old", status=False, email="e@x")
        store.set("email:e@x", "new True")
        assert found(host, repair=True) == {("old", "email:e@x"): (Wrong.SHARED, False)}
        assert entries(store) == {"email:e@x": "new True"}

    def test_what_is_no_text_is_found_too(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        db = SQLAlchemy()
        host = mount(db=db, model=model_with_values(db), config=REMOVE)
        host.add(id="a", status=False)
        store.set("client:a", "stands for a hash")
        store.read = lambda keys: dict.fromkeys({*keys} & {*store._entries})  # type: ignore[method-assign]
        assert found(host, repair=True) == {("a", "client:a"): (Wrong.LEFT, True)}
        assert entries(store) == {}

    def test_numbers_are_as_redis_writes_them_and_what_is_no_value_is_told(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount(entries=lambda row: {f"client:{row.id}": {"a": 5, "b": {}, "c": True}[row.id]})
        for id in ("a", "b", "c"):
            host.add(id=id, name=id)
            store.set(f"client:{id}", "5")
        assert wrong(found(host, repair=True)) == {("b", None): Wrong.UNNAMED, ("c", None): Wrong.UNNAMED}

    def test_a_rule_that_loads_more_by_the_row_is_asked_in_a_session(
        self, mount: Callable[..., Host], store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rule(row: Any) -> dict[str, str | None]:
            session = sa.orm.object_session(row)
            assert session is not None
            return {f"client:{row.id}": f"{session.scalar(sa.select(1))}"}

        monkeypatch.setattr("flask_mythic_clients.audit.time.sleep", pytest.fail)
        host = mount(entries=rule)
        host.add(id="a", name="a")
        store.set("client:a", "1")
        assert found(host) == {}

    def test_a_column_that_is_not_loaded_or_found_is_told(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()

        class Client(db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "clients"
            id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
            status: Mapped[bool]
            token: Mapped[str] = mapped_column(sa.String(99), deferred=True)
            day: Mapped[date | None]

        keys = ["client:{id}", "token:{token}", "day:{day}"]
        host = mount(db=db, model=Client, config={KEYS: keys})
        host.add(id="a", status=True, token="t")
        for key in ("client:gone", "token:t", "day:2024-01-01"):
            store.set(key, "x")
        told = looks(host, repair=True)
        assert [out.key for looked in told for out in looked.found] == ["client:gone"]
        assert len([looked.note for looked in told if looked.note]) == 2

    def test_an_odd_id_hides_no_entry_of_nobody(self, host: Host, store: MemoryStore) -> None:
        host.add(id="admin@example.com")
        store.set("client:gone", "x")
        store.set("client:admin@example.com", "active")
        assert list(found(host, repair=True)) == [("gone", "client:gone")]

    @pytest.mark.parametrize("character_set", ["ascii", "latin1", "utf8mb3", "utf8mb4"])
    def test_a_key_that_no_column_could_hold_is_nobodys(
        self, empty_database: Callable[[str], str], store: MemoryStore, character_set: str
    ) -> None:
        """MariaDB does not compare what it cannot write in one character set."""
        db, config = SQLAlchemy(), {"MYTHIC_CLIENTS_KV_KEYS": ["token:{token}"]}
        model = client_model(db, token=mapped_column(sa.String(40)))
        texts = {"ascii": "t", "latin1": "tü\x81", "utf8mb3": "t☃", "utf8mb4": "t🦊"}
        with mounting(empty_database("mariadb"), store) as mount:
            host = mount(db=db, model=model, config=config)
            with host.flask.app_context(), host.db.engine.begin() as connection:
                connection.exec_driver_sql(
                    f"ALTER TABLE clients MODIFY token VARCHAR(40) CHARACTER SET {character_set}"
                )
            host.add(id="a", token=texts[character_set])
            for text in (*texts.values(), "stray 🦊"):
                store.set(f"token:{text}", "cached")
            told = wrong(found(host, min_age=timedelta(0)))
        nobodys = {*texts.values(), "stray 🦊"} - {texts[character_set]}
        orphans = {key for (_, key), what in told.items() if what is Wrong.ORPHAN}
        assert orphans == {f"token:{text}" for text in nobodys}

    def test_a_row_without_an_id_is_no_client(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        db = SQLAlchemy()

        class Client(db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "clients"
            number: Mapped[int] = mapped_column(primary_key=True)
            slug: Mapped[str | None] = mapped_column(sa.String(99), unique=True)
            status: Mapped[bool]

        host = mount(db=db, model=Client, columns={"id": "slug"})
        with host.flask.app_context(), db.engine.begin() as connection:
            rows: list[dict[str, Any]] = [{"slug": None, "status": True} for _ in range(1001)]
            connection.execute(sa.insert(Client.__table__), [*rows, {"slug": "a", "status": True}])
        with host.flask.app_context():
            assert [client.id for client in host.clients.service.clients()] == ["a"]
        assert sum(looked.clients for looked in looks(host, sample=5)) == 1

    def test_rows_that_a_view_hides_are_not_gone(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        db = SQLAlchemy()
        host = mount(db=db, model=model_with_values(db))
        host.add(id="a")
        host.add(id="hidden")
        store.set("client:hidden", "active")
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE clients RENAME TO every_client")
            connection.exec_driver_sql(
                "CREATE VIEW clients AS SELECT * FROM every_client WHERE id <> 'hidden'"
            )
        try:
            told = looks(host, repair=True)
        finally:
            with host.flask.app_context(), db.engine.begin() as connection:
                connection.exec_driver_sql("DROP VIEW clients")
                connection.exec_driver_sql("DROP TABLE every_client")
        assert [out for looked in told for out in looked.found] == []
        assert any("a view, may hide rows" in f"{looked.note}" for looked in told)

    def test_our_own_keys_are_nobodys_business(self, mount: Callable[..., Host], store: MemoryStore) -> None:
        db = SQLAlchemy()
        keys = ["m{token}", "mythic:{token}"]
        host = mount(db=db, model=model_with_values(db), config={KEYS: keys})
        host.add(id="a", token="1")
        with host.flask.app_context():
            host.clients.service.reconcile()
        before = entries(store)
        assert any(key.startswith("mythic:") for key in before)
        store.set("mine", "x")
        assert list(found(host, repair=True)) == [(None, "mine")]
        assert entries(store) == before


class TestTheSecondLook:
    def test_what_was_put_right_meanwhile_is_not_told(
        self, host: Host, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept = list[float]()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            store.set("client:a", "active")
            host.add(id="new")
            host.add(id="other", token="t9")
            store.set("client:c", "active")
            store.apply(remove=["client:went"], overwrite={})
            with host.flask.app_context():
                host.clients.service.hard_delete("d", actor="tests")

        monkeypatch.setattr("flask_mythic_clients.audit.time.sleep", sleep)
        for id in ("a", "c", "d", "e"):
            host.add(id=id)
            store.set(f"client:{id}", "stale")
        for key in ("client:new", "token:t9", "client:went"):
            store.set(key, "active")
        told = looks(host, min_age=timedelta(minutes=5), repair=True)
        assert slept == [300]
        assert [looked.again for looked in told if looked.again] == [7]
        assert [out.client_id for looked in told for out in looked.found] == ["e"]
        assert store.get("client:new") == store.get("token:t9") == "active"

    def test_nothing_wrong_is_not_waited_for(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flask_mythic_clients.audit.time.sleep", pytest.fail)
        host.add(id="a")
        assert found(host, min_age=timedelta(hours=1)) == {}

    def test_so_much_wrong_that_it_fills_the_memory_is_looked_at_before_the_end(
        self, host: Host, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flask_mythic_clients.audit._KEPT", 1500)
        for number in range(4200):
            store.set(f"token:{number}", "nobody's")
        told = looks(host, repair=True)
        assert [looked.again for looked in told if looked.again] == [2000, 2000, 200]
        assert sum(len(looked.found) for looked in told) == 4200
        assert entries(store) == {}

    @pytest.mark.parametrize("database_url", [P, M], indirect=True)
    def test_a_client_that_another_holds_is_told_and_left(self, host: Host, store: MemoryStore) -> None:
        for id in ("a", "b"):
            host.add(id=id)
            store.set(f"client:{id}", "stale")
        with _held(host, "a"):
            told = found(host, repair=True)
        assert told == {("b", "client:b"): (Wrong.STALE, True), ("a", None): (Wrong.HELD, False)}
        assert entries(store) == {"client:a": "stale", "client:b": "active"}


@contextmanager
def _held(host: Host, id: str) -> Iterator[None]:
    """Hold the row of a client as a transaction of the host's may."""
    table = host.model.__table__
    with host.flask.app_context(), host.db.engine.connect() as connection:
        connection.execute(sa.select(table).where(table.c.id == id).with_for_update())
        yield


def _as_auditor(connection: Any, _: object) -> None:
    connection.execute("SET ROLE auditor")
    connection.commit()


class TestWhatCannotBeLookedAt:
    def test_a_rule_that_fails_for_one_is_told_of_that_one(self, host: Host, store: MemoryStore) -> None:
        host.add(id="a", token="broken")
        host.add(id="b")
        store.set("client:b", "stale")
        every = [out for looked in looks(host, repair=True) for out in looked.found]
        assert [(out.client_id, out.wrong) for out in every] == [("a", Wrong.UNNAMED), ("b", Wrong.STALE)]
        assert "ZeroDivisionError" in f"{every[0].cause}"
        assert "secret" not in repr(every)

    def test_entries_that_the_store_refuses_are_told_and_the_rest_is_repaired(
        self, host: Host, store: MemoryStore
    ) -> None:
        for id in ("a", "b"):
            host.add(id=id)
            store.set(f"client:{id}", "stale")
        store.set("client:gone", "x")
        store.refuse("client:a", "client:gone")
        assert found(host, repair=True) == {
            ("a", "client:a"): (Wrong.REFUSED, False),
            ("b", "client:b"): (Wrong.STALE, True),
            (None, "client:gone"): (Wrong.REFUSED, False),
        }

    def test_of_keys_that_a_function_names_only_rows_are_walked(
        self, mount: Callable[..., Host], store: MemoryStore
    ) -> None:
        host = mount(entries=lambda row: {f"client:{row.id}": "1", f"other:{row.id}": None})
        host.add(id="a", name="a")
        for key in ("client:a", "client:gone", "other:a"):
            store.set(key, "stale")
        told = looks(host)
        assert [out.key for looked in told for out in looked.found] == ["client:a"]
        (note,) = [looked.note for looked in told if looked.note]
        assert "only rows were walked" in note

    @pytest.mark.parametrize("database_url", [P], indirect=True)
    def test_rows_that_a_policy_hides_make_nobodys_entries_of_none(
        self, host: Host, store: MemoryStore
    ) -> None:
        host.add(id="a")
        host.add(id="hidden")
        store.set("client:hidden", "active")
        with host.flask.app_context(), host.db.engine.begin() as connection:
            for statement in (
                "ALTER TABLE clients ENABLE ROW LEVEL SECURITY",
                "ALTER TABLE clients FORCE ROW LEVEL SECURITY",
                "CREATE POLICY most ON clients USING (id <> 'hidden')",
                "DROP ROLE IF EXISTS auditor",
                "CREATE ROLE auditor",
                "GRANT USAGE ON SCHEMA public TO auditor",
                "GRANT ALL ON ALL TABLES IN SCHEMA public TO auditor",
            ):
                connection.exec_driver_sql(statement)
        with host.flask.app_context():
            sa.event.listen(host.db.engine, "connect", _as_auditor)
            host.db.engine.dispose()
        told = looks(host, repair=True)
        assert [out for looked in told for out in looked.found] == []
        assert {looked.note for looked in told if looked.note} == {
            f"{template}: entries of nobody were not looked for. A policy, or "
            "a view, may hide rows of clients."
            for template in ("client:{id}", "token:{token}")
        }

    def test_owners_that_cannot_be_found_make_entries_of_nobody_of_none(
        self, mount: Callable[..., Host], store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = mount()
        host.add(id="a", name="a")
        store.set("client:b", "x")
        monkeypatch.setattr(SQLAlchemyRepository, "owners", lambda *_: set())
        told = looks(host, repair=True)
        assert [out for looked in told for out in looked.found] == []
        assert any("does not find the owners" in f"{looked.note}" for looked in told)
        assert list(entries(store)) == ["client:b"]

    def test_a_store_that_cannot_be_read_is_refused_and_one_that_cannot_be_walked_is_told(
        self, database_url: str
    ) -> None:
        class Deaf:
            def apply(self, **_: Any) -> set[str]:
                return set()

        class Standing(Deaf):
            def read(self, keys: Any) -> dict[str, bytes]:
                return dict.fromkeys(keys, b"stale")

        db = SQLAlchemy()
        with mounting(database_url, [MemoryStore(), Standing()]) as mount:
            host = mount(db=db, model=model_with_values(db))
            host.add(id="a")
            told = looks(host)
            assert [out.key for looked in told for out in looked.found] == ["client:a"]
            (note,) = [looked.note for looked in told if looked.note]
            assert "cannot be walked through" in note
        with mounting(database_url, Deaf()) as mount:
            host = mount()
            with pytest.raises(ConfigurationError, match="cannot be read"):
                looks(host)

    def test_a_store_that_is_away_is_an_error(self, host: Host, store: MemoryStore) -> None:
        host.add(id="a")
        with host.flask.app_context():
            host.db.metadata.tables["clients"].drop(host.db.engine)
        with pytest.raises(StoreError):
            looks(host)


class TestSeveralStores:
    def test_each_is_compared_and_an_entry_is_repaired_in_all(self, database_url: str) -> None:
        one, other, db = MemoryStore(), MemoryStore(), SQLAlchemy()
        with mounting(database_url, [one, other]) as mount:
            keys = ["client:{id}", "{token}"]
            host = mount(db=db, model=model_with_values(db), config={KEYS: keys})
            assert len([looked.note for looked in looks(host) if looked.note]) == 1
            host.add(id="a")
            host.add(id="b")
            one.set("client:a", "active")
            other.set("client:a", "stale")
            one.set("client:b", "stale")
            other.set("client:gone", "x")
            told = [out for looked in looks(host, repair=True) for out in looked.found]
            assert {(out.key, out.repaired) for out in told} == {
                *(("client:a", True), ("client:b", True), ("client:gone", True)),
            }
            assert entries(one) == {"client:a": "active", "client:b": "active"}
            assert entries(other) == {"client:a": "active"}


class TestASample:
    def test_what_it_tells_of_all_is_a_bound(self) -> None:
        assert round(in_line_at_least(0, 10_000), 6) == 0.9997  # 1 - 0.05 ** (1 / n)
        for n in (1, 7, 500):
            assert in_line_at_least(0, n) == pytest.approx(0.05 ** (1 / n))
        # Clopper and Pearson, one-sided, as tables have it: 3 of 100, and 1 of 20.
        assert 1 - in_line_at_least(3, 100) == pytest.approx(0.0757, abs=5e-4)
        assert 1 - in_line_at_least(1, 20) == pytest.approx(0.2161, abs=5e-4)
        assert in_line_at_least(5, 5) == 0

    def test_so_many_are_looked_at_and_the_bound_is_printed(self, host: Host, store: MemoryStore) -> None:
        for number in range(40):
            host.add(id=f"c{number}")
            store.set(f"client:c{number}", "active")
            store.set(f"client:gone{number}", "x")
        result = run(host, "audit", "--sample", "30", "--min-age", "0s", "--show-keys")
        lines = result.stdout.splitlines()
        orphans = [line for line in lines if line.endswith(Wrong.ORPHAN)]
        assert len({*orphans}) == len(orphans) > 0
        assert lines[-2] == "clients: 0 of 30 out of line: at least 90.49 % in line (95 %)"
        share = math.floor(in_line_at_least(len(orphans), 30) * 10_000) / 100
        told = f"entries: {len(orphans)} of 30 out of line: at least {share:.2f} % in line (95 %)"
        assert lines[-1] == told
        assert result.exit_code == 1

    def test_a_sample_of_all_says_so(self, host: Host, store: MemoryStore) -> None:
        host.add(id="a")
        store.set("client:a", "stale")
        result = run(host, "audit", "--sample", "10", "--min-age", "0s", "--repair")
        assert result.stdout.splitlines()[1:] == [
            "clients: 1 of 1 out of line, and those are all",
            "entries: 0 of 1 out of line, and those are all",
        ]
        assert result.exit_code == 0


class TestTheCommand:
    def test_keys_are_shortened_unless_they_are_asked_for(self, host: Host, store: MemoryStore) -> None:
        store.set("token:secret", "x")
        store.set("client:gone", "x")
        result = run(host, "audit", "--min-age", "0s")
        assert "secret" not in result.output
        assert result.stdout.splitlines() == [
            f"gone\tclient:…\t{Wrong.ORPHAN}",
            f"-\ttoken:…\t{Wrong.ORPHAN}",
        ]
        assert result.stderr.splitlines()[-1] == "clients 0, entries 2, out of line 2, repaired 0"
        assert result.exit_code == 1
        assert "token:secret" in run(host, "audit", "--min-age", "0s", "--show-keys").stdout

    def test_json_tells_all_of_it(self, host: Host, store: MemoryStore) -> None:
        host.add(id="a")
        store.set("client:a", "stale")
        result = run(host, "audit", "--json", "--repair", "--min-age", "0s")
        assert json.loads(result.stdout) == {
            **{"clients": 1, "entries": 1, "out_of_line": 1, "repaired": 1},
            "found": [
                {
                    **{"client_id": "a", "key": "client:…", "wrong": Wrong.STALE, "cause": None},
                    "repaired": True,
                }
            ],
        }
        assert result.exit_code == 0
        assert run(host, "audit", "--json").exit_code == 0

    def test_a_store_that_is_away_exits_with_3(self, host: Host, store: MemoryStore) -> None:
        with host.flask.app_context():
            host.db.metadata.tables["clients"].drop(host.db.engine)
        result = run(host, "audit")
        assert (result.exit_code, result.stdout) == (3, "")
