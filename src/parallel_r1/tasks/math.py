"""Mathematics in words: public sets of problems and the user's own, graded by their final answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from parallel_r1.answers.rollout import Problem, key_of_chat
from parallel_r1.errors import UserError, nearest
from parallel_r1.tasks.base import TASKS, epochs
from parallel_r1.tasks.datasets.sources import Record, Source
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import Find, final_answer
from parallel_r1.tasks.grading.grader import Grader, grader
from parallel_r1.tasks.prompts import PARALLEL, PLAIN, WITHOUT_FORKS
from parallel_r1.tasks.public_sets import PUBLIC_SETS, open_source


@dataclass(frozen=True)
class Mathematics:
    """Problems of a source under an instruction.

    Attributes:
        name: the name of the source, with `@plain` behind it for the instruction that does not mention forks.
        instruction: the prompt, with `{problem}` where the statement goes.
        grader: compares final answers with references.
        find: how final answers are located: `strict` for training on our format, `lenient` for other models.
    """

    name: str
    source: Source
    instruction: str
    grader: Grader
    find: Find = "strict"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """The problems of a split in an order that the seed decides. Training problems repeat for ever, in a new order
        every epoch; problems of the other splits come once.

        Raises:
            UserError: the source has no such problems, or cannot be read.
        """
        records = self.source.records(split)
        if not records:
            raise UserError(f"{split} problems in {self.name}", "none", "give more problems, or a column split")
        order = map(self.problem, epochs(records, f"{self.name}/{split}/{seed}"))
        return order if split == "train" else islice(order, len(records))

    def problem(self, record: Record) -> Problem:
        """A record with the instruction around it."""
        prompt = self.instruction.format(problem=record.problem)
        key = key_of_chat(record.problem, record.before)
        return Problem(record.id, prompt, record.answer, self.name, key, record.before)

    def statement(self, problem: Problem) -> str:
        """A problem without the instruction around it."""
        before, after = self.instruction.split("{problem}")
        return problem.prompt.removeprefix(before).removesuffix(after)

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
        """Whether the final answer of every trunk equals the reference. All of them are graded in one call, so that all
        processes of the grader work at once."""
        return self.grader.grade(
            [
                (final_answer(answer, self.find), problem.answer)
                for problem, answer in zip(problems, answers, strict=True)
            ]
        )

    def out_of_time(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
        """Which of the answers that have been verified are wrong only because their comparison took too long."""
        return [
            self.grader.gave_up(final_answer(answer, self.find), problem.answer)
            for problem, answer in zip(problems, answers, strict=True)
        ]


def load_mathematics(name: str, data_dir: Path | None = None, find: Find = "strict") -> Mathematics:
    """The task of a set of problems: a public one, a file or a data set of the hub.

    Args:
        data_dir: a folder with the files of the public sets. Default: the environment variable PARALLEL_R1_DATA.
        find: how final answers are located.

    Raises:
        UserError: no such set, no such file, or math-verify is not installed.
    """
    source = name.removesuffix(WITHOUT_FORKS)
    if source not in PUBLIC_SETS and ":" not in source:
        raise UserError(
            "a known task, jsonl:PATH, parquet:PATH or hub:ID", f"'{name}'", nearest(source, [*TASKS, *PUBLIC_SETS])
        )
    instruction = PARALLEL if source == name else PLAIN
    return Mathematics(name, open_source(source, data_dir), instruction, grader(), find)
