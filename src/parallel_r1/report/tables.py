"""Tables in a terminal: results, comparisons, estimates, parity, responses of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table as RichTable

from parallel_r1.coldstart.collect import statistics_table
from parallel_r1.coldstart.filters import Statistics
from parallel_r1.errors import Missing
from parallel_r1.evaluation import tables
from parallel_r1.evaluation.folder import Measured
from parallel_r1.evaluation.measure import Result
from parallel_r1.report.grid import narrow, rich_table
from parallel_r1.runs.estimate import Memory, Plan
from parallel_r1.table import Table
from parallel_r1.training.mismatch import Mismatch


def print_table(console: Console, table: Table) -> None:
    """Print a table, with the names of its columns on two lines."""
    console.print(rich_table(narrow(table)))


def print_results(console: Console, results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> None:
    """Print one table per task, and the comparisons of pairs of stages."""
    for task in tables.tasks(results):
        print_table(console, tables.results_table(results, task))
    for line in tables.comparisons(results, pairs):
        console.print(line, soft_wrap=True, highlight=False)


def print_measured(console: Console, measured: Sequence[Measured]) -> None:
    """Print an evaluation: all figures with intervals; under several budgets, a table of them per task; the speed."""
    results = [one.result for one in measured]
    by_task = {task: [one for one in measured if one.result.task == task] for task in tables.tasks(results)}
    largest = [part[-1] for part in by_task.values()]
    for table in tables.figure_tables([one.result for one in largest]):
        console.print(rich_table(table))
    for part in by_task.values():
        if part[0].budget is not None:
            console.print()
            print_table(console, tables.budget_table(part))
    console.print()
    for one in largest:
        lines = [tables.speed_line(one), tables.copies_line(one.result), tables.few_line(one.result)]
        for line in filter(None, lines):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_collected(console: Console, statistics: Sequence[Statistics]) -> None:
    """Print how many responses of a teacher were kept, and why the others were not, one column per source."""
    table = statistics_table(statistics)
    console.print(rich_table(replace(table, header=tuple(Path(name).name for name in table.header))))


def print_plan(console: Console, plan: Plan, missing: Sequence[Missing]) -> None:
    """Print the steps, memory and disk that a recipe needs, and the files that are missing."""
    rows = []
    for stage in plan.stages:
        numbers = (stage.steps, stage.updates, stage.answers, stage.tokens)
        rows.append((stage.name, stage.start, *(f"{number:,}" if number else "-" for number in numbers)))
    console.print(rich_table(Table(("stage", "from", "steps", "updates", "answers\na step", "tokens\nat most"), rows)))
    for stage in plan.stages:
        console.print(f"{stage.name}: {stage.source}", soft_wrap=True, highlight=False)
        if stage.mismatch:
            line = f"{stage.name}: {stage.mismatch} are no exact pair: what is scored is not what was sampled"
            console.print(line, style="yellow", soft_wrap=True, highlight=False)
    if plan.parameters is not None and plan.disk is not None:
        console.print(_memory(plan))
        weights = f"{plan.parameters:,} parameters, {plan.learning:,} learn"
        console.print(f"{weights}; {decimal(plan.disk)} on disk", highlight=False)
    console.print(f"evaluations draw {plan.evaluated:,} tokens at most", highlight=False)
    for line in plan.unknown:
        console.print(f"not known: {line}", style="yellow", soft_wrap=True, highlight=False)
    for error in missing:
        console.print(f"missing: {error}", style="yellow", soft_wrap=True, highlight=False, markup=False)


def _memory(plan: Plan) -> RichTable:
    """Gigabytes of memory by part and stage; the peak, in bold, is the last row."""
    parts = [*(part.name for part in fields(Memory)), "peak"]
    rows = [(part, *(f"{getattr(stage.memory, part) / 1e9:.2f}" for stage in plan.stages)) for part in parts]
    styles = ["bold" if part == "peak" else "" for part in parts]
    return rich_table(Table(("GB", *(stage.name for stage in plan.stages)), rows), styles)


def print_parity(console: Console, pairs: Sequence[Mismatch]) -> None:
    """Print how far the log-probabilities of samplers and scorers are apart, in nats."""
    rows = []
    for pair in pairs:
        figures = (pair.max_abs, pair.mean_abs, pair.after_fork, pair.after_join)
        numbers = ("-" if figure is None else f"{figure:.1e}" for figure in figures)
        verdict = "exact" if pair.exact else "mismatch"
        rows.append((pair.sampler, pair.scorer, verdict, *numbers, str(pair.tokens)))
    header = ("sampler", "scorer", "pair", "max", "mean", "after fork", "after join", "tokens")
    styles = {"exact": "green", "mismatch": "yellow"}
    console.print(rich_table(Table(header, rows, names=3), cell_styles=styles))
