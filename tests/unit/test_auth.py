"""Admin keys: how they are made, and how they are compared."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable

import pytest

from flask_mythic_clients.auth import AdminKeys, create_key, digest
from flask_mythic_clients.rights import Right


def test_a_key_is_the_prefix_then_32_bytes_then_a_checksum() -> None:
    found = re.fullmatch(r"mythic_([A-Za-z0-9_-]{43})([0-9a-f]{8})", create_key())
    assert found is not None
    assert len(base64.urlsafe_b64decode(f"{found[1]}=")) == 32


def test_the_checksum_tells_a_key_from_a_cut_off_copy() -> None:
    key = create_key()

    def is_whole(key: str) -> bool:
        return f"{binascii.crc32(key[:-8].encode()):08x}" == key[-8:]

    assert is_whole(key)
    assert not any(is_whole(key[:length]) for length in range(9, len(key)))


def test_the_bytes_come_from_the_systems_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def token_urlsafe(count: int) -> str:
        asked.append(count)
        return "A" * 43

    monkeypatch.setattr("secrets.token_urlsafe", token_urlsafe)
    assert create_key().startswith("mythic_" + "A" * 43)
    assert asked == [32]


def test_keys_differ_and_hold_no_character_that_ends_a_token() -> None:
    keys = {create_key() for _ in range(500)}
    assert len(keys) == 500
    assert not set("".join(keys)) & set("= ,;\"'+/")


def test_the_digest_is_the_sha_256_of_the_key() -> None:
    assert digest("mythic_x") == f"sha256:{hashlib.sha256(b'mythic_x').hexdigest()}"


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """The pairs that were compared."""
    pairs = []
    compare: Callable[[bytes, bytes], bool] = hmac.compare_digest

    def compare_digest(a: bytes, b: bytes) -> bool:
        pairs.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    return pairs


@pytest.mark.parametrize(("key", "name"), [("1", "one"), ("2", "two"), ("3", "three"), ("4", None)])
def test_a_key_is_known_by_its_name_and_all_are_compared_wherever_it_stands(
    compared: list[tuple[bytes, bytes]], key: str, name: str | None
) -> None:
    keys = AdminKeys({"one": digest("1"), "two": digest("2"), "three": digest("3")})
    assert keys(key) == name
    assert [known.decode() for _, known in compared] == [digest("1"), digest("2"), digest("3")]
    assert {presented.decode() for presented, _ in compared} == {digest(key)}


def test_a_key_that_has_not_all_rights_is_known_with_those_it_has() -> None:
    may = frozenset({Right.SOFT})
    keys = AdminKeys({"ops": digest("1"), "ci": (digest("2"), may)})
    assert (keys("1"), keys("2"), keys("3")) == ("ops", ("ci", may), None)


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "🔑", "\xff", "\x00"])
def test_a_key_that_is_no_ascii_is_unknown_and_no_error(key: str) -> None:
    assert AdminKeys({"a": digest("a")})(key) is None


def test_a_digest_is_no_key() -> None:
    assert AdminKeys({"a": digest("a")})(digest("a")) is None


def test_without_keys_none_is_known() -> None:
    assert AdminKeys({})("") is None


def test_what_knows_the_keys_does_not_show_them() -> None:
    keys = AdminKeys({"a": digest("a"), "b": (digest("b"), frozenset())})
    assert "sha256" not in repr(keys)
