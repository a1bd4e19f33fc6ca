"""Mathematics in words: public sets of problems and the user's own, graded by their final answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.syntax import (
    FINAL_ANSWER,
    FORK_CLOSE,
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    SUMMARY_OPEN,
)
from parallel_r1.errors import UserError
from parallel_r1.tasks.base import epochs
from parallel_r1.tasks.datasets.sources import Record, Source
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader

PARALLEL = f"""Solve the problem step by step. Where several independent views of a step would help, open a block:
{FORK_OPEN}{PATH_OPEN}one line of thought{PATH_CLOSE}{PATH_OPEN}another one{PATH_CLOSE}{FORK_CLOSE}
{SUMMARY_OPEN}what they found, compared and put together{SUMMARY_CLOSE}
A block has two paths or more, and no path knows of the others. Its summary follows at once, and the solution goes on \
from there. Open a block as often as it helps, and not where it does not. Write the answer alone on the last line, \
after "{FINAL_ANSWER}".

Problem: {{problem}}

Solution:
"""
PLAIN = f"""Solve the problem step by step. Write the answer alone on the last line, after "{FINAL_ANSWER}".

Problem: {{problem}}

Solution:
"""
WITHOUT_FORKS = "@plain"
"""What a task's name ends with whose prompts say nothing about forks."""


@dataclass(frozen=True)
class Mathematics:
    """Problems of a source under an instruction.

    Attributes:
        name: that of the source, with `@plain` for the instruction that does not mention forks.
        instruction: the prompt, with `{problem}` where the statement goes.
        grader: what compares answers.
    """

    name: str
    source: Source
    instruction: str
    grader: Grader

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """The problems of a split in an order that the seed decides: to train on without end, in a new order every time
        all have come; else each of them once.

        Raises:
            UserError: the source has no such problems, or cannot be read.
        """
        records = self.source.records(split)
        if not records:
            raise UserError(f"{split} problems in {self.name}", "none", "give more problems, or a column split")
        order = map(self.problem, epochs(records, f"{self.name}/{split}/{seed}"))
        return order if split == "train" else islice(order, len(records))

    def problem(self, record: Record) -> Problem:
        """A record as it is asked."""
        return Problem(record.id, self.instruction.format(problem=record.problem), record.answer, self.name)

    def statement(self, problem: Problem) -> str:
        """A problem without the instruction around it."""
        before, after = self.instruction.split("{problem}")
        return problem.prompt.removeprefix(before).removesuffix(after)

    def verify(self, problem: Problem, trunk: str) -> bool:
        """Whether the final answer of the trunk equals the reference."""
        return self.grader.right(final_answer(trunk), problem.answer)
