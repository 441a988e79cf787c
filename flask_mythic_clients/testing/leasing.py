"""What a key-value store must do through which readers read."""
# ruff: noqa: D102 - the name of a test is its docstring

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from ..entries import Value
from ..ports import KeyValueStore
from .key_value_store import _SPECIAL_KEYS, RawStore, StoreFixtures


class ReadThroughStore(KeyValueStore, Protocol):
    """A key-value store whose `fetch` gets an entry, or fills it."""

    def fetch(self, key: str, load: Callable[[], Value | None], *, expire: float) -> bytes | None:
        """Return the entry's value, or what `load` returns, kept for `expire` seconds."""
        ...


class ReadThroughContract(StoreFixtures):
    """A store with `fetch` joins by the fixtures `store` and `raw`."""

    def test_what_was_loaded_is_kept_and_not_loaded_again(
        self, store: ReadThroughStore, raw: RawStore
    ) -> None:
        assert store.fetch("client:a", lambda: "loaded", expire=100) == b"loaded"
        assert _text(raw.get("client:a")) == "loaded"
        assert 90 < raw.ttl("client:a") <= 100
        assert store.fetch("client:a", _never, expire=100) == b"loaded"

    def test_an_entry_that_is_there_is_not_loaded(self, store: ReadThroughStore, raw: RawStore) -> None:
        raw.set("client:a", "Zoë")
        assert store.fetch("client:a", _never, expire=100) == "Zoë".encode()
        assert raw.ttl("client:a") == -1

    @pytest.mark.parametrize("value", ["", "Zoë 🦊", b"bytes"])
    def test_any_value_is_kept_to_the_letter(self, store: ReadThroughStore, value: Value) -> None:
        expected = value.encode() if isinstance(value, str) else value
        assert store.fetch("client:a", lambda: value, expire=100) == expected
        assert store.fetch("client:a", _never, expire=100) == expected

    def test_nothing_that_was_loaded_is_kept_as_nothing(self, store: ReadThroughStore, raw: RawStore) -> None:
        assert store.fetch("client:a", lambda: None, expire=100) is None
        assert raw.get("client:a") is None
        assert store.fetch("client:a", lambda: "now", expire=100) == b"now"
        assert _text(raw.get("client:a")) == "now"

    def test_a_load_that_raises_leaves_the_way_to_the_next(
        self, store: ReadThroughStore, raw: RawStore
    ) -> None:
        def fail() -> Value:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.fetch("client:a", fail, expire=100)
        assert store.fetch("client:a", lambda: "loaded", expire=100) == b"loaded"
        assert _text(raw.get("client:a")) == "loaded"

    @pytest.mark.parametrize("how", ["remove", "overwrite"])
    def test_what_was_read_before_a_change_is_returned_and_not_kept(
        self, store: ReadThroughStore, raw: RawStore, how: str
    ) -> None:
        def load() -> Value:
            if how == "remove":
                store.apply(remove=["client:a"], overwrite={})
            else:
                store.apply(remove=[], overwrite={"client:a": "new"})
            return "old"

        assert store.fetch("client:a", load, expire=100) == b"old"
        assert raw.get("client:a") is None
        assert store.fetch("client:a", lambda: "new", expire=100) == b"new"
        assert _text(raw.get("client:a")) == "new"

    def test_what_somebody_else_has_written_meanwhile_stays(
        self, store: ReadThroughStore, raw: RawStore
    ) -> None:
        def load() -> Value:
            raw.set("client:a", "newer")
            return "older"

        assert store.fetch("client:a", load, expire=100) == b"older"
        assert _text(raw.get("client:a")) == "newer"

    def test_a_reader_does_not_take_the_place_of_one_who_is_loading(
        self, store: ReadThroughStore, raw: RawStore
    ) -> None:
        """Else, under load, nobody would ever fill the entry."""

        def load() -> Value:
            assert store.fetch("client:a", lambda: "second", expire=100) == b"second"
            return "first"

        assert store.fetch("client:a", load, expire=100) == b"first"
        assert _text(raw.get("client:a")) == "first"

    @pytest.mark.parametrize("key", _SPECIAL_KEYS)
    def test_a_key_may_hold_any_character(self, store: ReadThroughStore, raw: RawStore, key: str) -> None:
        assert store.fetch(key, lambda: "loaded", expire=100) == b"loaded"
        assert store.fetch(key, _never, expire=100) == b"loaded"
        assert store.apply(remove=[key], overwrite={}) == {key}
        assert raw.get(key) is None

    def test_under_load_the_entry_is_soon_filled(self, store: ReadThroughStore) -> None:
        loads = []

        def load() -> Value:
            loads.append(1)
            time.sleep(0.02)
            return "loaded"

        def read(_: int) -> None:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert store.fetch("client:a", load, expire=100) == b"loaded"

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(read, range(16)))
        assert 1 <= len(loads) < 100


def _never() -> Value:
    raise AssertionError("It was loaded again.")


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
