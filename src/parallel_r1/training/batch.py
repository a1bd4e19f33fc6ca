"""Traces to tensors under a named scorer; the only border between Python objects and tensors."""

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

LOGITS = 2**24
"""Logits that exist at once while a batch is scored."""


@dataclass(frozen=True)
class Batch:
    """Prompts and answers in rows, padded on the right. b rows, n places, a addresses.

    Attributes:
        token_ids: the tokens.
        positions: their positions.
        previous: for every place the one that predicts it: the latest before it that it sees, itself if there is none.
        address_ids: for every place the row of its address in `sees`; padding has its own address, seen by none.
        sees: whether tokens of two addresses may see each other.
        source: which token stands there, counted through the answers of all traces; -1 for prompts, for copies that
            a scorer reads again, and for padding. Every token of an answer has exactly one place.
        sizes: by trace, the tokens of its answer.
        sampled: True where the policy drew the token: the only places with a loss.
        behaviour: log-probabilities under the policy that drew the tokens; 0 where unknown or not sampled.
        old: log-probabilities under the scorer before the update that the batch is for; `behaviour` unless given.
        reference: log-probabilities under the policy that the stage started from; 0 unless given.
        advantages, weights: those of the trace that the token is of; 0 outside answers.
        plain: every row is one sequence without a fork, so ordinary causal attention says the same.
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
        """Who sees whom, in the forms that attention reads."""
        return Sight(self.address_ids, self.positions, self.sees)

    def gather(self, values: Float[Tensor, "b n"]) -> list[Float[Tensor, " _"]]:
        """What stands at the places of each trace's answer, in the order of `trace.token_ids`: one array a trace."""
        flat = values.new_zeros(sum(self.sizes))
        flat[self.source[self.source >= 0]] = values[self.source >= 0]
        return list(flat.split(self.sizes))

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        moved: dict[str, Any] = {name: each.to(device) for name, each in vars(self).items() if torch.is_tensor(each)}
        return replace(self, **moved)


def collate(
    traces: Sequence[Trace],
    scorer: Scorer,
    advantages: Sequence[float] | None = None,
    pad_id: int = 0,
    *,
    weights: Sequence[float] | None = None,
    old: Sequence[Float[Tensor, " _"]] | None = None,
    reference: Sequence[Float[Tensor, " _"]] | None = None,
    rows: Sequence[int] | None = None,
) -> Batch:
    """Lay traces out as one batch.

    Args:
        traces: at least one.
        scorer: who sees whom.
        advantages, weights: one per trace; ones if None.
        pad_id: any valid token id; padding is never seen and never scored.
        old, reference: for each trace one log-probability per token of its answer, as `Batch.gather` makes them.
        rows: how many traces lie side by side in each row, in the order of `traces`; one in each if None. Neighbours
            with the same prompt share it.
    """
    sizes = [len(trace.token_ids) for trace in traces]
    ends = np.cumsum(sizes)
    tokens = [np.array((*trace.prompt_ids, *trace.token_ids), dtype=np.int64) for trace in traces]
    answer = [  # for every token of a prompt and its answer, which answer token it is
        np.concatenate([np.full(len(trace.prompt_ids), -1), np.arange(end - size, end)])
        for trace, size, end in zip(traces, sizes, ends, strict=True)
    ]
    rest = iter(range(len(traces)))
    members = [list(islice(rest, count)) for count in rows or [1] * len(traces)]
    layouts = [
        pack([[_runs(traces[i]) for i in family] for _, family in groupby(row, lambda i: traces[i].prompt_ids)], scorer)
        for row in members
    ]
    filled = list(zip(members, layouts, strict=True))
    source = _padded(
        [np.where(laid.drawn, np.concatenate([answer[i] for i in row])[laid.source], -1) for row, laid in filled], -1
    )
    spans = [span for trace in traces for span in trace.spans]
    known = _spread(
        [span.logprobs if span.sampled and span.logprobs else [0.0] * len(span.token_ids) for span in spans], source
    )

    def each(values: Sequence[float] | None) -> Float[Tensor, "b n"]:
        ones = values or [1.0] * len(traces)
        return _spread([[value] * size for value, size in zip(ones, sizes, strict=True)], source)

    return Batch(
        token_ids=_padded([np.concatenate([tokens[i] for i in row])[laid.source] for row, laid in filled], pad_id),
        positions=_padded([laid.positions for laid in layouts], 0),
        previous=_previous(layouts),
        address_ids=_padded([laid.address_ids for laid in layouts], max(len(laid.sees) for laid in layouts)),
        sees=_relations([laid.sees for laid in layouts]),
        source=source,
        sizes=tuple(sizes),
        sampled=_spread([[float(span.sampled)] * len(span.token_ids) for span in spans], source).bool(),
        behaviour=known,
        old=known if old is None else _spread([each.tolist() for each in old], source),
        reference=_spread(
            [[0.0] * size for size in sizes] if reference is None else [x.tolist() for x in reference], source
        ),
        advantages=each(advantages),
        weights=each(weights),
        plain=all(laid.sees.all() for laid in layouts),
    )


def _runs(trace: Trace) -> list[Run]:
    """A prompt and its answer as one sequence."""
    return [(TRUNK, len(trace.prompt_ids)), *trace.runs]


def _padded(rows: Sequence[np.ndarray], fill: int) -> Int[Tensor, "b n"]:
    """Rows of different lengths as one tensor."""
    whole = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, values in zip(whole, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(whole)


def _previous(layouts: Sequence[Layout]) -> Int[Tensor, "b n"]:
    """Who predicts each place; a place that nobody predicts stands for itself."""
    found = _padded([laid.previous for laid in layouts], -1)
    return torch.where(found < 0, torch.arange(found.shape[1]), found)


def _relations(tables: Sequence[Bool[np.ndarray, "_ _"]]) -> Bool[Tensor, "b a a"]:
    """The rows' relations with one more address, that of padding."""
    most = 1 + max(map(len, tables))
    whole = np.zeros((len(tables), most, most), dtype=bool)
    whole[:, -1, -1] = True
    for row, table in zip(whole, tables, strict=True):
        row[: len(table), : len(table)] = table
    return torch.from_numpy(whole)


def _spread(values: Sequence[Sequence[float]], source: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Values of the answers' tokens, one after the other, at their places; 0 elsewhere."""
    flat = torch.tensor([*chain.from_iterable(values), 0.0])  # the last one stands at source -1
    return flat[source]


def split(
    traces: Sequence[Trace], scorer: Scorer, most_tokens: int, *, packing: bool = False
) -> Iterator[list[list[int]]]:
    """Indices of traces in micro-batches of at most `most_tokens` padded places; a micro-batch is a list of rows. A
    trace that is longer has a micro-batch of its own.

    Without packing a row has one trace, and similar lengths lie together. With packing a micro-batch is one row of
    traces side by side, those with the same prompt as one: each, the longest first, goes where it first fits.
    """
    lengths = [sum(piece.stop - piece.start for piece in arrange(_runs(trace), scorer)) for trace in traces]
    if packing:
        families: dict[tuple[int, ...], list[int]] = {}
        for index, trace in enumerate(traces):
            families.setdefault(trace.prompt_ids, []).append(index)
        together: list[list[int]] = []
        sizes: list[int] = []
        for prompt, members in families.items():
            answers = [lengths[index] - len(prompt) for index in members]
            for row in _first_fit(answers, most_tokens - len(prompt)):
                together.append([members[each] for each in row])
                sizes.append(len(prompt) + sum(answers[each] for each in row))
        yield from ([[*chain.from_iterable(together[each] for each in row)]] for row in _first_fit(sizes, most_tokens))
        return
    chunk: list[list[int]] = []
    for index in _longest_first(lengths):
        if chunk and (len(chunk) + 1) * lengths[chunk[0][0]] > most_tokens:
            yield chunk
            chunk = []
        chunk.append([index])
    if chunk:
        yield chunk


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """The indices of lengths, those of equal ones in order."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _first_fit(lengths: Sequence[int], most: int) -> list[list[int]]:
    """The indices of lengths in rows of at most `most`: each, the longest first, goes to the first row that has room.
    What is longer has a row of its own."""
    rows: list[list[int]] = []
    used: list[int] = []
    fit = last = 0
    for index in _longest_first(lengths):
        first = fit if lengths[index] == last else 0  # the rows before it had no room for that length
        last = lengths[index]
        fit = next((row for row in range(first, len(used)) if used[row] + last <= most), len(rows))
        if fit == len(rows):
            rows.append([])
            used.append(0)
        rows[fit].append(index)
        used[fit] += last
    return rows


def score(model: PreTrainedModel, batch: Batch, shape: Decoding = RAW) -> Float[Tensor, "b n"]:
    """Log-probability of every token of the answers under a model, in nats, each at its place; 0 elsewhere, and for a
    token that nothing stands before.

    A token is predicted from the token before it in the text that it sees, `Batch.previous`. In a row that is the
    token beside it, but not for the first of a later path. Logits are made only where an answer's token is predicted,
    and of a few places at a time: they take the most memory.

    Args:
        model: loaded with `models.load`.
        batch: under its scorer.
        shape: of the distribution to score; the raw policy unless it is what `decoding` says of a sampling.
    """
    return score_with_entropy(model, batch, shape, entropy=False)[0]


def score_with_entropy(
    model: PreTrainedModel, batch: Batch, shape: Decoding = RAW, *, entropy: bool = True
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]:
    """`score`, and the entropy of each distribution, in nats, in the same places."""
    places = torch.arange(batch.source.shape[1], device=batch.source.device)
    predicted = (batch.source >= 0) & (batch.previous != places)
    body = model.get_decoder()
    if batch.plain:
        hidden = body(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    else:
        hidden = attend.forward(body, batch.token_ids, batch.sight).last_hidden_state
    asking = hidden[predicted.nonzero()[:, 0], batch.previous[predicted]]
    tokens = batch.token_ids[predicted]

    def read(asking: Float[Tensor, "p d"], tokens: Int[Tensor, " p"]) -> Float[Tensor, "k p"]:
        logprobs = log_probabilities(head(model, asking), shape)
        found = [logprobs.gather(-1, tokens[:, None])[:, 0]]
        if entropy:
            known = logprobs.masked_fill(logprobs.isneginf(), 0.0)  # a token that is filtered out adds nothing
            found.append(-(known * logprobs.exp()).sum(-1))
        return torch.stack(found)

    size = max(1, LOGITS // model.config.get_text_config().vocab_size)
    pieces = zip(asking.split(size), tokens.split(size), strict=True)
    if len(asking) <= size:
        values = read(asking, tokens)
    else:  # the backward pass computes the logits of a piece again
        values = torch.cat([checkpoint(read, *piece, use_reentrant=False) for piece in pieces], dim=1)
    found = torch.zeros(len(values), *predicted.shape, device=values.device)
    found[:, predicted] = values
    return found[0], found[1] if entropy else None


def head(model: PreTrainedModel, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p v"]:
    """Logits of a model that `models.load` takes, from the last hidden states."""
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
