"""Uncertainty of means and differences: bootstrap intervals, a paired randomisation test, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000


def interval(values: ArrayLike) -> tuple[float, float]:
    """95 % bootstrap interval of a mean.

    Problems are resampled with replacement, and independently of them the seeds: a value counts as often as its problem
    was drawn times as often as its seed was. Source: Owen, "The pigeonhole bootstrap" (2007).

    Args:
        values: one value per problem, or one row of them per seed.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    rng = np.random.default_rng(0)
    seeds, problems = (rng.multinomial(size, [1 / size] * size, RESAMPLES) for size in table.shape)
    means = ((seeds @ table) * problems).sum(axis=1) / table.size
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p-value of a paired sign-flip test of the mean difference.

    The null hypothesis is that the sign of every difference is random. The p-value is the share of random sign
    assignments whose mean is at least as far from 0 as the observed one, which counts as one of them.

    Args:
        differences: one difference per problem.
    """
    values = np.asarray(differences, dtype=float)
    signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, len(values)), dtype=np.int8) * 2 - 1
    # Sums that differ by rounding alone count as equal.
    hits = (np.abs(signs @ values) >= abs(values.sum()) - 1e-9).sum()
    return float((hits + 1) / (RESAMPLES + 1))


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
