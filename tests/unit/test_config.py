"""The settings: each default, and each wrong value refused by name without showing a secret."""

import dataclasses
import re
import traceback
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_mythic_clients import ConfigurationError
from flask_mythic_clients.auth import digest
from flask_mythic_clients.config import Settings, check_name
from flask_mythic_clients.model import HardDelete, SoftDeleteEntries
from flask_mythic_clients.rights import Right, Route

A, B = digest("a"), digest("b")


def _read(name: str, value: object) -> Settings:
    return Settings.from_config({f"MYTHIC_CLIENTS_{name}": value})


def _refused(name: str, value: object) -> str:
    """Return all that a log would show of the refusal, but for the lines of code."""
    with pytest.raises(ConfigurationError) as caught:
        _read(name, value)
    shown = "".join(traceback.format_exception_only(caught.value))
    cause: BaseException | None = caught.value
    while cause is not None:
        shown += f"{cause!r}"
        cause = cause.__cause__ or cause.__context__
    assert f"MYTHIC_CLIENTS_{name}" in str(caught.value)
    return shown


def test_the_defaults_are_those_of_the_table() -> None:
    assert Settings.from_config({}) == Settings(
        admin_keys={},
        url_prefix="/api/v1",
        kv_keys=("client:{id}",),
        hard_delete=HardDelete.ALLOW,
        verify_after=timedelta(seconds=60),
        keys_kept=timedelta(days=7),
        retry_after=5,
        routes=(Route.DELETE,),
    )


def test_the_config_of_a_flask_app_has_the_same_defaults() -> None:
    assert Settings.from_config(Flask("host").config) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("ADMIN_KEYS", {}, {}),
        ("ADMIN_KEYS", {"a": A, "b.c_d-1": B}, {"a": A, "b.c_d-1": B}),
        ("ADMIN_KEYS", "", {}),
        ("ADMIN_KEYS", f"a={A}", {"a": A}),
        ("ADMIN_KEYS", f"a={A},b={B}", {"a": A, "b": B}),
        ("ADMIN_KEYS", f"  a = {A} ,\n b={B} , ", {"a": A, "b": B}),
        ("ADMIN_KEYS", f"a={A},", {"a": A}),
        ("ADMIN_KEYS", {"n" * 64: A}, {"n" * 64: A}),
        ("ADMIN_KEYS", {"a": {"digest": A}}, {"a": A}),
        ("ADMIN_KEYS", {"a": {"digest": A, "may": ["soft"]}, "b": B}, {"a": (A, {"soft"}), "b": B}),
        ("ADMIN_KEYS", {"a": {"may": ("hard", Right.SOFT), "digest": A}}, {"a": (A, {"soft", "hard"})}),
        ("ADMIN_KEYS", {"a": {"digest": A, "may": list(Right)}}, {"a": (A, set(Right))}),
        ("ADMIN_KEYS", f"a={A},b={B};may=soft+restore", {"a": A, "b": (B, {"soft", "restore"})}),
        (
            "ADMIN_KEYS",
            f" a = {A} ; may = status + history , b={B}",
            {"a": (A, {"status", "history"}), "b": B},
        ),
        ("ADMIN_KEYS", f"'a={A};may=hard'", {"a": (A, {"hard"})}),
        ("ADMIN_KEYS", f"\"a={A}\",'b={B};may=hard'\n", {"a": A, "b": (B, {"hard"})}),
        ("URL_PREFIX", "", ""),
        ("URL_PREFIX", "/internal/admin-api", "/internal/admin-api"),
        ("ROUTES", ["delete"], ("delete",)),
        ("ROUTES", ("status", Route.RESTORE), ("status", "restore")),
        ("ROUTES", list(Route), ("delete", "restore", "history", "preview", "status")),
        ("ROUTES", "delete", ("delete",)),
        ("ROUTES", " status, restore ", ("status", "restore")),
        ("KV_KEYS", ["client:{id}", "pk:{publishable_key}"], ("client:{id}", "pk:{publishable_key}")),
        ("KV_KEYS", ("{id}",), ("{id}",)),
        ("KV_KEYS", "client:{id}", ("client:{id}",)),
        ("KV_KEYS", " client:{id}, pk:{publishable_key} ,", ("client:{id}", "pk:{publishable_key}")),
        ("HARD_DELETE", "allow", HardDelete.ALLOW),
        ("HARD_DELETE", "after-soft-delete", HardDelete.AFTER_SOFT_DELETE),
        ("HARD_DELETE", HardDelete.DENY, HardDelete.DENY),
        ("VERIFY_AFTER", 0, timedelta(0)),
        ("VERIFY_AFTER", 90, timedelta(seconds=90)),
        ("VERIFY_AFTER", " 90 ", timedelta(seconds=90)),
        ("KEYS_KEPT", 0, timedelta(0)),
        ("KEYS_KEPT", "86400", timedelta(days=1)),
        ("RETRY_AFTER", 0, 0),
        ("SOFT_DELETE_ENTRIES", "remove", SoftDeleteEntries.REMOVE),
        ("SOFT_DELETE_ENTRIES", SoftDeleteEntries.REWRITE, SoftDeleteEntries.REWRITE),
        ("RETRY_AFTER", 30, 30),
        ("RETRY_AFTER", "30", 30),
    ],
)
def test_a_good_value_is_read(name: str, value: object, read: object) -> None:
    assert getattr(_read(name, value), name.lower()) == read


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ADMIN_KEYS", [None, 1, True, [], [("a", A)], {A}, b"a=" + A.encode()]),
        ("ROUTES", [None, 1, True, "", " ", "delete,", "delete;restore", "Delete", "all", "*", b"delete"]),
        ("ROUTES", [[], (), {"delete"}, {"delete": True}, [None], [1], [["delete"]], ["delete", "drop"]]),
        ("ROUTES", [["delete", "delete"], "delete,status,delete", ["soft"], [" delete"]]),
        ("URL_PREFIX", [None, 1, True, "api", "/", "/api/", "//", "/a//b", "/<x>", "/a b", "/a\n", ["/api"]]),
        ("KV_KEYS", [None, 1, "", " , ", "client", [], (), {}, [1], [None], {"client:{id}"}, [b"{id}"]]),
        ("HARD_DELETE", [None, True, False, "", "Allow", "ALLOW", "allow ", "after", 1, ["allow"]]),
        ("VERIFY_AFTER", [None, True, False, "", "-1", "1.5", "1 m", "٣", "9" * 10, 1.5, -1, 10**12]),
        ("VERIFY_AFTER", [timedelta(seconds=60), float("nan")]),
        ("KEYS_KEPT", [None, True, "", "7d", 1.5, -1, 10**12, timedelta(days=7)]),
        ("SOFT_DELETE_ENTRIES", [None, True, "", "Remove", "delete", ["remove"]]),
        ("RETRY_AFTER", [None, True, False, "five", "5 s", 5.0, -1, 10**12, []]),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        _refused(name, value)


def test_every_setting_has_its_wrong_values_above() -> None:
    tested = {"admin_keys", "url_prefix", "kv_keys", "hard_delete", "verify_after", "retry_after"} | {
        *("keys_kept", "soft_delete_entries", "routes")
    }
    assert {field.name for field in dataclasses.fields(Settings)} == tested


@pytest.mark.parametrize("key", ["MYTHIC_CLIENTS_X", "MYTHIC_CLIENTS_ADMIN_KEY", "MYTHIC_CLIENTS_"])
def test_an_unknown_key_of_ours_is_refused_by_name_and_the_settings_are_named(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_config({key: "s3cret"})
    assert str(caught.value).startswith(f"{key} is no setting")
    assert "MYTHIC_CLIENTS_ADMIN_KEYS" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_keys_of_others_are_none_of_our_business() -> None:
    assert Settings.from_config({"MYTHIC": 1, "SECRET_KEY": "x", "mythic_clients_x": 1}) == Settings()


PLAIN = f"mythic_{'Kq7' * 15}"  # a test's name must be the same in every run


@pytest.mark.parametrize(
    "value",
    [
        {"a": PLAIN},
        {PLAIN: A[:-1]},
        {"a": A, "b": PLAIN},
        {"a": PLAIN.encode()},
        {("a", PLAIN): A},
        {"a": [PLAIN]},
        [PLAIN],
        (PLAIN,),
        PLAIN,
        f"a={PLAIN}",
        f"a={A},b={PLAIN}",
        f"{PLAIN}={A}x",
        f"{PLAIN},{PLAIN}",
        f"=sha256:{PLAIN}",
        f"a=sha256:{PLAIN}",
        f"a={A};may={PLAIN}",
        f"a={A};{PLAIN}=soft",
        f"a={A};may=soft;{PLAIN}",
        f"a={PLAIN};may=soft",
        {"a": {"digest": PLAIN, "may": ["soft"]}},
        {"a": {"digest": A, "may": [PLAIN]}},
        {"a": {"digest": A, "may": PLAIN}},
        {"a": {"digest": A, PLAIN: ["soft"]}},
        {"a": {PLAIN: A}},
    ],
)
def test_a_plain_key_is_refused_and_never_shown(value: object) -> None:
    assert PLAIN not in _refused("ADMIN_KEYS", value)


@pytest.mark.parametrize(
    "wrong",
    [A.upper(), A[:-1], A + "0", A[7:], A.replace("256", "512"), A + "\n", " " + A, "", None, 1, A.encode()],
)
def test_what_is_no_digest_is_refused(wrong: object) -> None:
    assert "create-key" in _refused("ADMIN_KEYS", {"a": wrong})


@pytest.mark.parametrize(
    "limit",
    [
        *(
            {"may": []},
            {"may": ()},
            {"may": None},
            {"may": "soft"},
            {"may": {"soft"}},
            {"may": {"soft": True}},
        ),
        *(
            {"may": ["soft", "delete"]},
            {"may": ["Soft"]},
            {"may": [None]},
            {"may": [["soft"]]},
            {"may": ["*"]},
        ),
        *({"may": ["soft"], "until": 2030}, {"mai": ["soft"]}, {1: 2}),
    ],
    ids=str,
)
def test_rights_that_there_are_not_are_refused_and_the_entry_is_named_by_its_number(limit: Any) -> None:
    shown = _refused("ADMIN_KEYS", {"ops": A, "ci": {"digest": B, **limit}})
    assert "MYTHIC_CLIENTS_ADMIN_KEYS: entry 2" in shown
    assert B not in shown


@pytest.mark.parametrize(
    "limit",
    [
        *("", "may", "may=", "may=+", "may=soft+", "may=soft,hard", "may=all", "mai=soft", "=soft"),
        *("may=soft;may=hard", "may=soft;", f"digest={A}", f"may=soft;digest={A}"),
    ],
)
def test_a_limit_that_is_none_is_refused_also_as_text_and_never_means_everything(limit: str) -> None:
    assert re.search("ADMIN_KEYS: entry [23]", _refused("ADMIN_KEYS", f"a={A},b={B};{limit}"))


def test_a_right_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    shown = _refused("ADMIN_KEYS", f"a={A};may=drop")
    assert "entry 1: 'may' takes some of soft, hard, restore, history, preview, status" in shown


def test_a_route_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    assert "some of delete, restore, history, preview, status" in _refused("ROUTES", ["drop"])


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a,b", "é", "n" * 65, "cli:root", "a\n", 1, None])
def test_what_is_no_name_is_refused(name: object) -> None:
    _refused("ADMIN_KEYS", {name: A})


@pytest.mark.parametrize("keys", [{"a": A, "b": {"digest": A, "may": ["soft"]}}, f"a={A};may=soft,b={A}"])
def test_a_key_that_stands_there_twice_is_refused_and_not_shown(keys: object) -> None:
    refused = _refused("ADMIN_KEYS", keys)
    assert "entry 2 is the key of entry 1." in refused
    assert A not in refused


def test_a_name_that_stands_there_twice_is_refused_by_name() -> None:
    assert "'a'" in _refused("ADMIN_KEYS", f"a={A},b={B},a={B}")


@pytest.mark.parametrize("template", ["client", "{", "{}", "{id!r}", "{id:>9}", "{id.x}", "{0}", ""])
def test_a_bad_template_is_refused_at_once(template: str) -> None:
    assert "MYTHIC_CLIENTS_KV_KEYS" in _refused("KV_KEYS", ["client:{id}", template])


def test_the_settings_show_no_digest_and_cannot_be_changed() -> None:
    settings = _read("ADMIN_KEYS", {"a": A, "b": {"digest": B, "may": ["soft"]}})
    assert A not in repr(settings)
    assert B not in repr(settings)
    assert "admin_keys" not in repr(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.retry_after = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["", "a=b", "a b", "a\n", "n" * 65])
def test_a_name_that_the_ledger_could_not_take_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        check_name(name)
