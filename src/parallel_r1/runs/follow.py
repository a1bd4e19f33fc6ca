"""A run as it is seen from another process: what its folder says about it so far, read without disturbing it.

This file spells the names of a run's files again, instead of using `RunFolder`, which loads torch: a command that
watches a run must start at once and take no memory from it.
"""

from __future__ import annotations

import json
import time
import tomllib
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from parallel_r1.answers.rollout import Rollout, read_jsonl
from parallel_r1.errors import UserError
from parallel_r1.files import Tail

SERIES = ("reward", "accuracy", "parallel_ratio", "critical_path", "surprise", "loss")
"""The metrics of steps that are kept as curves."""
RECENT = 20
"""Number of steps whose mean duration predicts the time left."""
NEEDED = {
    "sft": ("stage", "step", "stage_step", "stage_steps"),
    "rl": ("stage", "step", "stage_step", "stage_steps"),
    "evaluation": ("stage", "task", "mean", "low", "high", "parallel_ratio", "critical_path"),
    "validation": ("stage", "task", "mean", "low", "high", "parallel_ratio", "best_step"),
    "warning": ("stage", "step", "warning"),
}
"""What every version writes into rows of a kind. Rows of other kinds are of a later version, and are left out."""
Row = dict[str, Any]


@dataclass
class StageSoFar:
    """One stage of a run.

    Attributes:
        start: the stage whose weights it continues; None for the model itself.
        steps: planned number of steps.
        done: number of steps so far.
        last: the metrics of the last step; None before the first.
        seconds: duration of the last steps.
        series: metric -> its value after every step, NaN where a step lacks it.
    """

    name: str
    kind: str
    steps: int
    start: str | None = None
    done: int = 0
    last: Row | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    series: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in SERIES})

    def take(self, row: Row) -> None:
        """Add the metrics of a step."""
        self.done, self.steps, self.last = row["stage_step"], row["stage_steps"], row
        if "seconds" in row:
            self.seconds.append(row["seconds"])
        for name, values in self.series.items():
            value = row.get(name)
            values.append(value if isinstance(value, int | float) else float("nan"))

    @property
    def pace(self) -> float | None:
        """Seconds per step, mean over the last steps; None before the first."""
        return fmean(self.seconds) if self.seconds else None


class RunSoFar:
    """A run, as far as its folder says. `read` takes in what the run has written since.

    Attributes:
        stages: by name, in the order of the recipe.
        current: the stage of the last step; None before the first.
        step: number of the last step, over all stages.
        evaluations, validations, warnings: rows of metrics.jsonl, in order.
        anew: whether the last `read` found that the run had dropped rows, as one does that resumes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = _recipe(path)
        self.name = str(self.recipe.get("name", path.name))
        self.began = _began(path)
        self.anew = False
        self._tail = Tail(path / "metrics.jsonl")
        self._forget()

    def _forget(self) -> None:
        self.stages: dict[str, StageSoFar] = {}
        for name, stage in self.recipe["stages"].items():
            before = next(reversed(self.stages), None)
            start = stage.get("start") or before
            self.stages[name] = StageSoFar(
                name, stage.get("kind", ""), stage.get("steps", 0), None if start == "base" else start
            )
        self.current: StageSoFar | None = None
        self.step = 0
        self.evaluations: list[Row] = []
        self.validations: list[Row] = []
        self.warnings: list[Row] = []

    def read(self, on_row: Callable[[Row], None] | None = None) -> None:
        """Take in the rows that were logged since the last call, or all rows if some were dropped.

        Args:
            on_row: called with every row.

        Raises:
            UserError: a damaged line, or the folder is gone.
        """
        if not (self.path / "recipe.toml").is_file():
            raise UserError(f"a run in {self.path}", "no recipe.toml any more", "was the folder moved?")
        self.anew, rows = self._tail.read()
        if self.anew:
            self._forget()
        for row in rows:
            self._take(row)
            if on_row is not None:
                on_row(row)

    def _take(self, row: Row) -> None:
        kind = str(row.get("kind"))
        if missing := [key for key in NEEDED.get(kind, ()) if key not in row]:
            row_is = f"a row of kind '{kind}' without {missing[0]}"
            raise UserError(f"the metrics of a run in {self._tail.path}", row_is, "give another run folder")
        if kind in ("sft", "rl"):
            name, self.step = row["stage"], row["step"]
            self.current = self.stages.setdefault(name, StageSoFar(name, kind, row["stage_steps"]))
            self.current.take(row)
        else:
            others = {"evaluation": self.evaluations, "validation": self.validations, "warning": self.warnings}
            others.get(kind, []).append(row)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended; an interrupted run has not."""
        return not (self.path / "state").is_dir()

    def is_over(self, stage: StageSoFar) -> bool:
        """Whether a stage has its weights, also where a stop rule ended it before its last step."""
        return (self.path / "checkpoints" / stage.name).exists()

    def left(self, stage: StageSoFar) -> float | None:
        """Seconds that the remaining steps of a stage will take, without its evaluation. A stage that has not begun is
        as fast as the latest of its kind; None if there is none."""
        if self.is_over(stage):
            return 0.0
        paces = [other.pace for other in self.stages.values() if other.kind == stage.kind and other.pace is not None]
        pace = stage.pace if stage.pace is not None else next(reversed(paces), None)
        return None if pace is None else pace * (stage.steps - stage.done)

    @property
    def total_left(self) -> float | None:
        """Seconds that the rest of the run will take: its steps, and its evaluations if they take as long as those so
        far. None where a kind of stage has not begun, so that nobody knows its speed."""
        lefts = [self.left(stage) for stage in self.stages.values()]
        estimates = [left for left in lefts if left is not None]
        if len(estimates) < len(lefts):
            return None
        evaluated = {row["stage"] for row in self.evaluations}
        seconds = [row["seconds"] for row in self.evaluations if "seconds" in row]
        tasks = len({row["task"] for row in self.evaluations})
        return sum(estimates) + (fmean(seconds) if seconds else 0.0) * tasks * len(self.stages.keys() - evaluated)

    @property
    def longest(self) -> float:
        """The longest time between two rows so far, about: of a step or an evaluation, in seconds."""
        rows = [*self.evaluations, *self.validations, *([self.current.last] if self.current else [])]
        return max((row.get("seconds", 0.0) for row in rows if row), default=0.0)

    @property
    def silence(self) -> float | None:
        """Seconds since the run wrote a row of metrics or an answer of an evaluation; None before the first row."""
        if not (metrics := self.path / "metrics.jsonl").is_file():
            return None
        times = [file.stat().st_mtime for file in (metrics, *(self.path / "eval").glob("*.jsonl"))]
        return max(0.0, time.time() - max(times))

    @property
    def rollouts(self) -> tuple[int, Path] | None:
        """Step and file of the newest answers that the run has saved; None if there are none. Answers of steps that the
        run has not taken are left over from before it was resumed."""
        files = {}
        for file in (self.path / "rollouts").glob("step-*.jsonl"):
            step = file.stem.removeprefix("step-")
            if step.isdigit() and int(step) <= self.step:
                files[int(step)] = file
        return max(files.items(), default=None)

    def branches(self) -> list[list[StageSoFar]]:
        """The RL stages with steps, as lines that begin at the model: one line for every such stage that no other one
        continues, with the stages before it."""
        begun = {name: stage for name, stage in self.stages.items() if stage.kind == "rl" and stage.done}
        lines = [[stage for stage in self._ancestry(name) if stage.name in begun] for name in begun]
        inner = {stage.name for line in lines for stage in line[:-1]}
        return [line for line in lines if line[-1].name not in inner]

    def _ancestry(self, name: str) -> list[StageSoFar]:
        line: list[StageSoFar] = []
        at: str | None = name
        while at in self.stages and self.stages[at] not in line:  # a recipe that nobody checked may have a circle
            line.insert(0, self.stages[at])
            at = self.stages[at].start
        return line


def answers(file: Path, first: int, count: int) -> tuple[list[Rollout], str]:
    """Some answers of a file that may be written at this moment: those before a line that cannot be read, and what is
    wrong with that line; nothing if all is well."""
    read: list[Rollout] = []
    try:
        for rollout in islice(read_jsonl(file), first, first + count):
            read.append(rollout)
    except (UserError, FileNotFoundError) as error:
        return read, str(error)
    return read, ""


def _recipe(path: Path) -> dict[str, Any]:
    """The tables of a run's recipe. They are not validated: a run of another version can be watched too."""
    file = path / "recipe.toml"
    if not path.is_dir():
        raise UserError("a run folder", f"no folder {path}", _newest(path))
    if not file.is_file():
        begins = not any(path.iterdir()) or (path / "environment.json").is_file()
        advice = "a run that begins writes it within seconds: give the command again" if begins else _newest(path)
        raise UserError("a run folder, with recipe.toml", f"none in {path}", advice)
    try:
        recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"a recipe in {file}", str(error), "give another run folder") from error
    stages = recipe.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise UserError(f"a table [stages] in {file}", "none", "give another run folder")
    return recipe


def _newest(path: Path, most: int = 3) -> str:
    """Advice about a path that is no run: the run that it lies in, or else the newest runs beside it and in runs/."""
    for folder in list(path.parents)[:2]:
        if (folder / "recipe.toml").is_file():
            return f"give the run that it lies in, {folder}"
    folders = {path.parent, path, Path("runs")}
    recipes = {file for folder in folders if folder.is_dir() for file in folder.glob("*/recipe.toml")}
    newest = sorted(recipes, key=lambda file: file.stat().st_mtime, reverse=True)[:most]
    names = ", ".join(str(file.parent) for file in newest)
    return f"the newest runs are {names}" if names else "give the --out of a run, such as runs/demo"


def _began(path: Path) -> float | None:
    """When the run began, in seconds since the epoch; None if its folder does not say it."""
    try:
        text = json.loads((path / "environment.json").read_text(encoding="utf-8"))["time"]
        return datetime.fromisoformat(text).timestamp()
    except (OSError, ValueError, KeyError, TypeError):
        return None
