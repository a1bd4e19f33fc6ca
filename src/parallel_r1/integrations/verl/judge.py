"""What an answer earns: our verifiers and reward expressions, for an agent loop that sees one answer at a time.

All answers to one draw of a problem are judged by one process of verl, each in a coroutine of its own. `Groups` brings
them together, so that a reward may compare the answers of a group, as it may everywhere else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from parallel_r1.answers.rollout import Group, Rollout
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.outcome import Reward


@dataclass
class Waiting:
    """A group of which some answers are still to come.

    Attributes:
        members: answers by the number of their draw.
        rewarded: the same with their rewards, once all have come.
    """

    members: dict[int, Rollout] = field(default_factory=dict)
    rewarded: asyncio.Future[dict[int, Rollout]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass
class Groups:
    """Groups of this process whose answers are being drawn, by a key of the draw of their problem."""

    waiting: dict[str, Waiting] = field(default_factory=dict)

    async def reward(self, key: str, number: int, rollout: Rollout, size: int, reward: Reward, step: int) -> Rollout:
        """The answer with its reward, once the last of its group has come.

        Args:
            key: of the group.
            number: of the draw, 0 .. size - 1.
            size: number of answers in the group.
            step: training step, counted from 1.

        Raises:
            UserError: the reward returned no finite numbers.
            RuntimeError: another answer of the group failed.
        """
        group = self.waiting.setdefault(key, Waiting())
        group.members[number] = rollout
        if len(group.members) == size and not group.rewarded.done():
            del self.waiting[key]
            try:
                order = sorted(group.members)
                members = Group(rollout.problem, tuple(group.members[index] for index in order))
                paid = apply_reward(members, reward, step).rollouts
            except Exception as error:
                self._fail(group, error)
                raise
            group.rewarded.set_result(dict(zip(order, paid, strict=True)))
        return (await group.rewarded)[number]

    def fail(self, key: str, error: BaseException) -> None:
        """Let the other answers of a group go, those that are still to come too, because one will never come."""
        self._fail(self.waiting.setdefault(key, Waiting()), error)

    @staticmethod
    def _fail(group: Waiting, error: BaseException) -> None:
        if not group.rewarded.done():
            group.rewarded.set_exception(RuntimeError(f"another answer of the group failed: {error}"))
            group.rewarded.exception()  # read, so that a group in which nobody waits warns of nothing


def figures(rollout: Rollout) -> dict[str, float]:
    """What verl logs of an answer, and what validation takes means of (`acc` is the name that it looks for)."""
    trace = rollout.trace
    logprobs = [value for span in trace.spans for value in span.logprobs or ()]
    return {
        "acc": float(rollout.correct),
        "parallel": float(trace.forks > 0),
        "well_formed": float(trace.well_formed),
        "forks": float(trace.forks),
        **({"first_fork": trace.fork_at[0] / rollout.total} if trace.forks else {}),
        "critical_path": float(rollout.critical_path),
        "total": float(rollout.total),
        "cut": float(trace.finish == "length"),
        "surprise": -sum(logprobs) / max(1, len(logprobs)),
        "sampled": float(len(logprobs)),
    }


def row(rollout: Rollout) -> dict[str, Any]:
    """The figures of an answer with its reward, as `metrics` reads them."""
    return {"reward": rollout.reward, "terms": rollout.terms, **figures(rollout)}
