"""REINFORCE leave-one-out: the baseline of an answer is the mean reward of the other answers to its problem.

Source: "Back to Basics: Revisiting REINFORCE-Style Optimization" (arXiv 2402.14740). The paper takes one update from
every batch; with several, the ratio of the whole answer is clipped, as in TRL's `RLOOTrainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from parallel_r1.training.algorithms.base import PolicyGradient, algorithm, clip
from parallel_r1.training.batch import Batch


@algorithm("rloo")
class RLOO(PolicyGradient):
    """REINFORCE leave-one-out. An answer is one action, whose log-probability is the sum over its sampled tokens, all
    its paths included.

    Attributes:
        clip_low, clip_high: the ratio of new to old probability of an answer counts within [1 - clip_low, 1 +
            clip_high]. In the first update from a batch of answers it is 1.
    """

    average: Literal["tokens", "answers", "constant"] = "answers"
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """r - mean of the other rewards of the group; 0 for an answer that is alone, or where all rewards are equal."""
        return [
            [0.0] * len(rewards)
            if max(rewards) == min(rewards)
            else [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]
            for rewards in groups
        ]

    def ratio(
        self, log_ratio: Float[Tensor, "b n"], counted: Bool[Tensor, "b n"], batch: Batch
    ) -> Float[Tensor, "b n"]:
        """The ratio of the answer, at all its tokens."""
        # A token that the distribution leaves out by now would make the ratio of its whole answer 0.
        counted = counted & ~log_ratio.isneginf()
        return batch.spread(batch.sums(log_ratio.masked_fill(~counted, 0.0)).exp())

    def gain(self, ratio: Float[Tensor, "b n"], batch: Batch) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """The clipped surrogate."""
        return clip(ratio, batch.advantages, self.clip_low, self.clip_high)
