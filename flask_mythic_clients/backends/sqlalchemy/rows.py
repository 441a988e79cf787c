"""The clients' rows: the host's model, whatever its columns are called."""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from itertools import zip_longest
from operator import add
from types import SimpleNamespace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import ColumnProperty, Mapper, Session, lazyload, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from ...entries import KeyTemplates
from ...errors import ConfigurationError
from ...model import Action, Change, Client
from ...templates import Template
from .dialects import Dialect
from .status import Status, status_column

PAGE = 1000
_PLAIN_TYPES = {
    *(sa.String, sa.Text, sa.Unicode, sa.UnicodeText, sa.VARCHAR, sa.TEXT),
    *(sa.Integer, sa.BigInteger, sa.SmallInteger, sa.INTEGER, sa.BIGINT, sa.SMALLINT),
}
_OF_UUIDS = (sa.Uuid, sa.String, sa.LargeBinary, sa.BINARY, sa.VARBINARY)  # what a column of UUIDs is made of
_NO_IDS = (
    *(sa.Enum, sa.LargeBinary, sa.BINARY, sa.VARBINARY, sa.Numeric, sa.Float, sa.Boolean),
    *(sa.Date, sa.DateTime, sa.Time, sa.Interval, sa.JSON, sa.ARRAY),
)


def _mapper(model: type[Any]) -> Mapper[Any]:
    mapper = sa.inspect(model, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise ConfigurationError(f"{model!r} is no model: pass the class that maps the clients' table.")
    return mapper


def metadata_of(model: Any) -> sa.MetaData:
    """Return the metadata of a model's table: one that is mapped imperatively has none of its own."""
    table = getattr(sa.inspect(model, raiseerr=False), "local_table", None)
    metadata = getattr(table, "metadata", None) or getattr(model, "metadata", None)
    return metadata if isinstance(metadata, sa.MetaData) else sa.MetaData()


def _is_unique(column: sa.Column[Any]) -> bool:
    table: Any = column.table
    sets = [table.primary_key.columns]
    sets += [key.columns for key in table.constraints if isinstance(key, sa.UniqueConstraint)]
    sets += [index.columns for index in table.indexes if index.unique]
    return any(list(columns) == [column] for columns in sets)


def _value(type_: Any, text: str, dialect: Dialect) -> Any:
    if isinstance(type_, sa.TypeDecorator):
        return _value_of_the_hosts(type_, text, dialect)
    try:
        if isinstance(type_, sa.Uuid):
            key: Any = uuid.UUID(text)
            return (key if type_.as_uuid else text) if str(key) == text else None
        if isinstance(type_, sa.Integer):
            key = int(text)
            return key if str(key) == text and -(2**63) <= key < 2**63 else None
    except (ValueError, TypeError):
        return None
    return text


def _value_of_the_hosts(type_: Any, text: str, dialect: Dialect) -> Any:
    """Return what a type of the host's takes for the text: that, or the UUID that is written so; or None."""
    process, values = type_.bind_processor(dialect.sqlalchemys), list[Any]([text])
    with suppress(ValueError):
        if isinstance(type_.impl_instance, _OF_UUIDS) and str(key := uuid.UUID(text)) == text:
            values.append(key)
    return next((value for value in values if process is None or _takes(process, value)), None)


def _takes(process: Callable[[Any], Any], value: Any) -> bool:
    try:
        process(value)
    except Exception:  # it is the host's code that refuses it
        return False
    return True


def _is_found_by(column: Any) -> bool:
    is_text = isinstance(column.type, sa.String) and not isinstance(column.type, sa.Enum)
    return isinstance(column, sa.Column) and (is_text or isinstance(column.type, (sa.Integer, sa.Uuid)))


class ClientRows:
    """Translates between clients and the rows of a host's model."""

    def __init__(self, model: type[Any], id: str, status: str | Status) -> None:
        self.model = model
        self.mapper = _mapper(model)
        if not isinstance(id, str) or id not in self.mapper.columns:
            raise ConfigurationError(
                f"{model.__name__} has no column {id!r}: pass id=… with one of {self._names()}."
            )
        self._id = id
        self.id = self.column("id")
        self.status = status_column(self.mapper, status)
        if not _is_unique(self.id):
            raise ConfigurationError(
                f"{model.__name__}.{id} is neither the primary key nor unique, but one id must name one row."
            )
        if isinstance(self.id.type, _NO_IDS):
            raise ConfigurationError(
                f"{model.__name__}.{id} is a {type(self.id.type).__name__}, which is no id: that is a text, "
                "a whole number or a UUID, or a TypeDecorator of yours whose values `str` writes in one way."
            )
        # Any whole number may be asked for, also one that the column cannot hold.
        self.key_type = sa.BigInteger() if isinstance(self.id.type, sa.Integer) else self.id.type

    def column(self, name: str) -> sa.Column[Any]:
        """Return the column that a key template means; `id` is the client's id, whatever its name."""
        return self.mapper.columns[self._id if name == "id" else name]

    def check_columns(self, names: Collection[str]) -> None:
        """Fulfil `ports.ClientDirectory.check_columns`."""
        for name in names:
            if name not in self.mapper.columns:
                raise ConfigurationError(
                    f"A template names {{{name}}}, but {self.model.__name__} has no such column; "
                    f"it has {self._names()}."
                )

    def is_plain(self, name: str, dialect: Dialect) -> bool:
        """Whether SQL and Python write and compare the column's value in the same way."""
        column = self.column(name)
        type_ = column.type
        if column.table is not self.id.table:
            return False  # computed, not stored
        if isinstance(type_, sa.Uuid):
            return dialect.uuid_is_text
        # Exactly these: a subclass may be padded, ignore case, or be filled with zeros.
        return type(type_) in _PLAIN_TYPES and getattr(type_, "collation", None) is None

    def key_of(self, client_id: str, dialect: Dialect) -> Any:
        """Return a client's id as its column takes it; None where no row can have it.

        `007` is not the id of client 7: one client has one id.
        """
        return _value(self.id.type, client_id, dialect)

    def value_of(self, name: str, text: str, dialect: Dialect) -> Any:
        """Return the value of the column that Python writes so; None where no row can have it.

        Raises ConfigurationError where rows are not found by such a column: what Python writes is not told.
        """
        column = self.column(name)
        if name != "id" and not _is_found_by(column):
            raise ConfigurationError(
                f"{self.model.__name__}.{name} is neither a text nor a number nor a UUID."
            )
        return None if "\0" in text else _value(column.type, text, dialect)

    def keys_of(self, client_ids: Iterable[str], dialect: Dialect) -> dict[str, Any]:
        """Return id → key for those that a row can have."""
        keys = {}
        for id in client_ids:
            if (key := self.key_of(id, dialect)) is not None:
                keys[id] = key
        return keys

    def named_by_keys(self, dialect: Dialect) -> sa.ColumnElement[bool]:
        """Return a condition for the rows of the keys that the parameter `of_keys` lists."""
        if self.is_plain("id", dialect):
            return dialect.among(self.id, "of_keys", self.key_type)
        return self.id.in_(sa.bindparam("of_keys", type_=self.key_type, expanding=True))

    def brief(self, columns: Iterable[str]) -> list[sa.ColumnElement[Any]]:
        """Return what makes a row that `client` takes, with these columns, and without the ORM."""
        wanted = dict.fromkeys([self._id, self.status.name, *columns])
        return [self.mapper.columns[name].label(name) for name in wanted]

    def applies(self, key: sa.ColumnElement[Any], change: Change, dialect: Dialect) -> sa.ColumnElement[bool]:
        """Return `Change.applies_to` in SQL, for the row of that key."""
        same = dialect.same(self.id, key)
        if change.action is Action.SOFT:
            return same & self.status.active(dialect)
        if change.action is Action.RESTORE or change.only_if_inactive:
            return same & ~self.status.active(dialect)
        return same

    def kv_keys(
        self, source: sa.FromClause, templates: KeyTemplates, dialect: Dialect
    ) -> sa.ColumnElement[Any]:
        """Return the JSON array of a row's keys in SQL; a null column makes a null in it."""
        return dialect.json_array(
            *(reduce(add, self._texts(source, template)) for template in templates.each)
        )

    def read(
        self,
        session: Session,
        client_ids: Collection[str],
        dialect: Dialect,
        lock: Literal["share", "free", "update"] | None = None,
    ) -> dict[str, Client]:
        """Return id → client for those that exist; "free" is a share lock on those that nobody else holds."""
        keys = [*self.keys_of(client_ids, dialect).values()]
        hidden = bool(session.dispatch.do_orm_execute)
        query = dialect.once((self, lock, hidden), lambda: self._query(dialect, lock, hidden))
        found = {}
        for row in self._loaded(session, query, {"of_keys": keys}):
            client = self.client(row)
            if client.id in client_ids:
                found[client.id] = client
        return found

    def columns_of_entries(
        self, key: Any, templates: KeyTemplates, dialect: Dialect
    ) -> sa.Select[Any] | None:
        """Return a query for what the rule for entries needs of a row: `client` takes its rows.

        None where code of the host's sees the row.
        """
        if hasattr(self.model, "entry_values"):
            return None
        return sa.select(*self.brief(templates.columns)).where(dialect.same(self.id, key))

    def page(self, session: Session, _: Dialect, after: Client | None) -> list[Client]:
        """Return the next clients in the order of their ids; none after the last."""
        hidden = session.dispatch.do_orm_execute
        query = self._stored_rows() if hidden else sa.select(self.model).options(lazyload("*"))
        # A unique column may be NULL, and such a row is no client.
        query = query.where(self.id.is_not(None)).order_by(self.id).limit(PAGE)
        if after is not None:
            query = query.where(self.id > getattr(after.row, self._id))
        return [self.client(row) for row in self._loaded(session, query)]

    def _query(
        self, dialect: Dialect, lock: Literal["share", "free", "update"] | None, hidden: bool
    ) -> sa.Select[Any]:
        query = self._stored_rows() if hidden else sa.select(self.model).options(lazyload("*"))
        query = query.where(self.named_by_keys(dialect))
        if lock is not None:
            # Not what else the model loads: PostgreSQL locks no outer join, and the row alone is to be held.
            query = query.with_for_update(
                read=lock != "update", of=self.mapper.tables, skip_locked=lock == "free"
            )
            query = query.execution_options(populate_existing=True)  # also what the session has seen before
            query = query.where(dialect.step_1 if lock == "update" else dialect.step_2)
        return query

    def _stored_rows(self) -> sa.Select[Any]:
        """Return a query for all rows, also those that a listener of the host's hides from the ORM."""
        return self.all_of(sa.select(*(attribute.columns[0] for attribute in self._stored())))

    def all_of(self, query: sa.Select[Any]) -> sa.Select[Any]:
        """Let a query of columns read all rows of the model, and no others, without the ORM."""
        mapper = self.mapper
        query = query.select_from(mapper.selectable)
        if mapper.single and mapper.polymorphic_on is not None:
            kinds = [kind.polymorphic_identity for kind in mapper.self_and_descendants]
            query = query.where(mapper.polymorphic_on.in_(kinds))
        return query

    def _loaded(
        self, session: Session, query: sa.Select[Any], parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        """Load rows; a value that the model cannot read, and its error quotes, is an error of the mapping."""
        hidden = session.dispatch.do_orm_execute
        run: Any = session.connection().execute if hidden else session.scalars
        result = run(query, parameters)
        try:
            found: Sequence[Any] = result.all()
        except (LookupError, TypeError, ValueError):
            raise sa.exc.InvalidRequestError("A column holds what the model cannot read.") from None
        return [self._object(session, values) for values in found] if hidden else found

    def _object(self, session: Session, values: sa.Row[Any]) -> Any:
        """Return a row of the model's, as the ORM would have loaded it."""
        loaded = {attribute.key: value for attribute, value in zip(self._stored(), values, strict=True)}
        mapper = self.mapper
        if mapper.polymorphic_on is not None:
            kind = loaded[mapper.get_property_by_column(mapper.polymorphic_on).key]
            mapper = mapper.polymorphic_map.get(kind, mapper)
        row = mapper.class_manager.new_instance()
        for name, value in loaded.items():
            set_committed_value(row, name, value)
        make_transient_to_detached(row)
        return session.merge(row, load=False)

    def _stored(self) -> list[ColumnProperty[Any]]:
        """Return the attributes that the ORM loads with a row and that are columns."""
        every = self.mapper.column_attrs
        return [each for each in every if isinstance(each.columns[0], sa.Column) and not each.deferred]

    def client(self, row: Any) -> Client:
        """Return a loaded row as a client."""
        if isinstance(row, sa.Row):  # a column may be called as what that has
            row = SimpleNamespace(**row._mapping)
        return Client(
            self.id_of(getattr(row, self._id)), self.status.is_active(getattr(row, self.status.name)), row
        )

    def id_of(self, value: Any) -> str:
        """Return a client's id by the value of its column."""
        id = str(value)
        # PostgreSQL pads CHAR with blanks, which no id has.
        return id.rstrip() if isinstance(self.id.type, (sa.CHAR, sa.NCHAR)) else id

    def owns(self, row: Any) -> bool:
        """Whether that object is a row of a client."""
        return isinstance(row, self.model)

    def values(self, client: Client, table: Any, columns: Collection[str]) -> list[Any]:
        """Return what a client's row has in columns of one of its tables, by their names there."""
        by_name = {column.name: column for column in table.columns}
        properties = [self.mapper.get_property_by_column(by_name[name]).key for name in columns]
        return [getattr(client.row, name) for name in properties]

    def looks(self, action: Action) -> list[sa.ColumnElement[Any]]:
        """Return what to ask for to see what an action has left of a row: `is_as_wished` takes the answers.

        For a removal that is whether it is in one of its tables, else its status. Needs what `named` returns.
        """
        if action is Action.HARD:
            return [sa.exists().where(*self._named(table)) for table in self.mapper.tables]
        table: Any = self.status.column.table
        value = sa.select(self.status.column).select_from(table).where(*self._named(table))
        return [sa.exists().where(*self._named(table)), value.scalar_subquery()]

    def named(self, client: Client) -> dict[str, Any]:
        """Return what names a client's row in each of its tables, taken while it has one."""
        tables = self.mapper.tables
        return {name: value for table in tables for name, _, value in self._key(client, table)}

    def of_client(self, client: Client, table: Any) -> list[sa.ColumnElement[bool]]:
        """Return what names a client's row in one of its tables."""
        return [column == value for _, column, value in self._key(client, table)]

    def _key(self, client: Client, table: Any) -> Iterator[tuple[str, sa.Column[Any], Any]]:
        names = self._key_columns(table)
        if table is self.id.table:
            values = [getattr(client.row, self._id)]
        else:
            values = self.values(client, table, [column.name for column in names.values()])
        for (name, column), value in zip(names.items(), values, strict=True):
            yield name, column, value

    def _key_columns(self, table: Any) -> dict[str, sa.Column[Any]]:
        """Return the columns that name a row in one of its tables, by the names of their parameters."""
        columns = [self.id] if table is self.id.table else list(table.primary_key.columns)
        of_table = f"of_row_{self.mapper.tables.index(table)}"
        return {f"{of_table}_{n}": column for n, column in enumerate(columns)}

    def _named(self, table: Any) -> list[sa.ColumnElement[bool]]:
        named = self._key_columns(table).items()
        return [column == sa.bindparam(name, type_=column.type) for name, column in named]

    def set_active(self, session: Session, row: Any, active: bool, dialect: Dialect) -> None:
        """Set the status of a loaded row, to a value of the model's: validators and listeners may look."""
        value = self.status.value(active, dialect)
        if isinstance(value, sa.ColumnElement):
            value = session.connection().scalar(sa.select(sa.type_coerce(value, self.status.column.type)))
        setattr(row, self.status.name, value)

    def is_as_wished(self, found: Sequence[Any], action: Action) -> bool:
        """Whether what was found of a row after its change is what the action wants; the status is last."""
        if action is Action.HARD:
            return not any(found)
        there, value = found
        return bool(there) and self.status.is_active(value) is (action is Action.RESTORE)

    def _texts(self, source: sa.FromClause, template: Template) -> list[sa.ColumnElement[str]]:
        texts: list[sa.ColumnElement[str]] = []
        for literal, name in zip_longest(template.texts, template.columns):
            if literal:
                texts.append(sa.literal(literal))
            if name is not None:
                texts.append(sa.cast(source.c[self.column(name).key], sa.String()))
        return texts

    def _names(self) -> str:
        return ", ".join(self.mapper.columns.keys())
