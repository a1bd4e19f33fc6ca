"""Group sequence policy optimisation: GRPO with one ratio for the whole answer, the geometric mean of its tokens'.

Source: GSPO (arXiv 2507.18071), whose clip range and mean over answers are the defaults.
"""

from __future__ import annotations

from typing import Annotated, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from parallel_r1.training.algorithms.base import algorithm
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.batch import Batch


@algorithm("gspo")
class GSPO(GRPO):
    """GRPO whose ratio is exp(mean log-ratio over the sampled tokens of the answer, all its paths included).

    With `correction` the importance weights of an answer's tokens are averaged.
    """

    clip_low: Annotated[float, Field(gt=0, le=1)] = 3e-4
    clip_high: Annotated[float, Field(gt=0)] = 4e-4
    average: Literal["tokens", "answers", "constant"] = "answers"

    def ratio(
        self, log_ratio: Float[Tensor, "b n"], counted: Bool[Tensor, "b n"], batch: Batch
    ) -> Float[Tensor, "b n"]:
        """The ratio of the answer, at all its tokens."""
        # A token that the distribution leaves out by now would make the ratio of its whole answer 0.
        counted = counted & ~log_ratio.isneginf()
        sums = batch.sums(log_ratio.masked_fill(~counted, 0.0))
        return batch.spread((sums / batch.sums(counted.to(sums.dtype)).clamp(min=1)).exp())
