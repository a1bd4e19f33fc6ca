"""Group-relative policy optimisation and its family: advantages from the group, and a clipped ratio of every token.

Sources: DeepSeekMath (arXiv 2402.03300) for group advantages; DAPO (arXiv 2503.14476) for the separate upper clip;
Dr. GRPO (arXiv 2503.20783) for advantages without a standard deviation; PAPO (arXiv 2512.07461) for the standard
deviation of a batch. Defaults as in the Parallel-R1 paper: no divergence from a reference, no entropy bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Annotated, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from parallel_r1.training.algorithms.base import PolicyGradient, algorithm, clip
from parallel_r1.training.batch import Batch

EPSILON = 1e-6  # keeps the division by a standard deviation finite


@algorithm("grpo")
class GRPO(PolicyGradient):
    """Group-relative policy optimisation.

    Attributes:
        clip_low, clip_high: the ratio of new to old probability counts within [1 - clip_low, 1 + clip_high].
        std: what divides r - group mean: the standard deviation of the group's rewards (GRPO), of the whole batch's
            (PAPO), or nothing (Dr. GRPO).
    """

    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    std: Literal["group", "batch", "none"] = "group"

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """(r - group mean) / (std + 1e-6), with the sample standard deviation of the group or of all rewards; or
        r - group mean alone. A group of equal rewards gets zeros."""
        rewards = list(chain.from_iterable(groups))
        of_batch = stdev(rewards) if self.std == "batch" and len(rewards) > 1 else 0.0
        return [self._of_group(group, of_batch) for group in groups]

    def _of_group(self, rewards: Sequence[float], of_batch: float) -> list[float]:
        mean = fmean(rewards)
        if max(rewards) == min(rewards):
            return [0.0] * len(rewards)
        scale = 1.0 if self.std == "none" else EPSILON + (of_batch if self.std == "batch" else stdev(rewards))
        return [(reward - mean) / scale for reward in rewards]

    def gain(self, ratio: Float[Tensor, "b n"], batch: Batch) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """The clipped surrogate."""
        return clip(ratio, batch.advantages, self.clip_low, self.clip_high)
