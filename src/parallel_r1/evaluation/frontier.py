"""The frontier of a model, accuracy against cost over several budgets, and four speed numbers of forks.

docs/evaluation.md defines the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from parallel_r1.answers.rollout import Rollout, group
from parallel_r1.evaluation.statistics import interval, ratio_intervals, resamples, share_bounds

Cost = Literal["critical_path", "total", "alone", "loaded"]
"""What an answer costs: tokens of its critical path, all its tokens, its seconds when it is drawn alone, and its share
of the seconds in which many are drawn."""


@dataclass(frozen=True)
class Drawn:
    """The answers of a model to one task under one budget.

    Attributes:
        rollouts: the answers.
        budget: the critical path; None for that of the settings.
        alone: seconds of answers that were drawn one at a time.
        loaded: seconds for every answer while many were drawn at once; None if it was not measured.
        interval: of the accuracy on all problems of the answers, if it has been computed.
    """

    rollouts: Sequence[Rollout]
    budget: int | None = None
    alone: tuple[float, ...] = ()
    loaded: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """One budget of a frontier: mean@k with its 95 % interval, and the mean cost of an answer."""

    budget: int | None
    accuracy: float
    low: float
    high: float
    critical_path: float
    total: float
    alone: float | None
    loaded: float | None


@dataclass(frozen=True)
class Frontier:
    """Accuracy and costs of a model on the problems of one task, under budgets from the smallest to the largest.

    Attributes:
        name: of the model.
        problems: keys of the problems.
        points: one for every budget.
        shares: (budgets, problems): share of the answers to a problem that are correct.
        tokens: cost -> (budgets, problems): its mean over the answers to a problem, for both costs in tokens.
    """

    name: str
    problems: tuple[str, ...]
    points: tuple[Point, ...]
    shares: Float[np.ndarray, "budgets problems"]
    tokens: Mapping[str, Float[np.ndarray, "budgets problems"]]

    def costs(self, cost: Cost) -> list[float | None]:
        """The mean of a cost under every budget."""
        return [getattr(point, cost) for point in self.points]


def frontier(name: str, drawn: Sequence[Drawn], problems: Sequence[str] | None = None) -> Frontier:
    """The frontier of answers to one task.

    Args:
        problems: keys of the problems to count; None for all.
    """
    ordered = sorted(drawn, key=lambda part: part.budget or 0)
    groups = [{members.problem.key: members.rollouts for members in group(part.rollouts)} for part in ordered]
    keys = tuple(groups[0] if problems is None else problems)
    figures = {
        key: np.array(
            [[fmean(getattr(one, key) for one in answers[problem]) for problem in keys] for answers in groups]
        )
        for key in ("correct", "critical_path", "total")
    }
    shares = figures.pop("correct")
    points = tuple(
        Point(
            part.budget,
            float(shares[row].mean()),
            *(part.interval if part.interval and len(groups[row]) == len(keys) else _interval(shares[row])),
            float(figures["critical_path"][row].mean()),
            float(figures["total"][row].mean()),
            fmean(part.alone) if part.alone else None,
            part.loaded,
        )
        for row, part in enumerate(ordered)
    )
    return Frontier(name, keys, points, shares, figures)


def _interval(shares: Float[np.ndarray, " problems"]) -> tuple[float, float]:
    return share_bounds(float(shares.mean()), len(shares), interval(shares))


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % bootstrap interval over problems; None where it cannot be computed."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Speed:
    """The four speed numbers of a model that forks against one that does not, on the same problems of one task.

    Attributes:
        parallel, sequential: names of the models.
        compression: total tokens / tokens of the critical path, under the largest budget.
        accuracy: the accuracy at which the others are taken: the highest that both reach.
        latency: critical path of the sequential model / that of the parallel one.
        alone, loaded: seconds of the sequential model / of the parallel one, for one answer alone and among many. Their
            intervals hold the choice of problems, not the noise of the clock.
        tokens: total tokens of the parallel model / of the sequential one.
    """

    parallel: str
    sequential: str
    compression: Ratio
    accuracy: float
    latency: Ratio
    alone: Ratio
    loaded: Ratio
    tokens: Ratio

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def speed(parallel: Frontier, sequential: Frontier) -> Speed:
    """The four speed numbers of two frontiers on the same problems.

    Along a frontier accuracy and cost are joined by straight lines between budgets, and a larger budget counts as no
    worse than a smaller one. Intervals: problems are resampled, the same ones for both models and all budgets, and the
    highest accuracy that both reach is taken anew in every resample.
    """
    total, critical = parallel.tokens["total"][-1], parallel.tokens["critical_path"][-1]
    ((low, high),) = ratio_intervals(total[:, None], critical[:, None])
    pair = _Pair(parallel, sequential)
    return Speed(
        parallel.name,
        sequential.name,
        Ratio(float(total.sum() / critical.sum()), low, high),
        pair.target(np.ones((1, len(parallel.problems))))[0],
        pair.ratio("critical_path"),
        pair.ratio("alone"),
        pair.ratio("loaded"),
        pair.ratio("total", inverse=True),
    )


class _Pair:
    """Two frontiers whose costs are compared at equal accuracy."""

    def __init__(self, parallel: Frontier, sequential: Frontier) -> None:
        self.two = parallel, sequential
        self.counts = np.concatenate(list(resamples(len(parallel.problems))))

    def target(self, counts: np.ndarray) -> list[float]:
        """For every row of counts of problems, the highest accuracy that both reach."""
        best = [_weighted(one.shares, counts).max(axis=1) for one in self.two]
        return [float(value) for value in np.minimum(*best)]

    def ratio(self, cost: Cost, inverse: bool = False) -> Ratio:
        """The cost of the sequential model / that of the parallel one at equal accuracy, or the inverse."""
        if any(value is None for one in self.two for value in one.costs(cost)):
            return Ratio(None)
        everything = np.ones((1, len(self.two[0].problems)))
        value, drawn = self._ratios(cost, everything, inverse)[0], self._ratios(cost, self.counts, inverse)
        finite = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or not len(finite):
            return Ratio(None)
        low, high = np.percentile(finite, [2.5, 97.5])
        return Ratio(float(value), float(low), float(high))

    def _ratios(self, cost: Cost, counts: np.ndarray, inverse: bool) -> np.ndarray:
        goals = np.array(self.target(counts))
        parallel, sequential = (_costs_at(one, cost, counts, goals) for one in self.two)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = parallel / sequential if inverse else sequential / parallel
        return np.where(goals > 0, ratios, np.nan)  # where nothing is right there is no accuracy to compare at


def _weighted(figures: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples, budgets): means over problems that are there so often."""
    return (counts @ figures.T) / counts.sum(axis=1, keepdims=True)


def _costs_at(one: Frontier, cost: Cost, counts: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """The cost at which a frontier first reaches an accuracy, for every resample and its accuracy."""
    reached = np.maximum.accumulate(_weighted(one.shares, counts), axis=1)
    if cost in one.tokens:
        spent = _weighted(one.tokens[cost], counts)
    else:
        spent = np.broadcast_to(np.array(one.costs(cost), dtype=float), reached.shape)
    rows, at = np.arange(len(goals)), (reached < goals[:, None] - 1e-12).sum(axis=1)  # the first budget that is enough
    before = np.maximum(at - 1, 0)
    rise = reached[rows, at] - reached[rows, before]
    part = np.where(rise > 0, (goals - reached[rows, before]) / np.where(rise > 0, rise, 1), 1.0)
    return spent[rows, before] + part * (spent[rows, at] - spent[rows, before])
