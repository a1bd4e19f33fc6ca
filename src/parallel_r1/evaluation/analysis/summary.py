"""An analysis by stage, for people and as JSON, and its tables as parquet."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from parallel_r1.errors import need
from parallel_r1.evaluation.analysis.columns import Columns
from parallel_r1.evaluation.analysis.run import Analysis
from parallel_r1.evaluation.analysis.steps import sums
from parallel_r1.files import written
from parallel_r1.table import Table

SHAPE = {
    **{"right %": "accuracy", "fork %": "parallel_ratio", "forks": "forks", "fork at %": "position_mean"},
    **{"paths": "paths_mean", "tokens a path": "length_mean", "longest /mean": "balance_mean"},
}
USE = {
    **{"diverse %": "diversity_mean", "agree %": "agreement_mean", "verify %": "verification"},
    **{"explore %": "exploration", "right\npaths %": "paths_right", "un-decided %": "paths_undecided"},
    **{"rescued %": "rescued", "spoiled %": "spoiled", "cancel %": "cancelled_groups"},
}
"""Heading of a column -> measure. Those with a % are shares."""


def by_stage(analysis: Analysis) -> list[dict[str, Any]]:
    """The measures of all answers of every stage, with its name and number of saved steps."""
    rows = []
    for stage in analysis.stages:
        answers, forks = (_where(table, stage) for table in (analysis.answers, analysis.forks))
        rows.append({"stage": stage, "steps": len(np.unique(answers["step"])), **sums(answers, forks)})
    return rows


def _where(table: Columns, stage: str) -> Columns:
    return {name: column[table["stage"] == stage] for name, column in table.items()}


def tables(analysis: Analysis) -> list[Table]:
    """Two narrow tables with a row for every stage: how answers fork, and what forks are used for."""
    stages = by_stage(analysis)
    counts = [(row["stage"] or "-", f"{row['steps']:,}", f"{row['answers']:,}") for row in stages]
    shape = [
        (*count, *(_cell(name, row[key]) for name, key in SHAPE.items()))
        for count, row in zip(counts, stages, strict=True)
    ]
    use = [(row["stage"] or "-", *(_cell(name, row[key]) for name, key in USE.items())) for row in stages]
    return [
        Table(("stage", "steps", "answers", *SHAPE), shape, "How answers fork"),
        Table(("stage", *USE), use, "What forks are used for"),
    ]


def _cell(name: str, value: float) -> str:
    if isnan(value):
        return "-"
    return f"{100 * value:.1f}" if name.endswith("%") else f"{value:.2f}"


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The measures by stage and by step, alarms and notes, as plain data; a measure that is not there is None."""
    steps = [dict(zip(analysis.steps, row, strict=True)) for row in zip(*_lists(analysis.steps), strict=True)]
    return {
        "path": str(analysis.path),
        "stages": [_plain(row) for row in by_stage(analysis)],
        "steps": [_plain(row) for row in steps],
        "alarms": analysis.alarms,
        "notes": analysis.notes,
    }


def _lists(table: Columns) -> list[list[Any]]:
    return [column.tolist() for column in table.values()]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}


def need_parquet() -> None:
    """Refuse to write parquet without the package that does it.

    Raises:
        UserError: pyarrow is not installed.
    """
    need("pyarrow", "which writes parquet", "analysis")


def write_parquet(analysis: Analysis, folder: Path) -> list[Path]:
    """Write answers.parquet, forks.parquet and steps.parquet. A measure that a row does not have is null.

    Raises:
        UserError: pyarrow is not installed, or a file cannot be written.
    """
    need_parquet()
    import pyarrow
    from pyarrow import parquet

    files = []
    for name in ("answers", "forks", "steps"):
        table: Columns = getattr(analysis, name)
        arrays = {
            key: pyarrow.array(column, pyarrow.string() if column.dtype == object else None, from_pandas=True)
            for key, column in table.items()
        }
        files.append(folder / f"{name}.parquet")
        with written(files[-1]):
            parquet.write_table(pyarrow.table(arrays), files[-1])
    return files
