"""Answers with forks in an engine that calls a model by itself: what goes into the model, and what comes out of it.

The learner of this package asks the body of a model for hidden states. verl's engine calls the whole model, because
FSDP gathers the weights around that call; so here the relation of who sees whom goes into that call, and the logits are
read where they predict a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from parallel_r1.answers.trace import Scorer, Trace
from parallel_r1.generation.distribution import Decoding, log_probabilities
from parallel_r1.models.attention import NO_MASK
from parallel_r1.training.batch import Batch, collate
from parallel_r1.training.sample import Sample


def lay_out(traces: Sequence[Trace], scorer: Scorer, device: torch.device | str = "cpu") -> Batch:
    """Prompts and answers in rows, one answer in each."""
    return collate([Sample(trace) for trace in traces], scorer).to(device)


def model_inputs(batch: Batch) -> dict[str, Any]:
    """The arguments of a forward pass of the whole model."""
    return {
        "input_ids": batch.token_ids,
        "position_ids": batch.positions,
        "attention_mask": NO_MASK,
        "sight": batch.sight,
    }


def read_logits(
    logits: Float[Tensor, "b n v"], batch: Batch, shape: Decoding, *, entropy: bool = False
) -> tuple[list[Float[Tensor, " _"]], list[Float[Tensor, " _"]]]:
    """Log-probability of every token of every answer in nats, and the entropy of the distribution that predicts it.

    Args:
        logits: of all places.
        batch: the rows that the model read.
        shape: of the distribution that was sampled.
        entropy: whether entropies are wanted; without it they are 0.

    Returns:
        One tensor per answer, in the order of its tokens.
    """
    places = torch.arange(batch.source.shape[1], device=batch.source.device)
    predicted = (batch.source >= 0) & (batch.previous != places)
    rows = predicted.nonzero()[:, 0]
    every = log_probabilities(logits[rows, batch.previous[predicted]], shape)
    figures = [every.gather(-1, batch.token_ids[predicted][:, None])[:, 0]]
    if entropy:
        finite = every.masked_fill(every.isneginf(), 0.0)
        figures.append(-(finite * every.exp()).sum(-1))
    spread = [logits.new_zeros(predicted.shape, dtype=torch.float32).masked_scatter(predicted, v) for v in figures]
    by_answer = [batch.gather(values) for values in spread]
    return by_answer[0], by_answer[1] if entropy else [torch.zeros_like(values) for values in by_answer[0]]


def as_rows(
    values: Sequence[Float[Tensor, " _"]], prompts: Sequence[int], lengths: Sequence[int]
) -> list[Float[Tensor, " _"]]:
    """Values of answers as verl's engine returns them: by place of prompt and answer, each value one place before its
    token; 0 elsewhere.

    Args:
        prompts: number of tokens of every prompt.
        lengths: number of tokens of every prompt with its answer.
    """
    padded = []
    for value, prompt, length in zip(values, prompts, lengths, strict=True):
        before, after = prompt - 1, length - prompt - len(value) + 1
        padded.append(torch.cat([value.new_zeros(before), value, value.new_zeros(after)]))
    return padded
