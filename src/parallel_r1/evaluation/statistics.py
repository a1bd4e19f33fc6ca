"""Uncertainty of means and differences: bootstrap intervals, a paired randomisation test, Holm's correction, the
number of problems that a difference needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import NormalDist, fmean, variance

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000


PIECE = 2**22
"""Numbers that are drawn at once; the resamples of 100,000 problems together would take gigabytes."""

FEWEST = 6
"""Problems with which the two-sided p-value of a sign-flip test can fall below 5 %: 2 / 2^6 is 3 %, 2 / 2^5 is 6 %."""


def interval(values: ArrayLike) -> tuple[float, float]:
    """95 % bootstrap interval of a mean.

    Problems are resampled with replacement, and independently of them the seeds: a value counts as often as its problem
    was drawn times as often as its seed was. Source: Owen, "The pigeonhole bootstrap" (2007).

    Args:
        values: one value per problem, or one row of them per seed. Answers to one problem, and copies of a problem, are
            no problems of their own: give their mean.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    seeds, problems = table.shape
    rng = np.random.default_rng(0)
    drawn = np.array_split(rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES), _pieces(problems))
    equal = np.full(problems, 1 / problems)
    sums = [((part @ table) * rng.multinomial(problems, equal, len(part))).sum(axis=1) for part in drawn]
    low, high = np.percentile(np.concatenate(sums) / table.size, [2.5, 97.5])
    return float(low), float(high)


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p-value of a paired sign-flip test of the mean difference.

    The null hypothesis is that the sign of every difference is random. The p-value is the share of random sign
    assignments whose mean is at least as far from 0 as the observed one, which counts as one of them.

    Args:
        differences: one difference per problem.
    """
    values = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(0)
    parts = np.array_split(np.arange(RESAMPLES), _pieces(len(values)))
    sums = [(rng.integers(0, 2, (len(part), len(values)), dtype=np.int8) * 2 - 1) @ values for part in parts]
    # Sums that differ by rounding alone count as equal.
    hits = (np.abs(np.concatenate(sums)) >= abs(values.sum()) - 1e-9).sum()
    return float((hits + 1) / (RESAMPLES + 1))


def problems_needed(differences: Sequence[float]) -> int | None:
    """How many problems a paired comparison needs to find a difference of this size with a probability of 80 %, at a
    two-sided level of 5 % and with as many answers to every problem: (1.96 + 0.84)^2 variance / mean^2, from the normal
    approximation.

    Args:
        differences: one difference per problem.

    Returns:
        The number, at least the fewest with which a sign-flip test can fall below 5 %; None if the mean difference is 0
        or there is one problem only.
    """
    mean = fmean(differences)
    if len(differences) < 2 or abs(mean) < 1e-9:  # a mean of 0 by rounding counts as 0
        return None
    normal = NormalDist()
    quantiles = normal.inv_cdf(0.975) + normal.inv_cdf(0.8)
    return max(FEWEST, ceil(quantiles**2 * variance(differences) / mean**2))


def _pieces(numbers: int) -> int:
    """In how many pieces to draw the resamples, so many numbers for a resample."""
    return min(RESAMPLES, 1 + RESAMPLES * numbers // PIECE)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p-values, in the order given. If all hypotheses with a value below a level are rejected, the
    probability of any false rejection is below this level.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    corrected = list(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
