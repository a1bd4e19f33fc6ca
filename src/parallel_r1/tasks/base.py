"""Problems and their verification, one file per task."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from parallel_r1.answers.rollout import Problem
from parallel_r1.errors import UserError, nearest
from parallel_r1.tasks.datasets.splits import Split

T = TypeVar("T")


class Task(Protocol):
    """What a task offers: problems by split, a problem's bare statement, and whether an answer's trunk solves one."""

    @property
    def name(self) -> str: ...

    def problems(self, split: Split, seed: int) -> Iterator[Problem]: ...

    def statement(self, problem: Problem) -> str: ...

    def verify(self, problem: Problem, trunk: str) -> bool: ...


def epochs(items: Sequence[T], seed: int | str) -> Iterator[T]:
    """Epoch after epoch, shuffled anew each time."""
    epoch = 0
    while True:
        order = list(items)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        yield from order
        epoch += 1


def load_task(name: str, hold_back: bool = False) -> Task:
    """The task of a name; its data are read when problems are asked for.

    Args:
        hold_back: whether its validation problems are kept out of the training problems of a procedural task.

    Raises:
        UserError: no such task, no such file, or math-verify is needed and not installed.
    """
    from parallel_r1.tasks import countdown
    from parallel_r1.tasks import math as mathematics
    from parallel_r1.tasks.datasets.sources import open_source, public
    from parallel_r1.tasks.grading.grader import grader

    procedural: dict[str, Task] = {
        task.name: replace(task, hold_back=hold_back) for task in (countdown.EASY, countdown.MEDIUM, countdown.HARD)
    }
    if name in procedural:
        return procedural[name]
    source = name.removesuffix(mathematics.WITHOUT_FORKS)
    if source not in public() and ":" not in source:
        raise UserError(
            "a known task, jsonl:PATH, parquet:PATH or hub:ID", f"'{name}'", nearest(source, [*procedural, *public()])
        )
    instruction = mathematics.PARALLEL if source == name else mathematics.PLAIN
    return mathematics.Mathematics(name, open_source(source), instruction, grader())
