"""The README's recipe against guesses: Flask-Limiter on the package's blueprint."""

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from flask_mythic_clients.backends.memory import MemoryStore

from ..hosts import ADMIN_KEY, Host, mounting


@pytest.fixture
def host(empty_database: Callable[[str], str]) -> Iterator[Host]:
    with mounting(empty_database("sqlite"), MemoryStore()) as mount:
        host = mount()
        host.add(id="acme")
        host.flask.add_url_rule("/health", view_func=lambda: "well")
        yield host


@pytest.fixture
def limiter() -> Limiter:
    return Limiter(get_remote_address, storage_uri="memory://")


def of_another_address(app: Flask, headers: dict[str, str]) -> int:
    path, elsewhere = "/api/v1/clients/acme", {"REMOTE_ADDR": "192.0.2.7"}
    return app.test_client().delete(path, headers=headers, environ_base=elsewhere).status_code


def test_guesses_are_counted_before_they_are_looked_at(host: Host, limiter: Limiter) -> None:
    limiter.init_app(host.flask)
    limiter.limit("5 per minute")(host.flask.blueprints["mythic_clients"])
    statuses = [host.delete("acme", key=f"guess-{number}").status_code for number in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert host.delete("acme").status_code == 429  # also a right key from that address
    assert [row.status for row in host.rows()] == [True]
    assert of_another_address(host.flask, {"Authorization": f"Bearer {ADMIN_KEY}"}) == 200


def test_the_hosts_other_routes_are_not_limited(host: Host, limiter: Limiter) -> None:
    limiter.init_app(host.flask)
    limiter.limit("1 per minute")(host.flask.blueprints["mythic_clients"])
    assert [host.delete("acme").status_code for _ in range(2)] == [200, 429]
    client = host.flask.test_client()
    assert [client.get("/health").status_code for _ in range(5)] == [200] * 5
    assert client.get("/api/v1/clients/acme").status_code == 405


def test_a_limit_may_count_the_refused_alone(host: Host, limiter: Limiter) -> None:
    limiter.init_app(host.flask)
    limiter.limit("2 per minute", deduct_when=lambda answer: answer.status_code == 401)(
        host.flask.blueprints["mythic_clients"]
    )
    assert [host.delete("acme").status_code for _ in range(5)] == [200] * 5
    assert [host.delete("acme", key="guess").status_code for _ in range(3)] == [401, 401, 429]
    assert host.delete("acme").status_code == 429


def test_a_limiter_whose_store_is_away_ends_in_no_500(host: Host) -> None:
    limiter = Limiter(
        get_remote_address,
        storage_uri="redis://127.0.0.1:1/0",
        storage_options={"socket_timeout": 1, "socket_connect_timeout": 1},
        in_memory_fallback_enabled=True,
    )
    limiter.init_app(host.flask)
    limiter.limit("2 per minute")(host.flask.blueprints["mythic_clients"])
    assert [host.delete("acme").status_code for _ in range(3)] == [200, 200, 429]
