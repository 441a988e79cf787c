"""Entries that can be looked at."""
# ruff: noqa: D102 - the name of a test is its docstring

import itertools

from ..ports import ReadableStore, ScannableStore
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


class ScannableStoreContract(StoreFixtures):
    """What `scan` must do; the fixtures are those of the rest."""

    def test_the_keys_are_found_that_are_made_of_the_texts_and_no_others(
        self, store: ScannableStore, raw: RawStore
    ) -> None:
        made = ["client:a:token", "client:b:c:token", "client::token", "client:\n*:token"]
        for key in (*made, "client:a", "xclient:a:token", "client:a:tokens", "CLIENT:a:token", "mythic:x"):
            raw.set(key, "1")
        assert _found(store, "client:", ":token") == set(made)
        assert _found(store, "nothing:", "") == set()

    def test_a_text_is_no_pattern(self, store: ScannableStore, raw: RawStore) -> None:
        for key in _SPECIAL_KEYS:
            raw.set(key, "1")
            raw.set(f"{key}:a", "1")
        for key in _SPECIAL_KEYS:
            assert _found(store, f"{key}:", "") == {f"{key}:a"}

    def test_all_of_many_are_found(self, store: ScannableStore, raw: RawStore) -> None:
        keys = {f"client:{number}" for number in range(12_345)}
        for key in keys:
            raw.set(key, "1")
        assert _found(store, "client:", "") == keys


def _found(store: ScannableStore, *texts: str) -> set[str]:
    return set(itertools.chain.from_iterable(store.scan(texts)))
