"""The judged answers of an evaluation in a file: on disk before they count, and there again after an interruption."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Problem, Rollout, from_json, to_json
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.files import read_jsonl, whole, written
from parallel_r1.generation.generator import Generator
from parallel_r1.generation.request import Request

BATCH, PAUSE = 64, 2.0
"""Answers are judged and written together: at most so many, and at least after so many seconds."""
Judge = Callable[[Sequence[tuple[Problem, Trace]]], list[Rollout]]


class AnswerFile:
    """The answers to the requests of an evaluation, by the index of the request.

    While answers are drawn every process appends to a file of its own beside `path`, `NAME.R.part.jsonl`. `settle`
    brings all of them together in the order of their indices. A line is a rollout with its index (`sample`) and `seed`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether some answers are on disk."""
        return bool(self._files())

    def _files(self) -> list[Path]:
        parts = self.path.parent.glob(f"{self.path.stem}.*.part.jsonl") if self.path.parent.is_dir() else ()
        return [file for file in (self.path, *sorted(parts)) if file.is_file()]

    def read(self) -> dict[int, Rollout]:
        """The answers on disk by index. A last line that was cut off is left out.

        Raises:
            UserError: a line is no answer of an evaluation.
        """
        answers = {}
        for file in self._files():
            for number, row in read_jsonl(file, drop_unfinished=True, ours=True):
                try:
                    answers[int(row["sample"])] = from_json(row)
                except (ValueError, KeyError, TypeError) as error:
                    fix = "remove that line: its answer is then drawn again"
                    raise UserError("an answer of eval on every line", f"{file}:{number}: {error!r}", fix) from error
        return answers

    def columns(self, *names: str) -> list[list[Any]]:
        """Values of the answers on disk by name, such as `correct`, without making rollouts of them: much faster.

        Raises:
            UserError: a line is no answer of an evaluation.
        """
        rows = [row for file in self._files() for _, row in read_jsonl(file, drop_unfinished=True, ours=True)]
        if any(name not in row for row in rows for name in names):
            raise UserError(f"answers with {', '.join(names)}", f"a line without in {self.path}", "remove that line")
        return [[row[name] for row in rows] for name in names]

    def settle(self, answers: Mapping[int, Rollout], seeds: Sequence[str]) -> None:
        """Write answers into the one file, in order, and remove the parts."""
        with whole(self.path) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as lines:
            lines.writelines(_line(index, seeds[index], answers[index]) for index in sorted(answers))
        for file in self._files()[1:]:
            file.unlink()

    def append(self, answers: Iterable[tuple[int, str, Rollout]]) -> None:
        """Write answers with their index and seed to the file of this process, and flush them to disk."""
        file = self.path.with_name(f"{self.path.stem}.{processes.rank()}.part.jsonl")
        with written(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with written(file), file.open("a", encoding="utf-8", errors="backslashreplace") as lines:
            lines.writelines(_line(*answer) for answer in answers)
            lines.flush()
            os.fsync(lines.fileno())


def _line(index: int, seed: str, rollout: Rollout) -> str:
    row: dict[str, Any] = {"sample": index, "seed": seed, **to_json(rollout)}
    return json.dumps(row, ensure_ascii=False) + "\n"


@dataclass
class Writing:
    """Judges answers and writes them, as they end. Call it with every trace (`OnTrace`), and `flush` at the end.

    Attributes:
        indices: index of the answer in the evaluation, for every request that is drawn.
        problems: problem of every answer of the evaluation.
        seeds: seed of every answer of the evaluation.
        judge: from problems and traces to rollouts.
        file: where they are written.
        on_written: called with the number of answers that were just written.
    """

    indices: Sequence[int]
    problems: Sequence[Problem]
    seeds: Sequence[str]
    judge: Judge
    file: AnswerFile
    on_written: Callable[[int], None]
    waiting: list[tuple[int, Trace]] = field(default_factory=list)
    last: float = field(default_factory=time.monotonic)

    def __call__(self, request: int, trace: Trace) -> None:
        self.waiting.append((self.indices[request], trace))
        if len(self.waiting) >= BATCH or time.monotonic() - self.last > PAUSE:
            self.flush()

    def flush(self) -> None:
        """Judge and write what waits."""
        rollouts = self.judge([(self.problems[index], trace) for index, trace in self.waiting])
        indices = [index for index, _ in self.waiting]
        if indices:
            self.file.append((i, self.seeds[i], rollout) for i, rollout in zip(indices, rollouts, strict=True))
            self.on_written(len(indices))
        self.waiting, self.last = [], time.monotonic()


def draw_to_file(
    generator: Generator,
    problems: Sequence[Problem],
    requests: Sequence[Request],
    judge: Judge,
    file: AnswerFile,
    on_written: Callable[[int], None] = lambda number: None,
) -> list[Rollout]:
    """Draw and judge the answers that the file does not have yet. With several processes every process draws a share
    of them, and all return all rollouts.

    Args:
        problems: the problem of every request.
        on_written: called with the number of answers that were just written.

    Raises:
        UserError: the file has answers to other requests.
    """
    seeds = [request.seed for request in requests]
    done = file.read()
    _check(done, problems, requests, file)
    _settle(file, seeds)  # a half-written line at the end of a part goes
    missing = [index for index in range(len(requests)) if index not in done]
    mine = processes.share(missing)
    writing = Writing(mine, problems, seeds, judge, file, on_written)
    generator.traces([requests[index] for index in mine], on_trace=writing)
    writing.flush()
    processes.gather([])  # the first process settles what all have written
    _settle(file, seeds)
    answers = file.read()
    return [answers[index] for index in range(len(requests))]


@processes.by_first
def _settle(file: AnswerFile, seeds: Sequence[str]) -> None:
    if file.exists:
        file.settle(file.read(), seeds)


def _check(
    answers: Mapping[int, Rollout], problems: Sequence[Problem], requests: Sequence[Request], file: AnswerFile
) -> None:
    """Refuse answers to other prompts than those that are asked now, or that were judged by other references."""
    for index, rollout in answers.items():
        if index >= len(requests) or rollout.trace.prompt_ids != tuple(requests[index].prompt_ids):
            raise UserError(
                f"answers to the prompts of this evaluation in {file.path}",
                f"answer {index}, to problem '{rollout.problem.id}', with another prompt",
                "give another --out: results of different prompts are not mixed",
            )
        if rollout.problem.answer != problems[index].answer:
            raise UserError(
                f"the references that the answers in {file.path} were judged by",
                f"another one of problem '{rollout.problem.id}', {problems[index].answer!s:.60}",
                "give --regrade, which judges the stored answers again",
            )
