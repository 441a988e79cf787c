"""What a key-value store must do in which a mark can be left."""
# ruff: noqa: D102 - the name of a test is its docstring

from datetime import UTC, datetime, timedelta

from ..model import Mark
from ..ports import RememberingStore
from .key_value_store import RawStore, StoreFixtures

_NAME = "mythic:clients:0123456789abcdef"
_MARK = Mark(datetime(2026, 1, 2, 3, 4, 5, 678, UTC), datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC))
_LATER = Mark(_MARK.began + timedelta(minutes=1), _MARK.ended + timedelta(minutes=1))


class RememberingStoreContract(StoreFixtures):
    """A store that can be asked how far it remembers joins by the fixtures `store` and `raw`."""

    def test_an_empty_store_has_no_mark(self, store: RememberingStore) -> None:
        assert isinstance(store, RememberingStore)
        assert store.read_mark(_NAME) is None
        assert store.open_run(_NAME).mark is None

    def test_a_run_that_is_closed_leaves_its_mark(self, store: RememberingStore) -> None:
        assert store.open_run(_NAME).close(_MARK)
        assert store.read_mark(_NAME) == _MARK
        run = store.open_run(_NAME)
        assert run.mark == _MARK
        assert store.read_mark(_NAME) == _MARK
        assert run.close(_LATER)
        assert store.read_mark(_NAME) == _LATER

    def test_marks_of_other_names_are_others(self, store: RememberingStore) -> None:
        assert store.open_run(_NAME).close(_MARK)
        assert store.read_mark(f"{_NAME}0") is None
        assert store.open_run("mythic:users:0123456789abcdef").mark is None

    def test_a_run_does_what_the_store_does(self, store: RememberingStore, raw: RawStore) -> None:
        for key in ("client:a", "client:b", "client:c"):
            raw.set(key, "old")
        run = store.open_run(_NAME)
        assert run.apply(remove=["client:a", "client:d"], overwrite={"client:b": "new"}) == {"client:a"}
        assert run.apply(remove=["client:a"], overwrite={"client:e": "new"}) == set()
        keys = ("client:a", "client:b", "client:c", "client:e")
        assert [raw.get(key) for key in keys] == [None, "new", "old", None]
        assert run.close(_MARK)
        assert store.read_mark(_NAME) == _MARK

    def test_runs_at_once_do_not_mind_each_other(self, store: RememberingStore) -> None:
        one, other = store.open_run(_NAME), store.open_run(_NAME)
        one.apply(remove=["client:a"], overwrite={})
        other.apply(remove=["client:a"], overwrite={})
        other.apply(remove=["client:b"], overwrite={})
        assert other.close(_LATER)
        assert one.close(_MARK)
        assert store.read_mark(_NAME) == _MARK

    def test_a_mark_that_somebody_has_overwritten_is_none(
        self, store: RememberingStore, raw: RawStore
    ) -> None:
        assert store.open_run(_NAME).close(_MARK)
        for key in self.mark_keys(_NAME):
            raw.set(key, "what is that?")
        assert store.read_mark(_NAME) is None

    def test_a_run_that_the_store_has_forgotten_leaves_no_mark(
        self, store: RememberingStore, raw: RawStore
    ) -> None:
        """A copy may be of a time before the run, or of the middle of it."""
        assert store.open_run(_NAME).close(_MARK)
        run = store.open_run(_NAME)
        run.apply(remove=["client:a"], overwrite={})
        self.set_back(raw)
        run.apply(remove=["client:b"], overwrite={})
        assert not run.close(_LATER)
        assert store.read_mark(_NAME) != _LATER

    def mark_keys(self, name: str) -> list[str]:
        """Return the keys under which the store keeps its marks; to be overridden where they are others."""
        return [f"{name}:mark"]

    def set_back(self, raw: RawStore) -> None:
        """Bring the store back to a copy without any entry; to be overridden where there is no `flushdb`."""
        raw.flushdb()  # type: ignore[attr-defined]
