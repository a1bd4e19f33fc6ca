"""What a study found: the table of its rows, how far each is from the row that all are compared with, and whether that
is more than chance."""

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
from parallel_r1.evaluation.tables import percent, results_table
from parallel_r1.files import write_json, write_text
from parallel_r1.runs.study.rows import Cell
from parallel_r1.table import Table


@dataclass(frozen=True)
class Contrast:
    """How far a row is from another, paired by problem and by seed.

    Attributes:
        seeds: those that both have.
        mean: of the differences, with its 95 % interval `low`..`high` over seeds and problems.
        p_value: of `mean`, by a paired sign-flip test over problems, with the seeds held fixed.
        corrected: `p_value` corrected by Holm's method for all rows of its part of the table.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float
    high: float
    p_value: float
    corrected: float


@dataclass(frozen=True)
class Finding:
    """A row under a kind of budget on a task, over all seeds that are there.

    Attributes:
        results: by seed.
        measured: how many results these are; one for all seeds where nothing was trained.
        updates: RL updates.
        sampled: tokens that the policy drew in all RL updates, on average over seeds.
        contrast: with the row that all are compared with; None for that row, or where no seed is there for both.
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
        """All seeds as one result: means over seeds, and an interval over seeds and problems."""
        every = list(self.results.values())
        names = list(every[0].by_problem)
        values = self.shares(self.results, names)
        low, high = interval(values)
        formed = [each.well_formed for each in every if each.well_formed is not None]
        figures = ("mean", "passed", "parallel_ratio", "forks", "critical_path", "total")
        means: dict[str, Any] = {figure: fmean(getattr(each, figure) for each in every) for figure in figures}
        return replace(
            every[0],
            stage=self.row,
            low=low,
            high=high,
            well_formed=fmean(formed) if formed else None,
            by_problem=dict(zip(names, values.mean(axis=0).tolist(), strict=True)),
            **means,
        )

    def shares(self, seeds: Iterable[int], problems: Sequence[str]) -> Float[np.ndarray, "seeds problems"]:
        """The share of correct answers for every seed and problem."""
        return np.array([[self.results[seed].by_problem[name] for name in problems] for seed in seeds])

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return {**asdict(self), "pooled": self.pooled.to_json()}


def write(cells: Sequence[Cell], folder: Path, against: str) -> list[Table]:
    """Write study.json and study.md, of all that there is so far; the tables as text."""
    tables, thinking = collect(cells, folder, against), habits(cells, folder)
    shown = [each for table in tables for each in sheets(table, against)]
    shown += [habit_sheet(thinking)] if thinking else []
    findings = [finding.to_json() for table in tables for finding in table]
    write_json(folder / "study.json", {"findings": findings, "habits": thinking, "runs": runs(cells)})
    write_text(folder / "study.md", "\n".join(each.markdown() for each in shown))
    return shown


def collect(cells: Sequence[Cell], folder: Path, against: str) -> list[list[Finding]]:
    """A table for every kind of budget and task, with the rows of which something has been measured."""
    found: dict[tuple[str, str], dict[str, list[tuple[Cell, Result]]]] = {}
    for cell in cells:
        for each in cell.measurements:
            rows = found.setdefault((cell.budget, each.task), {})
            result = each.result(folder)
            if result is not None:
                rows.setdefault(cell.row, []).append((cell, result))
    order = list(dict.fromkeys(cell.row for cell in cells))
    tables = []
    for (budget, task), rows in found.items():
        table = [_finding(rows[row], budget, task, folder) for row in sorted(rows, key=order.index)]
        tables += [compared(table, against)] if table else []
    return tables


def _finding(measured: Sequence[tuple[Cell, Result]], budget: str, task: str, folder: Path) -> Finding:
    """A row with its seeds in order, so that the bootstrap says the same whichever was asked for first."""
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
    """Tokens that were drawn to train a row."""
    return sum(row.get("sampled", 0) for each in cell.trainings for row in each.run(folder).metrics())


def compared(table: Sequence[Finding], against: str) -> list[Finding]:
    """A table with the contrast of every row with one of them."""
    theirs = next((finding for finding in table if finding.row == against), None)
    found = {
        ours.row: contrast(ours, theirs)
        for ours in table
        if theirs is not None and ours is not theirs and not ours.results.keys().isdisjoint(theirs.results)
    }
    corrected: dict[str, float] = {}
    for part in {ours.part for ours in table}:
        names = [ours.row for ours in table if ours.part == part and ours.row in found]
        corrected |= zip(names, holm([found[name].p_value for name in names]), strict=True)
    return [
        replace(ours, contrast=replace(found[ours.row], corrected=corrected[ours.row])) if ours.row in found else ours
        for ours in table
    ]


def contrast(ours: Finding, theirs: Finding) -> Contrast:
    """One row with another, not corrected for others."""
    seeds = tuple(seed for seed in ours.results if seed in theirs.results)
    problems = list(ours.results[seeds[0]].by_problem)
    differences = ours.shares(seeds, problems) - theirs.shares(seeds, problems)
    p_value = sign_flip_test(differences.mean(axis=0))
    return Contrast(seeds, float(differences.mean()), *interval(differences), p_value, p_value)


def sheets(table: Sequence[Finding], against: str) -> list[Table]:
    """A table as text: what each row reached; what it cost, and how far it is from the row of `against`."""
    budget, task = table[0].budget, table[0].task
    reached = results_table([finding.pooled for finding in table], task)
    header = ("row", "seeds", "RL updates", "sampled M", "points more", "95 % interval", "p", "p (Holm)")
    return [
        replace(reached, title=f"{budget}, {reached.title}", header=("row", *reached.header[1:])),
        Table(header, [_cost(finding) for finding in table], f"{budget}, {task}: cost, and difference from {against}"),
    ]


def _cost(finding: Finding) -> tuple[str, ...]:
    cost = finding.row, str(finding.measured), str(finding.updates), f"{finding.sampled / 1e6:.2f}"
    found = finding.contrast
    if found is None:
        return *cost, "-", "-", "-", "-"
    mean, low, high = (f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high))
    return *cost, mean, f"{low} .. {high}", f"{found.p_value:.4f}", f"{found.corrected:.4f}"


def habits(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """How rows with forks think at the first and at the last step of their last stage, on average over seeds."""
    found: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for cell in cells:
        files = [each.run(folder).path / "habits.json" for each in cell.trainings[-1:]]
        for file in filter(Path.is_file, files):
            found.setdefault((cell.row, cell.budget), []).append(json.loads(file.read_text(encoding="utf-8")))
    return [
        {"row": row, "budget": budget, "seeds": len(runs), "early": _average(runs, 0), "late": _average(runs, -1)}
        for (row, budget), runs in found.items()
        if any(step["parallel_ratio"] for run in runs for step in run)
    ]


def _average(runs: Sequence[Sequence[dict[str, Any]]], at: int) -> dict[str, float | None]:
    """One of the saved steps of some runs, on average; None where none of them has a figure."""
    figures = {name: [run[at][name] for run in runs if run[at][name] is not None] for name in runs[0][at]}
    return {name: fmean(values) if values else None for name, values in figures.items()}


def habit_sheet(found: Sequence[dict[str, Any]]) -> Table:
    """Them as text."""
    names = {"parallel_ratio": "parallel %", "position": "fork at %", "self_bleu": "self-BLEU %"}
    rows = [
        (
            each["row"],
            each["budget"],
            *(f"{percent(each['early'][name])} -> {percent(each['late'][name])}" for name in names),
            str(each["seeds"]),
        )
        for each in found
    ]
    title = "How answers fork, at the first and at the last step of the last stage"
    return Table(("row", "budget", *names.values(), "seeds"), rows, title)


def runs(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Which run folders, within that of the study, each cell of the table goes through."""
    return [
        {
            "row": cell.row,
            "budget": cell.budget,
            "seed": cell.seed,
            "stages": [str(each.run(Path()).path) for each in cell.trainings],
        }
        for cell in cells
    ]
