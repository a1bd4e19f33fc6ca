"""Parity of sampling and scoring: draw answers with forks, score them, compare the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import TRUNK, Address, Sampler, Scorer
from parallel_r1.generation.distribution import Decoding
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Force, Request
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.training.batch import collate, score
from parallel_r1.training.mismatch import Mismatch, measure_mismatch
from parallel_r1.training.sample import Sample

BEFORE, PATH, SUMMARY = 5, 6, 4  # sampled tokens before a fork, in its shortest path, in its summary
LENGTHS = 5  # number of different lengths of paths


def measure(
    policy: Policy,
    sampler: Sampler,
    scorers: Sequence[Scorer],
    paths: int,
    *,
    answers: int = 8,
    forks: int = 3,
    seed: int = 0,
    engine: Engine | None = None,
) -> list[Mismatch]:
    """Compare a sampler's log-probabilities with the scorers' log-probabilities of the same tokens, one result per
    scorer.

    Forks are forced into the answers, so that a model that never forks can be measured too. The forced tags are given
    tokens; everything else is drawn from the policy.

    Args:
        paths: paths of a fork; they differ in length.
        answers: number of answers, to prompts of different lengths.
        forks: forks of an answer, unless the policy ends it earlier.
        engine: what draws; the defaults if None.
    """
    tags, cycle = policy.tags, _cycle(policy.tags, sampler, paths)
    announced = 1 if sampler == "sequential" else len(_announced(tags, paths))
    given = max(len(_head(tags, number)) for number in range(paths)) + len(tags.join) + len(tags.tail)
    longest = BEFORE + announced + PATH + LENGTHS + given + SUMMARY + 1
    budget = Budget(total=1 + forks * len(cycle) + forks * paths * longest, critical_path=forks * longest, forks=forks)
    if sampler == "sequential":
        budget = budget.model_copy(update={"critical_path": budget.total})
    numbers = [", ".join(str((index * step) % 9 + 1) for step in range(1, 4 + index)) for index in range(answers)]
    prompts = [policy.encode_prompt(f"Use {listed} to make {20 + index}.\n") for index, listed in enumerate(numbers)]
    sampling = Sampling(sampler=sampler, paths=paths, budget=budget)
    force = _force(tags, cycle, forks)
    requests = [Request(prompt, sampling, f"{seed}/{index}", force) for index, prompt in enumerate(prompts)]
    traces = make_generator(policy, engine).traces(requests)
    results, raw = [], Decoding(missing=tags.missing)
    for scorer in scorers:
        batch = collate([Sample(trace) for trace in traces], scorer).to(policy.model.device)
        with torch.no_grad():
            scored = batch.gather(score(policy.model, batch, raw))
        results.append(measure_mismatch(traces, scored, tags, scorer))
    return results


def _announced(tags: Tags, paths: int, item: int | None = None) -> list[int | None]:
    """The tokens that announce a fork: its tag, and a plan with items of one token, which the policy draws if None."""
    plan = [tags.opening("plan"), *[tags.opening("item"), item, tags.closing("item")] * paths, tags.closing("plan")]
    fork = tags.opening("fork")
    return [*([] if fork is None else [fork]), *(plan if tags.schema.plan else [])]


def _head(tags: Tags, number: int) -> list[int]:
    """The tokens at the start of a path whose item has one token."""
    return [*tags.stub, *tags.head(number + 1, tags.join[:1])]


def _cycle(tags: Tags, sampler: Sampler, paths: int) -> list[int | None]:
    """One period of the trunk's tokens: a given token, or None where the policy draws."""
    fork = _announced(tags, paths, tags.join[0] if sampler == "sequential" else None)
    if sampler != "sequential":  # the runtime writes paths and join; the join counts as tokens of the trunk
        fork += [None] * len(tags.join)
    else:
        for path in range(paths):
            fork += [*_head(tags, path), *[None] * (PATH + path % LENGTHS), tags.closing("path")]
        fork += tags.join
    summary = [*[None] * SUMMARY, tags.closing("summary")] if tags.schema.summary else []
    tail = tags.tail if sampler == "sequential" else [None] * len(tags.tail)
    return [*[None] * BEFORE, *fork, *summary, *tail]


def _force(tags: Tags, cycle: list[int | None], forks: int) -> Force:
    def force(address: Address, size: int) -> int | None:
        if address != TRUNK:
            number = address[-1][1]
            return tags.closing("path") if size >= len(_head(tags, number)) + PATH + number % LENGTHS else None
        return cycle[size % len(cycle)] if size < forks * len(cycle) else None

    return force
