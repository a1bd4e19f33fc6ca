"""Compare judged answers of several policies, or of one under several settings, paired by task and by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from parallel_r1.answers.rollout import Group, Rollout, group
from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import Difference, Result, summarise
from parallel_r1.evaluation.statistics import holm, problems_needed, samples_needed, sign_flip_test


@dataclass(frozen=True)
class Entry:
    """A row of a leaderboard.

    Attributes:
        result: the figures of the problems that are compared; its stage is the name of the answers, and its k the
            fewest answers to a problem that any entry has.
        answers: number of answers to these problems.
        fewest, most: answers to a problem.
        drawn: how the answers were drawn, sampler and schema, such as `isolated, parallel-r1`.
    """

    result: Result
    answers: int
    fewest: int
    most: int
    drawn: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """The difference between two entries of a leaderboard, paired by problem.

    Attributes:
        first, second: their names.
        difference: mean@k of the first - mean@k of the second, with its interval.
        p_value: two-sided, of a paired sign-flip test over problems.
        corrected: `p_value` corrected with Holm's method for all pairs of the task.
        needed: problems with which a difference of this size would be found with 80 % power at a level of 5 %, with as
            many answers to every problem; None if the difference is 0 or there is one problem only.
        samples_needed: answers to every one of these problems with which it would be found; None if no number is
            enough, or if a problem has one answer only.
    """

    first: str
    second: str
    difference: Difference
    p_value: float
    corrected: float
    needed: int | None
    samples_needed: int | None


@dataclass(frozen=True)
class Comparison:
    """All answers to the problems of one task.

    Attributes:
        task: name of the task.
        problems: number of different problems that all have answers to; only these are compared.
        left_out: name -> number of its problems that another one has no answer to.
        entries: the leaderboard, best mean@k first; empty without a problem in common, as are the pairs.
        pairs: every two names, in the order given.
    """

    task: str
    problems: int
    left_out: dict[str, int]
    entries: tuple[Entry, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def compare(answers: Mapping[str, Sequence[Rollout]]) -> list[Comparison]:
    """Compare answers on the problems that all have, one comparison per task, in order of first appearance.

    Problems of a task with the same `Problem.key` are one, so permutations and copies of a problem count once.

    Args:
        answers: name -> judged answers, at least one.

    Raises:
        UserError: fewer than two names, a name without answers, or no problem that all have.
    """
    if len(answers) < 2:
        raise UserError("answers of two or more", ", ".join(answers) or "none", "add those to compare with")
    for name, rollouts in answers.items():
        if not rollouts:
            raise UserError("judged answers", f"none of {name}", "leave it out, or draw some")
    tasks: dict[str, dict[str, dict[str, Group]]] = {}
    for name, rollouts in answers.items():
        for members in group(rollouts):
            by_name = tasks.setdefault(members.problem.source, {other: {} for other in answers})
            by_name[name][members.problem.key] = members
    compared = [_compare_task(task, by_name) for task, by_name in tasks.items()]
    if not any(one.problems for one in compared):
        numbers = "; ".join(
            f"{one.task} with {', '.join(f'{count} of {name}' for name, count in one.left_out.items())}"
            for one in compared
        )
        raise UserError(
            "a problem that all have answers to",
            f"none; problems of {numbers}",
            "measure all on one task with the same seed",
        )
    return compared


def _compare_task(task: str, by_name: Mapping[str, Mapping[str, Group]]) -> Comparison:
    """The comparison of the groups of a task, by name and by key of the problem."""
    first, *others = by_name.values()
    shared = [key for key in first if all(key in groups for groups in others)]
    left_out = {name: len(groups) - len(shared) for name, groups in by_name.items()}
    if not shared:
        return Comparison(task, 0, left_out)
    chosen = {name: [groups[key] for key in shared] for name, groups in by_name.items()}
    k = min(len(members.rollouts) for groups in chosen.values() for members in groups)
    entries = [_entry(name, groups, k) for name, groups in chosen.items()]
    differences = pairs(list(combinations([entry.result for entry in entries], 2)))
    board = sorted(entries, key=lambda entry: -entry.result.mean)
    return Comparison(task, len(shared), left_out, tuple(board), tuple(differences))


def _entry(name: str, groups: Sequence[Group], k: int) -> Entry:
    rollouts = [rollout for members in groups for rollout in members.rollouts]
    sizes = [len(members.rollouts) for members in groups]
    drawn = {f"{rollout.trace.sampler}, {rollout.trace.schema.name}" for rollout in rollouts}
    return Entry(summarise(rollouts, name, k), len(rollouts), min(sizes), max(sizes), tuple(sorted(drawn)))


def pairs(twos: Sequence[tuple[Result, Result]]) -> list[Pair]:
    """The differences between results on the same problems; their p-values are corrected for one another."""
    differences = [first.differences(second) for first, second in twos]
    p_values = list(map(sign_flip_test, differences))
    return [
        Pair(
            first.stage,
            second.stage,
            first.compare(second),
            p_value,
            corrected,
            problems_needed(values),
            _samples_needed(first, second, values),
        )
        for (first, second), values, p_value, corrected in zip(twos, differences, p_values, holm(p_values), strict=True)
    ]


def _samples_needed(first: Result, second: Result, differences: Sequence[float]) -> int | None:
    """Answers to every problem that the difference needs; None if a problem has one answer, which tells no spread."""
    samples = min(first.samples, second.samples)
    if samples < 2:
        return None
    # The unbiased estimate of the variance of a share p of k answers is p (1 - p) / (k - 1).
    shares = [share for result in (first, second) for share in result.by_problem.values()]
    noise = 2 * fmean(share * (1 - share) / (samples - 1) for share in shares)
    return samples_needed(differences, noise, samples)
