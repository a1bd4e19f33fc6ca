"""Is it more than chance? Intervals over problems and seeds, a paired test, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000


def interval(values: ArrayLike) -> tuple[float, float]:
    """95 % bootstrap interval of a mean.

    Problems are drawn anew with replacement, and so are seeds, each independently of the other: a value counts as often
    as its problem was drawn times as often as its seed was. Source: Owen, "The pigeonhole bootstrap" (2007).

    Args:
        values: one for every problem, or a row of them for every seed.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    rng = np.random.default_rng(0)
    seeds, problems = (rng.multinomial(size, [1 / size] * size, RESAMPLES) for size in table.shape)
    means = ((seeds @ table) * problems).sum(axis=1) / table.size
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def flip_test(differences: ArrayLike) -> float:
    """The chance of a mean that is at least so far from 0, if for every problem a coin had decided which of the two it
    was compared for is which: a paired randomisation test, two-sided.

    Args:
        differences: one for every problem.
    """
    values = np.asarray(differences, dtype=float)
    signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, len(values)), dtype=np.int8) * 2 - 1
    # What is equal but for rounding counts as equal. The differences themselves are one of the ways the coins may fall.
    hits = (np.abs(signs @ values) >= abs(values.sum()) - 1e-9).sum()
    return float((hits + 1) / (RESAMPLES + 1))


def holm(chances: Sequence[float]) -> list[float]:
    """The chances of several tests, corrected so that the chance of even one false alarm stays below a level at which
    all that lie below it are believed. Source: Holm, "A simple sequentially rejective multiple test procedure"
    (1979)."""
    corrected = list(chances)
    largest = 0.0
    for done, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        largest = max(largest, min(1.0, (len(chances) - done) * chances[index]))
        corrected[index] = largest
    return corrected
