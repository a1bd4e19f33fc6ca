"""The judged answer that a reward reads, and the type of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.shape import paths_of_rollout
from parallel_r1.answers.trace import Trace

Terms = dict[str, float]
"""A reward by term, such as `{"accuracy": 1.0, "parallel": 0.2}`; the reward is their sum."""
NO_PROBLEM = Problem("", "", "", "")
NO_TRACE = Trace((), ())


@dataclass(frozen=True)
class Outcome:
    """A judged answer, as rewards read it.

    In training it comes from `Outcome.of`. In a test, give the fields that the reward reads:
    `Outcome(correct=True, forks=1, critical_path=6, total=10)`.

    Attributes:
        correct: whether the task's verifier accepts the answer.
        forks: number of forks that the answer opened, nested ones included.
        well_formed: whether the answer breaks the format nowhere.
        critical_path: tokens that had to be drawn one after the other.
        total: all tokens of the answer.
        text: the answer with its tags.
        paths: text of every path by fork, without tags; text of a nested fork belongs to the nested fork only.
        problem: the question; `problem.answer` is the reference answer.
        trace: the answer's tokens as spans, with their addresses and log-probabilities.
        group: the outcomes of all answers to the same problem, this one included. Their own `group` is empty.
        step: training step, counted from 1 within a stage.
    """

    correct: bool
    forks: int = 0
    well_formed: bool = True
    critical_path: int = 1
    total: int = 1
    text: str = ""
    paths: tuple[tuple[str, ...], ...] = ()
    problem: Problem = NO_PROBLEM
    trace: Trace = field(default=NO_TRACE, repr=False)
    group: tuple[Outcome, ...] = field(default=(), repr=False)
    step: int = 1

    @staticmethod
    def of(rollout: Rollout, group: Sequence[Rollout] = (), step: int = 1) -> Outcome:
        """The outcome of a rollout.

        Args:
            group: all rollouts of the same problem, this one included; only this one if empty.
            step: training step, counted from 1.
        """
        return replace(_alone(rollout, step), group=tuple(_alone(other, step) for other in group or (rollout,)))

    @staticmethod
    def of_group(rollouts: Sequence[Rollout], step: int = 1) -> tuple[Outcome, ...]:
        """The outcomes of all rollouts of one problem, in the same order."""
        members = tuple(_alone(rollout, step) for rollout in rollouts)
        return tuple(replace(member, group=members) for member in members)

    @property
    def parallel(self) -> bool:
        """Whether the answer thinks in parallel: it has a fork and is well-formed."""
        return self.forks >= 1 and self.well_formed

    @property
    def paths_used(self) -> int:
        """Number of paths with text, over all forks."""
        return sum(map(len, self.paths))

    @property
    def spare_paths(self) -> int:
        """How many more paths it used than the correct answer of its group that used the fewest; 0 in a group without a
        correct answer."""
        fewest = min((other.paths_used for other in self.group if other.correct), default=self.paths_used)
        return max(0, self.paths_used - fewest)

    @property
    def saved(self) -> float:
        """Share of the tokens that are off the critical path, 0 .. 1: 1 - critical path / total."""
        return 1 - self.critical_path / self.total if self.total else 0.0


def _alone(rollout: Rollout, step: int) -> Outcome:
    """The outcome of a rollout without its group."""
    return Outcome(
        correct=rollout.correct,
        forks=rollout.trace.forks,
        well_formed=rollout.trace.well_formed,
        critical_path=rollout.critical_path,
        total=rollout.total,
        text=rollout.text,
        paths=paths_of_rollout(rollout),
        problem=rollout.problem,
        trace=rollout.trace,
        step=step,
    )


class Reward(Protocol):
    """Anything that is called with an `Outcome` and returns terms. A function that returns one number is accepted
    too wherever the package takes a reward."""

    def __call__(self, outcome: Outcome, /) -> Terms:
        """The terms that the answer earns."""
        ...
