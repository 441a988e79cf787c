"""One hard delete looks the engine up once a step: that is the host's code, and may do anything."""

from collections.abc import Callable

from flask_sqlalchemy import SQLAlchemy

from tests.hosts import KeyValue, mounting

STEPS = 3  # whether both can be taken at once is the first


def test_a_hard_delete_looks_the_engine_up_at_most_once_a_step(
    database_url: str, empty_kv: Callable[[str], KeyValue]
) -> None:
    looked_up: list[SQLAlchemy] = []

    class Host(SQLAlchemy):
        @property
        def engines(self) -> object:
            looked_up.append(self)
            return super().engines

    with mounting(database_url, empty_kv("either").store) as mount:
        host = mount(db=Host())
        for id in ("the-first", "acme"):  # the first is planned
            host.add(id=id)
            looked_up.clear()
            assert host.delete(f"{id}?hard=true").status_code == 200
        assert 0 < len(looked_up) <= STEPS
