"""Where an entry's lease lies."""

import pytest
from redis.crc import key_slot

from flask_mythic_clients.leases import lease_of


@pytest.mark.parametrize(
    "key",
    ["client:a", "{a}b", "a{b}c", "{a}{b}", "a{b}{", "{{a}}", "{a}}", "{}a", "a{}b", "a}b", "a{b", "{"],
)
def test_a_lease_lies_in_the_slot_of_its_entry(key: str) -> None:
    in_slot = key_slot(lease_of(key).encode()) == key_slot(key.encode())
    # Where an empty tag, or a brace that closes nothing, is in the way of a tag of our own.
    assert in_slot is (key not in ("{}a", "a{}b", "a}b"))
    assert key in lease_of(key)
