"""What every key-value store must do."""
# ruff: noqa: D102 - the name of a test is its docstring

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Protocol

import pytest

from ..entries import Value
from ..errors import EntriesRefusedError
from ..ports import KeyValueStore

_MANY = 5_000
_THREADS = 8
_SPECIAL_KEYS = (
    "client:*",
    "client:?b",
    "client:[ab]",
    "client:[^x]",
    "client:\\*",
    "*",
    "client:{ab}",
    "client: ab",
    "client:ab\n",
    "client:%",
    "client:é",
    "client:客户🦊",
)


class RawStore(Protocol):
    """A way to look behind the store; redis-py with `decode_responses=True` is one."""

    def get(self, key: str, /) -> Any:
        """Return the entry's value, or None."""
        ...

    def set(self, key: str, value: str, /, *, ex: int | None = None) -> Any:
        """Make or replace an entry, which expires after `ex` seconds if that is given."""
        ...

    def ttl(self, key: str, /) -> Any:
        """Return the seconds an entry has left: -1 without an end, -2 without an entry."""
        ...


class StoreFixtures:
    """What a store overrides; every test needs `store` and `raw` empty."""

    @pytest.fixture
    def store(self) -> Any:
        """Return the store under test."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `store` to return your KeyValueStore."
        )

    @pytest.fixture
    def raw(self) -> RawStore:
        """Return a way to the same entries without the store."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `raw` to return an object with get(key), "
            "set(key, value, ex=seconds) and ttl(key) on the entries of `store`; a redis.Redis with "
            "decode_responses=True is one."
        )


class KeyValueStoreContract(StoreFixtures):
    """A store joins by overriding the fixtures `store` and `raw`."""

    @pytest.fixture
    def refuse_all_but(self) -> Callable[..., bool]:
        """Return a callable (*keys) that makes the store refuse all other keys; False where it cannot.

        To be overridden for a store that may refuse a single key, by a right or for want of memory.
        """
        return lambda *_: False

    # Removing

    def test_a_named_entry_is_removed_and_returned(self, store: KeyValueStore, raw: RawStore) -> None:
        raw.set("client:a", "1")
        assert store.apply(remove=["client:a"], overwrite={}) == {"client:a"}
        assert raw.get("client:a") is None

    def test_an_absent_key_is_success_and_not_returned(self, store: KeyValueStore, raw: RawStore) -> None:
        assert store.apply(remove=["client:a"], overwrite={}) == set()
        assert raw.get("client:a") is None

    def test_exactly_the_removed_keys_that_were_there_are_returned(
        self, store: KeyValueStore, raw: RawStore
    ) -> None:
        for key in ("there:1", "there:2", "unnamed"):
            raw.set(key, "1")
        found = store.apply(remove=["absent:1", "there:1", "absent:2", "there:2"], overwrite={})
        assert found == {"there:1", "there:2"}

    def test_an_entry_with_an_empty_value_is_there(self, store: KeyValueStore, raw: RawStore) -> None:
        raw.set("client:a", "")
        assert store.apply(remove=["client:a"], overwrite={}) == {"client:a"}
        assert raw.get("client:a") is None

    def test_a_removal_that_is_repeated_is_success_and_finds_nothing(
        self, store: KeyValueStore, raw: RawStore
    ) -> None:
        raw.set("client:a", "1")
        store.apply(remove=["client:a"], overwrite={})
        assert store.apply(remove=["client:a"], overwrite={}) == set()

    def test_a_key_is_no_prefix(self, store: KeyValueStore, raw: RawStore) -> None:
        for key in ("client:a", "client:ab", "client:a:b", "xclient:a", "Client:a", "client:A"):
            raw.set(key, "1")
        store.apply(remove=["client:a"], overwrite={})
        assert raw.get("client:a") is None
        for key in ("client:ab", "client:a:b", "xclient:a", "Client:a", "client:A"):
            assert raw.get(key) == "1", key

    @pytest.mark.parametrize("special", _SPECIAL_KEYS)
    def test_a_special_character_in_a_key_is_literal(
        self, store: KeyValueStore, raw: RawStore, special: str
    ) -> None:
        others = [key for key in ("client:a", "client:ab", "client:e", *_SPECIAL_KEYS) if key != special]
        for key in (special, *others):
            raw.set(key, "1")
        assert store.apply(remove=[special], overwrite={}) == {special}
        assert raw.get(special) is None
        assert [key for key in others if raw.get(key) is None] == []

    # Overwriting

    def test_an_entry_is_overwritten(self, store: KeyValueStore, raw: RawStore) -> None:
        raw.set("client:a", "old")
        assert store.apply(remove=[], overwrite={"client:a": "new"}) == set()
        assert raw.get("client:a") == "new"

    def test_overwriting_never_makes_an_entry(self, store: KeyValueStore, raw: RawStore) -> None:
        assert store.apply(remove=[], overwrite={"client:a": "new"}) == set()
        assert raw.get("client:a") is None

    def test_an_expired_entry_is_not_made_again(self, store: KeyValueStore, raw: RawStore) -> None:
        raw.set("overwritten", "old", ex=1)
        raw.set("removed", "old", ex=1)
        time.sleep(1.1)
        assert store.apply(remove=["removed"], overwrite={"overwritten": "new"}) == set()
        assert raw.get("overwritten") is None

    def test_an_overwritten_entry_keeps_its_time_to_live(self, store: KeyValueStore, raw: RawStore) -> None:
        raw.set("client:a", "old", ex=1_000)
        store.apply(remove=[], overwrite={"client:a": "new"})
        assert raw.get("client:a") == "new"
        assert 900 < raw.ttl("client:a") <= 1_000

    def test_an_overwritten_entry_without_a_time_to_live_gets_none(
        self, store: KeyValueStore, raw: RawStore
    ) -> None:
        raw.set("client:a", "old")
        store.apply(remove=[], overwrite={"client:a": "new"})
        assert raw.ttl("client:a") == -1

    @pytest.mark.parametrize(
        "value",
        ["", " ", "0", "Zoë 客户 🦊", 'a"b\\c\r\n{}*', "x" * 100_000],
        ids=["empty", "space", "zero", "non-ascii", "punctuation", "long"],
    )
    @pytest.mark.parametrize("type_", [str, bytes])
    def test_a_value_is_kept_to_the_letter(
        self, store: KeyValueStore, raw: RawStore, value: str, type_: type
    ) -> None:
        raw.set("client:a", "old")
        store.apply(remove=[], overwrite={"client:a": value.encode() if type_ is bytes else value})
        assert _text(raw.get("client:a")) == value

    # Both

    def test_one_call_removes_and_overwrites(self, store: KeyValueStore, raw: RawStore) -> None:
        for key in ("removed", "overwritten", "untouched"):
            raw.set(key, "old")
        found = store.apply(
            remove=["removed", "absent"], overwrite={"overwritten": "new", "also-absent": "new"}
        )
        assert found == {"removed"}
        keys = ("removed", "absent", "overwritten", "also-absent", "untouched")
        assert [raw.get(key) for key in keys] == [None, None, "new", None, "old"]

    def test_an_empty_call_changes_nothing(self, store: KeyValueStore, raw: RawStore) -> None:
        raw.set("client:a", "1")
        assert store.apply(remove=[], overwrite={}) == set()
        assert raw.get("client:a") == "1"

    @pytest.mark.parametrize("collection", [list, tuple, set, frozenset, dict.fromkeys])
    def test_any_collection_and_any_mapping_will_do(
        self, store: KeyValueStore, raw: RawStore, collection: Any
    ) -> None:
        for key in ("a", "b", "c"):
            raw.set(key, "old")
        remove: Collection[str] = collection(["a", "b"])
        overwrite: Mapping[str, Value] = MappingProxyType({"c": "new"})
        assert store.apply(remove=remove, overwrite=overwrite) == {"a", "b"}
        assert raw.get("c") == "new"

    def test_one_call_takes_thousands_of_keys(self, store: KeyValueStore, raw: RawStore) -> None:
        there = [f"removed:{number}" for number in range(0, _MANY, 10)]
        changed = [f"overwritten:{number}" for number in range(0, _MANY, 10)]
        for key in (*there, *changed):
            raw.set(key, "old")
        found = store.apply(
            remove=[f"removed:{number}" for number in range(_MANY)],
            overwrite={f"overwritten:{number}": f"new {number}" for number in range(_MANY)},
        )
        assert found == set(there)
        assert [key for key in there if raw.get(key) is not None] == []
        assert [raw.get(key) for key in changed] == [f"new {number}" for number in range(0, _MANY, 10)]
        assert raw.get("overwritten:1") is None

    def test_calls_at_the_same_time_lose_nothing(self, store: KeyValueStore, raw: RawStore) -> None:
        numbers = range(100)
        for number in numbers:
            raw.set(f"shared:{number}", "old")
            for thread in range(_THREADS):
                raw.set(f"removed:{thread}:{number}", "old")
                raw.set(f"overwritten:{thread}:{number}", "old")

        def work(thread: int) -> set[str]:
            found = set[str]()
            for number in numbers:
                found |= store.apply(
                    remove=[f"removed:{thread}:{number}", f"shared:{number}"],
                    overwrite={f"overwritten:{thread}:{number}": f"{thread}"},
                )
            return found

        with ThreadPoolExecutor(_THREADS) as threads:
            found = set[str]().union(*threads.map(work, range(_THREADS)))
        removed = {f"removed:{thread}:{number}" for thread in range(_THREADS) for number in numbers}
        removed |= {f"shared:{number}" for number in numbers}
        assert found == removed
        assert [key for key in removed if raw.get(key) is not None] == []
        for thread in range(_THREADS):
            for number in numbers:
                assert raw.get(f"overwritten:{thread}:{number}") == f"{thread}"

    # Refusing

    def test_what_is_refused_is_told_and_the_rest_is_done(
        self, store: KeyValueStore, raw: RawStore, refuse_all_but: Callable[..., bool]
    ) -> None:
        for key in ("client:a", "client:b", "client:c", "client:d"):
            raw.set(key, "1")
        if not refuse_all_but("client:b", "client:d", "client:e"):
            pytest.skip("This store refuses no single key.")
        with pytest.raises(EntriesRefusedError) as caught:
            store.apply(
                remove=["client:a", "client:b", "client:e"], overwrite={"client:c": "2", "client:d": "2"}
            )
        assert caught.value.keys == {"client:a", "client:c"}
        assert caught.value.removed == {"client:b"}
        assert "client:" not in f"{caught.value} {caught.value.__cause__}"
        assert (raw.get("client:b"), raw.get("client:d")) == (None, "2")

    def test_what_is_not_refused_is_not_held_up(
        self, store: KeyValueStore, raw: RawStore, refuse_all_but: Callable[..., bool]
    ) -> None:
        raw.set("client:a", "1")
        raw.set("client:b", "1")
        if not refuse_all_but("client:b"):
            pytest.skip("This store refuses no single key.")
        assert store.apply(remove=["client:b"], overwrite={}) == {"client:b"}


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
