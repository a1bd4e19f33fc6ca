"""How good answers are: mean@k, pass@k, parallel ratio, latency, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import comb
from statistics import fmean
from typing import Any

from parallel_r1 import processes
from parallel_r1.attention import latency
from parallel_r1.config import Evaluation, Sampling
from parallel_r1.engines import Engine
from parallel_r1.engines.local import LocalEngine, compiled
from parallel_r1.errors import UserError
from parallel_r1.fork_join import draw
from parallel_r1.grading import final_answer
from parallel_r1.models import Policy, check_length
from parallel_r1.rollout import Problem, Rollout, group
from parallel_r1.significance import interval
from parallel_r1.tasks import Split, Task, load_task
from parallel_r1.trace import Trace, without_tags


@dataclass(frozen=True)
class Result:
    """What a policy does on held-out problems.

    Attributes:
        mean: share of correct answers (mean@k), with its 95 % interval `low`..`high` over problems.
        passed: chance that one of k answers is correct (pass@k).
        parallel_ratio: share of answers with a fork.
        well_formed: share of the answers with a fork whose form is right; None if none forked.
        critical_path, total: tokens of an answer, on average.
        by_problem: problem id -> share of its answers that are correct.
    """

    stage: str
    task: str
    problems: int
    samples: int
    mean: float
    low: float
    high: float
    passed: float
    parallel_ratio: float
    well_formed: float | None
    forks: float
    critical_path: float
    total: float
    by_problem: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """How much better one policy is than another on the same problems: mean difference with its 95 % interval, and the
    relative difference of the means."""

    mean: float
    low: float
    high: float
    relative: float


def judge(problem: Problem, trace: Trace, task: Task, policy: Policy, *, anywhere: bool = False) -> Rollout:
    """Verify an answer and count what it cost.

    Args:
        anywhere: whether paths are read too where the trunk gives no final answer.
    """
    text, told = policy.decode(trace.token_ids), policy.decode(trace.trunk_ids)
    if anywhere and final_answer(told) is None:
        told = without_tags(text, "\n")
    return Rollout(problem, trace, text, task.verify(problem, told), latency(trace), len(trace.token_ids))


def answer(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    seed: int | str,
    engine: Engine[Any] | None = None,
) -> list[Rollout]:
    """Draw `samples` answers to every problem and judge them. The answers to a problem stand together. Each process
    draws a part of them and gets all.

    Args:
        engine: what reads tokens; a `LocalEngine` if None.
    """
    asked = [problem for problem in problems for _ in range(samples)]
    prompts = {problem.prompt: policy.encode(sampling.instruction + problem.prompt) for problem in problems}
    check_length(policy, max(map(len, prompts.values())), sampling)
    if engine is None:
        engine = LocalEngine(policy.model, forward=compiled(policy.model) if sampling.compile else None)
    mine = processes.share(range(len(asked)))
    traces = draw(
        engine,
        policy.tags,
        [prompts[asked[index].prompt] for index in mine],
        sampling,
        seed,
        first=mine[0] if mine else 0,
        policy_version=policy.version,
        decode=policy.decode,
    )
    anywhere = sampling.final == "anywhere"
    judged = [
        judge(asked[index], trace, task, policy, anywhere=anywhere) for index, trace in zip(mine, traces, strict=True)
    ]
    return processes.gather(judged)


def held_out(task: Task, count: int, seed: int, split: Split = "test") -> list[Problem]:
    """Different problems of a split that is not trained on; all of them if the task has fewer.

    Raises:
        UserError: the task has no such split, or there is no end to its problems and yet there are not so many.
    """
    source = task.problems(split, seed)
    found: dict[str, Problem] = {}
    for problem in islice(source, 20 * count + 1000):
        found.setdefault(problem.id, problem)
        if len(found) == count:
            return list(found.values())
    if not found:
        raise UserError(f"a task with {split} problems", f"{task.name} without", "name another task")
    if next(source, None) is not None:
        raise UserError(f"{count} {split} problems of {task.name}", f"{len(found)}", "ask for fewer problems")
    return list(found.values())


def evaluate(
    policy: Policy, task_name: str, settings: Evaluation, sampling: Sampling, stage: str = "", split: Split = "test"
) -> Result:
    """Measure a policy on the held-out problems of a task."""
    task = load_task(task_name)
    problems = held_out(task, settings.problems, settings.seed, split)
    return summarise(answer(policy, task, problems, settings.samples_of(task_name), sampling, settings.seed), stage)


def summarise(rollouts: Sequence[Rollout], stage: str = "") -> Result:
    """The figures of a set of judged answers, the same number for every problem."""
    groups = group(rollouts)
    counts = [sum(rollout.correct for rollout in members.rollouts) for members in groups]
    samples = len(groups[0].rollouts)
    means = [count / samples for count in counts]
    forked = [rollout for rollout in rollouts if rollout.trace.forks]
    low, high = interval(means)
    return Result(
        stage=stage,
        task=rollouts[0].problem.source,
        problems=len(groups),
        samples=samples,
        mean=fmean(means),
        low=low,
        high=high,
        passed=fmean(pass_at(samples, count, samples) for count in counts),
        parallel_ratio=len(forked) / len(rollouts),
        well_formed=fmean(rollout.trace.well_formed for rollout in forked) if forked else None,
        forks=fmean(rollout.trace.forks for rollout in rollouts),
        critical_path=fmean(rollout.critical_path for rollout in rollouts),
        total=fmean(rollout.total for rollout in rollouts),
        by_problem=dict(zip((members.problem.id for members in groups), means, strict=True)),
    )


def pass_at(k: int, correct: int, drawn: int) -> float:
    """Unbiased estimate of the chance that one of k answers is correct, from `correct` of `drawn`.
    Source: Chen et al. 2021, arXiv 2107.03374."""
    return 1.0 - comb(drawn - correct, k) / comb(drawn, k)


def compare(ours: Result, theirs: Result) -> Difference:
    """The paired difference of two results over the problems they share."""
    shared = [problem for problem in ours.by_problem if problem in theirs.by_problem]
    differences = [ours.by_problem[problem] - theirs.by_problem[problem] for problem in shared]
    low, high = interval(differences)
    base = fmean(theirs.by_problem[problem] for problem in shared)
    mean = fmean(differences)
    return Difference(mean, low, high, mean / base if base else float("inf"))
