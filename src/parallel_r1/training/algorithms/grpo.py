"""Group-relative policy optimisation and its family: advantages from the group, and a clipped ratio of every token.

Sources: DeepSeekMath (arXiv 2402.03300) for group advantages; DAPO (arXiv 2503.14476) for the separate upper clip;
Dr. GRPO (arXiv 2503.20783) for advantages without a standard deviation; PAPO (arXiv 2512.07461) for the standard
deviation of a batch; GDPO (arXiv 2601.05242) for terms of a reward that are normalised apart. Defaults as in the
Parallel-R1 paper: no divergence from a reference, no entropy bonus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Annotated, Literal

from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from parallel_r1.answers.rollout import Group
from parallel_r1.errors import UserError
from parallel_r1.training.algorithms.base import PolicyGradient, algorithm, clip
from parallel_r1.training.batch import Batch

ACCURACY = "accuracy"
"""The term of a reward that pays for being correct."""
EPSILON = 1e-6  # keeps the division by a standard deviation finite


@algorithm("grpo")
class GRPO(PolicyGradient):
    """Group-relative policy optimisation.

    Attributes:
        clip_low, clip_high: the ratio of new to old probability counts within [1 - clip_low, 1 + clip_high].
        std: what divides r - group mean: the standard deviation of the group's rewards (GRPO), of the whole batch's
            (PAPO), or nothing (Dr. GRPO).
        split: whether the advantage of being correct (the term `accuracy` of the reward) and that of all other terms
            are computed apart and added. A bonus or a penalty then never weighs more than `auxiliary`, even in a group
            whose answers are all correct, where `std` would otherwise blow it up to the weight of being correct.
        auxiliary: weight of the advantage of the other terms, with `split`.
    """

    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    std: Literal["group", "batch", "none"] = "group"
    split: bool = False
    auxiliary: Annotated[float, Field(ge=0)] = 0.2

    @model_validator(mode="after")
    def split_has_a_weight(self) -> GRPO:
        if not self.split and self.auxiliary != type(self).model_fields["auxiliary"].default:
            raise ValueError("auxiliary has no effect without split = true: leave it out, or split")
        return self

    def advantages_of(self, groups: Sequence[Group]) -> list[list[float]]:
        """The advantage of every answer: from its reward, or with `split` from its term `accuracy` and from the others.

        Raises:
            UserError: a reward without the term `accuracy`, with `split`.
        """
        if not self.split:
            return super().advantages_of(groups)
        terms = [[rollout.terms or {} for rollout in group.rollouts] for group in groups]
        missing = next((each for each in chain.from_iterable(terms) if ACCURACY not in each), None)
        if missing is not None:
            raise UserError(
                f"a reward with the term '{ACCURACY}', for algorithm.split",
                f"the terms {', '.join(missing) or 'of none'}",
                "build the reward on accuracy(), or set split = false",
            )
        correct = [[each[ACCURACY] for each in members] for members in terms]
        others = [[math.fsum(each[name] for name in each if name != ACCURACY) for each in members] for members in terms]
        pairs = zip(self.advantages(correct), self.advantages(others), strict=True)
        return [[one + self.auxiliary * two for one, two in zip(*pair, strict=True)] for pair in pairs]

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
