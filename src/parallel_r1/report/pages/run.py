"""What a report reads of a run folder: whatever is there, finished or not, and notes on what is missing."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import Result
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import load_recipe


@dataclass
class Run:
    """A run as a report shows it.

    Attributes:
        path: its folder.
        metrics: the rows of metrics.jsonl.
        results: its evaluations, in order of the stages.
        recipe: what was run; None if this version cannot read it.
        settings: the text of recipe.toml.
        environment: the content of environment.json.
        unfinished: whether it is being written, or was interrupted.
        notes: one line for everything that could not be read.
    """

    path: Path
    metrics: list[dict[str, Any]]
    results: list[Result]
    recipe: Recipe | None
    settings: str
    environment: dict[str, Any]
    unfinished: bool
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name in the recipe; that of the folder if it cannot be read."""
        return self.recipe.name if self.recipe else self.path.resolve().name

    @cached_property
    def starts(self) -> dict[str, str]:
        """Stage -> the stage whose weights it continues; empty without a recipe."""
        return {name: self.recipe.start_of(name) for name in self.recipe.stages} if self.recipe else {}

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl of one kind."""
        return [row for row in self.metrics if row.get("kind") == kind]


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: there is no run.
    """
    if not path.is_dir():
        raise UserError("a run folder", f"no folder {path}", "give a folder that `parallel-r1 train` wrote")
    if not (path / "recipe.toml").is_file():
        raise UserError(
            "a run folder with recipe.toml", f"none in {path}", "give a folder that a training command wrote"
        )
    notes: list[str] = []
    folder = RunFolder(path)
    settings = (path / "recipe.toml").read_text(encoding="utf-8", errors="replace")
    recipe = _recipe(path, notes)
    order = ["base", *recipe.stages] if recipe else []
    results = _results(path, notes)
    results.sort(key=lambda result: order.index(result.stage) if result.stage in order else len(order))
    return Run(
        path,
        _metrics(folder, notes),
        results,
        recipe,
        settings,
        _environment(path, notes),
        (path / "state").is_dir() or not (path / "metrics.jsonl").is_file(),
        notes,
    )


def _metrics(folder: RunFolder, notes: list[str]) -> list[dict[str, Any]]:
    file = folder.path / "metrics.jsonl"
    try:
        rows = folder.metrics()
    except UserError as error:
        notes.append(f"metrics.jsonl cannot be read: {error}")
        return []
    if file.is_file() and (size := file.stat().st_size):
        with file.open("rb") as lines:
            lines.seek(size - 1)
            if lines.read() != b"\n":
                notes.append("the last line of metrics.jsonl is unfinished: left out")
    return rows


def _results(path: Path, notes: list[str]) -> list[Result]:
    """The evaluations; one of another format is left out, with a note."""
    results = []
    for file in sorted((path / "eval").rglob("*.json"), key=lambda file: (file.stat().st_mtime, file.name)):
        try:
            results.append(Result(**json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            notes.append(f"{file.relative_to(path)} is no evaluation that this version reads: {error}")
    return results


def _recipe(path: Path, notes: list[str]) -> Recipe | None:
    try:
        return load_recipe(path / "recipe.toml")
    except (UserError, tomllib.TOMLDecodeError) as error:
        notes.append(f"recipe.toml is none that this version reads: {error}")
        return None


def _environment(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "environment.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        notes.append(f"environment.json cannot be read: {error}")
        return {}
