"""What a recipe may say of how it is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from parallel_r1.settings import Count, Section


class Evaluation(Section):
    """How every stage is measured on held-out problems.

    Attributes:
        problems: of every task; all of a task that has fewer.
        samples: number of answers to every problem, one for all tasks or by task: the k of mean@k.
    """

    tasks: tuple[str, ...] = ()
    problems: Annotated[int, Field(ge=1, le=100_000)] = 200
    samples: Count | dict[str, Count] = 8
    seed: int = 1234

    @model_validator(mode="after")
    def samples_of_every_task(self) -> Evaluation:
        if isinstance(self.samples, dict) and set(self.samples) != set(self.tasks):
            raise ValueError(f"samples must name every task: {', '.join(self.tasks)}")
        return self

    def samples_of(self, task: str) -> int:
        """Number of answers to every problem of a task."""
        return self.samples[task] if isinstance(self.samples, dict) else self.samples
