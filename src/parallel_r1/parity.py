"""Is what is sampled what is scored? Draw answers with forks, score them, compare the log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from parallel_r1.batch import collate, score
from parallel_r1.config import Budget, Sampling
from parallel_r1.engines.local import LocalEngine
from parallel_r1.fork_join import Force, draw
from parallel_r1.models import Policy
from parallel_r1.trace import (
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


@dataclass(frozen=True)
class Parity:
    """Differences of sampler's and scorer's log-probabilities, in nats, over sampled tokens.

    Attributes:
        max_abs, mean_abs: over all of them.
        after_fork: mean over the first sampled token of every path; None if no path was opened.
        after_join: mean over the first sampled token of every summary; None if there was none.
        tokens: how many were compared.
        forks: the most forks in one answer.
    """

    max_abs: float
    mean_abs: float
    after_fork: float | None
    after_join: float | None
    tokens: int
    forks: int


def measure(
    policy: Policy, sampler: Sampler, scorer: Scorer, paths: int, *, answers: int = 8, forks: int = 3, seed: int = 0
) -> Parity:
    """Compare a sampler with a scorer on answers into which forks are forced, so that any model shows what it does.
    The forced tags are given tokens; everything else is drawn from the policy.

    Args:
        paths: of each fork; they differ in length.
        answers: how many, from prompts of different lengths.
        forks: in each answer, unless the policy ends it earlier.
    """
    tags, cycle = policy.tags, _cycle(policy.tags, sampler, paths)
    longest = BEFORE + 2 + PATH + paths + len(tags.join) + SUMMARY + 1
    budget = Budget(total=1 + forks * len(cycle) + forks * paths * longest, critical_path=forks * longest, forks=forks)
    numbers = [", ".join(str((index * step) % 9 + 1) for step in range(1, 4 + index)) for index in range(answers)]
    prompts = [policy.encode(f"Use {listed} to make {20 + index}.\n") for index, listed in enumerate(numbers)]
    sampling = Sampling(sampler=sampler, paths=paths, budget=budget)
    traces = draw(LocalEngine(policy.model), tags, prompts, sampling, seed, force=_force(tags, sampler, cycle, forks))
    batch = collate(traces, scorer)
    with torch.no_grad():
        difference = (score(policy.model, batch) - batch.behaviour).abs()
    after_fork, after_join = [], []
    for row, trace in enumerate(traces):
        for at in _first_sampled(trace, PATH_OPEN, tags):
            after_fork.append(difference[row, at].item())
        for at in _first_sampled(trace, None, tags):
            after_join.append(difference[row, at].item())
    compared = difference[batch.sampled]
    return Parity(
        max_abs=compared.max().item(),
        mean_abs=compared.mean().item(),
        after_fork=sum(after_fork) / len(after_fork) if after_fork else None,
        after_join=sum(after_join) / len(after_join) if after_join else None,
        tokens=len(compared),
        forks=max(trace.forks for trace in traces),
    )


def _cycle(tags: Tags, sampler: Sampler, paths: int) -> list[int | None]:
    """What the trunk's next tokens are, over and over: a given token, or None where the policy draws."""
    ids = tags.ids
    fork: list[int | None] = [ids[FORK_OPEN]]
    if sampler == "isolated":  # the runtime runs the paths and gives the join, which counts as the trunk's own tokens
        fork += [None] * len(tags.join)
    else:
        for path in range(paths):
            fork += [ids[PATH_OPEN], *[None] * (PATH + path), ids[PATH_CLOSE]]
        fork += tags.join
    return [*[None] * BEFORE, *fork, *[None] * SUMMARY, ids[SUMMARY_CLOSE]]


def _force(tags: Tags, sampler: Sampler, cycle: list[int | None], forks: int) -> Force:
    def force(answer: int, address: Address, size: int) -> int | None:
        if address != TRUNK:
            return tags.ids[PATH_CLOSE] if size > PATH + address[-1][1] else None
        return cycle[size % len(cycle)] if size < forks * len(cycle) else None

    return force


def _first_sampled(trace: Trace, after: str | None, tags: Tags) -> list[int]:
    """Places, prompt included, of sampled tokens that come right after the tag `after`, or after a join if None."""
    token_ids = (*trace.prompt_ids, *trace.token_ids)
    sampled = [False] * len(trace.prompt_ids) + [span.sampled for span in trace.spans for _ in span.token_ids]
    end = (tags.ids[PATH_OPEN],) if after == PATH_OPEN else tags.join
    start = len(trace.prompt_ids)
    return [
        at for at in range(start + len(end), len(token_ids)) if sampled[at] and token_ids[at - len(end) : at] == end
    ]


def to_json(found: Parity) -> dict[str, Any]:
    """The figures as the command prints them."""
    return {key: value for key, value in vars(found).items() if key != "forks"}
