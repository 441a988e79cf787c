"""The migration that Flask-Migrate generates for a host, on each database."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_mythic_clients import MythicClients
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from tests.hosts import Host, KeyValue, make_host

# Flask-Migrate's own env.py calls it.
pytestmark = pytest.mark.filterwarnings("ignore:'get_engine' is deprecated:DeprecationWarning")

INDEXES = {
    "ix_client_deletions_client": ["client_id", "settled_at"],
    "ix_client_deletions_keyed": ["digested_at", "verified_at", "settled_at", "id"],
}


@pytest.fixture
def host(
    database_url: str,
    empty_kv: Callable[[str], KeyValue],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Host]:
    """Mount the package on a model of the host's, in a database without a table.

    A parameter is the server's default for its status.
    """
    # Alembic's env.py would disable the loggers of all later tests.
    monkeypatch.setattr("logging.config.fileConfig", lambda *_, **__: None)
    db = SQLAlchemy()

    class Account(db.Model):
        __tablename__ = "accounts"
        account_no: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
        enabled: Mapped[bool] = mapped_column(default=True, server_default=getattr(request, "param", None))

    columns = {"id": "account_no", "status": "enabled"}
    with closing(
        make_host(database_url, empty_kv("memory").store, db=db, model=Account, columns=columns)
    ) as host:
        _forget(host)
        with host.flask.app_context():
            db.drop_all()
        yield host


@pytest.fixture
def folder(host: Host, tmp_path: Path) -> str:
    """The folder of the migration that is generated for the host."""
    folder = f"{tmp_path / 'migrations'}"
    with host.flask.app_context():
        flask_migrate.init(folder)
        flask_migrate.migrate(folder, message="clients")
    return folder


def _forget(host: Host) -> None:
    """Begin as a new process does: `migrate` leaves a hook behind that hides the result of `check`."""
    flask_migrate.Migrate(host.flask, host.db)


def _inspector(host: Host) -> Any:
    return sa.inspect(host.db.engine)


def _indexes(host: Host, ledger: str) -> dict[Any, Any]:
    return {index["name"]: index["column_names"] for index in _inspector(host).get_indexes(ledger)}


def _versions(folder: str) -> list[Path]:
    return list(Path(folder, "versions").glob("*.py"))


def test_the_upgrade_makes_the_ledger_with_both_its_indexes(host: Host, folder: str) -> None:
    with host.flask.app_context():
        flask_migrate.upgrade(folder)
        made = _inspector(host)
        assert set(made.get_table_names()) == {"accounts", "client_deletions", "alembic_version"}
        assert _indexes(host, "client_deletions") == INDEXES
        columns = {column["name"]: column["nullable"] for column in made.get_columns("client_deletions")}
    nullable = {name for name, may_be_null in columns.items() if may_be_null}
    assert nullable == {
        "settled_at",
        "verified_at",
        "attempts",
        "last_error",
        "digested_at",
        "reason",
        "request_id",
    }


def test_after_the_upgrade_nothing_is_left_to_migrate(host: Host, folder: str) -> None:
    with host.flask.app_context():
        flask_migrate.upgrade(folder)
        _forget(host)
        flask_migrate.check(folder)  # exits where there is something
        _forget(host)
        flask_migrate.migrate(folder, message="nothing")
    assert len(_versions(folder)) == 1


def test_a_table_the_host_adds_after_that_is_left_to_migrate(host: Host, folder: str) -> None:
    with host.flask.app_context():
        flask_migrate.upgrade(folder)
        sa.Table("later", host.db.metadata, sa.Column("id", sa.Integer, primary_key=True))
        _forget(host)
        with pytest.raises(SystemExit):
            flask_migrate.check(folder)


def test_on_the_migrated_tables_deletes_are_done(host: Host, folder: str) -> None:
    with host.flask.app_context():
        flask_migrate.upgrade(folder)
    host.add(account_no="acme")
    assert host.delete("acme").status_code == 200
    assert host.delete("ACME").status_code == 404
    assert [row.enabled for row in host.rows()] == [False]
    assert host.delete("acme?hard=true").status_code == 200
    assert host.rows() == []
    assert [record.settled_at is None for record in host.records("acme")] == [False, False]
    assert host.records("ACME") == []


def test_the_downgrade_removes_the_tables_and_an_upgrade_brings_them_back(host: Host, folder: str) -> None:
    with host.flask.app_context():
        flask_migrate.upgrade(folder)
        flask_migrate.downgrade(folder, revision="base")
        assert _inspector(host).get_table_names() == ["alembic_version"]
        flask_migrate.upgrade(folder)
        assert "client_deletions" in _inspector(host).get_table_names()


def test_a_host_that_adds_the_package_later_gets_a_migration_of_the_ledger_alone(
    host: Host, folder: str
) -> None:
    with host.flask.app_context():
        _versions(folder)[0].unlink()
        host.model.__table__.create(host.db.engine)
        flask_migrate.migrate(folder, message="the ledger")
        (version,) = _versions(folder)
        assert "accounts" not in version.read_text()
        flask_migrate.upgrade(folder)
    host.add(account_no="acme")
    assert host.delete("acme").status_code == 200


@pytest.fixture
def organizations(host: Host) -> None:
    """A second kind of client in the host's app."""

    class Organization(host.db.Model):  # type: ignore[name-defined]
        __tablename__ = "organizations"
        id: Mapped[int] = mapped_column(primary_key=True)
        closed_at: Mapped[datetime | None]

    host.flask.config["MYTHIC_ORGANIZATIONS_KV_KEYS"] = ["organization:{id}"]
    repository = SQLAlchemyRepository(
        host.db, Organization, status="closed_at", ledger="organization_deletions"
    )
    MythicClients(host.flask, name="organizations", repository=repository, kv=MemoryStore())


def test_the_ledgers_of_two_kinds_are_both_made_and_both_removed(
    host: Host, organizations: None, folder: str
) -> None:
    with host.flask.app_context():
        flask_migrate.upgrade(folder)
        assert _indexes(host, "client_deletions") == INDEXES
        of_organizations = {name.replace("client", "organization", 1): INDEXES[name] for name in INDEXES}
        assert _indexes(host, "organization_deletions") == of_organizations
        _forget(host)
        flask_migrate.check(folder)
        flask_migrate.downgrade(folder, revision="base")
        assert _inspector(host).get_table_names() == ["alembic_version"]


class TestAStatusForATableThatHasRows:
    @pytest.fixture
    def folder(self, host: Host, tmp_path: Path) -> str:
        """The folder of the migration that adds the status, and the ledger."""
        folder = f"{tmp_path / 'migrations'}"
        with host.flask.app_context():
            id = sa.Column("account_no", sa.String(40), primary_key=True)
            accounts = sa.Table("accounts", sa.MetaData(), id)
            with host.db.engine.begin() as connection:
                accounts.create(connection)
                connection.execute(accounts.insert().values(account_no="acme"))
            flask_migrate.init(folder)
            flask_migrate.migrate(folder, message="clients")
        return folder

    @pytest.mark.parametrize("host", [sa.true()], indirect=True, ids=["server_default"])
    def test_with_a_server_default_the_clients_are_active(self, host: Host, folder: str) -> None:
        with host.flask.app_context():
            flask_migrate.upgrade(folder)
            _forget(host)
            flask_migrate.check(folder)
        assert [row.enabled for row in host.rows()] == [True]
        assert host.delete("acme").status_code == 200
        assert [row.enabled for row in host.rows()] == [False]

    @pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
    def test_without_one_the_upgrade_fails(self, host: Host, folder: str) -> None:
        with host.flask.app_context(), pytest.raises(sa.exc.DBAPIError, match=r"(?i)not.null|null values"):
            flask_migrate.upgrade(folder)

    @pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
    def test_without_one_mariadb_makes_every_client_a_deleted_one(self, host: Host, folder: str) -> None:
        with host.flask.app_context():
            flask_migrate.upgrade(folder)
        assert [row.enabled for row in host.rows()] == [False]
