"""Hosts on every database, for the tests that look at the host's side."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from flask_mythic_clients.backends.memory import MemoryStore

from ..hosts import Host, mounting


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def mount(database_url: str, store: MemoryStore) -> Iterator[Callable[..., Host]]:
    """Make hosts on every database."""
    with mounting(database_url, store) as mount:
        yield mount


@pytest.fixture
def database_by(empty_database: Callable[[str], str]) -> Callable[[str], str]:
    """Return the URL of an empty database that is reached by a driver, as in `postgresql+psycopg2`."""

    def by(driver: str) -> str:
        if driver == "mariadb+mysqldb":
            pytest.importorskip("MySQLdb", reason="mysqlclient has no wheel for all: pip install mysqlclient")
        kind = driver.partition("+")[0].replace("mysql", "mariadb")  # as many a URL calls it
        url = sa.make_url(empty_database(kind)).set(drivername=driver)
        return url.render_as_string(hide_password=False)

    return by
