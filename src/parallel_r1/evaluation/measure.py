"""How good answers are: mean@k, pass@k, parallel ratio, latency, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import comb
from statistics import fmean
from typing import Any

from parallel_r1.answers.rollout import Problem, Rollout, group
from parallel_r1.errors import UserError
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.evaluation.statistics import interval
from parallel_r1.generation.generator import Generator
from parallel_r1.generation.rollouts import answer
from parallel_r1.generation.settings import Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import Split, Task, load_task, problem_stream
from parallel_r1.tasks.prompts import Prompt


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


def held_out(task: Task, count: int, seed: int, split: Split = "test") -> list[Problem]:
    """Different problems of a split that is not trained on; all of them if the task has fewer.

    Raises:
        UserError: the task has no such split, or there is no end to its problems and yet there are not so many.
    """
    source = problem_stream(task, split, seed)
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
    policy: Policy,
    task_name: str,
    settings: Evaluation,
    sampling: Sampling,
    stage: str = "",
    split: Split = "test",
    *,
    prompt: Prompt | None = None,
    generator: Generator | None = None,
) -> Result:
    """Measure a policy on the held-out problems of a task."""
    task = load_task(task_name)
    problems = held_out(task, settings.problems, settings.seed, split)
    samples = settings.samples_of(task_name)
    rollouts = answer(policy, task, problems, samples, sampling, settings.seed, prompt=prompt, generator=generator)
    return summarise(rollouts, stage)


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
