"""How good answers are: mean@k, pass@k, parallel ratio, critical path, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from parallel_r1.tasks.base import Split, Task, problem_stream
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import Prompt


@dataclass(frozen=True)
class Result:
    """How good a policy is on the problems of a task, with k answers to every problem.

    Where problems have different numbers of answers, figures are means over problems of the mean over a problem's
    answers; only `well_formed` counts all answers alike.

    Attributes:
        stage: name of the stage or model that was measured.
        task: name of the task.
        problems: number of problems.
        samples: answers to every problem, the k of mean@k and pass@k; see `summarise` where problems differ.
        mean: mean@k, the share of correct answers, 0 .. 1.
        low, high: 95 % bootstrap interval of `mean` over problems.
        passed: pass@k, the probability that at least one of k answers is correct; see `pass_at`.
        parallel_ratio: share of answers with a fork.
        well_formed: share of the answers with a fork that have no defect; None without a fork.
        forks: forks of an answer, mean.
        critical_path: tokens of an answer that had to be drawn one after the other, mean.
        total: all tokens of an answer, mean.
        by_problem: key of a problem -> share of its answers that are correct.
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
        """The fields as a JSON object."""
        return asdict(self)

    def differences(self, other: Result) -> list[float]:
        """How much larger the share of correct answers is than in another result, -1 .. 1, for every problem that both
        measured.

        Raises:
            UserError: the results share no problem.
        """
        shared = [problem for problem in self.by_problem if problem in other.by_problem]
        if not shared:
            raise UserError(
                "two results on the same problems",
                f"{self.task} and {other.task} without a problem in common",
                "measure both on one task with the same seed",
            )
        return [self.by_problem[problem] - other.by_problem[problem] for problem in shared]

    def compare(self, other: Result) -> Difference:
        """How much better this result is than another, paired by problem: only problems that both measured count.

        Raises:
            UserError: the results share no problem.
        """
        differences = self.differences(other)
        low, high = interval(differences)
        base = fmean(share for problem, share in other.by_problem.items() if problem in self.by_problem)
        mean = fmean(differences)
        return Difference(mean, low, high, mean / base if base else None)


@dataclass(frozen=True)
class Difference:
    """How much better one result is than another on the same problems.

    Attributes:
        mean: mean difference in mean@k, -1 .. 1.
        low, high: its 95 % bootstrap interval over problems.
        relative: `mean` / the other's mean@k; None if the other's is 0.
    """

    mean: float
    low: float
    high: float
    relative: float | None


def held_out(task: Task, count: int, seed: int, split: Split = "test") -> list[Problem]:
    """Problems of a split that is not trained on, no two with the same key; all of them if a finite task has fewer.

    Raises:
        UserError: the task has no problem in this split, or generates problems without end but too few different ones.
    """
    source = problem_stream(task, split, seed)
    problems: dict[str, Problem] = {}
    for problem in islice(source, 20 * count + 1000):
        problems.setdefault(problem.key, problem)
        if len(problems) == count:
            return list(problems.values())
    if not problems:
        raise UserError(f"a task with {split} problems", f"{task.name} without", "name another task")
    if next(source, None) is not None:
        raise UserError(
            f"{count} different {split} problems of {task.name}", f"{len(problems)}", "ask for fewer problems"
        )
    return list(problems.values())


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
    """Draw answers to held-out problems of a task and measure them."""
    task = load_task(task_name)
    problems = held_out(task, settings.problems, settings.seed, split)
    samples = settings.samples_of(task_name)
    rollouts = answer(policy, task, problems, samples, sampling, settings.seed, prompt=prompt, generator=generator)
    return summarise(rollouts, stage)


def summarise(rollouts: Sequence[Rollout], stage: str = "", samples: int | None = None) -> Result:
    """Measure judged answers to problems of one task, at least one answer.

    Args:
        samples: the k of pass@k, at most the fewest answers to a problem; None: the fewest.
    """
    groups = group(rollouts)
    samples = samples or min(len(members.rollouts) for members in groups)

    def mean(figure: Callable[[Rollout], float]) -> float:
        return fmean(fmean(map(figure, members.rollouts)) for members in groups)

    counts = [sum(rollout.correct for rollout in members.rollouts) for members in groups]
    drawn = [len(members.rollouts) for members in groups]
    means = [count / number for count, number in zip(counts, drawn, strict=True)]
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
        passed=fmean(pass_at(samples, count, number) for count, number in zip(counts, drawn, strict=True)),
        parallel_ratio=mean(lambda rollout: rollout.trace.forks > 0),
        well_formed=fmean(rollout.trace.well_formed for rollout in forked) if forked else None,
        forks=mean(lambda rollout: rollout.trace.forks),
        critical_path=mean(lambda rollout: rollout.critical_path),
        total=mean(lambda rollout: rollout.total),
        by_problem=dict(zip((members.problem.key for members in groups), means, strict=True)),
    )


def pass_at(k: int, correct: int, drawn: int) -> float:
    """Unbiased estimate of pass@k for one problem: 1 - C(drawn - correct, k) / C(drawn, k), for k <= drawn.

    Args:
        k: number of answers of which at least one should be correct.
        correct: number of correct answers.
        drawn: number of answers.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374).
    """
    return 1.0 - comb(drawn - correct, k) / comb(drawn, k)
