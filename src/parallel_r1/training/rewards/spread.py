"""How much the terms of a reward differ between the answers of a group, and whether they cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAME = 1e-9
"""Rewards that differ by less are equal: they are sums of terms, rounded."""


@dataclass(frozen=True)
class Spread:
    """The differences inside one group.

    Attributes:
        cancelled: whether all answers earn the same although a term differs.
        terms: term -> the difference of its largest and its smallest value.
    """

    cancelled: bool
    terms: dict[str, float]


def spread_of(terms: Sequence[Mapping[str, float]]) -> Spread:
    """The differences inside a group of at least one answer.

    Args:
        terms: the reward of every answer by term; a term that an answer lacks is 0.
    """
    names = sorted({name for reward in terms for name in reward})
    by_term = {name: _width([reward.get(name, 0.0) for reward in terms]) for name in names}
    equal = _width([sum(reward.values()) for reward in terms]) < SAME
    return Spread(equal and any(width >= SAME for width in by_term.values()), by_term)


def _width(values: Sequence[float]) -> float:
    return max(values) - min(values)
