"""Results as tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallel_r1.evaluation.measure import Result
from parallel_r1.table import Table

HEADER = ("stage", "mean@k %", "95 % interval", "pass@k %", "parallel %", "well-formed %", "critical path", "tokens")


def percent(value: float | None) -> str:
    """A share as percent with one decimal; - for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def results_table(results: Sequence[Result], task: str) -> Table:
    """The results on one task, one row per stage."""
    mine = [result for result in results if result.task == task]
    rows = [
        (
            result.stage,
            percent(result.mean),
            f"{percent(result.low)} .. {percent(result.high)}",
            percent(result.passed),
            percent(result.parallel_ratio),
            percent(result.well_formed),
            f"{result.critical_path:.1f}",
            f"{result.total:.1f}",
        )
        for result in mine
    ]
    title = f"{task}: {mine[0].problems} held-out problems, k = {mine[0].samples} answers to each"
    return Table(HEADER, rows, title)


def comparisons(results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence per task and pair of stages: the paired difference in percentage points, with its interval."""
    by_name = {(result.stage, result.task): result for result in results}
    lines = []
    for task in tasks(results):
        for ours, theirs in pairs:
            difference = by_name[ours, task].compare(by_name[theirs, task])
            mean, low, high = (f"{100 * value:+.1f}" for value in (difference.mean, difference.low, difference.high))
            relative = "-" if difference.relative is None else f"{100 * difference.relative:+.1f} %"
            lines.append(f"{task}: {ours} - {theirs} = {mean} points [{low}, {high}], {relative} relative")
    return lines


def tasks(results: Sequence[Result]) -> list[str]:
    """Names of the tasks, in order of first appearance."""
    return list(dict.fromkeys(result.task for result in results))


def chosen(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per stage with a stop rule: the step whose weights it handed over."""
    last = {row["stage"]: row for row in metrics if row["kind"] == "validation"}
    return [
        f"{stage}: the weights are those of step {row['best_step']}, the best on {row['problems']} validation problems "
        f"of {row['task']}; it ended after step {row['stage_step']} of {row['stage_steps']}"
        for stage, row in last.items()
    ]


def markdown(results: Sequence[Result], pairs: Sequence[tuple[str, str]], validation: Sequence[str] = ()) -> str:
    """All tables and comparisons of a run.

    Args:
        pairs: stages to compare, as (ours, theirs).
        validation: sentences of `chosen`.
    """
    parts = [results_table(results, task).markdown() for task in tasks(results)]
    differences = "".join(f"* {line}\n" for line in comparisons(results, pairs))
    if differences:
        parts.append(f"## Paired by problem, with 95 % intervals\n\n{differences}")
    if validation:
        parts.append("## Chosen by validation\n\n" + "".join(f"* {line}\n" for line in validation))
    return "\n".join(parts)
