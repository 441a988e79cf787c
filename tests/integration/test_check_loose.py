"""Rows that a removal would leave behind are told by `check`, and none that are looked after."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import relationship

from flask_mythic_clients import ConfigurationError, MythicClients
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.backends.sqlalchemy import SQLAlchemyRepository
from flask_mythic_clients.model import Finding

from ..hosts import Host, mounting

_ID = sa.String(40)


def _model(db: SQLAlchemy, name: str = "Client", table: str = "clients", **attributes: Any) -> Any:
    columns = {"id": sa.Column(_ID, primary_key=True), "status": sa.Column(sa.Boolean, nullable=False)}
    return type(name, (db.Model,), {"__tablename__": table, **columns, **attributes})


def _refer(db: SQLAlchemy, table: str, column: str, *to: Any, key: bool = True) -> sa.Table:
    """Add a table with a column, and a foreign key if `to` has one."""
    own = [sa.Column("id", sa.Integer, primary_key=True)] if key else []
    return db.Table(table, *own, sa.Column(column, _ID, *to))


def _to(target: str, ondelete: str | None = None) -> sa.ForeignKey:
    return sa.ForeignKey(target, ondelete=ondelete)


def _without_a_key(db: SQLAlchemy) -> Any:
    _refer(db, "orders", "client_id")
    return _model(db)


def _beside_one_that_has_a_key(db: SQLAlchemy) -> Any:
    _refer(db, "orders", "client_id", _to("clients.id", "CASCADE"))
    _refer(db, "invoices", "client_id")
    _refer(db, "notes", "client_id")
    return _model(db)


def _named_like_the_class(db: SQLAlchemy) -> Any:
    _refer(db, "projects", "tenant_id")
    return _model(db, "Tenant", "t_17")


def _named_like_the_table(db: SQLAlchemy) -> Any:
    _refer(db, "projects", "crm_accounts_id")
    _refer(db, "users", "crm_account_id")
    return _model(db, "Tenant", "crm_accounts")


def _companies(db: SQLAlchemy) -> Any:
    _refer(db, "offices", "company_id")
    return _model(db, "CompanyModel", "companies")


def _businesses(db: SQLAlchemy) -> Any:
    _refer(db, "offices", "business_id")
    return _model(db, "Firm", "businesses")


def _of_two_words(db: SQLAlchemy) -> Any:
    _refer(db, "orders", "client_account_id")
    return _model(db, "ClientAccount", "accts")


def _camel_case(db: SQLAlchemy) -> Any:
    _refer(db, "orders", "clientId")
    _refer(db, "notes", "ClientID")
    return _model(db)


def _with_a_role(db: SQLAlchemy) -> Any:
    _refer(db, "orders", "billing_client_id")
    _refer(db, "notes", "authorClientId")
    return _model(db)


def _of_itself(db: SQLAlchemy) -> Any:
    return _model(db, parent_client_id=sa.Column(_ID))


def _by_another_key(db: SQLAlchemy) -> Any:
    _refer(db, "orders", "account_number")
    number = sa.Column(_ID, unique=True)
    return _model(db, "Account", "accounts", id=sa.Column(sa.Integer, primary_key=True), number=number)


def _looked_at_only(db: SQLAlchemy) -> Any:
    orders = _refer(db, "orders", "client_id")
    model = _model(db)
    order = type("Order", (db.Model,), {"__table__": orders})
    joined = model.__table__.c.id == orders.c.client_id
    model.orders = relationship(order, primaryjoin=joined, foreign_keys=orders.c.client_id, viewonly=True)
    return model


def _left_to_the_database(db: SQLAlchemy) -> Any:
    orders = _refer(db, "orders", "client_id")
    model = _model(db)
    order = type("Order", (db.Model,), {"__table__": orders})
    joined = model.__table__.c.id == orders.c.client_id
    model.orders = relationship(
        order, primaryjoin=joined, foreign_keys=orders.c.client_id, passive_deletes="all"
    )
    return model


def _removed_by_the_orm(db: SQLAlchemy) -> Any:
    orders = _refer(db, "orders", "client_id")
    model = _model(db)
    order = type("Order", (db.Model,), {"__table__": orders})
    joined = model.__table__.c.id == orders.c.client_id
    model.orders = relationship(order, primaryjoin=joined, foreign_keys=orders.c.client_id, cascade="all")
    return model


def _with_every_kind_of_key(db: SQLAlchemy) -> Any:
    for table, ondelete in (("a", "CASCADE"), ("b", "SET NULL"), ("c", "RESTRICT"), ("d", None)):
        _refer(db, table, "client_id", _to("clients.id", ondelete))
    db.Table("pairs", *(sa.Column(f"{n}_client_id", _to("clients.id"), primary_key=True) for n in "ab"))
    return _model(db)


def _by_way_of_another(db: SQLAlchemy) -> Any:
    """A key of two columns to a table that refers to the client."""
    tenant_id = sa.Column("tenant_id", _ID, _to("tenants.id", "CASCADE"), primary_key=True)
    db.Table("projects", tenant_id, sa.Column("id", sa.Integer, primary_key=True))
    of_project = sa.Column("tenant_id", _ID), sa.Column("project_id", sa.Integer, nullable=False)
    key = sa.ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"])
    db.Table("tasks", sa.Column("id", sa.Integer, primary_key=True), *of_project, key)
    return _model(db, "Tenant", "tenants")


def _of_something_else(db: SQLAlchemy) -> Any:
    """OAuth's clients are no clients of ours."""
    _refer(db, "tokens", "client_id", _to("oauth_apps.id"))
    db.Table("oauth_apps", sa.Column("id", _ID, primary_key=True), sa.Column("secret", _ID))
    return _model(db)


def _of_another_word(db: SQLAlchemy) -> Any:
    for number, column in enumerate(("clientele_id", "client_identity", "client", "client_ids", "id_client")):
        _refer(db, f"t{number}", column)
    return _model(db)


def _whose_kind_has_another_name(db: SQLAlchemy) -> Any:
    """`client_id` is what OAuth calls something else, where the host's own word is tenant."""
    _refer(db, "grants", "client_id")
    return _model(db, "Tenant", "tenants")


def _whose_own_key_is_called_so(db: SQLAlchemy) -> Any:
    return _model(db, id=sa.Column("client_id", _ID, primary_key=True))


def _with_numbers_of_others(db: SQLAlchemy) -> Any:
    """What OAuth, or a provider, calls the client: not what the host does."""
    columns = {"client_id": sa.Column(_ID, unique=True), "stripe_client_id": sa.Column(_ID, unique=True)}
    return _model(db, github_client_id=sa.Column(sa.Integer), **columns)


def _with_a_column_of_another_type(db: SQLAlchemy) -> Any:
    db.Table("orders", sa.Column("client_id", sa.Integer))
    return _model(db)


def _that_goes_with_another(db: SQLAlchemy) -> Any:
    """The tenant stands there a second time, to be found sooner."""
    tenant_id = sa.Column("tenant_id", _ID, _to("tenants.id", "CASCADE"))
    db.Table("projects", sa.Column("id", sa.Integer, primary_key=True), tenant_id)
    project = sa.Column("project_id", _to("projects.id", "CASCADE"))
    db.Table("tasks", sa.Column("id", sa.Integer, primary_key=True), project, sa.Column("tenant_id", _ID))
    return _model(db, "Tenant", "tenants")


def _by_way_of_what_may_be_null(db: SQLAlchemy) -> Any:
    """A key of two columns is not looked at where one is null."""
    tenant_id = sa.Column("tenant_id", _ID, _to("tenants.id", "CASCADE"), primary_key=True)
    db.Table("projects", tenant_id, sa.Column("id", sa.Integer, primary_key=True))
    of_project = sa.Column("tenant_id", _ID, nullable=False), sa.Column("project_id", sa.Integer)
    key = sa.ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"])
    db.Table("tasks", sa.Column("id", sa.Integer, primary_key=True), *of_project, key)
    return _model(db, "Tenant", "tenants")


def _in_another_alphabet(db: SQLAlchemy) -> Any:
    _refer(db, "posts", "author_id")
    return _model(db, "Client", "клиенты")


def _in_two_tables(db: SQLAlchemy) -> Any:
    told = {"polymorphic_on": "kind", "polymorphic_identity": "small"}
    client = _model(db, kind=sa.Column(_ID), __mapper_args__=told)
    key = sa.Column("client_id", _ID, _to("clients.id"), primary_key=True)
    told = {"polymorphic_identity": "big"}
    type("BigClient", (client,), {"__tablename__": "big_clients", "client_id": key, "__mapper_args__": told})
    return client


def _with_what_the_models_do_not_know(db: SQLAlchemy) -> Any:
    return _model(db)


# What is built, what else the database has, and what is to be told; with a "?" as a note.
SCHEMAS: dict[Callable[[SQLAlchemy], Any], tuple[Collection[str], Collection[str]]] = {
    _without_a_key: ((), {"orders.client_id"}),
    _beside_one_that_has_a_key: ((), {"invoices.client_id", "notes.client_id"}),
    _named_like_the_class: ((), {"projects.tenant_id"}),
    _named_like_the_table: ((), {"projects.crm_accounts_id", "users.crm_account_id"}),
    _companies: ((), {"offices.company_id"}),
    _businesses: ((), {"offices.business_id"}),
    _of_two_words: ((), {"orders.client_account_id"}),
    _camel_case: ((), {"orders.clientId", "notes.ClientID"}),
    _with_a_role: ((), {"orders.billing_client_id?", "notes.authorClientId?"}),
    _of_itself: ((), {"clients.parent_client_id?"}),
    _by_another_key: ((), {"orders.account_number"}),
    _looked_at_only: ((), {"orders.client_id"}),
    _left_to_the_database: ((), {"orders.client_id"}),
    _removed_by_the_orm: ((), set()),
    _with_every_kind_of_key: ((), set()),
    _by_way_of_another: ((), set()),
    _of_something_else: ((), set()),
    _of_another_word: ((), set()),
    _whose_kind_has_another_name: ((), set()),
    _whose_own_key_is_called_so: ((), set()),
    _with_numbers_of_others: ((), set()),
    _with_a_column_of_another_type: ((), {"orders.client_id?"}),
    _that_goes_with_another: ((), {"tasks.tenant_id?"}),
    _by_way_of_what_may_be_null: ((), {"tasks.tenant_id"}),
    _in_another_alphabet: ((), set()),
    _in_two_tables: ((), set()),
    _with_what_the_models_do_not_know: (
        (
            "CREATE TABLE legacy (id INTEGER, client_id VARCHAR(40))",
            "CREATE TABLE known (client_id VARCHAR(40), FOREIGN KEY (client_id) REFERENCES clients (id))",
            "CREATE VIEW seen AS SELECT * FROM legacy",
            "CREATE TABLE their_deletions"
            " (client_id VARCHAR(40), kv_keys TEXT, requested_at DATE, settled_at DATE)",
        ),
        {"legacy.client_id"},
    ),
}


def _found(host: Host, clients: MythicClients | None = None) -> list[Finding]:
    with host.flask.app_context():
        found = (clients or host.clients).service.check()
    return [finding for finding in found if "foreign key" in finding.problem]


def _told(host: Host, clients: MythicClients | None = None) -> dict[str, str]:
    return {finding.subject: finding.problem for finding in _found(host, clients)}


@pytest.mark.parametrize("build", SCHEMAS, ids=lambda build: build.__name__.strip("_").replace("_", "-"))
def test_each_gap_is_found_and_nothing_that_is_declared(
    mount: Callable[..., Host], build: Callable[[SQLAlchemy], Any]
) -> None:
    statements, gaps = SCHEMAS[build]
    db = SQLAlchemy()
    model = build(db)
    columns = {"id": "number"} if hasattr(model, "number") else {}
    host = mount(db=db, model=model, columns=columns)
    with host.flask.app_context(), db.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    found = {finding.subject: finding.breaks for finding in _found(host)}
    assert set(found) == {name.removesuffix("?") for name in gaps}
    assert {name for name, breaks in found.items() if not breaks} == {n[:-1] for n in gaps if n.endswith("?")}


def test_a_key_that_the_model_has_and_the_database_has_not_is_told_as_that(
    mount: Callable[..., Host],
) -> None:
    db = SQLAlchemy()
    orders = _refer(db, "orders", "client_id", _to("clients.id", "CASCADE"))
    host = mount(db=db, model=_model(db))
    assert _told(host) == {}
    with host.flask.app_context(), db.engine.begin() as connection:
        orders.drop(connection)
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER, client_id VARCHAR(40))")
    told = _told(host)["orders.client_id"]
    assert told == "The model has a foreign key to clients there, the database has none."


def test_a_host_settles_it_and_hears_of_a_name_that_is_wrong(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    _refer(db, "orders", "client_id")
    _refer(db, "notes", "client_id")
    host = mount(db=db, model=_model(db), columns={"ignore": ["orders.client_id", "order.client_id"]})
    assert set(_told(host)) == {"notes.client_id"}
    with host.flask.app_context():
        notes = [finding for finding in host.clients.service.check() if finding.subject == "order.client_id"]
    assert [finding.breaks for finding in notes] == [False]


def test_of_a_service_that_removes_nobody_nothing_of_it_is_told(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    _refer(db, "orders", "client_id")
    host = mount(db=db, model=_model(db), config={"MYTHIC_CLIENTS_HARD_DELETE": "deny"})
    assert _told(host) == {}


def test_the_name_of_a_second_kind_counts(mount: Callable[..., Host]) -> None:
    db = SQLAlchemy()
    _refer(db, "memberships", "organization_id")
    host = mount(db=db, model=_model(db))
    assert _told(host) == {}
    repository = SQLAlchemyRepository(db, _model(db, "Org", "orgs"), ledger="org_deletions")
    organizations = MythicClients(repository=repository, kv=MemoryStore(), name="organizations")
    host.flask.config["MYTHIC_ORGANIZATIONS_KV_KEYS"] = ["org:{id}"]
    organizations.init_app(host.flask)
    with host.flask.app_context():
        db.create_all()
    assert set(_told(host, organizations)) == {"memberships.organization_id"}


def test_other_schemas_of_the_models_are_looked_at(
    empty_database: Callable[[str], str], store: MemoryStore
) -> None:
    db = SQLAlchemy()
    url = empty_database("postgresql")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA IF EXISTS shop CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA shop")
    engine.dispose()
    db.Table("carts", sa.Column("id", sa.Integer, primary_key=True), schema="shop")
    with mounting(url, store) as mount:
        host = mount(db=db, model=_model(db))
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE shop.orders (client_id VARCHAR(40))")
            connection.exec_driver_sql(
                "CREATE TABLE shop.notes (client_id VARCHAR(40) REFERENCES public.clients)"
            )
        assert set(_told(host)) == {"shop.orders.client_id"}


def test_a_partition_is_told_with_its_table_alone(
    empty_database: Callable[[str], str], store: MemoryStore
) -> None:
    db = SQLAlchemy()
    with mounting(empty_database("postgresql"), store) as mount:
        host = mount(db=db, model=_model(db))
        with host.flask.app_context(), db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE ev (client_id TEXT, n INT) PARTITION BY RANGE (n)")
            connection.exec_driver_sql("CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM (1) TO (2)")
        assert set(_told(host)) == {"ev.client_id"}


def test_a_schema_that_is_the_default_is_looked_at_once(
    empty_database: Callable[[str], str], store: MemoryStore
) -> None:
    db = SQLAlchemy()
    db.Table("carts", sa.Column("id", sa.Integer, primary_key=True), schema="public")
    _refer(db, "notes", "client_id")
    with mounting(empty_database("postgresql"), store) as mount:
        assert set(_told(mount(db=db, model=_model(db)))) == {"notes.client_id"}


@pytest.mark.parametrize("wrong", ["orders.client_id", ["client_id"], [7], None, {"orders.client_id": 1}])
def test_an_ignore_that_is_no_list_of_columns_is_refused(wrong: Any) -> None:
    db = SQLAlchemy()
    with pytest.raises(ConfigurationError, match="ignore="):
        SQLAlchemyRepository(db, _model(db), ignore=wrong)
