"""Batches for training and scoring: samples laid out in rows as a scorer reads them, split into micro-batches, and the
log-probabilities of their tokens under a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from parallel_r1.answers.trace import TRUNK, Scorer, Trace
from parallel_r1.answers.visibility import Layout, Run, arrange, pack
from parallel_r1.generation.distribution import RAW, Decoding, log_probabilities
from parallel_r1.models import attention as attend
from parallel_r1.models.attention import Sight
from parallel_r1.training.sample import Sample

LOGITS = 2**24
"""Largest number of logits in memory at once while a batch is scored."""


@dataclass(frozen=True)
class Batch:
    """Prompts and answers in rows, padded on the right: b rows, n places, a addresses.

    All attributes with b x n entries are by place.

    Attributes:
        token_ids: token ids.
        positions: positions.
        previous: index of the nearest earlier visible place, which predicts this one; its own index if there is none.
        address_ids: index of the place's address in `sees`. Padding has an address of its own, which no token sees.
        sees: by row, whether tokens of two addresses may see each other.
        source: index of the token, counted through the answers of all samples; -1 for prompts, padding and the copies
            that the scorer `replay` reads again. Every token of an answer has exactly one place.
        sizes: by sample, the number of tokens of its answer.
        sampled: True where the policy sampled the token. Only these places have a loss.
        behaviour: log-probability with which the token was sampled; 0 where unknown or not sampled.
        old: log-probability under the scorer before the update; `behaviour` if the sample has no `old` of its own.
        reference: log-probability under the policy at the start of the stage; 0 if the sample has none.
        advantages, weights: advantage and weight of the token's sample; 0 outside answers.
        plain: whether no row has a fork or a second sequence, so that causal attention gives the same result.
    """

    token_ids: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"]
    previous: Int[Tensor, "b n"]
    address_ids: Int[Tensor, "b n"]
    sees: Bool[Tensor, "b a a"]
    source: Int[Tensor, "b n"]
    sizes: tuple[int, ...]
    sampled: Bool[Tensor, "b n"]
    behaviour: Float[Tensor, "b n"]
    old: Float[Tensor, "b n"]
    reference: Float[Tensor, "b n"]
    advantages: Float[Tensor, "b n"]
    weights: Float[Tensor, "b n"]
    plain: bool

    @property
    def sight(self) -> Sight:
        """The visibility relation, as attention reads it."""
        return Sight(self.address_ids, self.positions, self.sees)

    def gather(self, values: Float[Tensor, "b n"]) -> list[Float[Tensor, " _"]]:
        """One tensor per sample: the values at its answer's tokens, in the order of `trace.token_ids`."""
        flat = values.new_zeros(sum(self.sizes))
        flat[self.source[self.source >= 0]] = values[self.source >= 0]
        return list(flat.split(self.sizes))

    def sums(self, values: Float[Tensor, "b n"]) -> Float[Tensor, " s"]:
        """One number per sample: the sum of the values at its answer's tokens."""
        return torch.stack([answer.sum() for answer in self.gather(values)])

    def spread(self, values: Float[Tensor, " s"]) -> Float[Tensor, "b n"]:
        """Copy one value per sample to all places of its answer; 0 elsewhere."""
        by_token = values.repeat_interleave(torch.tensor(self.sizes, device=values.device))
        return torch.cat([by_token, by_token.new_zeros(1)])[self.source]  # source -1 picks the appended 0

    def to(self, device: torch.device | str) -> Batch:
        """A copy of the batch on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)
        }
        return replace(self, **tensors)


def collate(samples: Sequence[Sample], scorer: Scorer, pad_id: int = 0, *, rows: Sequence[int] | None = None) -> Batch:
    """Lay samples out as one batch.

    Args:
        samples: at least one.
        scorer: decides which tokens see which.
        pad_id: any valid token id; no token sees padding, and padding is not scored.
        rows: by row, the number of samples side by side in it, in the order of `samples`; one per row if None.
            Neighbours with the same prompt share it.
    """
    traces = [sample.trace for sample in samples]
    sizes = [len(trace.token_ids) for trace in traces]
    rest = iter(range(len(traces)))
    members = [list(islice(rest, count)) for count in rows or [1] * len(traces)]
    layouts = [
        pack([[_runs(traces[i]) for i in family] for _, family in groupby(row, lambda i: traces[i].prompt_ids)], scorer)
        for row in members
    ]
    token_ids, answer_index = _tokens(traces, members, layouts)
    source = _padded(answer_index, -1)
    behaviour = [_behaviour(trace) for trace in traces]
    old = [
        sampled_with if sample.old is None else sample.old.tolist()
        for sample, sampled_with in zip(samples, behaviour, strict=True)
    ]
    reference = [
        [0.0] * size if sample.reference is None else sample.reference.tolist()
        for sample, size in zip(samples, sizes, strict=True)
    ]
    return Batch(
        token_ids=_padded(token_ids, pad_id),
        positions=_padded([layout.positions for layout in layouts], 0),
        previous=_previous(layouts),
        address_ids=_padded([layout.address_ids for layout in layouts], max(len(layout.sees) for layout in layouts)),
        sees=_relations([layout.sees for layout in layouts]),
        source=source,
        sizes=tuple(sizes),
        sampled=_spread([[float(s.sampled)] * len(s.token_ids) for t in traces for s in t.spans], source).bool(),
        behaviour=_spread(behaviour, source),
        old=_spread(old, source),
        reference=_spread(reference, source),
        advantages=_spread([[s.advantage] * size for s, size in zip(samples, sizes, strict=True)], source),
        weights=_spread([[s.weight] * size for s, size in zip(samples, sizes, strict=True)], source),
        plain=all(layout.sees.all() for layout in layouts),
    )


def _runs(trace: Trace) -> list[Run]:
    """A prompt and its answer as the runs of one sequence."""
    return [(TRUNK, len(trace.prompt_ids)), *trace.runs]


def _tokens(
    traces: Sequence[Trace], members: Sequence[Sequence[int]], layouts: Sequence[Layout]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By row, the token ids of its places, and `Batch.source` without padding."""
    ends = np.cumsum([len(trace.token_ids) for trace in traces])
    tokens = [np.array((*trace.prompt_ids, *trace.token_ids), dtype=np.int64) for trace in traces]
    in_answers = [
        np.concatenate([np.full(len(trace.prompt_ids), -1), np.arange(end - len(trace.token_ids), end)])
        for trace, end in zip(traces, ends, strict=True)
    ]
    token_ids, source = list[np.ndarray](), list[np.ndarray]()
    for row, layout in zip(members, layouts, strict=True):
        token_ids.append(np.concatenate([tokens[i] for i in row])[layout.source])
        source.append(np.where(layout.drawn, np.concatenate([in_answers[i] for i in row])[layout.source], -1))
    return token_ids, source


def _behaviour(trace: Trace) -> list[float]:
    """By token of an answer, the log-probability with which it was sampled; 0 where unknown or given."""
    return [
        value
        for span in trace.spans
        for value in (span.logprobs if span.sampled and span.logprobs else [0.0] * len(span.token_ids))
    ]


def _padded(rows: Sequence[np.ndarray], fill: int) -> Int[Tensor, "b n"]:
    """Rows of different lengths as one tensor, padded with `fill`."""
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)


def _previous(layouts: Sequence[Layout]) -> Int[Tensor, "b n"]:
    """`Batch.previous` of these layouts."""
    previous = _padded([layout.previous for layout in layouts], -1)
    return torch.where(previous < 0, torch.arange(previous.shape[1]), previous)


def _relations(tables: Sequence[Bool[np.ndarray, "_ _"]]) -> Bool[Tensor, "b a a"]:
    """`Batch.sees`: the tables of all rows, with one more address for padding."""
    most = 1 + max(map(len, tables))
    relations = np.zeros((len(tables), most, most), dtype=bool)
    relations[:, -1, -1] = True
    for row, table in zip(relations, tables, strict=True):
        row[: len(table), : len(table)] = table
    return torch.from_numpy(relations)


def _spread(values: Sequence[Sequence[float]], source: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Put one value per token of the answers at the tokens' places; 0 elsewhere."""
    flat = torch.tensor([*chain.from_iterable(values), 0.0])  # source -1 picks the appended 0
    return flat[source]


def split(
    traces: Sequence[Trace], scorer: Scorer, most_tokens: int, *, packing: bool = False
) -> Iterator[list[list[int]]]:
    """Split traces into micro-batches of at most `most_tokens` places, padding included. A longer trace gets a
    micro-batch of its own.

    Without packing every row holds one trace, and a micro-batch holds traces of similar length. With packing a
    micro-batch is one row with several traces, filled first-fit decreasing; traces with the same prompt share it.

    Yields:
        micro-batches: lists of rows, which are lists of indices of `traces`.
    """
    lengths = [sum(piece.stop - piece.start for piece in arrange(_runs(trace), scorer)) for trace in traces]
    if packing:
        yield from ([row] for row in _packed(traces, lengths, most_tokens))
        return
    chunk: list[list[int]] = []
    for index in _longest_first(lengths):
        if chunk and (len(chunk) + 1) * lengths[chunk[0][0]] > most_tokens:
            yield chunk
            chunk = []
        chunk.append([index])
    if chunk:
        yield chunk


def _packed(traces: Sequence[Trace], lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Rows of indices of traces. The answers to one prompt are first combined into units that fit into a row, then the
    units fill the rows."""
    families: dict[tuple[int, ...], list[int]] = {}
    for index, trace in enumerate(traces):
        families.setdefault(trace.prompt_ids, []).append(index)
    units: list[list[int]] = []
    sizes: list[int] = []
    for prompt, members in families.items():
        answers = [lengths[index] - len(prompt) for index in members]
        for unit in _first_fit(answers, most_tokens - len(prompt)):
            units.append([members[member] for member in unit])
            sizes.append(len(prompt) + sum(answers[member] for member in unit))
    yield from ([*chain.from_iterable(units[unit] for unit in row)] for row in _first_fit(sizes, most_tokens))


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """The indices that sort lengths in decreasing order; stable."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _first_fit(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most `most`, by first-fit decreasing. A larger length gets a row of its
    own."""
    rows: list[list[int]] = []
    used: list[int] = []
    fit = last = 0
    for index in _longest_first(lengths):
        first = fit if lengths[index] == last else 0  # an equal length did not fit into any row before `fit`
        last = lengths[index]
        fit = next((row for row in range(first, len(used)) if used[row] + last <= most), len(rows))
        if fit == len(rows):
            rows.append([])
            used.append(0)
        rows[fit].append(index)
        used[fit] += last
    return rows


def score(model: PreTrainedModel, batch: Batch, shape: Decoding = RAW) -> Float[Tensor, "b n"]:
    """Log-probability in nats of every token of the answers under a model; 0 at other places, and for a token that no
    place predicts.

    A token is predicted from the nearest earlier place that it sees, `Batch.previous`. For most tokens that is the
    place to the left, but not for the first token of a later path. Logits take the most memory, so they are computed
    only where they predict a token of an answer, and for a few places at a time.

    Args:
        model: a model loaded with `models.load`.
        batch: the batch, on the model's device.
        shape: temperature and filters of the distribution to score; the raw policy by default.
    """
    return score_with_entropy(model, batch, shape, entropy=False)[0]


def score_with_entropy(
    model: PreTrainedModel, batch: Batch, shape: Decoding = RAW, *, entropy: bool = True
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]:
    """`score`, and at the same places the entropy in nats of the distribution that predicts the token; None in its
    place without `entropy`."""
    places = torch.arange(batch.source.shape[1], device=batch.source.device)
    predicted = (batch.source >= 0) & (batch.previous != places)
    body = model.get_decoder()
    if batch.plain:
        hidden = body(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    else:
        hidden = attend.forward(body, batch.token_ids, batch.sight).last_hidden_state
    predicting = hidden[predicted.nonzero()[:, 0], batch.previous[predicted]]
    tokens = batch.token_ids[predicted]

    def read(predicting: Float[Tensor, "p d"], tokens: Int[Tensor, " p"]) -> Float[Tensor, "k p"]:
        logprobs = log_probabilities(head(model, predicting), shape)
        figures = [logprobs.gather(-1, tokens[:, None])[:, 0]]
        if entropy:
            finite = logprobs.masked_fill(logprobs.isneginf(), 0.0)  # 0 log 0 = 0 for a token that is filtered out
            figures.append(-(finite * logprobs.exp()).sum(-1))
        return torch.stack(figures)

    size = max(1, LOGITS // model.config.get_text_config().vocab_size)
    if len(predicting) <= size:
        values = read(predicting, tokens)
    else:  # checkpointing: the backward pass computes the logits of a piece again
        pieces = zip(predicting.split(size), tokens.split(size), strict=True)
        values = torch.cat([checkpoint(read, *piece, use_reentrant=False) for piece in pieces], dim=1)
    scored = torch.zeros(len(values), *predicted.shape, device=values.device)
    scored[:, predicted] = values
    return scored[0], scored[1] if entropy else None


def head(model: PreTrainedModel, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p v"]:
    """Logits from the last hidden states, for all models that `models.load` accepts."""
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
