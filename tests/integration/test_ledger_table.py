"""The ledger's table as hosts get it: every column of it, and the schema that a host's tables lie in."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateTable

from flask_mythic_clients import ConfigurationError
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from tests.hosts import Host, client_model, mounting

ID = "VARCHAR(255)"
TIME = {"sqlite": "DATETIME", "postgresql": "TIMESTAMP WITH TIME ZONE", "mysql": "DATETIME(6)"}


@pytest.mark.parametrize(
    ("dialect", "number", "id"),
    [
        (sqlite.dialect(), "INTEGER NOT NULL", ID),
        (postgresql.dialect(), "BIGSERIAL NOT NULL", ID),
        (mysql.dialect(), "BIGINT NOT NULL AUTO_INCREMENT", f"{ID} CHARACTER SET ascii COLLATE ascii_bin"),
    ],
    ids=["sqlite", "postgresql", "mysql"],
)
def test_its_columns_stay_as_they_are(dialect: Any, number: str, id: str) -> None:
    """Who changes one changes this, and tells the hosts to migrate."""
    table = SQLAlchemyRepository(SQLAlchemy()).model.metadata.tables["client_deletions"]
    time = TIME[dialect.name]
    assert " ".join(f"{CreateTable(table).compile(dialect=dialect)}".split()) == (
        f"CREATE TABLE client_deletions ( id {number}, client_id {id} NOT NULL, "
        "action VARCHAR(16) NOT NULL, actor TEXT NOT NULL, reason TEXT, request_id VARCHAR(128), "
        f"kv_keys JSON NOT NULL, requested_at {time} NOT NULL, settled_at {time}, verified_at {time}, "
        f"attempts INTEGER, last_error VARCHAR(255), digested_at {time}, PRIMARY KEY (id) )"
    )


def test_without_a_model_it_stands_beside_the_table_clients() -> None:
    model = SQLAlchemyRepository(SQLAlchemy()).model
    assert (model.__name__, sorted(model.metadata.tables)) == ("Client", ["client_deletions", "clients"])


class TestInASchema:
    @pytest.fixture
    def db(self) -> SQLAlchemy:
        return SQLAlchemy(metadata=sa.MetaData(schema="shop"))

    def test_a_deletion_is_done_and_recorded_there(
        self, db: SQLAlchemy, empty_database: Callable[[str], str], store: MemoryStore
    ) -> None:
        model = client_model(db)
        orders = db.Table(
            "orders", sa.Column("client_id", sa.ForeignKey("shop.clients.id", ondelete="CASCADE"))
        )
        url = empty_database("postgresql")
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA IF EXISTS shop CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA shop"))
        with mounting(url, store) as mount:
            host = mount(db=db, model=model)
            host.add(id="acme")
            with host.flask.app_context(), db.engine.begin() as connection:
                connection.execute(orders.insert().values(client_id="acme"))
            assert host.delete("acme").status_code == 200
            assert _dependents(host) == [("shop.orders.client_id", 1, "removed")]
            assert host.delete("acme?hard=true").status_code == 200
            assert len(host.records("acme")) == 2
        with engine.begin() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM shop.client_deletions")) == 2
            connection.execute(sa.text("DROP SCHEMA shop CASCADE"))

    def test_a_model_has_one_ledger_and_a_second_model_none(self, db: SQLAlchemy) -> None:
        model = client_model(db)
        for _ in range(2):
            SQLAlchemyRepository(db, model)
        tables = [name for name in db.metadata.tables if "deletions" in name]
        assert tables == ["shop.client_deletions"]
        second = type("Second", (model,), {})
        expected = (
            "The table shop.client_deletions already exists for something other than Second: "
            "pass SQLAlchemyRepository(…, ledger=…) with a name of its own."
        )
        with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
            SQLAlchemyRepository(db, second)


def _dependents(host: Host) -> list[tuple[str, int, str]]:
    with host.flask.app_context():
        preview = host.clients.service.preview("acme", hard=True)
        return [(found.column, found.rows, found.fate) for found in preview.dependents]
