"""The results of a study: a table of its rows, and how far every row is from the reference row, with an interval and a
p-value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from parallel_r1.evaluation.measure import Result
from parallel_r1.evaluation.statistics import holm, interval, sign_flip_test
from parallel_r1.evaluation.tables import percent, points, results_table
from parallel_r1.files import write_json, write_text
from parallel_r1.runs.study.rows import Cell
from parallel_r1.table import Table


@dataclass(frozen=True)
class Contrast:
    """The difference between a row and the reference row, paired by problem and seed.

    Attributes:
        seeds: the seeds that both rows have.
        mean: mean difference, with its 95 % interval `low`..`high` over seeds and problems.
        p_value: of `mean`, from a paired sign-flip test over problems with fixed seeds.
        corrected: `p_value` corrected with Holm's method for all rows of the same part.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float
    high: float
    p_value: float
    corrected: float


@dataclass(frozen=True)
class Finding:
    """The results of a row under a kind of budget on a task, over all seeds that have a result.

    Attributes:
        results: seed -> result.
        measured: number of independent results; 1 for a row without training, whose result is the same for all seeds.
        updates: RL updates.
        sampled: tokens sampled in all RL updates, averaged over seeds.
        contrast: with the reference row; None for that row itself, or if the two have no seed in common.
    """

    row: str
    part: str
    budget: str
    task: str
    results: dict[int, Result]
    measured: int
    updates: int
    sampled: float
    contrast: Contrast | None = None

    @cached_property
    def pooled(self) -> Result:
        """One result for all seeds: means over seeds, and an interval over seeds and problems."""
        results = list(self.results.values())
        names = list(results[0].by_problem)
        values = self.shares(self.results, names)
        low, high = interval(values)
        formed = [result.well_formed for result in results if result.well_formed is not None]
        figures = ("mean", "passed", "parallel_ratio", "forks", "critical_path", "total")
        means: dict[str, Any] = {figure: fmean(getattr(result, figure) for result in results) for figure in figures}
        return Result(
            stage=self.row,
            task=self.task,
            problems=results[0].problems,
            samples=results[0].samples,
            low=low,
            high=high,
            well_formed=fmean(formed) if formed else None,
            by_problem=dict(zip(names, values.mean(axis=0).tolist(), strict=True)),
            **means,
        )

    def shares(self, seeds: Iterable[int], problems: Sequence[str]) -> Float[np.ndarray, "seeds problems"]:
        """The fraction of correct answers for every seed and problem."""
        return np.array([[self.results[seed].by_problem[name] for name in problems] for seed in seeds])

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object, with the pooled result."""
        return {**asdict(self), "pooled": self.pooled.to_json()}


def write(cells: Sequence[Cell], folder: Path, against: str) -> list[Table]:
    """Write study.json and study.md from the results so far. Returns the tables of study.md."""
    grids, forking = collect(cells, folder, against), habits(cells, folder)
    tables = [table for grid in grids for table in sheets(grid, against)]
    tables += [habit_sheet(forking)] if forking else []
    findings = [finding.to_json() for grid in grids for finding in grid]
    write_json(folder / "study.json", {"findings": findings, "habits": forking, "runs": runs(cells)})
    write_text(folder / "study.md", "\n".join(table.markdown() for table in tables))
    return tables


def collect(cells: Sequence[Cell], folder: Path, against: str) -> list[list[Finding]]:
    """The findings for every kind of budget and task, of the rows that have a result."""
    measured: dict[tuple[str, str], dict[str, list[tuple[Cell, Result]]]] = {}
    for cell in cells:
        for measurement in cell.measurements:
            rows = measured.setdefault((cell.budget, measurement.task), {})
            result = measurement.result(folder)
            if result is not None:
                rows.setdefault(cell.row, []).append((cell, result))
    order = list(dict.fromkeys(cell.row for cell in cells))
    tables = []
    for (budget, task), rows in measured.items():
        table = [_finding(rows[row], budget, task, folder) for row in sorted(rows, key=order.index)]
        tables += [compared(table, against)] if table else []
    return tables


def _finding(measured: Sequence[tuple[Cell, Result]], budget: str, task: str, folder: Path) -> Finding:
    """The finding of a row. Its seeds are sorted, so that the bootstrap does not depend on the order of the cells."""
    cell, _ = measured[0]
    return Finding(
        cell.row,
        cell.part,
        budget,
        task,
        dict(sorted((cell.seed, result) for cell, result in measured)),
        len(measured) if cell.trainings else 1,
        cell.updates,
        fmean(sampled(cell, folder) for cell, _ in measured),
    )


def sampled(cell: Cell, folder: Path) -> int:
    """Tokens sampled to train a row."""
    return sum(row.get("sampled", 0) for training in cell.trainings for row in training.run(folder).metrics())


def compared(table: Sequence[Finding], against: str) -> list[Finding]:
    """The findings, with their contrasts with the reference row `against`."""
    reference = next((finding for finding in table if finding.row == against), None)
    contrasts = {
        finding.row: contrast(finding, reference)
        for finding in table
        if reference is not None
        and finding is not reference
        and not finding.results.keys().isdisjoint(reference.results)
    }
    corrected: dict[str, float] = {}
    for part in {finding.part for finding in table}:
        names = [finding.row for finding in table if finding.part == part and finding.row in contrasts]
        corrected |= zip(names, holm([contrasts[name].p_value for name in names]), strict=True)
    return [
        replace(finding, contrast=replace(contrasts[finding.row], corrected=corrected[finding.row]))
        if finding.row in contrasts
        else finding
        for finding in table
    ]


def contrast(row: Finding, reference: Finding) -> Contrast:
    """The contrast of a row with the reference row; `corrected` is `p_value` still."""
    seeds = tuple(seed for seed in row.results if seed in reference.results)
    problems = list(row.results[seeds[0]].by_problem)
    differences = row.shares(seeds, problems) - reference.shares(seeds, problems)
    p_value = sign_flip_test(differences.mean(axis=0))
    return Contrast(seeds, float(differences.mean()), *interval(differences), p_value, p_value)


def sheets(table: Sequence[Finding], against: str) -> list[Table]:
    """Two tables to print: the results of the rows; their costs and differences from the reference row."""
    budget, task = table[0].budget, table[0].task
    reached = results_table([finding.pooled for finding in table], task)
    header = ("row", "seeds", "RL updates", "sampled M", "points more", "95 % interval", "p", "p (Holm)")
    return [
        replace(reached, title=f"{budget}, {reached.title}", header=("row", *reached.header[1:])),
        Table(header, [_cost(finding) for finding in table], f"{budget}, {task}: cost, and difference from {against}"),
    ]


def _cost(finding: Finding) -> tuple[str, ...]:
    cost = finding.row, str(finding.measured), str(finding.updates), f"{finding.sampled / 1e6:.2f}"
    difference = finding.contrast
    if difference is None:
        return *cost, "-", "-", "-", "-"
    mean, low, high = map(points, (difference.mean, difference.low, difference.high))
    return *cost, mean, f"{low} .. {high}", f"{difference.p_value:.4f}", f"{difference.corrected:.4f}"


def habits(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """How the rows with forks fork at the first and at the last saved step of their last stage, averaged over seeds."""
    steps: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for cell in cells:
        files = [training.run(folder).path / "habits.json" for training in cell.trainings[-1:]]
        for file in filter(Path.is_file, files):
            steps.setdefault((cell.row, cell.budget), []).append(json.loads(file.read_text(encoding="utf-8")))
    return [
        {"row": row, "budget": budget, "seeds": len(runs), "early": _average(runs, 0), "late": _average(runs, -1)}
        for (row, budget), runs in steps.items()
        if any(step["parallel_ratio"] for run in runs for step in run)
    ]


def _average(runs: Sequence[Sequence[dict[str, Any]]], at: int) -> dict[str, float | None]:
    """The figures at one saved step (index `at`), averaged over runs; None for a figure that no run has."""
    figures = {name: [run[at][name] for run in runs if run[at][name] is not None] for name in runs[0][at]}
    return {name: fmean(values) if values else None for name, values in figures.items()}


def habit_sheet(habits: Sequence[dict[str, Any]]) -> Table:
    """The table of `habits` to print."""
    names = {"parallel_ratio": "parallel %", "position": "fork at %", "self_bleu": "self-BLEU %"}
    rows = [
        (
            row["row"],
            row["budget"],
            *(f"{percent(row['early'][name])} -> {percent(row['late'][name])}" for name in names),
            str(row["seeds"]),
        )
        for row in habits
    ]
    title = "How answers fork, at the first and at the last step of the last stage"
    return Table(("row", "budget", *names.values(), "seeds"), rows, title)


def runs(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The run folders of every cell, relative to the folder of the study."""
    return [
        {
            "row": cell.row,
            "budget": cell.budget,
            "seed": cell.seed,
            "stages": [str(training.run(Path()).path) for training in cell.trainings],
        }
        for cell in cells
    ]
