"""Suites: tasks that are evaluated together, with the number of answers to every problem of each."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parallel_r1.errors import UserError, nearest
from parallel_r1.tasks.datasets.rows import numbered_rows
from parallel_r1.tasks.public_sets import ALL_TEST


@dataclass(frozen=True)
class Suite:
    """Tasks that are evaluated together.

    Attributes:
        name: of the suite.
        samples: task -> answers to every problem.
    """

    name: str
    samples: Mapping[str, int]


SUITES = {
    suite.name: suite
    for suite in (
        # The benchmarks of the Parallel-R1 paper with its numbers of answers; temperature 1, top-p 1, 3,000 tokens.
        Suite("paper", {"aime25": 16, "aime24": 16, "amc23": 16, "math300": 1}),
        # Public sets with a licence that are newer than the training data of most models.
        Suite("fresh", {"aime26": 16, "hmmt26": 16, "arxivmath26": 16}),
    )
}


def load_suite(name: str) -> Suite:
    """A suite by its name, or from a file.

    Args:
        name: "paper", "fresh"; a file of problems (.jsonl, .parquet), with 16 answers to every problem of its test
            split, or to all of its problems if it has no column `split`; or a .toml file with a table `[samples]`,
            task = number of answers to every problem.

    Raises:
        UserError: no such suite, no such file, or a file of another form.
    """
    if name in SUITES:
        return SUITES[name]
    path = Path(name)
    if path.suffix not in (".toml", ".jsonl", ".parquet"):
        names = f"{', '.join(SUITES)}, a .toml file of a suite, or a .jsonl or .parquet file of problems"
        raise UserError(f"a suite: {names}", f"'{name}'", nearest(name, SUITES))
    if not path.is_file():
        raise UserError("a file of a suite or of problems", f"no file {name}", "check the path")
    if path.suffix != ".toml":
        return Suite(path.stem, {_task(path, name): 16})
    return Suite(path.stem, _samples(path))


def _task(path: Path, name: str) -> str:
    """The task of a file of problems: its test split if it has a column `split`, else all of it."""
    splits = any(row.get("split") is not None for _, row in numbered_rows(path))
    return f"{path.suffix[1:]}:{name}" if splits else f"{path.suffix[1:]}:{name}{ALL_TEST}"


def _samples(path: Path) -> dict[str, int]:
    """The table of a suite in a TOML file."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("a suite in TOML", f"{path}: {error}", "correct it") from error
    form = 'a table [samples] alone, such as aime26 = 16 and "jsonl:mine.jsonl" = 4'
    samples = tables.get("samples")
    if list(tables) != ["samples"] or not isinstance(samples, dict) or not samples:
        raise UserError(form, f"{', '.join(tables) or 'nothing'} in {path}", "write one number of answers per task")
    for task, number in samples.items():
        if type(number) is not int or number < 1:
            raise UserError(f"a whole number above 0 for {task} in {path}", repr(number), "correct it")
    return samples
