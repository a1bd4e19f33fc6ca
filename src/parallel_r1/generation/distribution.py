"""From logits to tokens and their log-probabilities.

Two distributions matter: the one that is sampled, after temperature, top-k, top-p and min-p, and the raw policy, the
softmax of the logits. Neither gives a probability to rows of the embedding table that no token has, as there are where
a table is padded to a round number. Generation and scoring both call `log_probabilities`, so a sampled token can be
scored under exactly the distribution that it was sampled from. The filters come from transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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

from parallel_r1.answers.syntax import Tags
from parallel_r1.generation.settings import Sampling


class Decoding(NamedTuple):
    """What shapes the distribution over tokens. Requests with the same values are sampled in one call.

    Attributes:
        temperature, top_k, top_p, min_p: see `Sampling`.
        missing: ids without a token, in rising order; see `Tags.missing`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    missing: tuple[int, ...] = ()

    @property
    def raw(self) -> Decoding:
        """The raw policy over the same tokens."""
        return Decoding(missing=self.missing)


RAW = Decoding()
"""The raw policy of a model whose ids all have a token."""


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


def decoding(sampling: Sampling, tags: Tags) -> Decoding:
    """What shapes the distribution of a policy with these tags."""
    return Decoding(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, tags.missing)


@lru_cache
def _filters(shape: Decoding) -> tuple[LogitsProcessor, ...]:
    """The logits processors of transformers that these settings need, in the order in which they are applied."""
    temperature, top_k, top_p, min_p, _ = shape
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


def _present(logits: Float[Tensor, "n v"], missing: tuple[int, ...]) -> Float[Tensor, "n w"]:
    """The logits without those of ids that no token has: the last ones are cut off, others are minus infinity."""
    size = logits.shape[-1]
    holes = list(missing)
    while holes and holes[-1] == size - 1:
        size = holes.pop()
    kept = logits[..., :size]
    return kept.index_fill(-1, torch.tensor(holes, device=logits.device), -torch.inf) if holes else kept


def log_probabilities(logits: Float[Tensor, "n v"], shape: Decoding = RAW) -> Float[Tensor, "n w"]:
    """Log-probabilities in nats after temperature, then top-k, then top-p, then min-p. At temperature 0 the largest
    logit has probability 1. Ids that no token has have probability 0; those at the end have no column."""
    scores = _present(logits, shape.missing).float()
    if shape.temperature == 0:
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
    raw = log_probabilities(logits, shape.raw)
    logprobs = raw if shape == shape.raw else log_probabilities(logits, shape)
    if shape.temperature == 0:
        tokens = logprobs.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().double().cumsum(dim=-1)
        at = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, at, right=True).squeeze(-1).clamp_(max=cumulative.shape[-1] - 1)
    raw_taken = raw.gather(-1, tokens[:, None]).squeeze(-1)
    taken = raw_taken if logprobs is raw else logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    return Drawn(tokens, taken + 0.0 * raw_taken, raw_taken)
