"""What an answer earns: small pure functions, combinators, and the little language that recipes write them in.

A reward is a function of an `Outcome` and the 1-based training step. Source of the formulas: section 3 of the
Parallel-R1 paper (arXiv 2509.07980) and its released reward functions.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallel_r1.errors import UserError, nearest


@dataclass(frozen=True)
class Outcome:
    """What rewards may look at: whether the answer is right, how many forks it opened, whether its form is right."""

    correct: bool
    forks: int
    well_formed: bool

    @property
    def parallel(self) -> bool:
        """Whether the answer thinks in parallel: it forks, and its form is right."""
        return self.forks >= 1 and self.well_formed


Reward = Callable[[Outcome, int], float]


def accuracy(wrong: float = -1.0) -> Reward:
    """1 if correct, else `wrong`."""
    return lambda outcome, step: 1.0 if outcome.correct else wrong


def parallel_and_accuracy(wrong: float = -1.0) -> Reward:
    """1 if correct and parallel, else `wrong`: the reward of the first RL stage, on easy problems."""
    return lambda outcome, step: 1.0 if outcome.correct and outcome.parallel else wrong


def bonus(extra: float = 0.2, wrong: float = -1.0) -> Reward:
    """1 + extra if correct and parallel, 1 if correct without a fork, else `wrong`; so a correct answer whose fork is
    malformed earns `wrong`."""

    def reward(outcome: Outcome, step: int) -> float:
        if not outcome.correct or (outcome.forks and not outcome.well_formed):
            return wrong
        return 1.0 + extra if outcome.parallel else 1.0

    return reward


def alternate(first: Reward, other: Reward, period: int = 10, second: int = 2) -> Reward:
    """`first` for `period - second` steps, then `other` for `second` steps, and so on: the alternating reward S2."""
    if not 0 <= second <= period or period < 1:
        raise ValueError(f"second must lie in 0..period, found period={period}, second={second}")
    return lambda outcome, step: (first if (step - 1) % period < period - second else other)(outcome, step)


def switch(first: Reward, other: Reward, at: int) -> Reward:
    """`first` up to and including step `at`, then `other`: the mid-training scaffold."""
    return lambda outcome, step: (first if step <= at else other)(outcome, step)


KNOWN: dict[str, Callable[..., Reward]] = {
    function.__name__: function for function in (accuracy, parallel_and_accuracy, bonus, alternate, switch)
}


def parse_reward(text: str) -> Reward:
    """Read a reward as a recipe writes it, such as `alternate(accuracy(), bonus(0.2), period=10, second=2)`.

    Raises:
        UserError: anything but calls of known rewards with numbers and rewards as arguments.
    """
    try:
        return _build(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            "a reward such as accuracy() or alternate(accuracy(), bonus(0.2))",
            f"'{text}' ({error})",
            f"known rewards: {', '.join(KNOWN)}",
        ) from error


def _build(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        if name not in KNOWN:
            raise UserError("a known reward", f"'{name}'", nearest(name, KNOWN))
        return KNOWN[name](
            *[_build(value) for value in node.args],
            **{keyword.arg or "": _build(keyword.value) for keyword in node.keywords},
        )
    value = ast.literal_eval(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{ast.unparse(node)} is no number")
    return value
