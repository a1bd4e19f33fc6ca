"""Uncertainty of means and differences: bootstrap intervals, a paired randomisation test, Holm's correction, the
number of problems that a difference needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, nan, sqrt
from statistics import NormalDist, fmean, variance

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
NORMAL = NormalDist()
POWER = NORMAL.inv_cdf(0.975) + NORMAL.inv_cdf(0.8)
"""Standard errors that a difference must be away from 0 to be found with a probability of 80 %, at a level of 5 %."""


PIECE = 2**22
"""Numbers that are drawn at once; the resamples of 100,000 problems together would take gigabytes."""

FEWEST = 6
"""Problems with which the two-sided p-value of a sign-flip test can fall below 5 %: 2 / 2^6 is 3 %, 2 / 2^5 is 6 %."""


def interval(values: ArrayLike) -> tuple[float, float]:
    """95 % bootstrap interval of a mean; see `bounds`.

    Problems are resampled with replacement, and independently of them the seeds: a value counts as often as its problem
    was drawn times as often as its seed was. Source: Owen, "The pigeonhole bootstrap" (2007).

    Args:
        values: one value per problem, or one row of them per seed. Answers to one problem, and copies of a problem, are
            no problems of their own: give their mean.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    seeds, problems = table.shape
    if seeds == 1:
        return ratio_intervals(table.T, np.ones((problems, 1)))[0]
    rng = np.random.default_rng(0)
    drawn = np.array_split(rng.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES), _pieces(problems))
    sums = [((part @ table) * _counts(rng, len(part), problems)).sum(axis=1) for part in drawn]
    return bounds(np.concatenate(sums) / table.size, table.mean(), table.mean(axis=0) - table.mean())


def ratio_intervals(numerators: ArrayLike, denominators: ArrayLike) -> list[tuple[float, float]]:
    """95 % bootstrap intervals of several ratios of sums over problems, all from the same resamples of problems.

    A mean over problems is the ratio with a denominator of 1 for every problem. A share of some answers, such as of the
    answers with a fork that are well-formed, has their number in the denominator. Resamples in which a denominator is 0
    do not count.

    Args:
        numerators, denominators: (problems, ratios); a problem comes with all of its answers, so the spread of answers
            to one problem is part of the spread between problems.
    """
    over, under = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.concatenate([(counts @ over) / (counts @ under) for counts in resamples(len(over))])
        estimates = over.sum(axis=0) / under.sum(axis=0)
        influences = over - under * estimates
    columns = zip(drawn.T, estimates, influences.T, strict=True)
    return [bounds(column[np.isfinite(column)], estimate, influence) for column, estimate, influence in columns]


def resamples(problems: int) -> Iterator[NDArray[np.int64]]:
    """How often every problem is in a resample of as many problems drawn with replacement: `RESAMPLES` rows of
    (resamples, problems), in pieces that fit into memory. Equal calls give equal numbers."""
    rng = np.random.default_rng(0)
    for part in np.array_split(np.arange(RESAMPLES), _pieces(problems)):
        yield _counts(rng, len(part), problems)


def _counts(rng: np.random.Generator, rows: int, problems: int) -> NDArray[np.int64]:
    """(rows, problems): how often every problem is drawn. Three times as fast as drawing from a multinomial."""
    drawn = rng.integers(0, problems, (rows, problems)) + np.arange(rows)[:, None] * problems
    return np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems)


def bounds(drawn: NDArray[np.float64], estimate: float, influences: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of an estimate from its bootstrap distribution: bias-corrected and accelerated (BCa), and
    expanded for few problems; not a number if nothing was drawn.

    A skewed distribution, such as that of the accuracy on hard problems, has too short an interval on its long side
    between the percentiles 2.5 and 97.5: BCa moves both. And a bootstrap mean of n problems varies less than the mean
    itself, by a factor of sqrt((n - 1) / n), and has no longer tails than a normal distribution, where a mean with an
    estimated spread has those of Student's t: so both lie further out, at 1.9 and 98.1 for 30 problems without a skew.
    Sources: Efron, "Better Bootstrap Confidence Intervals" (1987); Hesterberg, "What Teachers Should Know about the
    Bootstrap" (2015), section 4.

    Args:
        drawn: the estimate in every resample.
        influences: what every problem adds to the estimate, up to a factor; their sum is 0.
    """
    problems, resampled = len(influences), len(drawn)
    if not resampled:
        return nan, nan
    if problems < 2:
        return float(drawn.min()), float(drawn.max())
    spread = float((influences**2).sum())
    skew = float((influences**3).sum()) / (6 * spread**1.5) if spread else 0.0
    equal = np.isclose(drawn, estimate, rtol=1e-9, atol=1e-12)
    below = ((drawn < estimate) & ~equal).sum() + equal.sum() / 2
    bias = NORMAL.inv_cdf(min(max(below / resampled, 1 / resampled), 1 - 1 / resampled))
    reach = _student(NORMAL.inv_cdf(0.975), problems - 1) * sqrt(problems / (problems - 1))
    low, high = np.percentile(drawn, [100 * _level(bias, skew, -reach), 100 * _level(bias, skew, reach)])
    return float(low), float(high)


def _level(bias: float, skew: float, reach: float) -> float:
    """The share of the bootstrap distribution below a bound that lies `reach` standard deviations from the estimate."""
    room = 1 - skew * (bias + reach)
    return NORMAL.cdf(bias + (bias + reach) / room) if room > 0 else float(reach > 0)


def _student(z: float, freedom: int) -> float:
    """The quantile of Student's t that corresponds to a normal quantile `z`. Source: Abramowitz and Stegun, 26.7.5."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def share_bounds(share: float | None, problems: int, drawn: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval of a share: as it was drawn, but where the share is 0 or 1 in all problems [0, 1 - 0.025^(1 /
    problems)], or its mirror image. Resampling problems that are all alike would give an interval of length 0.
    Source: Clopper and Pearson (1934).

    Args:
        share: 0 .. 1.
        drawn: the bootstrap interval.
    """
    reach = 1 - 0.025 ** (1 / problems)
    return (0.0, reach) if share == 0 else (1 - reach, 1.0) if share == 1 else drawn


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
    return max(FEWEST, ceil(POWER**2 * variance(differences) / mean**2))


def samples_needed(differences: Sequence[float], noise: float, samples: int) -> int | None:
    """How many answers to every problem a paired comparison of the same problems needs, with the power and level of
    `problems_needed`. The variance of the differences is that between problems, which more answers do not change, and
    that of the answers to a problem, which falls as their number grows.

    Args:
        differences: one difference per problem.
        noise: variance of a difference that is due to the answers alone, mean over problems.
        samples: answers to every problem that the differences come from.

    Returns:
        The number; None if no number is enough, the mean difference is 0, or there are too few problems for a sign-flip
        test to fall below 5 %.
    """
    mean = fmean(differences)
    if len(differences) < FEWEST or abs(mean) < 1e-9:
        return None
    between = max(0.0, variance(differences) - noise)
    room = len(differences) * mean**2 / POWER**2 - between
    return max(1, ceil(noise * samples / room)) if room > 0 else None


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
