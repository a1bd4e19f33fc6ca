"""From logits to tokens and their log-probabilities.

Two distributions matter: the one that is sampled, after temperature, top-k, top-p and min-p, and the raw policy, the
softmax of the logits. Generation and scoring both call `log_probabilities`, so a sampled token can be scored under
exactly the distribution that it was sampled from. The filters come from transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from parallel_r1.generation.settings import Sampling

Decoding = tuple[float, int, float, float]
"""Temperature, top-k, top-p, min-p. Requests with the same values are sampled in one call."""
RAW: Decoding = (1.0, 0, 1.0, 0.0)
"""The raw policy."""


@dataclass(frozen=True)
class Drawn:
    """One sampled token per row. If a logit of the row is NaN, the log-probabilities are NaN.

    Attributes:
        tokens: token ids.
        logprobs: log-probabilities under the distribution that was sampled, in nats.
        raw_logprobs: log-probabilities under the raw policy, in nats.
    """

    tokens: Int[Tensor, " n"]
    logprobs: Float[Tensor, " n"]
    raw_logprobs: Float[Tensor, " n"]


def decoding(sampling: Sampling) -> Decoding:
    """The settings that shape the distribution, as a key."""
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p


@lru_cache
def _filters(shape: Decoding) -> tuple[LogitsProcessor, ...]:
    """The logits processors of transformers that these settings need, in the order in which they are applied."""
    temperature, top_k, top_p, min_p = shape
    filters: list[LogitsProcessor] = []
    if temperature != 1:
        filters.append(TemperatureLogitsWarper(temperature))
    if top_k:
        filters.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        filters.append(TopPLogitsWarper(top_p))
    if min_p:
        filters.append(MinPLogitsWarper(min_p))
    return tuple(filters)


def log_probabilities(logits: Float[Tensor, "n v"], shape: Decoding = RAW) -> Float[Tensor, "n v"]:
    """Log-probabilities in nats after temperature, then top-k, then top-p, then min-p. At temperature 0 the largest
    logit has probability 1."""
    scores = logits.float()
    if shape[0] == 0:
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(-1, best, 0.0)
    for keep in _filters(shape):
        scores = keep(None, scores)  # these processors do not use the earlier tokens
    return torch.log_softmax(scores, dim=-1)


def sample(logits: Float[Tensor, "n v"], uniforms: Sequence[float], shape: Decoding = RAW) -> Drawn:
    """Sample one token per row by inverting the cumulative distribution at a uniform random number.

    Args:
        logits: logits of the raw policy.
        uniforms: one number in [0, 1) per row. The caller draws it from the row's own random generator, so that the
            result does not depend on the other rows.
        shape: the distribution to sample; at temperature 0 the token is the argmax.
    """
    raw = log_probabilities(logits)
    logprobs = raw if shape == RAW else log_probabilities(logits, shape)
    if shape[0] == 0:
        tokens = logprobs.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().double().cumsum(dim=-1)
        at = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, at, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
    raw_taken = raw.gather(-1, tokens[:, None]).squeeze(-1)
    taken = raw_taken if logprobs is raw else logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    return Drawn(tokens, taken + 0.0 * raw_taken, raw_taken)
