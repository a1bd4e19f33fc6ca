"""The columns of a row: its statement, its reference, and the split that it names."""

from __future__ import annotations

import re
from decimal import Decimal
from math import isfinite
from typing import Any

from parallel_r1.answers.rollout import Message
from parallel_r1.answers.syntax import last_box
from parallel_r1.errors import UserError
from parallel_r1.tasks.grading.reference import number_text

PROBLEMS = ("problem", "question", "prompt")
ANSWERS = ("answer", "final_answer", "ground_truth", "reward_model", "solution")
SOLUTION = "solution"
"""The column with a solution in words; only its last box is a reference."""
NOTHING = frozenset(("n/a", "#n/a", "na", "<na>", "nan", "nat", "null", "none", "inf", "-inf", "+inf", "-", "?"))
"""Texts that stand for a missing value, in lower case, as tables and programs write them."""
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
"""Other names of the roles of a chat."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def statement(row: dict[str, Any], place: str) -> tuple[str, tuple[Message, ...]]:
    """The statement of a row, in the first column that may hold one and does, and the messages before it. Of the
    messages of a chat the statement is the last one of the user; what follows it is an answer.

    Args:
        place: where the row is, for the error.

    Raises:
        UserError: no column holds a statement, or it is not text.
    """
    column = next((column for column in PROBLEMS if row.get(column) is not None), None)
    if column is None:
        raise _no_column("the statement", PROBLEMS, row, place)
    text, before = row[column], list[tuple[str, Any]]()
    if isinstance(text, list) and text and all(isinstance(message, dict) for message in text):
        before = [
            (str(_ROLES.get(role, role)), message.get("content", message.get("value")))
            for message in text
            for role in [message.get("role", message.get("from"))]
        ]
        while before and before[-1][0] != "user":
            before.pop()
        if not before:
            raise UserError(
                "a message of the user among the messages of a chat",
                f"none in column {column} of {place}",
                "correct or leave out that row",
            )
        _, text = before.pop()
    for role, said in before:
        if not isinstance(said, str):
            problem = f"one of {role} that is none in column {column} of {place}"
            raise UserError("messages that are text", problem, "correct that row")
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            "a statement that is text",
            f"{_describe(text)} in column {column} of {place}",
            "correct or leave out that row",
        )
    return text.strip(), tuple(before)


def reference(row: dict[str, Any], place: str, columns: tuple[str, ...] = ANSWERS) -> str:
    """The reference of a row, in the first of some columns that holds one.

    Args:
        place: where the row is, for the error.

    Raises:
        UserError: there is none, or a value that is neither text nor a finite number comes before it.
    """
    present = {column: row[column] for column in columns if column in row}
    if not present:
        raise _no_column("the answer", columns, row, place)
    lacking = ""
    for column, value in present.items():
        if isinstance(value, dict):
            value = value.get("ground_truth")
        text = reference_text(value, is_solution=column == SOLUTION)
        if text is not None:
            return text
        if value is not None or not lacking:
            lacking = f"{_describe(value)} in column {column}"
        if not _is_missing(value):
            break
    fix = "correct or leave out that row"
    if column == SOLUTION:
        fix += r"; of a solution only the last \boxed{} counts"
    raise UserError("an answer that is text or a finite number", f"{lacking} of {place}", fix)


def reference_text(value: object, *, is_solution: bool = False) -> str | None:
    """A value of a column as a reference; None if it cannot be one.

    Text counts as it is, or what follows its last `####`, as GSM8K writes it. A number counts in decimal digits, with
    neither an exponent nor a fraction that is zero: 5.9e-06 is `0.0000059`, and 2.0 is `2`.

    Args:
        is_solution: whether the value is a whole solution, of which only the last box is the reference.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return number_text(value) if isfinite(value) else None
    if not isinstance(value, str):
        return None
    _, marked, last = value.rpartition("####")
    box = last_box(value) if is_solution and not marked else None
    if is_solution and not marked and box is None:
        return None
    text = (_THOUSANDS.sub("", last) if marked else box[1] if box else value).strip()
    return text if text.casefold() not in {"", *NOTHING} else None


def _is_missing(value: object) -> bool:
    """Whether a value leaves its place to the next column: it is empty, or a solution without a box."""
    return value is None or isinstance(value, str) or (isinstance(value, float) and value != value)


def _describe(value: object) -> str:
    return f"{value!r:.40}" if value is None or isinstance(value, str | float) else type(value).__name__


def _no_column(content: str, columns: tuple[str, ...], row: dict[str, Any], place: str) -> UserError:
    return UserError(
        f"{content} in a column {', '.join(columns[:-1])} or {columns[-1]}",
        f"columns {', '.join(row) or 'none'} in {place}",
        "rename a column",
    )
