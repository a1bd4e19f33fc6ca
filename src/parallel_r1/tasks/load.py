"""How a task is found by its name."""

from __future__ import annotations

from pathlib import Path

from parallel_r1.errors import UserError
from parallel_r1.tasks import countdown, parts  # noqa: F401  they register their tasks
from parallel_r1.tasks.base import TASKS, Task, check_task, problem_stream
from parallel_r1.tasks.grading.extract import Find
from parallel_r1.tasks.math import load_mathematics


def load_task(name: str | Task, data_dir: Path | None = None, find: Find = "strict") -> Task:
    """Get a task by its name. Its data are read when problems are asked for.

    Args:
        name: of a registered task or a public set of problems, `jsonl:PATH`, `parquet:PATH` or `hub:ID`; the last four
            with `@plain` behind them for prompts that do not mention forks. A task object is returned as it is.
        data_dir: a folder with the files of the public sets. Default: the environment variable PARALLEL_R1_DATA.
        find: how the final answers of a public set, a file or a data set are located; `lenient` for other models.

    Raises:
        UserError: no such task, no such file, an object that is no task, or math-verify is needed and not installed.
    """
    if not isinstance(name, str):
        return check_task(name)
    if name not in TASKS:
        return load_mathematics(name, data_dir, find)
    return TASKS[name]()


def example_of(name: str) -> str | None:
    """The first test problem of a task on one line; None if the task or its problems are not there."""
    try:
        problem = next(problem_stream(load_task(name), "test", 0), None)
    except UserError:
        return None
    return " ".join(problem.prompt.split()) if problem else None
