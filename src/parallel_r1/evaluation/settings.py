"""The settings of an evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from parallel_r1.settings import Count, Section


class Evaluation(Section):
    """How the weights after every stage are evaluated on held-out problems.

    Attributes:
        tasks: names of the tasks.
        problems: number of problems of every task; a task with fewer uses all of its own.
        samples: answers per problem (the k of mean@k), for all tasks or by task.
        seed: of the choice of problems and of the answers.
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
        """Number of answers per problem of a task."""
        return self.samples[task] if isinstance(self.samples, dict) else self.samples
