"""Which entries a client owns."""

from types import SimpleNamespace
from typing import Any

import pytest

from flask_mythic_clients import ConfigurationError
from flask_mythic_clients.entries import EntryFunction, KeyTemplates
from flask_mythic_clients.model import Client


def _client(id: str = "acme", **columns: Any) -> Client:
    return Client(id, True, SimpleNamespace(**columns))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("client", "names no column, so all clients would share that key"),
        ("", "names no column"),
        ("{{id}}", "names no column"),
        ("client:{", "Single '{'"),
        ("client:}", "Single '}'"),
        ("client:{id", "expected '}'"),
        ("client:{}", "write {column}"),
        ("client:{0}", "write {column}"),
        ("client:{id.x}", "write {column}"),
        ("client:{id[0]}", "write {column}"),
        ("client:{id!r}", "write {column}"),
        ("client:{id:>9}", "write {column}"),
        ("client:{id!s:}", "write {column}"),
        ("client:{ id }", "write {column}"),
    ],
)
def test_a_template_that_no_single_client_could_own_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KeyTemplates(["client:{id}", template])
    assert message in str(caught.value)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("client:{id}", "client:acme"),
        ("{id}", "acme"),
        ("{id}:{id}", "acme:acme"),
        ("{{{id}}}", "{acme}"),
        ("tenant:{region}:{number}:x", "tenant:eu:7:x"),
        ("{flag}", "True"),
        ("{text}", "{id} %s"),
    ],
)
def test_a_template_is_filled_from_the_row(template: str, key: str) -> None:
    client = _client(region="eu", number=7, flag=True, text="{id} %s")
    assert KeyTemplates([template])(client) == {key: None}


def test_the_id_is_the_clients_whatever_the_row_calls_it() -> None:
    client = Client("acme", True, SimpleNamespace(id="another"))
    assert KeyTemplates(["client:{id}"])(client) == {"client:acme": None}


def test_a_column_that_is_none_yields_no_key_and_an_empty_one_does() -> None:
    templates = KeyTemplates(["client:{id}", "{a}:{b}"])
    assert list(templates(_client(a=None, b="b"))) == ["client:acme"]
    assert list(templates(_client(a="a", b=None))) == ["client:acme"]
    assert list(templates(_client(a="", b=0))) == ["client:acme", ":0"]


def test_the_columns_are_those_of_the_row_once_each_and_without_the_id() -> None:
    assert KeyTemplates(["{b}:{id}", "{a}:{b}"]).columns == ["a", "b"]


def test_a_row_that_knows_values_gives_them_for_its_own_keys_alone() -> None:
    values = {"client:acme": "document", "stranger": "x"}
    client = _client(pk="1", entry_values=lambda: values)
    assert KeyTemplates(["client:{id}", "pk:{pk}"])(client) == {"client:acme": "document", "pk:1": None}


def test_a_function_gets_the_row_and_has_the_last_word() -> None:
    client = _client(name="Acme")
    rule = EntryFunction(lambda row: {f"by-name:{row.name}": b"value", "other": None})
    assert rule(client) == {"by-name:Acme": b"value", "other": None}
