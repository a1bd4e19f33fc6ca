"""What a run found, for people: one table, and one picture of the run against its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from parallel_r1.evaluation.measure import Result, compare

HEADER = ("stage", "mean@k %", "95 % interval", "pass@k %", "parallel %", "well-formed %", "critical path", "tokens")


@dataclass(frozen=True)
class Sheet:
    """A table as text: the first column names the row, the others hold figures."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """Under its title as a heading."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(value: float | None) -> str:
    """A share as text; - if there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def sheet(results: Sequence[Result], task: str) -> Sheet:
    """The table of one task, a row for every stage."""
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
    return Sheet(title, HEADER, rows)


def comparisons(results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The paired differences that a recipe asks for, one sentence each."""
    found = {(result.stage, result.task): result for result in results}
    lines = []
    for task in tasks(results):
        for ours, theirs in pairs:
            difference = compare(found[ours, task], found[theirs, task])
            mean, low, high, relative = (100 * value for value in astuple(difference))
            lines.append(
                f"{task}: {ours} - {theirs} = {mean:+.1f} points [{low:+.1f}, {high:+.1f}], {relative:+.1f} % relative"
            )
    return lines


def tasks(results: Sequence[Result]) -> list[str]:
    """The tasks of some results, in order."""
    return list(dict.fromkeys(result.task for result in results))


def chosen(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """Which step's weights every stage with a stop rule handed over, one sentence each."""
    last = {row["stage"]: row for row in metrics if row["kind"] == "validation"}
    return [
        f"{stage}: the weights are those of step {row['best_step']}, the best on {row['problems']} validation problems "
        f"of {row['task']}; it ended after step {row['stage_step']} of {row['stage_steps']}"
        for stage, row in last.items()
    ]


def markdown(results: Sequence[Result], pairs: Sequence[tuple[str, str]], more: Sequence[str] = ()) -> str:
    """All tables and comparisons of a run, and `more` to know about it."""
    parts = [sheet(results, task).markdown() for task in tasks(results)]
    differences = "".join(f"* {line}\n" for line in comparisons(results, pairs))
    if differences:
        parts.append(f"## Paired by problem, with 95 % intervals\n\n{differences}")
    if more:
        parts.append("## Chosen by validation\n\n" + "".join(f"* {line}\n" for line in more))
    return "\n".join(parts)
