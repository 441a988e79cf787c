"""What a key may do, and that it does no more: a 403 comes before any store is asked."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from typing import Any

import pytest
import sqlalchemy as sa

from flask_mythic_clients.auth import create_key, digest
from flask_mythic_clients.backends.memory import MemoryStore
from flask_mythic_clients.rights import Right, Route

from ..hosts import Host, KeyValue, contents, mounting
from .scene import Tap
from .test_wire_contract import HARD, SOFT, check

REQUESTS = {
    Right.SOFT: ("DELETE", "acme"),
    Right.HARD: ("DELETE", "acme?hard=true"),
    Right.RESTORE: ("POST", "acme/restore"),
    Right.HISTORY: ("GET", "acme/deletions"),
    Right.PREVIEW: ("GET", "acme/deletion-preview?hard=true"),
    Right.STATUS: ("GET", "deletions/status"),
}
MESSAGES = {
    Right.SOFT: "This key may not soft-delete clients.",
    Right.HARD: "This key may not remove clients for good.",
    Right.RESTORE: "This key may not restore clients.",
    Right.HISTORY: "This key may not read the history of clients.",
    Right.PREVIEW: "This key may not preview deletions.",
    Right.STATUS: "This key may not read the status of deletions.",
}
ROUTES = {"MYTHIC_CLIENTS_ROUTES": list(Route)}


@pytest.fixture
def mount(empty_database: Callable[[str], str]) -> Iterator[Callable[..., Host]]:
    """Make hosts on one SQLite database, with the client `acme`."""
    with mounting(empty_database("sqlite")) as mount:

        def with_acme(store: Any = None, config: dict[str, Any] | None = None, **options: Any) -> Host:
            host = mount(store or MemoryStore(), config={**ROUTES, **(config or {})}, **options)
            if not host.rows():
                host.add(id="acme", name="Acme")
            return host

        yield with_acme


def check_forbidden(answer: Any, right: Right) -> None:
    """Compare an answer to the contract's 403."""
    check(
        answer,
        403,
        json.dumps({"error": "Forbidden", "message": MESSAGES[right], "code": 403}).encode(),
    )
    challenges = answer.headers.getlist("WWW-Authenticate")
    assert challenges == ['Bearer realm="clients", error="insufficient_scope"']


def of_keys(*may: Right) -> list[Any]:
    """Return the configurations of a key that may just this."""
    return [
        {"ci": {"digest": digest("ci"), "may": [right.value for right in may]}},
        f"ci={digest('ci')};may={'+'.join(may)}",
    ]


@pytest.mark.parametrize(
    "may", list(chain(combinations(Right, 1), combinations(Right, 5), combinations(Right, 6))), ids="+".join
)
def test_a_key_may_what_its_entry_says_and_nothing_else(mount: Callable[..., Host], may: Any) -> None:
    for keys in of_keys(*may):
        host = mount(config={"MYTHIC_CLIENTS_ADMIN_KEYS": keys})
        for right in (Right.PREVIEW, Right.STATUS, Right.RESTORE):
            answer = host.send(*REQUESTS[right], key="ci")
            if right in may:
                assert answer.status_code == 200
            else:
                check_forbidden(answer, right)
        history = host.send(*REQUESTS[Right.HISTORY], key="ci")
        assert history.status_code == (404 if Right.HISTORY in may else 403)


@pytest.mark.parametrize("right", Right)
def test_without_a_right_it_is_403_before_any_store_is_asked(
    mount: Callable[..., Host], right: Right
) -> None:
    tap = Tap(MemoryStore())
    others = [other for other in Right if other is not right]
    host = mount(tap, config={"MYTHIC_CLIENTS_ADMIN_KEYS": of_keys(*others)[0]})
    statements: list[str] = []
    with host.flask.app_context():
        sa.event.listen(host.db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    check_forbidden(host.send(*REQUESTS[right], key="ci"), right)
    assert (statements, tap.calls) == ([], 0)


@pytest.mark.parametrize("hard", [False, True])
def test_soft_and_hard_are_rights_of_their_own(mount: Callable[..., Host], hard: bool) -> None:
    right, other = (Right.HARD, Right.SOFT) if hard else (Right.SOFT, Right.HARD)
    host = mount(config={"MYTHIC_CLIENTS_ADMIN_KEYS": of_keys(right)[0]})
    check_forbidden(host.send(*REQUESTS[other], key="ci"), other)
    assert [row.status for row in host.rows()] == [True]
    check(host.send(*REQUESTS[right], key="ci"), 200, HARD if hard else SOFT)
    assert [record.actor for record in host.records("acme")] == ["ci"]


def test_the_preview_of_a_removal_needs_the_right_to_preview_alone(mount: Callable[..., Host]) -> None:
    host = mount(config={"MYTHIC_CLIENTS_ADMIN_KEYS": of_keys(Right.PREVIEW)[0]})
    assert host.send(*REQUESTS[Right.PREVIEW], key="ci").json["hard"] is True


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("DELETE", "a.b?hard=1", "wrong", 401),
        ("DELETE", "a.b?hard=1", "ci", 400),  # which right it needs is not known
        ("GET", "a.b/deletion-preview?hard=1", "ci", 400),
        ("DELETE", "a.b?hard=true", "ci", 403),
        ("DELETE", "a.b", "ci", 403),
        ("POST", "a.b/restore", "ci", 403),
        ("GET", "a.b/deletions", "ci", 403),
        ("GET", "absent/deletion-preview", "ci", 403),
        ("GET", "deletions/status", "ci", 200),
    ],
)
def test_401_comes_first_then_the_flag_then_403_then_the_rest(
    mount: Callable[..., Host], method: str, path: str, key: str, status: int
) -> None:
    host = mount(config={"MYTHIC_CLIENTS_ADMIN_KEYS": of_keys(Right.STATUS)[0]})
    assert host.send(method, path, key=key).status_code == status


def test_a_key_without_limits_stands_beside_one_with(mount: Callable[..., Host]) -> None:
    keys = {"ops": digest("ops"), **of_keys(Right.SOFT)[0], "all": {"digest": digest("all")}}
    host = mount(config={"MYTHIC_CLIENTS_ADMIN_KEYS": keys})
    check_forbidden(host.send(*REQUESTS[Right.HARD], key="ci"), Right.HARD)
    check(host.send("DELETE", "acme", key="ci"), 200, SOFT)
    check(host.send("DELETE", "acme", key="all"), 200, SOFT)
    check(host.send("DELETE", "acme?hard=true", key="ops"), 200, HARD)
    assert [record.actor for record in host.records("acme")] == ["ci", "ops"]


def test_the_commands_are_not_limited_and_a_made_key_is_what_it_says(mount: Callable[..., Host]) -> None:
    host = mount()
    made = host.flask.test_cli_runner().invoke(
        args=["mythic-clients", "create-key", "ci", "--may", "soft+status", "--json"]
    )
    key = json.loads(made.stdout)
    keys = {"ci": {"digest": key["digest"], "may": key["may"]}}
    limited = mount(config={"MYTHIC_CLIENTS_ADMIN_KEYS": keys})
    check_forbidden(limited.send(*REQUESTS[Right.HARD], key=key["key"]), Right.HARD)
    check(limited.send(*REQUESTS[Right.SOFT], key=key["key"]), 200, SOFT)
    runner = limited.flask.test_cli_runner()
    assert runner.invoke(args=["mythic-clients", "delete", "--hard", "--yes", "acme"]).exit_code == 0


class Failing:
    """An iterable that fails."""

    def __iter__(self) -> Iterator[str]:
        raise LookupError


class TestVerifyKey:
    @pytest.mark.parametrize(
        "may",
        [
            ["soft"],
            ("soft",),
            {"soft"},
            frozenset({Right.SOFT}),
            iter(["soft"]),
            ["soft", "everything", "SOFT"],
        ],
    )
    def test_it_may_name_rights_in_any_iterable_and_what_is_none_gives_nothing(
        self, mount: Callable[..., Host], may: Any
    ) -> None:
        host = mount(verify_key=lambda key: ("Ünal", may))
        check(host.send("DELETE", "acme"), 200, SOFT)
        check_forbidden(host.send("DELETE", "acme?hard=true"), Right.HARD)
        assert [record.actor for record in host.records("acme")] == ["Ünal"]

    @pytest.mark.parametrize("may", [[], (), ["everything"], ["*"], [""], [None], [1], {"hard ", "Hard"}])
    def test_without_any_right_all_is_403(self, mount: Callable[..., Host], may: Any) -> None:
        host = mount(verify_key=lambda key: ("ops", may))
        for right, request in REQUESTS.items():
            check_forbidden(host.send(*request), right)

    @pytest.mark.parametrize(
        "verified",
        [
            *(("ops", None), ("ops", 1), ("ops", True), ("ops", "soft"), ("ops", b"soft"), ("ops", object())),
            *(
                ("ops", {"hard": False}),
                ("ops", [["soft"]]),
                ("ops", len),
                ("ops", Failing()),
            ),
            *(("", ["soft"]), (None, ["soft"]), (b"ops", ["soft"]), (1, ["soft"]), (["ops"], ["soft"])),
            *(("a\0b", ["soft"]), ("\ud800", ["soft"]), "\0"),
            *((), ("ops",), ("ops", ["soft"], ["hard"]), ["ops", ["soft"]], {"ops": ["soft"]}),
        ],
    )
    def test_what_is_malformed_is_401(self, mount: Callable[..., Host], verified: Any) -> None:
        host = mount(verify_key=lambda key: verified)
        for request in REQUESTS.values():
            assert host.send(*request).status_code == 401


def test_a_key_that_may_not_changes_nothing_on_real_stores(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    kv, key = empty_kv("either"), create_key()
    config = {**ROUTES, "MYTHIC_CLIENTS_ADMIN_KEYS": f"ci={digest(key)};may=history"}
    with mounting(database_url, kv.store) as mount:
        host = mount(config=config)
        host.add(id="acme")
        kv.raw.set("client:acme", "cached", ex=1000)
        before = contents(host, kv.raw, "client:acme")
        for right, request in REQUESTS.items():
            if right is not Right.HISTORY:
                check_forbidden(host.send(*request, key=key), right)
        assert contents(host, kv.raw, "client:acme") == before
