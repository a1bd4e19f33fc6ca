"""Traces to tensors under a named scorer; the only border between Python objects and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1.attention import Layout, layout
from parallel_r1.trace import TRUNK, Scorer, Trace


@dataclass(frozen=True)
class Batch:
    """Prompts and answers, one per row, padded on the right. b rows, n tokens, a addresses.

    Attributes:
        token_ids: the tokens.
        positions: their positions.
        address_ids: for every token the row of its address in `sees`; padding has its own address, seen by none.
        sees: whether tokens of two addresses may see each other.
        sampled: True where the policy drew the token: the only places with a loss.
        behaviour: log-probabilities under the policy that drew the tokens; 0 where unknown or not sampled.
        advantages: one number a row; ones where nothing was compared.
        plain: no row has a fork, so ordinary causal attention says the same.
    """

    token_ids: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"]
    address_ids: Int[Tensor, "b n"]
    sees: Bool[Tensor, "b a a"]
    sampled: Bool[Tensor, "b n"]
    behaviour: Float[Tensor, "b n"]
    advantages: Float[Tensor, " b"]
    plain: bool

    def mask(self) -> Bool[Tensor, "b 1 n n"]:
        """Entry (row, 0, i, j) tells whether token i sees token j. Every token sees itself, padding too."""
        rows = torch.arange(len(self.token_ids))[:, None, None]
        related = self.sees[rows, self.address_ids[:, :, None], self.address_ids[:, None, :]]
        return related.tril()[:, None]

    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same relation for FlexAttention's `create_block_mask`, which never builds it whole."""
        return lambda b, h, q, kv: (kv <= q) & self.sees[b, self.address_ids[b, q], self.address_ids[b, kv]]


def collate(
    traces: Sequence[Trace],
    scorer: Scorer,
    advantages: Sequence[float] | None = None,
    pad_id: int = 0,
) -> Batch:
    """Lay traces out as one batch.

    Args:
        traces: at least one.
        scorer: who sees whom.
        advantages: one per trace; ones if None.
        pad_id: any valid token id; padding is never seen and never scored.
    """
    layouts = [layout([(TRUNK, len(trace.prompt_ids)), *trace.runs], scorer) for trace in traces]
    rows, length = len(traces), max(len(laid.positions) for laid in layouts)
    addresses = 1 + max(len(laid.sees) for laid in layouts)
    token_ids = np.full((rows, length), pad_id, dtype=np.int64)
    positions = np.zeros((rows, length), dtype=np.int64)
    address_ids = np.full((rows, length), addresses - 1, dtype=np.int64)
    sees = np.zeros((rows, addresses, addresses), dtype=bool)
    sees[:, -1, -1] = True
    sampled = np.zeros((rows, length), dtype=bool)
    behaviour = np.zeros((rows, length), dtype=np.float32)
    for row, (trace, laid) in enumerate(zip(traces, layouts, strict=True)):
        _fill(row, trace, laid, token_ids, positions, address_ids, sees, sampled, behaviour)
    return Batch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        address_ids=torch.from_numpy(address_ids),
        sees=torch.from_numpy(sees),
        sampled=torch.from_numpy(sampled),
        behaviour=torch.from_numpy(behaviour),
        advantages=torch.ones(rows) if advantages is None else torch.tensor(advantages, dtype=torch.float32),
        plain=all(laid.sees.all() for laid in layouts),
    )


def _fill(
    row: int,
    trace: Trace,
    laid: Layout,
    token_ids: np.ndarray,
    positions: np.ndarray,
    address_ids: np.ndarray,
    sees: np.ndarray,
    sampled: np.ndarray,
    behaviour: np.ndarray,
) -> None:
    n, a = len(laid.positions), len(laid.sees)
    token_ids[row, :n] = (*trace.prompt_ids, *trace.token_ids)
    positions[row, :n] = laid.positions
    address_ids[row, :n] = laid.address_ids
    sees[row, :a, :a] = laid.sees
    at = len(trace.prompt_ids)
    for span in trace.spans:
        end = at + len(span.token_ids)
        sampled[row, at:end] = span.sampled
        if span.sampled and span.logprobs is not None:
            behaviour[row, at:end] = span.logprobs
        at = end


def split(traces: Sequence[Trace], most_tokens: int) -> Iterator[list[int]]:
    """Indices of traces in micro-batches of at most `most_tokens` padded tokens, similar lengths together. A trace
    that is longer than `most_tokens` has a micro-batch of its own."""
    lengths = [len(trace.prompt_ids) + len(trace.token_ids) for trace in traces]
    chunk: list[int] = []
    for index in sorted(range(len(traces)), key=lambda i: (-lengths[i], i)):
        if chunk and (len(chunk) + 1) * lengths[chunk[0]] > most_tokens:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def score(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Float[Tensor, "b n"]:
    """Log-probability of every token of a batch under a model, in nats; 0 for the first token and for padding.

    A token is predicted from the token before it in reading order. That is its true predecessor for every sampled
    token: a path begins with a given tag, and so does what follows a join.

    Args:
        model: loaded with `models.load`.
        batch: under its scorer.
        temperature: of the distribution to score; 1 is the raw policy.
    """
    if batch.plain:
        logits = model(input_ids=batch.token_ids, use_cache=False).logits
    else:
        logits = model(
            input_ids=batch.token_ids, attention_mask=batch.mask(), position_ids=batch.positions, use_cache=False
        ).logits
    logprobs = torch.log_softmax(logits[:, :-1].float() / temperature, dim=-1)
    taken = logprobs.gather(-1, batch.token_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(taken, (1, 0))
