"""Medians and quartiles, and the ratios within a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of some values, at least one."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def at(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def ratios(of: Mapping[int, float], base: Mapping[int, float]) -> Spread | None:
    """Return the spread of the ratios within each round that both have; None where there is none."""
    found = [of[number] / base[number] for number in sorted(of.keys() & base.keys()) if base[number]]
    return spread(found) if found else None
