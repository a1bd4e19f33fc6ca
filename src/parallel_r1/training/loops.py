"""The training loops: supervised fine-tuning and reinforcement learning, as generators of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Group, Problem, Rollout
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.coldstart.examples import Example
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.distribution import Decoding, decoding
from parallel_r1.generation.generator import Generator, make_generator
from parallel_r1.generation.rollouts import Readable, answer
from parallel_r1.generation.settings import Engine
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy, dtype_of
from parallel_r1.tasks.base import Task, epochs, problem_stream
from parallel_r1.tasks.load import load_task
from parallel_r1.training.algorithms.sft import CrossEntropy
from parallel_r1.training.learner import Learner
from parallel_r1.training.mismatch import measure_mismatch
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Reward
from parallel_r1.training.rewards.spread import spread_of
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import RL, SFT

State = dict[str, Any]
"""Tensors and numbers that a file can hold."""
T = TypeVar("T")


class Step(NamedTuple):
    """One step of a stage.

    Attributes:
        metrics: numbers by name, as docs/recipes.md lists them.
        rollouts: the judged and rewarded answers of the step; none in sft.
        state: returns all that is needed to go on after this step; call it before the next one is taken.
    """

    metrics: dict[str, Any]
    rollouts: list[Rollout]
    state: Callable[[], State]


class Source(Iterator[T]):
    """An endless source that counts the items taken, so that an interrupted run can go on with the next one."""

    def __init__(self, items: Iterator[T], taken: int = 0) -> None:
        self.items, self.taken = items, taken
        next(islice(items, taken, taken), None)

    def __next__(self) -> T:
        self.taken += 1
        return next(self.items)


def snapshot(policy: Policy, learner: Learner, step: int, source: Source[Any]) -> State:
    """All that a stage needs to go on after a step."""
    return {
        "stage_step": step,
        "taken": source.taken,
        "version": policy.version,
        "random": processes.gather([torch.get_rng_state()]),
        "learner": learner.state(),
    }


def resume(policy: Policy, learner: Learner, state: State | None, moments: State | None) -> tuple[int, int]:
    """Restore a `snapshot`; without one, start with the moments of the stage before, if given.

    Returns:
        The steps done and the items taken from the source.
    """
    if state is None:
        learner.carry(moments or {})
        return 0, 0
    learner.restore(state["learner"])
    policy.version = state["version"]
    if processes.rank() < len(state["random"]):  # a run may go on in more processes than it had
        torch.set_rng_state(state["random"][processes.rank()])
    return state["stage_step"], state["taken"]


def run_sft(
    policy: Policy,
    stage: SFT,
    seed: int,
    state: State | None = None,
    moments: State | None = None,
    *,
    shard: bool = False,
    examples: Sequence[Example] | None = None,
) -> Iterator[Step]:
    """Imitate the stage's examples. Changes the policy in place and yields every step.

    Args:
        state: go on after this step's state.
        moments: the optimiser's moments to start with if there is no state.
        shard: give every process only a share of the learning weights.
        examples: the answers to imitate, instead of the file that `stage.data` names.
    """
    raw, tag_ids, sampling = Decoding(missing=policy.tags.missing), policy.tags.ids.values(), stage.sampling
    learner = Learner(policy.model, stage, stage.updates, raw, tag_ids=tag_ids, shard=shard)
    done, taken = resume(policy, learner, state, moments)
    del state, moments  # they hold a copy of all that learns
    endless = epochs(examples, seed) if examples else coldstart.examples(stage.data, seed)
    source = Source(endless, taken)
    for step in range(done + 1, stage.steps + 1):
        started = time.perf_counter()
        traces = [
            coldstart.to_trace(example, policy, sampling.sampler, stage.prompt, counted=sampling.counts)
            for example in islice(source, stage.batch)
        ]
        metrics = learner.update([Sample(trace) for trace in traces], CrossEntropy())
        policy.version += 1
        seconds = time.perf_counter() - started
        tokens = sum(len(trace.prompt_ids) + len(trace.token_ids) for trace in traces)
        row = {
            "stage_step": step,
            **metrics,
            "parallel_ratio": fmean(trace.forks > 0 for trace in traces),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }
        yield Step(row, [], partial(snapshot, policy, learner, step, source))


def run_rl(
    policy: Policy,
    stage: RL,
    seed: int,
    state: State | None = None,
    moments: State | None = None,
    *,
    shard: bool = False,
    engine: Engine | None = None,
    task: Task | None = None,
    reward: Reward | None = None,
) -> Iterator[Step]:
    """Sample answers, reward them, learn from them. Changes the policy in place and yields every step.

    Args:
        state, moments, shard: as in `run_sft`.
        engine: what draws the answers; the defaults if None.
        task, reward: used instead of the task and the reward that the stage names.
    """
    task = task or load_task(stage.task)
    reward = reward or parse_reward(stage.reward)
    algorithm, tag_ids = stage.algorithm, policy.tags.ids.values()
    shape = decoding(stage.sampling, policy.tags)
    learner = Learner(policy.model, stage, stage.updates, shape, tag_ids=tag_ids, shard=shard)
    reference = adapters.weights(policy.model) if "reference" in algorithm.needs else None
    generator = make_generator(policy, engine)
    drawn_in = policy.model.dtype if engine is None or engine.dtype == "auto" else dtype_of(engine.dtype)
    repeats = engine is None or engine.kind == "local"
    exact = repeats and stage.is_exact and stage.precision == "fp32" and drawn_in == policy.model.dtype == torch.float32
    born = policy.version
    done, taken = resume(policy, learner, state, moments)
    del state, moments  # they hold a copy of all that learns
    readable = Readable(problem_stream(task, "train", seed), policy, stage.sampling, stage.prompt)
    source = Source(readable, taken)
    for step in range(done + 1, stage.steps + 1):
        started = time.perf_counter()
        generator.counts = Counts()
        rewarded = partial(apply_reward, reward=reward, step=step)
        left_out, updated = readable.left_out, policy.version - born
        groups, thrown = draw_groups(policy, task, source, stage, rewarded, f"{seed}/{updated}", generator)
        sampling_seconds = time.perf_counter() - started
        check_sampled(groups)
        credited, mismatch = add_logprobs(algorithm.credit(groups), learner, stage, policy, reference, exact=exact)
        updates = []
        for samples in algorithm.updates(credited, stage.sampling.budget.total):
            updates.append(learner.update(samples, algorithm))
            policy.version += 1
        seconds = time.perf_counter() - started
        rollouts = [rollout for members in groups for rollout in members.rollouts]
        row = {
            "stage_step": step,
            **describe(rollouts),
            "dead_groups": fmean(not any(sample.advantage for sample in samples) for samples in credited),
            **describe_spreads(groups),
            "thrown_groups": thrown,
            **({"left_out": readable.left_out - left_out} if readable.left_out > left_out else {}),
            **means(updates),
            **mismatch,
            "sampled": sum(Sample(rollout.trace).sampled for rollout in rollouts),
            **describe_counts(generator.counts),
            "tokens_per_second": sum(rollout.total for rollout in rollouts) / seconds,
            "sampling_seconds": sampling_seconds,
            "seconds": seconds,
        }
        yield Step(row, rollouts, partial(snapshot, policy, learner, step, source))


def draw_groups(
    policy: Policy,
    task: Task,
    source: Iterator[Problem],
    stage: RL,
    rewarded: Callable[[Group], Group],
    seed: str,
    generator: Generator,
) -> tuple[list[Group], int]:
    """The rewarded groups of a step, and how many groups were replaced because all their answers earned the same.

    Args:
        seed: of the step.
    """
    kept: list[Group] = []
    thrown = 0
    refill = stage.algorithm.refill
    for attempt in range(refill + 1):
        problems = list(islice(source, stage.problems - len(kept)))
        again = f"/{attempt}" if attempt else ""
        drawn = answer(
            policy,
            task,
            problems,
            stage.group,
            stage.sampling,
            f"{seed}{again}",
            prompt=stage.prompt,
            generator=generator,
        )
        # By draw, not by problem: one that is drawn twice makes two groups of the size that was asked for.
        members = (tuple(drawn[at : at + stage.group]) for at in range(0, len(drawn), stage.group))
        groups = [rewarded(Group(each[0].problem, each)) for each in members]
        live = [members for members in groups if len({rollout.reward for rollout in members.rollouts}) > 1]
        last = attempt == refill
        kept += groups if last else live
        thrown += 0 if last else len(groups) - len(live)
        if len(kept) >= stage.problems:
            break
    return kept, thrown


def check_sampled(groups: Sequence[Group]) -> None:
    """Refuse a step without a sampled token.

    Raises:
        FloatingPointError: the logits of the model are not numbers, which ends every answer at once.
    """
    spans = (span for members in groups for rollout in members.rollouts for span in rollout.trace.spans)
    if not any(span.sampled for span in spans):
        raise FloatingPointError("no answer with a token: the model's logits are no numbers")


def add_logprobs(
    credited: Sequence[Sequence[Sample]],
    learner: Learner,
    stage: RL,
    policy: Policy,
    reference: Mapping[str, Tensor] | None,
    *,
    exact: bool,
) -> tuple[list[list[Sample]], dict[str, float]]:
    """The samples with the log-probabilities that the algorithm needs, and the mismatch of sampler and scorer.

    Where the scorer is the sampler's exact partner and as precise, the log-probabilities that answers were sampled with
    serve as the old ones. Elsewhere the learner scores the answers before the step: ratios are to its own
    log-probabilities, and their distance from the sampler's is measured.

    Args:
        credited: samples of every group.
        reference: the weights of the reference policy, if the algorithm needs one.
        exact: whether scoring repeats sampling but for rounding in fp32.
    """
    samples = [sample for members in credited for sample in members]
    traces = [sample.trace for sample in samples]
    mismatch = {}
    if "old" in stage.algorithm.needs and not exact:
        scored = learner.logprobs(traces)
        samples = [replace(sample, old=values) for sample, values in zip(samples, scored, strict=True)]
        differences = measure_mismatch(traces, scored, policy.tags, stage.scorer).differences()
        mismatch = {f"mismatch_{name}": value for name, value in differences.items() if isfinite(value)}
    if reference is not None:
        scored = learner.logprobs(traces, reference)
        samples = [replace(sample, reference=values) for sample, values in zip(samples, scored, strict=True)]
    rest = iter(samples)
    return [list(islice(rest, len(members))) for members in credited], mismatch


def means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of a step: the mean of every metric over the updates that have it; of `skipped` the share."""
    averages = {key: fmean(update[key] for update in updates if key in update) for key in chain(*updates)}
    if "skipped" in averages:
        averages["skipped"] = sum("skipped" in update for update in updates) / len(updates)
    return averages


def describe(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over the answers of a step."""
    forked = [rollout for rollout in rollouts if rollout.trace.forks]
    logprobs = [value for rollout in rollouts for span in rollout.trace.spans for value in span.logprobs or ()]
    terms = {name for rollout in rollouts for name in rollout.terms or ()}
    return {
        "reward": fmean(rollout.reward or 0.0 for rollout in rollouts),
        **{
            f"reward_{name}": fmean((rollout.terms or {}).get(name, 0.0) for rollout in rollouts)
            for name in sorted(terms)
        },
        "accuracy": fmean(rollout.correct for rollout in rollouts),
        "parallel_ratio": len(forked) / len(rollouts),
        "well_formed": fmean(rollout.trace.well_formed for rollout in forked) if forked else 1.0,
        "forks": fmean(rollout.trace.forks for rollout in rollouts),
        "critical_path": fmean(rollout.critical_path for rollout in rollouts),
        "total": fmean(rollout.total for rollout in rollouts),
        "surprise": -fmean(logprobs),
        "cut": fmean(rollout.trace.finish == "length" for rollout in rollouts),
    }


def describe_spreads(groups: Sequence[Group]) -> dict[str, float]:
    """How much the terms of the reward differ between the answers of a group, and in how many groups they cancel; see
    `spread_of`. `spread_TERM` is the mean over groups."""
    spreads = [spread_of([rollout.terms or {} for rollout in members.rollouts]) for members in groups]
    terms = sorted({name for spread in spreads for name in spread.terms})
    averages = {f"spread_{name}": fmean(spread.terms.get(name, 0.0) for spread in spreads) for name in terms}
    return {"cancelled_groups": fmean(spread.cancelled for spread in spreads), **averages}


def describe_counts(mine: Counts) -> dict[str, int]:
    """What the generators of all processes did in a step: tokens prefilled and decoded, tokens that the prefix cache
    of vLLM had, the most KV entries held, answers preempted, paths closed by `sampling.branches`."""
    counts = processes.gather([mine])
    return {
        "prefilled": sum(count.prefilled for count in counts),
        **({"cached": cached} if (cached := sum(count.cached for count in counts)) else {}),
        "decoded": sum(count.decoded for count in counts),
        "peak_kv": max(count.peak_kv for count in counts),
        "preempted": sum(count.preempted for count in counts),
        "closed_paths": sum(count.closed for count in counts),
    }
