"""Results as tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from parallel_r1.evaluation.compare import Comparison, Pair
from parallel_r1.evaluation.folder import Measured
from parallel_r1.evaluation.frontier import Frontier, Ratio, Speed
from parallel_r1.evaluation.measure import Result
from parallel_r1.evaluation.statistics import RESAMPLES
from parallel_r1.table import Table

HEADER = ("stage", "mean@k %", "95 % interval", "pass@k %", "parallel %", "well-formed %", "critical path", "tokens")


def percent(value: float | None) -> str:
    """A share as percent with one decimal; - for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def p_text(value: float) -> str:
    """A p-value with four decimals; the smallest that so many resamples can show is a bound."""
    return f"<{value:.4f}" if value < 2 / (RESAMPLES + 1) else f"{value:.4f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign and one decimal."""
    return f"{100 * difference:+.1f}"


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


def reasons_table(results: Sequence[Result], task: str) -> Table | None:
    """Why answers to a task are wrong, one row per stage; None if the evaluations did not keep it."""
    mine = [result for result in results if result.task == task and result.silent is not None]
    keys = ("majority", "cut", "silent", "missed", "out_of_time")
    names = {key: name for key, name, _ in FIGURES}
    rows = [(result.stage, *(percent(getattr(result, key)) for key in keys)) for result in mine]
    return Table(("stage", *(names[key].format(k="k") for key in keys)), rows) if rows else None


FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("mean", "mean@{k} %", percent),
    ("majority", "maj@{k} %", percent),
    ("parallel_ratio", "answers that fork %", percent),
    ("well_formed", "forks well-formed %", percent),
    ("forks", "forks", "{:.2f}".format),
    ("paths", "paths", "{:.2f}".format),
    ("critical_path", "critical path", "{:.1f}".format),
    ("total", "tokens", "{:.1f}".format),
    ("cut", "cut by the budget %", percent),
    ("silent", "no final answer %", percent),
    ("missed", "right, not read %", percent),
    ("out_of_time", "verifier gave up %", percent),
)
"""Name of a figure, its name in tables, and how it is written."""
FEW = 15
"""Problems below which bootstrap intervals are rough."""
ABREAST = 3
"""Tasks beside one another in a table of 80 columns."""


def figure_tables(results: Sequence[Result]) -> list[Table]:
    """All figures of one model with their 95 % intervals, tasks side by side."""
    tables = []
    for start in range(0, len(results), ABREAST):
        part = results[start : start + ABREAST]
        most = max(result.samples for result in part)
        rows = [(name.format(k="k"), *(_cell(result, key, form) for result in part)) for key, name, form in FIGURES[:1]]
        rows += [
            (f"pass@{k} %", *(_cell(result, f"pass@{k}", percent) for result in part)) for k in _powers(most) if k > 1
        ]
        rows += [
            (name.format(k="k"), *(_cell(result, key, form) for result in part)) for key, name, form in FIGURES[1:]
        ]
        names = [f"{Path(result.task).name}\n{result.problems:,} problems, k = {result.samples}" for result in part]
        tables.append(Table(("[95 % intervals]", *names), rows))
    return tables


def _powers(most: int) -> list[int]:
    """1, 2, 4, 8, .. and the largest k itself."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


def _cell(result: Result, key: str, form: Callable[[float], str]) -> str:
    """A figure with its interval; - where there is none."""
    if key not in result.intervals:
        return "-"
    value = result.pass_at(int(key[5:])) if key.startswith("pass@") else getattr(result, key)
    low, high = result.intervals[key]
    return f"{form(value)} [{form(low)}, {form(high)}]"


def budget_table(measured: Sequence[Measured]) -> Table:
    """One task under several budgets: accuracy against what it costs."""
    rows = [
        (
            str(one.budget),
            _cell(one.result, "mean", percent),
            f"{one.result.critical_path:.1f}",
            f"{one.result.total:.1f}",
            seconds(fmean(one.alone) if one.alone else None),
            seconds(one.loaded),
        )
        for one in measured
    ]
    first = measured[0].result
    title = f"{first.task}: {first.problems:,} problems, k = {first.samples}, by the budget of the critical path"
    return Table(("budget", "mean@k %", "critical path", "tokens", "s alone", "s loaded"), rows, title)


def frontier_table(task: str, frontiers: Sequence[Frontier]) -> Table:
    """Accuracy and costs of several models under all of their budgets."""
    rows = [
        (
            one.name,
            "-" if point.budget is None else str(point.budget),
            f"{percent(point.accuracy)} [{percent(point.low)}, {percent(point.high)}]",
            f"{point.critical_path:.1f}",
            f"{point.total:.1f}",
            seconds(point.alone),
            seconds(point.loaded),
        )
        for one in frontiers
        for point in one.points
    ]
    header = ("name", "budget", "mean@k %", "critical path", "tokens", "s alone", "s loaded")
    return Table(header, rows, f"{task}: accuracy against cost, {len(frontiers[0].problems):,} problems")


SPEEDS = (
    ("parallel: total / critical-path tokens", "compression"),
    ("critical path: sequential / parallel", "latency"),
    ("seconds alone: sequential / parallel", "alone"),
    ("seconds loaded: sequential / parallel", "loaded"),
    ("total tokens: parallel / sequential", "tokens"),
)
"""The names of the four speed numbers, of which wall-clock is two, in tables."""


def speed_tables(task: str, speeds: Sequence[Speed]) -> list[Table]:
    """The four speed numbers of every model that forks against every model that does not; see docs/evaluation.md."""
    return [
        Table(
            ("", "[95 % interval]"),
            [
                ("at a mean@k % of", percent(one.accuracy)),
                *((name, _ratio(getattr(one, key))) for name, key in SPEEDS),
            ],
            f"{task}: {one.parallel} against {one.sequential}, speed at equal accuracy",
        )
        for one in speeds
    ]


def _ratio(ratio: Ratio) -> str:
    if ratio.value is None:
        return "-"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def seconds(value: float | None) -> str:
    """Seconds with three digits; - for None."""
    return "-" if value is None else f"{value:.3g}"


def speed_line(measured: Measured) -> str:
    """What one answer takes, in tokens and in seconds."""
    result = measured.result
    ratio = f"{result.total / result.critical_path:.2f} tokens per token of the critical path"
    timed = [f"{seconds(fmean(measured.alone))} s alone"] if measured.alone else []
    timed += [] if measured.loaded is None else [f"{seconds(measured.loaded)} s among many"]
    timed += ["not timed among many, because several sittings drew the answers"] if measured.loaded is None else []
    return f"{result.task}: {'; '.join([ratio, *(['an answer takes ' + ', '.join(timed)] if timed else [])])}"


def few_line(result: Result) -> str | None:
    """A warning where there are too few problems for a bootstrap; None if there are enough."""
    if result.problems >= FEW:
        return None
    return f"{result.task}: with {result.problems} problems intervals are rough; {FEW} or more are needed"


def copies_line(result: Result) -> str | None:
    """A warning where answers to a problem are copies of one another; None if none are."""
    if not result.copies:
        return None
    return (
        f"{result.task}: {percent(result.copies)} % of the answers have the same tokens as an earlier answer to their "
        f"problem; {result.samples} answers are then fewer independent ones than they seem"
    )


def comparisons(results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence per task and pair of stages: the paired difference in percentage points, with its interval."""
    by_name = {(result.stage, result.task): result for result in results}
    lines = []
    for task in tasks(results):
        for ours, theirs in pairs:
            difference = by_name[ours, task].compare(by_name[theirs, task])
            mean, low, high = map(points, (difference.mean, difference.low, difference.high))
            relative = "-" if difference.relative is None else f"{100 * difference.relative:+.1f} %"
            lines.append(f"{task}: {ours} - {theirs} = {mean} points [{low}, {high}], {relative} relative")
    return lines


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Two tables of a comparison: its leaderboard and its pairs; none without a problem in common."""
    if not comparison.entries:
        return []
    task, k = comparison.task, comparison.entries[0].result.samples
    board = results_table([entry.result for entry in comparison.entries], task)
    rows = [
        (*row[:5], *row[6:], f"{entry.answers:,}") for row, entry in zip(board.rows, comparison.entries, strict=True)
    ]
    header = ("name", *HEADER[1:5], *HEADER[6:], "answers")
    pairs = ("first", "second", "points more", "95 % interval", "p", "p (Holm)", "problems needed", "answers needed")
    return [
        Table(header, rows, f"{task}: {comparison.problems:,} problems that all have, k = {k}"),
        Table(pairs, list(map(_pair, comparison.pairs)), f"{task}: first - second, paired by problem", names=2),
    ]


def _pair(pair: Pair) -> tuple[str, ...]:
    mean, low, high = map(points, (pair.difference.mean, pair.difference.low, pair.difference.high))
    needed = ["-" if number is None else f"{number:,}" for number in (pair.needed, pair.samples_needed)]
    p_values = p_text(pair.p_value), p_text(pair.corrected)
    return pair.first, pair.second, mean, f"{low} .. {high}", *p_values, *needed


def remarks(comparison: Comparison) -> list[str]:
    """What a reader of the tables of a comparison must know, one sentence each: problems that were left out, numbers
    of answers that differ, answers that were drawn in different ways."""
    task, lines = comparison.task, []
    if any(comparison.left_out.values()):
        numbers = ", ".join(f"{count:,} of {name}" for name, count in comparison.left_out.items())
        lines.append(f"{task}: problems left out, because not every file has them: {numbers}")
    lines += [
        f"{task}: {entry.result.stage} has {entry.fewest} to {entry.most} answers to a problem; means are over problems"
        for entry in comparison.entries
        if entry.fewest < entry.most
    ]
    drawn = {entry.result.stage: " and ".join(entry.drawn) for entry in comparison.entries}
    if len(set(drawn.values())) > 1 or any(len(entry.drawn) > 1 for entry in comparison.entries):
        ways = "; ".join(f"{name} {way}" for name, way in drawn.items())
        lines.append(f"{task}: answers were drawn in different ways, which a difference includes: {ways}")
    return lines


def comparison_report(
    comparisons: Sequence[Comparison],
    frontiers: Mapping[str, Sequence[Frontier]] = MappingProxyType({}),
    speeds: Mapping[str, Sequence[Speed]] = MappingProxyType({}),
    settings: Sequence[str] = (),
) -> tuple[list[Table], list[str]]:
    """All tables and remarks of a comparison.

    Args:
        frontiers, speeds: by task.
        settings: sentences about settings that differ.
    """
    shown: list[Table] = []
    lines: list[str] = []
    for comparison in comparisons:
        shown += comparison_tables(comparison)
        lines += remarks(comparison)
        several, pairs = frontiers.get(comparison.task, ()), speeds.get(comparison.task, ())
        if any(len(one.points) > 1 for one in several):
            shown.append(frontier_table(comparison.task, several))
        shown += speed_tables(comparison.task, pairs)
        if any(one.points[-1].budget for one in several):
            largest = ", ".join(f"{one.name} {one.points[-1].budget or '-'}" for one in several)
            lines.append(f"{comparison.task}: the leaderboard and the pairs are at the largest budgets: {largest}")
        if pairs and any(len(one.points) < 2 for one in several):
            lines.append(
                f"{comparison.task}: under one budget the better model counts with all that it spends, so its speed at "
                "equal accuracy is a lower bound; eval --budgets measures more"
            )
    return shown, [*lines, *settings]


def comparison_markdown(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """Tables and remarks as Markdown."""
    parts = [table.markdown() for table in tables]
    return "\n".join([*parts, "".join(f"* {line}\n" for line in lines)] if lines else parts)


def tasks(results: Sequence[Result]) -> list[str]:
    """Names of the tasks, in order of first appearance."""
    return list(dict.fromkeys(result.task for result in results))


def chosen(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per stage with a stop rule: the step whose weights it handed over. Validations of verl choose no
    weights."""
    last = {row["stage"]: row for row in metrics if row["kind"] == "validation" and row.get("chooses", True)}
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
    shown = [table for task in tasks(results) for table in (results_table(results, task), reasons_table(results, task))]
    parts = [table.markdown() for table in shown if table]
    differences = "".join(f"* {line}\n" for line in comparisons(results, pairs))
    if differences:
        parts.append(f"## Paired by problem, with 95 % intervals\n\n{differences}")
    if validation:
        parts.append("## Chosen by validation\n\n" + "".join(f"* {line}\n" for line in validation))
    return "\n".join(parts)
