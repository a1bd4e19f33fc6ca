"""What a reward may look at, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parallel_r1.answers.rollout import Rollout

Terms = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What rewards may look at.

    Attributes:
        correct: whether the answer is right.
        forks: how many it opened.
        well_formed: whether its form is right.
        critical_path, total: tokens that had to be drawn one after the other, and all tokens.
        text: the answer with its tags.
    """

    correct: bool
    forks: int
    well_formed: bool
    critical_path: int = 1
    total: int = 1
    text: str = ""

    @staticmethod
    def of(rollout: Rollout) -> Outcome:
        """What rewards may look at of an answer that has been judged."""
        trace = rollout.trace
        cost = rollout.critical_path, rollout.total
        return Outcome(rollout.correct, trace.forks, trace.well_formed, *cost, rollout.text)

    @property
    def parallel(self) -> bool:
        """Whether the answer thinks in parallel: it forks, and its form is right."""
        return self.forks >= 1 and self.well_formed

    @property
    def saved(self) -> float:
        """The share of the tokens that nobody had to wait for: 1 - critical path / total."""
        return 1 - self.critical_path / self.total if self.total else 0.0


Reward = Callable[[Outcome, int], Terms]


Base = Reward | None
"""A reward to build on; `accuracy()` if None."""
