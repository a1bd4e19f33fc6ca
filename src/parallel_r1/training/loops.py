"""The loops: supervised fine-tuning and reinforcement learning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch

from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Group, Problem, Rollout, group
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.generation.distribution import decoding
from parallel_r1.generation.local.engine import LocalEngine, compiled
from parallel_r1.generation.rollouts import answer
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import Task, load_task, problem_stream
from parallel_r1.training.algorithms import grpo, sft
from parallel_r1.training.learner import Learner
from parallel_r1.training.mismatch import compare
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Outcome, Reward
from parallel_r1.training.settings import RL, SFT

State = dict[str, Any]
"""Tensors and numbers that a file holds."""
T = TypeVar("T")


class Update(NamedTuple):
    """A step of a stage: its metrics, its answers (none in sft), and what is needed to go on after it."""

    metrics: dict[str, Any]
    rollouts: list[Rollout]
    state: Callable[[], State]


class Source(Iterator[T]):
    """An endless source that counts what was taken, so that a run can go on where it was broken off."""

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
    """Restore what `snapshot` said, or else carry on the moments of the stage before, if they are given; the steps
    done and the items taken from the source."""
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
) -> Iterator[Update]:
    """Imitate the stage's examples. Changes the policy in place and yields every step; goes on from a `state`, or else
    with the `moments` of the stage before."""
    learner = Learner(policy.model, stage, stage.steps, tag_ids=policy.tags.ids.values(), shard=shard)
    done, taken = resume(policy, learner, state, moments)
    source = Source(coldstart.examples(stage.data, seed, stage.hold_back), taken)
    for step in range(done + 1, stage.steps + 1):
        started = time.perf_counter()
        traces = [
            coldstart.to_trace(example, policy, stage.sampling.sampler, stage.sampling.instruction)
            for example in islice(source, stage.batch)
        ]
        metrics = learner.update(traces, sft.loss)
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
        yield Update(row, [], partial(snapshot, policy, learner, step, source))


def run_rl(
    policy: Policy,
    stage: RL,
    seed: int,
    state: State | None = None,
    moments: State | None = None,
    *,
    shard: bool = False,
) -> Iterator[Update]:
    """Draw answers, reward them, learn. Changes the policy in place and yields every step; goes on from a `state`, or
    else with the `moments` of the stage before.

    Where the scorer is not the sampler's exact partner, or scores in bf16 what was drawn in fp32, every step first
    measures how far apart they are, and ratios are to what the scorer says."""
    task, reward = load_task(stage.task, stage.hold_back), parse_reward(stage.reward)
    settings = stage.grpo
    learner = Learner(
        policy.model,
        stage,
        stage.steps * settings.minibatches,
        decoding(stage.sampling),
        tag_ids=policy.tags.ids.values(),
        shard=shard,
    )
    loss = partial(grpo.loss, settings=settings)
    reference = adapters.weights(policy.model) if settings.kl else None
    forward = compiled(policy.model) if stage.sampling.compile else None
    done, taken = resume(policy, learner, state, moments)
    source = Source(problem_stream(task, "train", seed), taken)
    for step in range(done + 1, stage.steps + 1):
        started = time.perf_counter()
        engine = LocalEngine(policy.model, forward=forward)
        groups, thrown = draw_groups(
            policy, task, source, stage, partial(reward_group, reward=reward, step=step), seed, engine
        )
        sampled = time.perf_counter()
        if not any(span.sampled for each in groups for rollout in each.rollouts for span in rollout.trace.spans):
            raise FloatingPointError("no answer with a token: the model's logits are no numbers")
        credit = grpo.advantages([[rollout.reward or 0.0 for rollout in each.rollouts] for each in groups], settings)
        traces = [rollout.trace for members in groups for rollout in members.rollouts]
        columns: dict[str, Sequence[Any]] = {"advantages": [value for values in credit for value in values]}
        mismatch = {}
        if not stage.is_exact or stage.precision == "bf16":
            columns["old"] = learner.logprobs(traces)
            found = compare(traces, columns["old"], policy.tags, stage.scorer)
            mismatch = {f"mismatch_{name}": value for name, value in found.differences().items() if isfinite(value)}
        if reference is not None:
            columns["reference"] = learner.logprobs(traces, reference)
        group_of = [number for number, members in enumerate(groups) for _ in members.rollouts]
        updates = []
        for part in range(settings.minibatches):
            mine = [
                index
                for index, trace in enumerate(traces)
                if group_of[index] % settings.minibatches == part and (settings.truncated or trace.finish != "length")
            ]
            lengths = [sum(len(span.token_ids) for span in traces[index].spans if span.sampled) for index in mine]
            weights = grpo.weights(lengths, settings, stage.sampling.budget.total)
            those = {name: [column[index] for index in mine] for name, column in columns.items()}
            updates.append(learner.update([traces[index] for index in mine], loss, weights=weights, **those))
            policy.version += 1
        seconds = time.perf_counter() - started
        rollouts = [rollout for members in groups for rollout in members.rollouts]
        counts = processes.gather([engine.counts])
        row = {
            "stage_step": step,
            **describe(rollouts),
            "dead_groups": fmean(not any(values) for values in credit),
            "thrown_groups": thrown,
            **means(updates),
            **mismatch,
            "sampled": sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled),
            "prefilled": sum(each.prefilled for each in counts),
            "decoded": sum(each.decoded for each in counts),
            "peak_kv": max(each.peak_kv for each in counts),
            "preempted": sum(each.preempted for each in counts),
            "tokens_per_second": sum(rollout.total for rollout in rollouts) / seconds,
            "sampling_seconds": sampled - started,
            "seconds": seconds,
        }
        yield Update(row, rollouts, partial(snapshot, policy, learner, step, source))


def draw_groups(
    policy: Policy,
    task: Task,
    source: Iterator[Problem],
    stage: RL,
    rewarded: Callable[[Group], Group],
    seed: int,
    engine: LocalEngine,
) -> tuple[list[Group], int]:
    """The groups of a step with their rewards, and how many were thrown away because all their answers earned the same
    and there was another try."""
    kept: list[Group] = []
    thrown = 0
    for attempt in range(stage.grpo.refill + 1):
        problems = list(islice(source, stage.problems - len(kept)))
        again = f"/{attempt}" if attempt else ""
        drawn = answer(policy, task, problems, stage.group, stage.sampling, f"{seed}/{policy.version}{again}", engine)
        groups = [rewarded(members) for members in group(drawn)]
        live = [each for each in groups if len({rollout.reward for rollout in each.rollouts}) > 1]
        last = attempt == stage.grpo.refill
        kept += groups if last else live
        thrown += 0 if last else len(groups) - len(live)
        if len(kept) >= stage.problems:
            break
    return kept, thrown


def reward_group(members: Group, reward: Reward, step: int) -> Group:
    """A group with its rewards at a 1-based step."""
    rewarded = (rollout.rewarded(reward(Outcome.of(rollout), step)) for rollout in members.rollouts)
    return Group(members.problem, tuple(rewarded))


def means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of a step's updates: each as a mean over those that have it; of `skipped` the share."""
    found = {key: fmean(update[key] for update in updates if key in update) for key in chain(*updates)}
    if "skipped" in found:
        found["skipped"] = sum("skipped" in update for update in updates) / len(updates)
    return found


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
