"""What a host does in step 1's transaction, before a client's row is changed."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session, mapped_column

from flask_mythic_clients import ClientNotFoundError, ConfigurationError, ConstraintError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository

from ..hosts import Host, client_model, contents


def _host(mount: Callable[..., Host], before: Any) -> Host:
    """Mount a client with a unique name, orders that refer to it, and an audit."""
    db = SQLAlchemy()
    db.Table("audits", sa.Column("said", sa.String(255)))
    db.Table("orders", sa.Column("client_id", sa.ForeignKey("clients.id"), nullable=False))
    model = client_model(db, handle=mapped_column(sa.String(255), unique=True))
    config = {"MYTHIC_CLIENTS_KV_KEYS": ["client:{id}", "handle:{handle}"]}
    host = mount(db=db, model=model, columns={"before": before}, config=config)
    host.add(id="acme", handle="acme")
    with host.flask.app_context(), db.engine.begin() as connection:
        connection.execute(db.metadata.tables["orders"].insert().values(client_id="acme"))
    return host


def _rows(host: Host, name: str) -> list[Any]:
    with host.flask.app_context(), host.db.engine.connect() as connection:
        return list(connection.scalars(sa.select(host.db.metadata.tables[name])))


def _act(host: Host, action: str) -> int:
    if action != "restore":
        return int(host.delete("acme?hard=true" if action == "hard" else "acme").status_code)
    with host.flask.app_context():
        host.clients.service.restore("acme", actor="tests")
    return 200


def _clean_up(session: Session, row: Any, action: str) -> None:
    """Remove orders, free the name, and write it down."""
    said = f"{action} {row.id} {row.status}"
    session.execute(sa.text("INSERT INTO audits VALUES (:said)"), {"said": said})
    if action == "hard":
        session.execute(sa.text("DELETE FROM orders WHERE client_id = :id"), {"id": row.id})
    elif action == "soft":
        row.handle = f"{row.handle} (gone)"


def test_it_cleans_up_and_writes_down_once_for_each_change(mount: Callable[..., Host]) -> None:
    host = _host(mount, _clean_up)
    for action in ("soft", "soft", "restore", "restore", "hard"):
        assert _act(host, action) == 200
    assert _act(host, "hard") == 404
    assert _rows(host, "audits") == ["soft acme True", "restore acme False", "hard acme True"]
    assert (_rows(host, "orders"), host.rows()) == ([], [])
    # The keys are those of the row as it was, before the hook changed it.
    handles = ["handle:acme", "handle:acme (gone)", "handle:acme (gone)"]
    assert [record.kv_keys[1] for record in host.records("acme")] == handles


def test_what_it_changes_on_the_row_goes_with_the_status_in_one_statement(
    mount: Callable[..., Host],
) -> None:
    """A constraint may tie the two, a listener hears once, and the session knows the row as it will be."""
    heard: list[Any] = []

    def before(session: Session, row: Any, action: str) -> None:
        row.deleted_by = "tests" if action == "soft" else None
        sa.event.listen(session, "after_commit", lambda _: heard.append(("committed", row.status)))

    db = SQLAlchemy()
    model = client_model(
        db,
        deleted_by=mapped_column(sa.String(255)),
        __table_args__=(sa.CheckConstraint("status = (deleted_by IS NULL)"),),
    )
    sa.event.listen(model, "after_update", lambda _, __, row: heard.append(("updated", row.status)))
    host = mount(db=db, model=model, columns={"before": before})
    host.add(id="acme", status=True)
    for action in ("soft", "restore"):
        assert _act(host, action) == 200
    assert heard == [("updated", False), ("committed", False), ("updated", True), ("committed", True)]


@pytest.mark.parametrize(
    ("raised", "status"),
    [(ConstraintError, 409), (ClientNotFoundError, 404), (LookupError, 500)],
)
@pytest.mark.parametrize("action", ["soft", "hard"])
def test_what_it_raises_rolls_all_back_and_a_refusal_of_ours_is_the_answer(
    mount: Callable[..., Host], store: MemoryStore, action: str, raised: type[Exception], status: int
) -> None:
    def refuse(session: Session, row: Any, action: str) -> None:
        _clean_up(session, row, action)
        raise raised(row.id)

    host = _host(mount, refuse)
    store.set("client:acme", "value", ex=1000)
    before = contents(host, store, "client:acme")
    assert _act(host, action) == status
    assert contents(host, store, "client:acme") == before


def test_what_the_database_says_no_with_to_its_work_is_a_409(
    mount: Callable[..., Host], store: MemoryStore
) -> None:
    def break_a_key(session: Session, row: Any, action: str) -> None:
        session.execute(sa.text("INSERT INTO orders VALUES ('nobody')"))

    host = _host(mount, break_a_key)
    before = contents(host, store)
    assert _act(host, "soft") == 409
    assert contents(host, store) == before


@pytest.mark.parametrize("hard", [True, False])
def test_a_dry_run_calls_it_and_undoes_what_it_does(
    mount: Callable[..., Host], store: MemoryStore, hard: bool
) -> None:
    committed: list[object] = []

    def commits(session: Session) -> None:
        committed.append(session)

    host = _host(mount, _clean_up)
    before = contents(host, store)
    sa.event.listen(Session, "after_commit", commits)
    try:
        with host.flask.app_context():
            preview = host.clients.service.preview("acme", hard=hard)
    finally:
        sa.event.remove(Session, "after_commit", commits)
    assert (preview.refused, preview.kv_keys) == (None, ("client:acme", "handle:acme"))
    fate = "removed" if hard else "kept"
    (dependent,) = preview.dependents
    assert (dependent.column, dependent.rows, dependent.fate) == ("orders.client_id", 1, fate)
    assert (contents(host, store), _rows(host, "audits"), committed) == (before, [], [])


@pytest.mark.parametrize("hard", [True, False])
def test_a_dry_run_tells_what_it_refuses(mount: Callable[..., Host], hard: bool) -> None:
    def refuse(session: Session, row: Any, action: str) -> None:
        raise ConstraintError(row.id, f"No {action} delete on a Sunday.")

    host = _host(mount, refuse)
    with host.flask.app_context():
        preview = host.clients.service.preview("acme", hard=hard)
    assert preview.refused == f"No {'hard' if hard else 'soft'} delete on a Sunday."
    assert [each.fate for each in preview.dependents] == ["kept"]


async def _later(session: Session, row: Any, action: str) -> None:
    """Would never be waited for."""


@pytest.mark.parametrize("wrong", ["x", 7, ["a"], lambda row: None, lambda *, session: None, _later])
def test_what_cannot_be_called_is_no_hook(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="before= takes a function"):
        SQLAlchemyRepository(SQLAlchemy(), before=wrong)


@pytest.mark.parametrize("action", ["soft", "hard"])
def test_one_that_returns_what_is_to_be_awaited_is_refused(mount: Callable[..., Host], action: str) -> None:
    """It looks like a function, and did nothing."""
    coroutines: list[Any] = []

    def later(session: Session, row: Any, action: str) -> Any:
        coroutines.append(_later(session, row, action))
        return coroutines[-1]

    host = _host(mount, later)
    assert _act(host, action) == 503
    assert [row.status for row in host.rows()] == [True]
    assert host.records("acme") == []
    for coroutine in coroutines:
        coroutine.close()
