"""Problems and their verification, one file per task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, Protocol

from parallel_r1.errors import UserError, nearest
from parallel_r1.rollout import Problem

Split = Literal["train", "validation", "test"]
FINAL_ANSWER = "Final Answer:"
_FINAL = re.compile(rf"{FINAL_ANSWER}[ \t]*([^\n]*)")


class Task(Protocol):
    """What a task offers: problems by split, and whether an answer's trunk solves one."""

    @property
    def name(self) -> str: ...

    def problems(self, split: Split, seed: int) -> Iterator[Problem]: ...

    def verify(self, problem: Problem, trunk: str) -> bool: ...


def final_answer(trunk: str) -> str | None:
    """What follows the last `Final Answer:` of a trunk, to the end of its line; None if there is none."""
    found = _FINAL.findall(trunk)
    return found[-1].strip() if found else None


def load_task(name: str, hold_back: bool = False) -> Task:
    """The task of a name.

    Args:
        hold_back: whether its validation problems are kept out of the training problems of a procedural task.

    Raises:
        UserError: no such task.
    """
    from parallel_r1.tasks import countdown

    known: dict[str, Task] = {
        task.name: replace(task, hold_back=hold_back) for task in (countdown.EASY, countdown.MEDIUM, countdown.HARD)
    }
    if name not in known:
        raise UserError("a known task", f"'{name}'", nearest(name, known))
    return known[name]
