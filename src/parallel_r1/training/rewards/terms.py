"""Rewards of one answer: for being correct, and for its structure and length.

Terms that pay for structure pay correct answers only, unless a recipe gives wrong answers a weight too: a policy soon
games a reward that pays for structure whatever the answer is.

Sources: section 3 of the Parallel-R1 paper (arXiv 2509.07980) and its released reward functions; ThreadWeaver (arXiv
2512.07843) for `acceleration`; DAPO (arXiv 2503.14476) for `overlong`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from parallel_r1.answers.shape import need_sacrebleu, self_bleu
from parallel_r1.training.rewards.base import reward
from parallel_r1.training.rewards.outcome import Outcome, Reward, Terms


@reward
def accuracy(outcome: Outcome, wrong: float = -1.0) -> Terms:
    """1 if the answer is correct, else `wrong`."""
    return {"accuracy": 1.0 if outcome.correct else wrong}


ACCURACY = accuracy()


@reward
def gate(outcome: Outcome, wrong: float = -1.0) -> Terms:
    """1 if the answer is correct and no fork of it is malformed, else `wrong`."""
    return {"accuracy": 1.0 if outcome.correct and (outcome.well_formed or not outcome.forks) else wrong}


@reward(needs_forks=True)
def parallel_and_accuracy(outcome: Outcome, wrong: float = -1.0) -> Terms:
    """1 if the answer is correct and parallel, else `wrong`: the reward of the first RL stage, on easy problems."""
    return {"accuracy": 1.0 if outcome.correct and outcome.parallel else wrong}


@reward(needs_forks=True)
def bonus(outcome: Outcome, extra: float = 0.2, wrong: float = -1.0) -> Terms:
    """1 + `extra` if the answer is correct and parallel, 1 if it is correct without a fork, else `wrong`. So a correct
    answer with a malformed fork earns `wrong`."""
    return {**gate(wrong)(outcome), "parallel": extra if outcome.correct and outcome.parallel else 0.0}


@reward(needs_forks=True)
def additive(outcome: Outcome, base: Reward = ACCURACY, right: float = 0.5, wrong: float = 0.0) -> Terms:
    """`base`, plus `right` for a correct parallel answer, `wrong` for a wrong parallel one."""
    return weighted(outcome, base, "parallel", right, wrong, lambda: float(outcome.parallel))


@reward(needs_forks=True)
def count(outcome: Outcome, base: Reward = ACCURACY, right: float = 1.0, wrong: float = 0.0) -> Terms:
    """`base`, plus the square root of the number of forks, times `right` if the answer is correct, else `wrong`."""
    return weighted(outcome, base, "count", right, wrong, lambda: math.sqrt(outcome.forks))


@reward(needs_forks=True)
def diversity(base: Reward = ACCURACY, right: float = 0.3, wrong: float = 0.0) -> Reward:
    """`base`, minus the self-BLEU of sibling paths, 0 .. 1, times `right` if the answer is correct, else `wrong`."""
    need_sacrebleu()
    return lambda outcome: weighted(outcome, base, "diversity", -right, -wrong, lambda: self_bleu(outcome.paths))


@reward(needs_forks=True)
def efficiency(outcome: Outcome, base: Reward = ACCURACY, right: float = 0.4, wrong: float = 0.0) -> Terms:
    """`base`, plus the share of tokens off the critical path, times `right` if the answer is correct, else `wrong`."""
    return weighted(outcome, base, "efficiency", right, wrong, lambda: outcome.saved)


@reward(needs_forks=True)
def acceleration(
    outcome: Outcome, base: Reward = ACCURACY, right: float = 0.5, wrong: float = 0.0, most: float = 0.2
) -> Terms:
    """As `efficiency`, with at most `most` of the share paid. ThreadWeaver's is `acceleration(accuracy(wrong=0))`."""
    return weighted(outcome, base, "acceleration", right, wrong, lambda: min(outcome.saved, most))


@reward(needs_forks=True)
def paths_used(outcome: Outcome, base: Reward = ACCURACY, right: float = -0.02, wrong: float = 0.0) -> Terms:
    """`base`, plus the number of paths, times `right` if the answer is correct, else `wrong`. A negative weight is the
    price of a path."""
    return weighted(outcome, base, "paths_used", right, wrong, lambda: outcome.paths_used)


@reward(needs_forks=True)
def spare_paths(outcome: Outcome, base: Reward = ACCURACY, right: float = 0.05, wrong: float = 0.0) -> Terms:
    """`base`, minus the number of spare paths, times `right` if the answer is correct, else `wrong`. Paths are spare if
    another correct answer to the same problem needed fewer: easy problems then get few paths, and hard ones keep
    theirs."""
    return weighted(outcome, base, "spare_paths", -right, -wrong, lambda: outcome.spare_paths)


@reward
def overlong(
    base: Reward = ACCURACY, *, cache: float, total: float = math.inf, critical_path: float = math.inf
) -> Reward:
    """`base`, minus a penalty on the last `cache` tokens before a length limit: it rises in a straight line from 0 at
    limit - cache to 1 at the limit, and stays 1 beyond it. The limits come from the budget: `total` for all tokens,
    `critical_path` for the critical path; with both, the larger penalty counts. Source: DAPO (arXiv 2503.14476)."""
    if cache <= 0:
        raise ValueError(f"cache must be larger than 0, got {cache}")
    if math.isinf(min(total, critical_path)):
        raise ValueError("overlong needs a length: total, critical_path, or both")

    def penalised(outcome: Outcome) -> Terms:
        over = cache + max(outcome.total - total, outcome.critical_path - critical_path)
        return add(base(outcome), {"overlong": -min(1.0, max(0.0, over / cache))})

    return penalised


def weighted(
    outcome: Outcome, base: Reward, name: str, right: float, wrong: float, measure: Callable[[], float]
) -> Terms:
    """`base`, plus a term: the measured value times `right` for a correct answer, `wrong` for a wrong one. Nothing is
    measured where the weight is 0."""
    weight = right if outcome.correct else wrong
    return add(base(outcome), {name: weight * measure() if weight else 0.0})


def add(one: Mapping[str, float], two: Mapping[str, float]) -> Terms:
    """The sum of two rewards, term by term."""
    return {name: one.get(name, 0.0) + two.get(name, 0.0) for name in {**one, **two}}


def scale(factor: float, terms: Terms) -> Terms:
    """A reward times a factor, term by term."""
    return {name: factor * value for name, value in terms.items()}
