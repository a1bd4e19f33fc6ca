"""What an answer earns: small functions, combinators, and the little language that recipes write them in.

A reward is a function of an `Outcome` and the 1-based training step. What it gives is kept by term, such as what was
earned for being correct and what for being diverse; the reward is the sum of its terms. Terms that pay for structure
are paid to correct answers alone, unless a recipe gives them a weight in wrong ones: what pays for structure whatever
the answer is soon gamed.

Sources: section 3 of the Parallel-R1 paper (arXiv 2509.07980) and its released reward functions; ThreadWeaver (arXiv
2512.07843) for `acceleration`; DAPO (arXiv 2503.14476) for `overlong`; Kimi K2.5 for `anneal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from parallel_r1.answers.shape import need_sacrebleu, self_bleu
from parallel_r1.training.rewards.outcome import Base, Outcome, Reward, Terms


def accuracy(wrong: float = -1.0) -> Reward:
    """1 if correct, else `wrong`."""
    return lambda outcome, step: {"accuracy": 1.0 if outcome.correct else wrong}


def gate(wrong: float = -1.0) -> Reward:
    """1 if correct and without a malformed fork, else `wrong`."""

    def reward(outcome: Outcome, step: int) -> Terms:
        return {"accuracy": 1.0 if outcome.correct and (outcome.well_formed or not outcome.forks) else wrong}

    return reward


def parallel_and_accuracy(wrong: float = -1.0) -> Reward:
    """1 if correct and parallel, else `wrong`: the reward of the first RL stage, on easy problems."""
    return lambda outcome, step: {"accuracy": 1.0 if outcome.correct and outcome.parallel else wrong}


def bonus(extra: float = 0.2, wrong: float = -1.0) -> Reward:
    """1 + extra if correct and parallel, 1 if correct without a fork, else `wrong`; so a correct answer whose fork is
    malformed earns `wrong`."""
    earn = gate(wrong)

    def reward(outcome: Outcome, step: int) -> Terms:
        return {**earn(outcome, step), "parallel": extra if outcome.correct and outcome.parallel else 0.0}

    return reward


def additive(base: Base = None, right: float = 0.5, wrong: float = 0.0) -> Reward:
    """`base`, and `right` for a correct parallel answer, `wrong` for a wrong one."""
    return _shaped("parallel", base, right, wrong, lambda outcome: float(outcome.parallel))


def count(base: Base = None, right: float = 1.0, wrong: float = 0.0) -> Reward:
    """`base`, and the square root of the number of forks, times `right` if correct, else `wrong`."""
    return _shaped("count", base, right, wrong, lambda outcome: math.sqrt(outcome.forks))


def diversity(base: Base = None, right: float = 0.3, wrong: float = 0.0) -> Reward:
    """`base` less the self-BLEU of sibling paths, 0 .. 1, times `right` if correct, else `wrong`."""
    need_sacrebleu()
    return _shaped("diversity", base, -right, -wrong, lambda outcome: self_bleu(outcome.text))


def efficiency(base: Base = None, right: float = 0.4, wrong: float = 0.0) -> Reward:
    """`base`, and the share of tokens that nobody had to wait for, times `right` if correct, else `wrong`."""
    return _shaped("efficiency", base, right, wrong, lambda outcome: outcome.saved)


def acceleration(base: Base = None, right: float = 0.5, wrong: float = 0.0, most: float = 0.2) -> Reward:
    """`efficiency` of which no more than `most` is paid. ThreadWeaver's is `acceleration(accuracy(wrong=0))`."""
    return _shaped("acceleration", base, right, wrong, lambda outcome: min(outcome.saved, most))


def overlong(base: Base = None, *, cache: float, total: float = math.inf, critical_path: float = math.inf) -> Reward:
    """`base`, less what an answer takes of the last `cache` tokens before a length, as a share of them: nothing up to
    length - cache, 1 at the length and beyond it. What is long is what the budget counts: all tokens, those of the
    critical path, or whichever of the two goes further over its line. Source: DAPO (arXiv 2503.14476)."""
    if cache <= 0:
        raise ValueError(f"cache must be larger than 0, found {cache}")
    if math.isinf(min(total, critical_path)):
        raise ValueError("overlong needs a length: total, critical_path, or both")
    under = base or accuracy()

    def reward(outcome: Outcome, step: int) -> Terms:
        over = cache + max(outcome.total - total, outcome.critical_path - critical_path)
        return _add(under(outcome, step), {"overlong": -min(1.0, max(0.0, over / cache))})

    return reward


def _shaped(name: str, base: Base, right: float, wrong: float, measure: Callable[[Outcome], float]) -> Reward:
    """`base`, and a term: what is measured, times a weight of correct or of wrong answers."""
    under = base or accuracy()

    def reward(outcome: Outcome, step: int) -> Terms:
        weight = right if outcome.correct else wrong
        return _add(under(outcome, step), {name: weight * measure(outcome) if weight else 0.0})

    return reward


def _add(one: Mapping[str, float], two: Mapping[str, float]) -> Terms:
    return {name: one.get(name, 0.0) + two.get(name, 0.0) for name in {**one, **two}}


def _times(factor: float, terms: Terms) -> Terms:
    return {name: factor * value for name, value in terms.items()}
