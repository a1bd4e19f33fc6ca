"""Group-relative policy optimisation and its family: advantages from the group, a clipped ratio, a weighted mean.

Sources: DeepSeekMath (arXiv 2402.03300) for group advantages and the divergence from a reference; DAPO (arXiv
2503.14476) for the mean over tokens, the separate upper clip and dynamic sampling; Dr. GRPO (arXiv 2503.20783) for
advantages without a standard deviation and a constant length; PAPO (arXiv 2512.07461) for the standard deviation of a
batch; PPO (arXiv 1707.06347) for several updates from one batch; A3C (arXiv 1602.01783) for the entropy bonus;
DeepSeek-V3.2 (arXiv 2512.02556) for the ratio in the divergence. The defaults are those of the Parallel-R1 paper: no
divergence, no reference model, no entropy bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from torch import Tensor

from parallel_r1.training.batch import Batch
from parallel_r1.training.settings import GRPO

EPSILON = 1e-6  # keeps the division by a standard deviation finite


def advantages(groups: Sequence[Sequence[float]], settings: GRPO) -> list[list[float]]:
    """How much better than its group each answer is: (r - mean) / (std + 1e-6), with the sample's standard deviation of
    the group or of all rewards, or r - mean alone. A group of equal rewards says nothing and gets zeros."""
    every = list(chain.from_iterable(groups))
    whole = stdev(every) if settings.std == "batch" and len(every) > 1 else 0.0
    found = []
    for rewards in groups:
        mean = fmean(rewards)
        if max(rewards) == min(rewards):
            found.append([0.0] * len(rewards))
            continue
        scale = 1.0 if settings.std == "none" else EPSILON + (whole if settings.std == "batch" else stdev(rewards))
        found.append([(reward - mean) / scale for reward in rewards])
    return found


def weights(lengths: Sequence[int], settings: GRPO, most: int) -> list[float]:
    """What the tokens of each answer count in the loss, relative to a mean over all sampled tokens.

    Args:
        lengths: sampled tokens of each answer.
        settings: what the loss is a mean over.
        most: tokens that an answer may have, the constant of `average = "constant"`.
    """
    mean = sum(lengths) / max(1, len(lengths))
    if settings.average == "answers":
        return [mean / length if length else 0.0 for length in lengths]
    return [mean / most if settings.average == "constant" else 1.0] * len(lengths)


def loss(
    logprobs: Float[Tensor, "b n"],
    batch: Batch,
    tokens: int,
    settings: GRPO,
    entropies: Float[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The clipped surrogate, and what else the settings ask for, as a weighted mean over the sampled tokens of the
    whole batch.

    The ratio is to `batch.old`, what the same scorer said before the step. Where the sampler is not that scorer's exact
    partner, the step still starts from another distribution than the tokens were drawn from; `settings.correction`
    weighs each token with exp(old - behaviour), at most the correction, as a constant. A token that the scorer's
    distribution leaves out has no ratio and is not learnt from.
    Source: truncated importance sampling, as in "Your efficient RL framework secretly brings you off-policy RL
    training".

    Args:
        logprobs: of the policy, from `batch.score`.
        batch: a micro-batch with log-probabilities from before, advantages and weights, and of the reference if
            `settings.kl`.
        tokens: sampled tokens of the whole batch, so that micro-batch losses add up to the batch's mean.
        settings: the clip range, the correction, and the weights of divergence and entropy.
        entropies: of the distribution that each token was drawn from, if `settings.entropy`.

    Returns:
        The loss, and means over the batch, in which answers that are not computed count as 0: of the loss, of the
        tokens whose ratio was clipped, of the k3 estimate of the divergence from the behaviour policy, of |log-ratio|
        to it, whose largest is `mismatch_max`, and of what was asked for: divergence from the reference, entropy.
        Tokens that the policy would not draw any more are left out of the divergence and the log-ratio.
    """
    counted = batch.sampled & ~batch.old.isneginf()
    ratio = torch.where(counted, logprobs - batch.old, 0.0).exp()
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    gain = torch.minimum(ratio * batch.advantages, clipped * batch.advantages)
    if settings.correction is not None:
        gain = gain * (batch.old - batch.behaviour).exp().clamp(max=settings.correction)
    more = {}
    if settings.kl:
        # Times the ratio, whose gradient is what makes that of the divergence unbiased.
        divergence = ratio * k3(torch.where(batch.sampled, batch.reference - logprobs, 0.0))
        gain = gain - settings.kl * divergence
        more["reference_kl"] = divergence.sum().item() / tokens
    if settings.entropy:
        assert entropies is not None
        gain = gain + settings.entropy * entropies
        more["entropy"] = (entropies * batch.sampled).sum().item() / tokens
    value = -torch.where(counted, gain * batch.weights, 0.0).sum() / tokens
    with torch.no_grad():
        low = (ratio < 1 - settings.clip_low) & (batch.advantages < 0)
        high = (ratio > 1 + settings.clip_high) & (batch.advantages > 0)
        drift = torch.where(counted & ~logprobs.isneginf(), logprobs - batch.behaviour, 0.0)
        metrics = {
            "loss": value.item(),
            "clip_fraction": ((low | high) & batch.sampled).sum().item() / tokens,
            "kl": k3(drift).sum().item() / tokens,
            "mismatch_mean": drift.abs().sum().item() / tokens,
            "mismatch_max": drift.abs().max().item(),
        }
    return value, metrics | more


def k3(log_ratio: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """exp(x) - 1 - x: an unbiased estimate of a divergence that is never negative. Source: Schulman, "Approximating KL
    divergence"."""
    return log_ratio.exp() - 1 - log_ratio
