"""How far the log-probabilities that answers were sampled with are from a scorer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel_r1.answers.parser import parse_ids
from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import EXACT_SCORER, TRUNK, Address, Sampler, Scorer, Trace


@dataclass(frozen=True)
class Mismatch:
    """Absolute differences between a sampler's and a scorer's log-probabilities, in nats, over sampled tokens.

    Attributes:
        sampler: how the answers were sampled.
        scorer: how they were scored.
        exact: whether the scorer is the sampler's exact partner, so that only rounding may differ.
        max_abs, mean_abs: over all sampled tokens.
        after_fork: mean over the first sampled token of every path; None without a path.
        after_join: mean over the first sampled token of every summary; None without a summary.
        tokens: number of sampled tokens.

    Source: section 3 of the Parallel-R1 paper (arXiv 2509.07980) leaves the pairs `causal_join` + `causal` and
    `causal_join` + `isolated` uncorrected.
    """

    sampler: Sampler
    scorer: Scorer
    exact: bool
    max_abs: float
    mean_abs: float
    after_fork: float | None
    after_join: float | None
    tokens: int

    def differences(self) -> dict[str, float]:
        """The differences that are not None, by name."""
        named = {
            "mean": self.mean_abs,
            "max": self.max_abs,
            "after_fork": self.after_fork,
            "after_join": self.after_join,
        }
        return {name: value for name, value in named.items() if value is not None}


def measure_mismatch(traces: Sequence[Trace], scored: Sequence[Tensor], tags: Tags, scorer: Scorer) -> Mismatch:
    """Compare the log-probabilities that answers were sampled with, with a scorer's log-probabilities.

    Args:
        traces: at least one, all of the same sampler.
        scored: a log-probability for every token of every answer.
        tags: the token ids of the tags.
        scorer: the scorer that they come from.
    """
    sampler = traces[0].sampler
    differences: list[Tensor] = []
    after_fork: list[Tensor] = []
    after_join: list[Tensor] = []
    for trace, values in zip(traces, scored, strict=True):
        behaviour = [value for span in trace.spans for value in span.logprobs or [0.0] * len(span.token_ids)]
        sampled = torch.tensor([span.sampled for span in trace.spans for _ in span.token_ids])
        difference = (values.cpu() - torch.tensor(behaviour)).abs()
        differences.append(difference[sampled])
        forks, joins = _first_sampled(trace, tags)
        after_fork.append(difference[forks])
        after_join.append(difference[joins])
    compared = torch.cat(differences)
    return Mismatch(
        sampler,
        scorer,
        exact=EXACT_SCORER[sampler] == scorer,
        max_abs=compared.max().item(),
        mean_abs=compared.mean().item(),
        after_fork=_mean(torch.cat(after_fork)),
        after_join=_mean(torch.cat(after_join)),
        tokens=len(compared),
    )


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


def _first_sampled(trace: Trace, tags: Tags) -> tuple[list[int], list[int]]:
    """Indices in the answer of the first sampled tokens of paths, and of those that follow a join."""
    sampled = [span.sampled for span in trace.spans for _ in span.token_ids]
    forks, joins, at = [], [], 0
    before: list[tuple[Address, bool]] = [(TRUNK, False)] * 2
    for address, given, length in parse_ids(trace.token_ids, tags).runs:
        # A fork of the policy's own may look the same: the runtime gave what is before.
        real = at > 0 and sampled[at] and (trace.sampler == "sequential" or not sampled[at - 1])
        if real and not given and before[-1] == (address, True):
            if len(before[-2][0]) > len(address):
                joins.append(at)
            elif before[-2][0] != address:
                forks.append(at)
        before = [before[-1], (address, given)] if (address, given) != before[-1] else before
        at += length
    return forks, joins
