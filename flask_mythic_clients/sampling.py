"""Some chosen at random, and what they tell of all."""

import math
import random
from collections.abc import Iterable


def chosen(keys: Iterable[str], number: int) -> list[str]:
    """Choose so many at random, each with the same chance, however many there are (a reservoir)."""
    chosen: list[str] = []
    for count, key in enumerate(keys):
        if count < number:
            chosen.append(key)
        elif (at := random.randrange(count + 1)) < number:
            chosen[at] = key
    return chosen


def in_line_at_least(wrong: int, looked_at: int) -> float:
    """Return which share of all is in line, with 95 % confidence, where so many of a random sample are not.

    It is the exact bound of Clopper and Pearson, one-sided; for none of n it is about 1 - 3 / n.
    """
    if wrong >= looked_at:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        if _at_most(wrong, looked_at, share) > 0.05:
            low = share
        else:
            high = share
    return 1 - high


def _at_most(wrong: int, looked_at: int, share: float) -> float:
    """Return the chance to see so few wrong where that share of all is."""
    log_ways = math.lgamma(looked_at + 1)
    return sum(
        math.exp(
            log_ways
            - math.lgamma(k + 1)
            - math.lgamma(looked_at - k + 1)
            + k * math.log(share)
            + (looked_at - k) * math.log1p(-share)
        )
        for k in range(wrong + 1)
    )
