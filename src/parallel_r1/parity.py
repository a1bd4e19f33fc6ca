"""Is what is sampled what is scored? Draw answers with forks, score them, compare the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel_r1.batch import collate, score
from parallel_r1.config import Budget, Sampling
from parallel_r1.engines.local import LocalEngine
from parallel_r1.fork_join import Force, draw
from parallel_r1.models import Policy
from parallel_r1.trace import (
    EXACT_SCORER,
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    TRUNK,
    Address,
    Sampler,
    Scorer,
    Tags,
    Trace,
)

BEFORE, PATH, SUMMARY = 5, 6, 4  # sampled tokens before a fork, in its shortest path, in its summary
LENGTHS = 5  # how many different lengths its paths have


@dataclass(frozen=True)
class Parity:
    """Differences of sampler's and scorer's log-probabilities, in nats, over sampled tokens.

    Attributes:
        exact: whether the scorer is the sampler's exact partner, so that only rounding may differ.
        max_abs, mean_abs: over all of them.
        after_fork: mean over the first sampled token of every path; None if no path was opened.
        after_join: mean over the first sampled token of every summary; None if there was none.
        tokens: how many were compared.

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
        """The figures that there are, by name."""
        named = {
            "mean": self.mean_abs,
            "max": self.max_abs,
            "after_fork": self.after_fork,
            "after_join": self.after_join,
        }
        return {name: value for name, value in named.items() if value is not None}


def measure(
    policy: Policy,
    sampler: Sampler,
    scorers: Sequence[Scorer],
    paths: int,
    *,
    answers: int = 8,
    forks: int = 3,
    seed: int = 0,
) -> list[Parity]:
    """Compare a sampler with scorers on answers into which forks are forced, so that any model shows what it does.
    The forced tags are given tokens; everything else is drawn from the policy.

    Args:
        paths: of each fork; they differ in length.
        answers: how many, from prompts of different lengths.
        forks: in each answer, unless the policy ends it earlier.
    """
    tags, cycle = policy.tags, _cycle(policy.tags, sampler, paths)
    longest = BEFORE + 2 + PATH + LENGTHS + len(tags.join) + SUMMARY + 1
    budget = Budget(total=1 + forks * len(cycle) + forks * paths * longest, critical_path=forks * longest, forks=forks)
    if sampler == "sequential":
        budget = budget.model_copy(update={"critical_path": budget.total})
    numbers = [", ".join(str((index * step) % 9 + 1) for step in range(1, 4 + index)) for index in range(answers)]
    prompts = [policy.encode(f"Use {listed} to make {20 + index}.\n") for index, listed in enumerate(numbers)]
    sampling = Sampling(sampler=sampler, paths=paths, budget=budget)
    traces = draw(LocalEngine(policy.model), tags, prompts, sampling, seed, force=_force(tags, sampler, cycle, forks))
    found = []
    for scorer in scorers:
        batch = collate(traces, scorer)
        with torch.no_grad():
            scored = batch.gather(score(policy.model, batch))
        found.append(compare(traces, scored, tags, scorer))
    return found


def compare(traces: Sequence[Trace], scored: Sequence[Tensor], tags: Tags, scorer: Scorer) -> Parity:
    """Compare the log-probabilities that answers were drawn with, with what a scorer says of their tokens.

    Args:
        traces: at least one, all of the same sampler.
        scored: for each trace one log-probability per token of its answer.
    """
    sampler = traces[0].sampler
    differences: list[Tensor] = []
    after_fork: list[Tensor] = []
    after_join: list[Tensor] = []
    for trace, values in zip(traces, scored, strict=True):
        known = [value for span in trace.spans for value in span.logprobs or [0.0] * len(span.token_ids)]
        sampled = torch.tensor([span.sampled for span in trace.spans for _ in span.token_ids])
        difference = (values.cpu() - torch.tensor(known)).abs()
        differences.append(difference[sampled])
        after_fork.append(difference[_first_sampled(trace, (tags.ids[PATH_OPEN],))])
        after_join.append(difference[_first_sampled(trace, tags.join)])
    compared = torch.cat(differences)
    return Parity(
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


def _cycle(tags: Tags, sampler: Sampler, paths: int) -> list[int | None]:
    """What the trunk's next tokens are, over and over: a given token, or None where the policy draws."""
    ids = tags.ids
    fork: list[int | None] = [ids[FORK_OPEN]]
    if sampler != "sequential":  # the runtime runs the paths and gives the join, which counts as the trunk's own tokens
        fork += [None] * len(tags.join)
    else:
        for path in range(paths):
            fork += [ids[PATH_OPEN], *[None] * (PATH + path % LENGTHS), ids[PATH_CLOSE]]
        fork += tags.join
    return [*[None] * BEFORE, *fork, *[None] * SUMMARY, ids[SUMMARY_CLOSE]]


def _force(tags: Tags, sampler: Sampler, cycle: list[int | None], forks: int) -> Force:
    def force(answer: int, address: Address, size: int) -> int | None:
        if address != TRUNK:
            return tags.ids[PATH_CLOSE] if size > PATH + address[-1][1] % LENGTHS else None
        return cycle[size % len(cycle)] if size < forks * len(cycle) else None

    return force


def _first_sampled(trace: Trace, after: tuple[int, ...]) -> list[int]:
    """Places in the answer of sampled tokens that come right after some tokens."""
    token_ids = trace.token_ids
    sampled = [span.sampled for span in trace.spans for _ in span.token_ids]
    size = len(after)
    return [at for at in range(size, len(token_ids)) if sampled[at] and token_ids[at - size : at] == after]
