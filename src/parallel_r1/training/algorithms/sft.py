"""Supervised fine-tuning: cross-entropy on the tokens that the policy would have to draw."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from parallel_r1.training.batch import Batch


def loss(logprobs: Float[Tensor, "b n"], batch: Batch, tokens: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Mean negative log-probability of the sampled tokens, in nats.

    Args:
        logprobs: from `batch.score`.
        batch: a micro-batch.
        tokens: sampled tokens of the whole batch, so that micro-batch losses add up to the batch's mean.
    """
    value = -(logprobs * batch.sampled).sum() / tokens
    return value, {"loss": value.item()}
