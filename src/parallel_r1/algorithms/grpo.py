"""Group-relative policy optimisation: advantages from the group, a clipped ratio, a mean over tokens.

Source: DeepSeekMath (arXiv 2402.03300) for group advantages; DAPO (arXiv 2503.14476) for the token mean and the
separate upper clip. No KL term, no reference model, no entropy bonus, as in the Parallel-R1 paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from torch import Tensor

from parallel_r1.batch import Batch
from parallel_r1.config import GRPO

EPSILON = 1e-6  # keeps the division by a group's standard deviation finite


def advantages(rewards: Sequence[float], std: bool) -> list[float]:
    """How much better than its group each answer is: (r - mean) / (std + 1e-6), with the sample's standard deviation,
    or r - mean alone. A group of equal rewards says nothing and gets zeros."""
    mean = fmean(rewards)
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    scale = stdev(rewards) + EPSILON if std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def loss(
    logprobs: Float[Tensor, "b n"], batch: Batch, tokens: int, settings: GRPO
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The clipped surrogate, as a mean over the sampled tokens of the whole batch.

    The ratio is to `batch.old`, what the same scorer said before the step. Where the sampler is not that scorer's exact
    partner, the step still starts from another distribution than the tokens were drawn from; `settings.correction`
    weighs each token with exp(old - behaviour), at most the correction, as a constant.
    Source: truncated importance sampling, as in "Your efficient RL framework secretly brings you off-policy RL
    training".

    Args:
        logprobs: of the policy, from `batch.score`.
        batch: a micro-batch with log-probabilities from before, and advantages.
        tokens: sampled tokens of the whole batch, so that micro-batch losses add up to the batch's mean.
        settings: the clip range and the correction.

    Returns:
        The loss, and means over the batch: of the loss, of the tokens whose ratio was clipped, of the k3 estimate of
        the divergence from the behaviour policy, and of |log-ratio| to it, whose largest is `mismatch_max`.
    """
    ratio = torch.where(batch.sampled, logprobs - batch.old, 0.0).exp()
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    if settings.correction is not None:
        surrogate = surrogate * (batch.old - batch.behaviour).exp().clamp(max=settings.correction)
    value = -(surrogate * batch.sampled).sum() / tokens
    with torch.no_grad():
        low = (ratio < 1 - settings.clip_low) & (batch.advantages < 0)
        high = (ratio > 1 + settings.clip_high) & (batch.advantages > 0)
        drift = torch.where(batch.sampled, logprobs - batch.behaviour, 0.0)
        metrics = {
            "loss": value.item(),
            "clip_fraction": ((low | high) & batch.sampled).sum().item() / tokens,
            "kl": (drift.exp() - 1 - drift).sum().item() / tokens,
            "mismatch_mean": drift.abs().sum().item() / tokens,
            "mismatch_max": drift.abs().max().item(),
        }
    return value, metrics
