"""How good answers are: mean@k, pass@k, parallel ratio, critical path, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from math import comb
from statistics import fmean
from typing import Any

import numpy as np

from parallel_r1.answers.rollout import Group, Problem, Reading, Rollout, group
from parallel_r1.errors import UserError
from parallel_r1.evaluation.answer_file import AnswerFile, draw_to_file
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.evaluation.statistics import interval, ratio_intervals, share_bounds
from parallel_r1.generation.generator import Generator, make_generator
from parallel_r1.generation.rollouts import answer, judge, reading_rules, requests_of
from parallel_r1.generation.settings import Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import Split, Task, problem_stream
from parallel_r1.tasks.grading.equal import compare
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
        paths: paths of an answer, over all of its forks, mean.
        majority: maj@k, the share of problems whose most frequent final answer is correct; see `majority_vote`. None
            where final answers were not kept, as in the three shares below it.
        cut: share of answers that a budget ended.
        silent: share of answers without a final answer.
        missed: share of answers that are wrong, with the right answer elsewhere in their text.
        out_of_time: share of answers that are wrong because the verifier gave up the comparison.
        copies: share of answers with the same tokens as an earlier answer to their problem.
        passes: pass@1, pass@2, .. pass@k; the last one is `passed`.
        intervals: 95 % bootstrap interval of every figure by its name (`mean`, `passed`, `majority`, `parallel_ratio`,
            ..) and of `pass@1` .. `pass@k`, over problems.
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
    paths: float | None = None
    majority: float | None = None
    cut: float | None = None
    silent: float | None = None
    missed: float | None = None
    out_of_time: float | None = None
    copies: float | None = None
    passes: tuple[float, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """JSON has lists for tuples."""
        object.__setattr__(self, "passes", tuple(self.passes))
        object.__setattr__(self, "intervals", {name: (low, high) for name, (low, high) in self.intervals.items()})

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)

    def pass_at(self, k: int) -> float:
        """pass@k for a k of 1 to the number of answers to every problem.

        Raises:
            UserError: k is above this number.
        """
        if not 1 <= k <= len(self.passes):
            raise UserError(
                f"a k of pass@k from 1 to {len(self.passes)}, the answers to every problem",
                f"{k}",
                "draw more answers: eval --samples",
            )
        return self.passes[k - 1]

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
    file: AnswerFile | None = None,
) -> Result:
    """Draw answers to held-out problems of a task and measure them.

    Args:
        file: keeps the answers; those that it has are not drawn again.
    """
    task = load_task(task_name)
    problems = held_out(task, settings.problems, settings.seed, split)
    samples = settings.samples_of(task_name)
    rollouts = draw(
        policy, task, problems, samples, sampling, settings.seed, prompt=prompt, generator=generator, file=file
    )
    return summarise(rollouts, stage)


def draw(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    seed: int,
    *,
    prompt: Prompt | None = None,
    generator: Generator | None = None,
    file: AnswerFile | None = None,
    on_written: Callable[[int], None] = lambda number: None,
) -> list[Rollout]:
    """Answers to problems as an evaluation judges them, with readings; see `generation.rollouts.answer`.

    Args:
        file: keeps the answers; those that it has are not drawn again.
        on_written: called with the number of answers that the file just got.
    """
    prompt, generator = prompt or Prompt(), generator or make_generator(policy)
    if file is None:
        return answer(policy, task, problems, samples, sampling, seed, prompt=prompt, generator=generator, explain=True)
    requests = requests_of(policy, problems, samples, sampling, seed, prompt, task)
    rules = partial(judge, task=task, policy=policy, explain=True, **reading_rules(prompt, sampling))
    repeated = [problem for problem in problems for _ in range(samples)]
    return draw_to_file(generator, repeated, requests, rules, file, on_written)


def summarise(rollouts: Sequence[Rollout], stage: str = "", samples: int | None = None) -> Result:
    """Measure judged answers to problems of one task, at least one answer. Problems with the same key, such as
    permutations of one another, are one problem.

    Args:
        samples: the k of pass@k, at most the fewest answers to a problem; None: the fewest.
    """
    groups = group(rollouts)
    samples = samples or min(len(members.rollouts) for members in groups)
    columns = {name: (over, under) for name, over, under in _columns(groups, samples)}
    over, under = (np.array(side).T for side in zip(*columns.values(), strict=True))
    sums = over.sum(axis=0), under.sum(axis=0)
    figures: dict[str, Any] = {name: float(a / b) if b else None for name, a, b in zip(columns, *sums, strict=True)}
    intervals = dict(zip(columns, ratio_intervals(over, under), strict=True))
    counted = dict(zip(columns, (under > 0).sum(axis=0).tolist(), strict=True))
    shares = [name for name in columns if name not in COUNTS and counted[name]]
    intervals |= {name: share_bounds(figures[name], counted[name], intervals[name]) for name in shares}
    passes = [f"pass@{k}" for k in range(1, samples + 1)]
    return Result(
        stage=stage,
        task=rollouts[0].problem.source,
        problems=len(groups),
        samples=samples,
        low=intervals["mean"][0],
        high=intervals["mean"][1],
        passed=figures[passes[-1]],
        by_problem=dict(zip((members.problem.key for members in groups), columns["mean"][0], strict=True)),
        passes=tuple(figures[name] for name in passes),
        intervals={name: bounds for name, bounds in intervals.items() if figures[name] is not None},
        **{name: value for name, value in figures.items() if name not in passes},
    )


COUNTS = {"forks", "paths", "critical_path", "total"}
"""Figures that are no shares."""
Column = tuple[str, list[float], list[float]]
"""The name of a figure with a numerator and a denominator for every problem."""


def _columns(groups: Sequence[Group], samples: int) -> Iterator[Column]:
    """All figures of a result."""
    ones = [1.0] * len(groups)

    def mean(name: str, figure: Callable[[Rollout], float]) -> Column:
        return name, [fmean(map(figure, members.rollouts)) for members in groups], ones

    yield mean("mean", lambda rollout: rollout.correct)
    yield mean("parallel_ratio", lambda rollout: rollout.trace.forks > 0)
    forked = [[rollout for rollout in members.rollouts if rollout.trace.forks] for members in groups]
    formed = [float(sum(rollout.trace.well_formed for rollout in part)) for part in forked]
    yield "well_formed", formed, [float(len(part)) for part in forked]
    yield mean("forks", lambda rollout: rollout.trace.forks)
    yield mean("paths", lambda rollout: rollout.trace.paths)
    yield mean("critical_path", lambda rollout: rollout.critical_path)
    yield mean("total", lambda rollout: rollout.total)
    yield mean("cut", lambda rollout: rollout.trace.finish == "length")
    yield "copies", [1 - len({one.trace.token_ids for one in g.rollouts}) / len(g.rollouts) for g in groups], ones
    if all(rollout.reading for members in groups for rollout in members.rollouts):
        yield mean("silent", lambda rollout: _reading(rollout).final is None)
        yield mean("missed", lambda rollout: _reading(rollout).missed)
        yield mean("out_of_time", lambda rollout: _reading(rollout).out_of_time)
        yield "majority", [majority_vote(members.rollouts) for members in groups], ones
    counts = [(sum(rollout.correct for rollout in members.rollouts), len(members.rollouts)) for members in groups]
    for k in range(1, samples + 1):
        yield f"pass@{k}", [pass_at(k, correct, drawn) for correct, drawn in counts], ones


def _reading(rollout: Rollout) -> Reading:
    assert rollout.reading is not None
    return rollout.reading


def majority_vote(rollouts: Sequence[Rollout]) -> float:
    """Whether the most frequent final answer to a problem is correct, 0 or 1: maj@k. Final answers are equal by the
    rules of the grader. An answer without a final answer has no vote; without any vote the result is 0. Of several most
    frequent ones a random one is taken: the result is the share of them that are correct.

    Args:
        rollouts: all answers to one problem, with readings.
    """
    ballots: list[tuple[str, list[bool]]] = []
    for rollout in rollouts:
        final = _reading(rollout).final
        if final is None:
            continue
        for other, votes in ballots:
            if final == other or compare(final, other) is True:
                votes.append(rollout.correct)
                break
        else:
            ballots.append((final, [rollout.correct]))
    most = max((len(votes) for _, votes in ballots), default=0)
    return fmean(fmean(votes) for _, votes in ballots if len(votes) == most) if ballots else 0.0


def pass_at(k: int, correct: int, drawn: int) -> float:
    """Unbiased estimate of pass@k for one problem: 1 - C(drawn - correct, k) / C(drawn, k), for k <= drawn.

    Args:
        k: number of answers of which at least one should be correct.
        correct: number of correct answers.
        drawn: number of answers.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374).
    """
    return 1.0 - comb(drawn - correct, k) / comb(drawn, k)
