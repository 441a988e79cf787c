"""Every kind of status: what tells an active client from a deleted one is the host's to choose."""

import enum
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects import mysql

from flask_mythic_clients import ClientNotFoundError, ConfigurationError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository, Status

from ..hosts import Host


class Stage(enum.Enum):
    """Where a client stands."""

    TRIAL = "on trial"
    PAYING = "paying"
    CLOSED = "closed for good"


class Flag(sa.TypeDecorator[bool]):
    """A bool to Python, a letter to the database."""

    impl = sa.String(1)
    cache_ok = True

    def process_bind_param(self, value: bool | None, dialect: Any) -> str | None:
        return None if value is None else "Y" if value else "N"

    def process_result_value(self, value: str | None, dialect: Any) -> bool | None:
        return None if value is None else value == "Y"


class InUTC(sa.TypeDecorator[datetime]):
    """An aware time to Python, one without its zone to the database."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
# The column, what `status=` is, values that are active (the first one is a restore's), and one that is not.
KINDS: dict[str, tuple[Any, Any, list[Any], Any]] = {
    "Boolean": (sa.Column(sa.Boolean), "state", [True], False),
    "time": (sa.Column(TIME), "state", [None], datetime(2020, 1, 2, 3, 4, 5)),
    "time with zone": (
        sa.Column(sa.DateTime(timezone=True)),
        "state",
        [None],
        datetime(2020, 1, 2, tzinfo=UTC),
    ),
    "TIMESTAMP": (sa.Column(sa.TIMESTAMP, nullable=True), "state", [None], datetime(2020, 1, 2)),
    "decorated time": (sa.Column(InUTC), "state", [None], datetime(2020, 1, 2, tzinfo=UTC)),
    "text": (
        sa.Column(sa.String(20)),
        Status("state", active="normal", deleted="archived"),
        ["normal", "new", "Archived", "", None],
        "archived",
    ),
    "padded text": (
        sa.Column(sa.CHAR(10)),
        Status("state", active="normal", deleted="archived"),
        ["normal", None],
        "archived",
    ),
    "enum": (
        sa.Column(sa.Enum(Stage)),
        Status("state", active=Stage.PAYING, deleted=Stage.CLOSED),
        [Stage.PAYING, Stage.TRIAL, None],
        Stage.CLOSED,
    ),
    "enum as text": (
        sa.Column(sa.Enum("on", "off", native_enum=False)),
        Status("state", active="on", deleted="off"),
        ["on", None],
        "off",
    ),
    "integer": (sa.Column(sa.Integer), Status("state", active=1, deleted=-1), [1, 0, 7, None], -1),
    "inverted Boolean": (
        sa.Column(sa.Boolean),
        Status("state", active=False, deleted=True),
        [False, None],
        True,
    ),
    "deleted at null": (
        sa.Column(sa.String(9)),
        Status("state", active="yes", deleted=None),
        ["yes", ""],
        None,
    ),
    "decorated": (sa.Column(Flag), Status("state", active=True, deleted=False), [True, None], False),
}
KIND = pytest.mark.parametrize("kind", KINDS)
PATHS = pytest.mark.parametrize("path", ["statement", "listeners"])


def _model(db: SQLAlchemy, kind: str, path: str = "statement") -> Any:
    column = KINDS[kind][0]._copy()
    attributes = {"id": sa.Column(sa.String(40), primary_key=True), "state": column}
    model = type("Client", (db.Model,), {"__tablename__": "clients", **attributes})
    for event in ("before_update", "before_delete") if path == "listeners" else ():
        sa.event.listen(model, event, lambda *_: None)
    return model


@pytest.fixture
def host(mount: Callable[..., Host], kind: str, path: str) -> Host:
    db = SQLAlchemy()
    config = {"MYTHIC_CLIENTS_HARD_DELETE": "after-soft-delete"}
    return mount(db=db, model=_model(db, kind, path), columns={"status": KINDS[kind][1]}, config=config)


def _state(host: Host) -> Any:
    return {row.id: _bare(row.state) for row in host.rows()}


def _bare(state: Any) -> Any:
    """Leave out what a database adds or loses: the blanks of a CHAR, a zone that it does not keep."""
    if isinstance(state, datetime):
        return state.replace(tzinfo=None)
    return state.rstrip() if isinstance(state, str) else state


def _restore(host: Host, id: str) -> None:
    with host.flask.app_context():
        host.clients.service.restore(id, actor="tests")


def _active(host: Host) -> dict[str, bool]:
    with host.flask.app_context():
        return {client.id: client.active for client in host.clients.service.clients()}


@KIND
@PATHS
def test_a_client_is_deleted_restored_and_removed_whatever_its_status_is(
    host: Host, store: MemoryStore, kind: str
) -> None:
    _, _, actives, deleted = KINDS[kind]
    ids = [f"c{number}" for number in range(len(actives))]
    for id, state in zip(ids, actives, strict=True):
        host.add(id=id, state=state)
        store.set(f"client:{id}", "value")
    host.add(id="gone", state=deleted)
    assert _active(host) == {**dict.fromkeys(ids, True), "gone": False}
    for id in ids:
        assert host.delete(f"{id}?hard=true").status_code == 409  # the guard: it is active
        for _ in range(2):
            assert host.delete(id).status_code == 200
        assert _active(host)[id] is False
    states = [state for id, state in _state(host).items() if id != "gone"]
    if not isinstance(deleted, datetime):
        assert states == [deleted] * len(ids)
    for id in ids:
        for _ in range(2):
            _restore(host, id)
        assert host.delete(f"{id}?hard=true").status_code == 409
        assert [record.action for record in host.records(id)] == ["soft", "restore"]
    assert {id: state for id, state in _state(host).items() if id != "gone"} == dict.fromkeys(ids, actives[0])
    assert _state(host)["gone"] == _bare(deleted)
    for id in ids:
        assert host.delete(id).status_code == 200
        assert host.delete(f"{id}?hard=true").status_code == 200
        assert store.get(f"client:{id}") is None
    assert host.delete("gone?hard=true").status_code == 200
    assert host.rows() == []
    with pytest.raises(ClientNotFoundError):
        _restore(host, "gone")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "ime" in kind or "TIME" in kind])
@PATHS
def test_a_soft_delete_writes_the_time_of_the_database_once(host: Host, kind: str) -> None:
    host.add(id="acme", state=None)
    assert host.delete("acme").status_code == 200
    ((_, first),) = _state(host).items()
    assert abs(datetime.now(UTC) - first.replace(tzinfo=UTC)) < timedelta(seconds=5)
    assert host.delete("acme").status_code == 200
    assert _state(host) == {"acme": first}


INVERTED = ["is_deleted", "deleted", "disabled", "is_banned", "archived", "hidden", "blocked", "suspended"]


@pytest.mark.parametrize("name", [*INVERTED, "inactive"])
def test_a_boolean_that_is_true_where_the_client_is_gone_is_refused_beside_what_to_write(name: str) -> None:
    db = SQLAlchemy()
    columns = {name: sa.Column(sa.Boolean), "id": sa.Column(sa.Integer, primary_key=True)}
    model: Any = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
    written = re.escape(f"write status=Status('{name}', active=False, deleted=True).")
    with pytest.raises(ConfigurationError, match=written):
        SQLAlchemyRepository(db, model, status=name)
    SQLAlchemyRepository(db, model, status=Status(name, active=False, deleted=True))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (None, "status= takes the name of a column or a Status"),
        (True, "status= takes the name of a column or a Status"),
        ("wrong", "no column 'wrong': pass status=… with one of enabled, closed_at"),
        (Status("wrong", active=1, deleted=2), "no column 'wrong'"),
        ("name", "no Boolean column and no time: pass status=… with one of enabled, closed_at, or say"),
        ("name", r"status=Status\('name', active=…, deleted=…\)"),
        ("made_at", "cannot be null, but null is active: pass status=… with one of enabled, closed_at"),
        (Status("name", active="a", deleted="a"), "are the same value"),
        (Status("name", active=1, deleted="b"), "takes no active=1"),
        (Status("name", active=None, deleted="b"), "cannot be null: pass active=…"),
        (Status("stage", active="paying", deleted=Stage.CLOSED), "takes no active='paying'"),
        (Status("level", active=True, deleted=0), "takes no active=True"),
        (Status("enabled", active=1, deleted=False), "takes no active=1"),
    ],
)
def test_a_status_that_cannot_tell_is_refused_by_a_message_that_names_the_fix(
    status: Any, message: str
) -> None:
    db = SQLAlchemy()
    columns = {
        "id": sa.Column(sa.Integer, primary_key=True),
        "name": sa.Column(sa.String(9), nullable=False),
        "made_at": sa.Column(sa.DateTime, nullable=False),
        "enabled": sa.Column(sa.Boolean),
        "is_deleted": sa.Column(sa.Boolean),
        "closed_at": sa.Column(sa.DateTime),
        "stage": sa.Column(sa.Enum(Stage)),
        "level": sa.Column(sa.Integer),
    }
    model: Any = type("Client", (db.Model,), {"__tablename__": "clients", **columns})
    with pytest.raises(ConfigurationError, match=message):
        SQLAlchemyRepository(db, model, status=status)


def test_a_model_without_any_column_that_would_do_is_told_so() -> None:
    db = SQLAlchemy()
    model: Any = type(
        "Client", (db.Model,), {"__tablename__": "clients", "id": sa.Column(sa.Integer, primary_key=True)}
    )
    with pytest.raises(
        ConfigurationError, match="none of its columns: it has no Boolean and no nullable time"
    ):
        SQLAlchemyRepository(db, model)
