"""A fork leaves to its parent the connections and the locks that were there."""

import os
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from flask_mythic_clients.backends.sqlalchemy.dialects import dialect_of

from ..hosts import Host

# Since Python 3.12; the threads are those of the test runner.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

BACKEND = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT connection_id()"}


def _in_a_child(work: Callable[[], bool]) -> bool:
    """Whether the work is true in a fork of this process."""
    if (child := os.fork()) == 0:
        done = False
        try:
            done = work()
        finally:
            os._exit(0 if done else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("database_url", BACKEND, indirect=True)
def test_the_child_connects_anew_and_the_parents_connection_stays(mount: Callable[..., Host]) -> None:
    host = mount()
    host.add(id="acme")
    assert host.delete("acme").status_code == 200

    def backend() -> int:
        with host.flask.app_context(), host.db.engine.connect() as connection:
            found: int = connection.scalar(sa.text(BACKEND[connection.engine.url.get_backend_name()]))
            return found

    before = backend()
    assert _in_a_child(lambda: backend() != before and host.delete("acme").status_code == 200)
    assert backend() == before
    assert host.delete("acme?hard=true").status_code == 200


def test_a_turn_that_a_thread_of_the_parents_has_is_not_waited_for(mount: Callable[..., Host]) -> None:
    host = mount()
    host.add(id="acme")
    assert host.delete("acme").status_code == 200
    with host.flask.app_context(), ExitStack() as turns:
        for name in ("acme", ""):  # SQLite has one for all
            dialect_of(host.db.engine).turns.take(name, turns)
        assert _in_a_child(lambda: host.delete("acme?hard=true").status_code == 200)
