"""How verdicts came about: what was read as the final answer, and why a wrong answer may be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from parallel_r1.answers.rollout import Problem, Reading, Rollout
from parallel_r1.answers.shape import paths_of_rollout
from parallel_r1.answers.syntax import FINAL_ANSWER, boxes
from parallel_r1.errors import UserError
from parallel_r1.registry import where
from parallel_r1.tasks.base import Task, conclusion_of, find_of, verdicts
from parallel_r1.tasks.grading.extract import final_answer

MOST = 16
"""Most places of an answer at which the right one is looked for."""


def with_readings(rollouts: Sequence[Rollout], trunks: Sequence[str], task: Task) -> list[Rollout]:
    """The rollouts with how their verdicts came about. The task verifies the other places of all wrong answers in one
    call.

    Args:
        trunks: the text of every rollout that the task has verified.
    """
    finals = [final_answer(trunk, find_of(task)) for trunk in trunks]
    asked = [
        (number, candidate)
        for number, (rollout, trunk, final) in enumerate(zip(rollouts, trunks, finals, strict=True))
        if not rollout.correct
        for candidate in _other_places(rollout, trunk, final, task)
    ]
    again = [f"{FINAL_ANSWER} {candidate}" for _, candidate in asked]
    right = verdicts(task, [rollouts[number].problem for number, _ in asked], again)
    missed = {number for (number, _), verdict in zip(asked, right, strict=True) if verdict}
    late = _out_of_time(task, [rollout.problem for rollout in rollouts], trunks)
    return [
        replace(rollout, reading=Reading(final, number in missed, late[number] and not rollout.correct))
        for number, (rollout, final) in enumerate(zip(rollouts, finals, strict=True))
    ]


def _other_places(rollout: Rollout, trunk: str, final: str | None, task: Task) -> list[str]:
    """What stands at the other places of an answer where a final answer may be: boxes anywhere, what the lenient rules
    find in the trunk and in every path, and what the task says that a path arrives at."""
    paths = [path for fork in paths_of_rollout(rollout) for path in fork]
    ends = (conclusion_of(task, path, cut=False) for path in paths)
    places = [
        *ends,
        *(final_answer(text, "lenient") for text in (trunk, *paths)),
        *(box.content for box in boxes(rollout.text)),
    ]
    return list(dict.fromkeys(place for place in places if place and place != final))[:MOST]


def _out_of_time(task: Task, problems: Sequence[Problem], trunks: Sequence[str]) -> list[bool]:
    own: Callable[..., Any] | None = getattr(task, "out_of_time", None)
    if own is None:
        return [False] * len(trunks)
    late = own(problems, trunks)
    if not isinstance(late, list) or len(late) != len(trunks) or not all(isinstance(one, bool) for one in late):
        raise UserError(
            f"a list of {len(trunks)} bools from out_of_time of task '{task.name}', one per answer",
            f"{late!r:.60} from {where(type(task))}",
            "return one bool for every answer of the batch",
        )
    return late
