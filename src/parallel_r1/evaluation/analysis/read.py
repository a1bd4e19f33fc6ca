"""The files of a run: which rollouts it has, and their lines in pieces that fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel_r1 import files
from parallel_r1.answers.rollout import Rollout, from_json
from parallel_r1.errors import UserError

SIZE = 8 << 20
"""Bytes of a piece."""


@dataclass(frozen=True)
class Piece:
    """Whole lines of a rollouts file.

    Attributes:
        step: of the run; 0 for a file that no step wrote.
        start, stop: the range of bytes. A line that begins in it belongs to it.
    """

    path: Path
    step: int
    start: int
    stop: int


def run_of(path: Path) -> Path | None:
    """The run folder that a path is, or that a file lies in as `RUN/rollouts/step-N.jsonl`; None for other files."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "rollouts" and step_of(path) else None


def step_of(path: Path) -> int:
    """The step that wrote a file named step-N.jsonl; 0 for another name."""
    number = path.stem.removeprefix("step-")
    return int(number) if number != path.stem and number.isdecimal() else 0


def rollout_files(path: Path) -> list[Path]:
    """The rollouts files of a run in order of steps, or the one file that the path is. Files that are being written
    (`.part`) are no part of a run yet.

    Raises:
        UserError: nothing is there, or no step of the run has saved rollouts.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError("a run folder or a rollouts file", f"no file or folder {path}", "check the path")
    steps = [file for file in (path / "rollouts").glob("step-*.jsonl") if step_of(file)]
    if not steps:
        answers = next(path.glob("*.jsonl"), None)
        file = f"the file {answers}" if answers else "a file of answers that `eval` wrote"
        fix = f"give a run with an RL stage that has saved a step, or {file}"
        raise UserError("a run with rollouts/step-N.jsonl", f"none in {path}", fix)
    return sorted(steps, key=step_of)


def pieces(files: list[Path], size: int = SIZE) -> list[Piece]:
    """Files in pieces of about `size` bytes, in order."""
    cut = []
    for path in files:
        end = path.stat().st_size
        cut += [Piece(path, step_of(path), start, min(start + size, end)) for start in range(0, end, size)]
    return cut


def rollouts(piece: Piece, notes: set[str], *, logprobs: bool = False) -> Iterator[tuple[int, Rollout]]:
    """The rollouts whose lines begin in a piece, and the byte at which every line begins. A last line that was cut off
    while it was written is left out; a note says so.

    Args:
        notes: gets the note.
        logprobs: whether the rollouts have their log-probabilities, which take half of the time.

    Raises:
        UserError: a line that is no rollout; names it, and the version of its run if that is recorded.
    """
    with piece.path.open("rb") as file:
        file.seek(max(0, piece.start - 1))
        if piece.start:
            file.readline()  # the line before, which may end exactly where the piece begins
        while (at := file.tell()) < piece.stop and (line := file.readline()):
            if not any(True for _ in files.numbered_lines([line])):
                continue
            with refusing(piece.path, at):
                try:
                    row = files.parse_ours(line)
                except ValueError:
                    if line.endswith(b"\n"):
                        raise
                    notes.add(f"the last line of {piece.path} is unfinished: left out")
                    return
                if not logprobs:
                    for span in row["spans"]:
                        span["logprobs"] = None
                rollout = from_json(row)
                for name in ("id", "prompt", "answer"):
                    if not isinstance(value := getattr(rollout.problem, name), str):
                        raise TypeError(f"{name} is {value!r}, not a text")
            yield at, rollout


@contextmanager
def refusing(path: Path, at: int) -> Iterator[None]:
    """Turn what the line of a rollout raises into an error that names the line.

    Args:
        at: the byte at which the line begins.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise _refused(path, at, error) from error


def _refused(path: Path, at: int, error: Exception) -> UserError:
    """The error for a line that begins at a byte."""
    with path.open("rb") as file:
        number = sum(1 for _ in iter(lambda: file.tell() < at and file.readline(), False)) + 1
    version = _version(path)
    by = f", in a run of version {version}" if version else ""
    expected = "a rollout per line, as this version reads them"
    return UserError(
        expected, f"{path}:{number}: {error!r}{by}", "correct or remove that line, or draw the answers anew"
    )


def _version(path: Path) -> str | None:
    """The version of this package that wrote a rollouts file; None if its run has no record of it."""
    run = run_of(path)
    try:
        return str(json.loads((run / "environment.json").read_text())["packages"]["parallel-r1"]) if run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def metrics(run: Path | None) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that have a step and a stage, without a last line that was cut off; none
    without that file.

    Raises:
        UserError: a line that is no JSON object.
    """
    file = run / "metrics.jsonl" if run else None
    if file is None or not file.is_file():
        return []
    rows = (row for _, row in files.read_jsonl(file, drop_unfinished=True))
    return [row for row in rows if isinstance(row.get("step"), int) and isinstance(row.get("stage"), str)]
