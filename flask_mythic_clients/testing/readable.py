"""Entries that can be looked at."""
# ruff: noqa: D102 - the name of a test is its docstring

from ..ports import ReadableStore
from .key_value_store import _SPECIAL_KEYS, RawStore, StoreFixtures


class ReadableStoreContract(StoreFixtures):
    """What `read` must do; the fixtures are those of the rest."""

    def test_the_entries_that_are_there_are_read_and_no_others(
        self, store: ReadableStore, raw: RawStore
    ) -> None:
        raw.set("client:a", "héllo")
        raw.set("client:b", "")
        raw.set("client:c", "not asked for")
        found = store.read(["client:a", "client:absent", "client:b"])
        assert found == {"client:a": "héllo".encode(), "client:b": b""}
        assert store.read([]) == {}

    def test_a_key_is_no_pattern(self, store: ReadableStore, raw: RawStore) -> None:
        for number, key in enumerate(_SPECIAL_KEYS):
            raw.set(key, f"{number}")
        expected = {key: f"{number}".encode() for number, key in enumerate(_SPECIAL_KEYS)}
        assert store.read(_SPECIAL_KEYS) == expected

    def test_to_read_changes_nothing(self, store: ReadableStore, raw: RawStore) -> None:
        raw.set("client:a", "1", ex=600)
        store.read(["client:a", "client:b"])
        assert 590 < raw.ttl("client:a") <= 600
        assert raw.get("client:b") is None
