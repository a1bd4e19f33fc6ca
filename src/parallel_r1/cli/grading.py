"""The command that grades answers: texts against their references, rollouts by their own tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, one_of, print_json
from parallel_r1.cli.checks import lines
from parallel_r1.errors import UserError
from parallel_r1.files import parse_object

if TYPE_CHECKING:
    from parallel_r1.answers.rollout import Problem
    from parallel_r1.tasks.base import Task
    from parallel_r1.tasks.grading.extract import Find


@app.command()
def grade(
    file: Annotated[
        str, typer.Argument(help='JSONL with {"text": .., "answer": ..} on every line, or rollouts; - reads stdin.')
    ],
    find: Annotated[
        str | None,
        typer.Option(
            help="How final answers are located: strict (Final Answer: and boxes) or lenient (headings, ####, ..).",
            show_default="lenient; of rollouts, as their task does",
        ),
    ] = None,
    imports: options.Imports = None,
    as_json: options.AsJson = False,
) -> None:
    """Grade answers: compare the final answer outside all paths with the reference, or ask the task of a rollout."""
    from parallel_r1.tasks.grading import extract

    if find is not None:
        one_of("--find", find, extract.Find)
    started = time.perf_counter()
    rows = [_read(line, f"{'standard input' if file == '-' else file}:{number}") for number, line in lines(file)]
    _grade_texts([row for row in rows if row.task is None], find or "lenient")  # type: ignore[arg-type]
    for source in dict.fromkeys(row.task for row in rows if row.task is not None):
        _grade_rollouts(source, [row for row in rows if row.task == source], find)  # type: ignore[arg-type]
    _print(rows, len(rows) / (time.perf_counter() - started), as_json)


class Row:
    """A line of the file.

    Attributes:
        place: file and line.
        trunk: the text outside all paths; None if the line cannot be read.
        task: the task of a rollout; None for a text with its reference.
        report: what `--json` prints.
    """

    def __init__(self, place: str, trunk: str | None, reference: str, row: dict[str, Any], error: str = "") -> None:
        self.place, self.trunk, self.reference, self.row = place, trunk, reference, row
        rollout = {"id", "prompt", "source"} <= row.keys()
        self.task: str | None = str(row["source"]) if rollout and trunk is not None else None
        name = {"id": row["id"]} if "id" in row else {}
        self.report: dict[str, Any] = {**name, "correct": False, "found": None, "answer": reference}
        if error:
            self.report["error"] = error

    @property
    def problem(self) -> Problem:
        """The problem of a rollout."""
        from parallel_r1.answers.rollout import Problem

        return Problem(str(self.row["id"]), str(self.row["prompt"]), self.reference, str(self.row["source"]))


def _read(line: bytes, place: str) -> Row:
    """A line of the file. One without a text counts as wrong, and its report has the error.

    Raises:
        UserError: its reference is no text and no number.
    """
    from parallel_r1.tasks.grading.reference import reference_text

    try:
        row = parse_object(line, parse_float=Decimal)
        text, answer = row["text"], row["answer"]
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        return Row(
            place, None, "", {}, 'expected {"text": .., "answer": ..}, found ' + f"{type(error).__name__}: {error}"
        )
    try:
        reference = reference_text(answer)
    except ValueError as error:
        raise UserError(
            "an answer that is text or a number", f"{place}: {error}", "correct or remove that line"
        ) from error
    return Row(place, _trunk(row), reference, row)


def _trunk(row: dict[str, Any]) -> str:
    """The text outside all paths: by the spans of a rollout, else by the tags in the text."""
    from parallel_r1.answers.parser import trunk
    from parallel_r1.tasks.grading.extract import without_cut_answer

    spans = row.get("spans")
    if isinstance(spans, list) and spans and all(isinstance(span, dict) and "text" in span for span in spans):
        text = "".join(str(span["text"]) for span in spans if not span.get("address"))
        cut = row.get("finish") == "length" and not spans[-1].get("address")
        return without_cut_answer(text) if cut else text
    return trunk(row["text"])


def _grade_texts(rows: Sequence[Row], find: Find) -> None:
    """Compare final answers with references."""
    from parallel_r1.tasks.grading.extract import final_answer
    from parallel_r1.tasks.grading.grader import grader

    for row in rows:
        row.report["found"] = None if row.trunk is None else final_answer(row.trunk, find)
    verdicts = grader().grade([(row.report["found"], row.reference) for row in rows]) if rows else []
    for row, verdict in zip(rows, verdicts, strict=True):
        row.report["correct"] = verdict


def _grade_rollouts(source: str, rows: Sequence[Row], find: Find | None) -> None:
    """Let a task verify its rollouts.

    Raises:
        UserError: there is no such task here.
    """
    from parallel_r1.tasks.base import verdicts
    from parallel_r1.tasks.grading.extract import final_answer
    from parallel_r1.tasks.math import Mathematics

    task = _task(source, rows[0].place)
    if isinstance(task, Mathematics) and find is not None:
        task = replace(task, find=find)
    rule: Find = task.find if isinstance(task, Mathematics) else "strict"
    trunks = [row.trunk or "" for row in rows]
    for row, verdict in zip(rows, verdicts(task, [row.problem for row in rows], trunks), strict=True):
        row.report["correct"], row.report["found"] = verdict, final_answer(row.trunk or "", rule)


def _task(source: str, place: str) -> Task:
    from parallel_r1.tasks.load import load_task

    try:
        return load_task(source)
    except UserError as error:
        raise UserError(
            f"the task '{source}' of the rollout at {place}",
            error.found,
            "give the Python file that registers it with --import FILE.py, or put back its data; without the key "
            "'source' the lines are compared with their references alone",
        ) from error


def _print(rows: Sequence[Row], speed: float, as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_json(row.report)
        return
    right = sum(row.report["correct"] for row in rows)
    silent = sum(row.report["found"] is None for row in rows)
    console.print(
        f"{right:,} of {len(rows):,} right; {silent:,} without a final answer; {speed:,.0f} answers/s", highlight=False
    )
