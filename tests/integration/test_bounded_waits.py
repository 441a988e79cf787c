"""Who waits for a client's records waits for a while, and leaves them pending."""

import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from ..hosts import KeyValue
from .scene import AWAY, make_scene

LOCK = sa.text("SELECT id FROM client_deletions WHERE client_id = 'acme' FOR UPDATE")


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_a_request_gives_up_on_records_that_another_holds(
    empty_database: Callable[[str], str], empty_kv: Callable[[str], KeyValue], database: str
) -> None:
    url = empty_database(database)
    with make_scene(url, empty_kv("either")) as scene:
        store, scene.tap.store = scene.tap.store, AWAY
        scene.add("acme")
        assert scene.host.delete("acme?hard=true").status_code == 503
        scene.tap.store = store
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as holder:
            holder.execute(LOCK)
            began = time.monotonic()
            assert scene.host.delete("acme?hard=true").status_code == 503
            assert 0.8 < time.monotonic() - began < 2.5
            assert scene.tap.calls == 1
        assert scene.host.delete("acme?hard=true").status_code == 200
        assert scene.host.delete("acme?hard=true").status_code == 404
