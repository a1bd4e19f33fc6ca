"""The files that a recipe reads: sets of problems and answers to imitate, and the user's own Python files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallel_r1.files import fingerprint
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.base import TASKS
from parallel_r1.tasks.prompts import WITHOUT_FORKS
from parallel_r1.tasks.public_sets import open_source
from parallel_r1.training.settings import SFT


def data_files(recipe: Recipe) -> list[Path]:
    """The files of problems, of answers and of schemas that a recipe reads, without data sets of the hub.

    Raises:
        Missing: one does not exist.
    """
    formats = [recipe.model.format, *(stage.data.format for stage in recipe.stages.values() if isinstance(stage, SFT))]
    tasks, files = list(recipe.evaluation.tasks), [Path(name) for name in formats if name and name.endswith(".toml")]
    for stage in recipe.stages.values():
        tasks += [stage.stop.task] if stage.stop is not None and stage.stop.task else []
        if not isinstance(stage, SFT):
            tasks.append(stage.task)
            continue
        tasks += [*stage.data.tasks, *stage.data.rehearse]
        files += [Path(stage.data.file)] if stage.data.file else []
    return list(dict.fromkeys([*files, *(file for task in tasks for file in task_files(task))]))


def task_files(task: str) -> list[Path]:
    """The files of problems that a task reads.

    Raises:
        Missing: one does not exist.
    """
    return [] if task in TASKS else open_source(task.removesuffix(WITHOUT_FORKS)).files


def plugin_files(imports: Iterable[str]) -> list[Path]:
    """The Python files among the imports of a recipe."""
    return [Path(name) for name in imports if name.endswith(".py")]


def contents(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Path -> size in bytes and digest of some files."""
    return {str(file): {"bytes": file.stat().st_size, "sha256": fingerprint(file)} for file in files}
