"""An algorithm of one's own: one class in one file. A recipe finds it by name once this file is imported:

    imports = ["examples/my_algorithm.py"]

    [stages.rl]
    algorithm = { name = "batch-baseline", ceiling = 2.0 }

The advantage is the reward less the mean reward of the whole step, not of the group, so groups whose answers all earned
the same teach something too. The ratio has no lower clip, and above the ceiling a token keeps its gradient, at the
weight of the ceiling, instead of losing it: the loss is ratio x advantage x log-probability with the ratio as a
constant, as in CISPO (arXiv 2506.13585).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import Field

import parallel_r1 as pr


@pr.algorithm("batch-baseline")
class BatchBaseline(pr.PolicyGradient):
    """REINFORCE with the mean reward of the step as its baseline.

    Attributes:
        ceiling: upper limit of the ratio of new to old probability of a token.
    """

    ceiling: float = Field(default=2.0, gt=1)

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        baseline = fmean(reward for rewards in groups for reward in rewards)
        return [[reward - baseline for reward in rewards] for rewards in groups]

    def gain(self, ratio, batch):
        kept = ratio.detach().clamp(max=self.ceiling)
        # The gradient of log(ratio) is that of the log-probability; a token with ratio 0 has none.
        gain = kept * batch.advantages * ratio.clamp(min=1e-9).log()
        return gain, ratio > self.ceiling
