"""Hosts on every database, for the tests that look at the host's side."""

from collections.abc import Callable, Iterator

import pytest

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
