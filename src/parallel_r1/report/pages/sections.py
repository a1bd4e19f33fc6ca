"""The sections of a report in words and tables. A section is a function (run) -> HTML, or None if there is nothing."""

from __future__ import annotations

import tomllib
from html import escape

from parallel_r1.evaluation.compare import pairs
from parallel_r1.evaluation.measure import Result
from parallel_r1.evaluation.tables import chosen, p_text, percent, points, reasons_table, results_table, tasks
from parallel_r1.report.pages.intervals import Estimate, intervals_html
from parallel_r1.report.pages.page import table_html
from parallel_r1.report.pages.run import Run
from parallel_r1.table import Table
from parallel_r1.training.settings import RL, SFT

COST_TERMS = (
    "s alone: seconds of an answer that is drawn alone; s loaded: of one among many. At equal accuracy: the highest "
    "accuracy that both models reach."
)
"""What the columns of costs and speeds mean."""


def paragraph(text: str, kind: str = "") -> str:
    """A text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(pairs: list[tuple[str, str]]) -> str:
    """Names and values, one pair per line."""
    return (
        '<dl class="facts-list">'
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
        + "</dl>"
    )


def headline(run: Run) -> str:
    """The main result in four numbers: of the first stage that the recipe compares, or else the last one measured."""
    ours = run.recipe.compare[0][0] if run.recipe and run.recipe.compare else None
    mine = [result for result in run.results if result.stage == ours] or run.results[-1:]
    if not mine:
        return ""
    result = mine[0]
    rivals = [theirs for _, theirs in run.recipe.compare] if run.recipe else []
    rival = next((one for one in run.results if rivals and (one.stage, one.task) == (rivals[-1], result.task)), None)
    against = f"; {rival.stage}: {percent(rival.mean)} %" if rival else ""
    tiles = [
        (
            f"{percent(result.mean)} %",
            f"right: {result.stage} on {result.task} [{percent(result.low)}, {percent(result.high)}]{against}",
        ),
        (f"{result.critical_path:.1f}", "tokens one after the other: the latency of an answer"),
        (f"{result.total:.1f}", "tokens in all: its cost"),
        (f"{percent(result.parallel_ratio)} %", "of the answers fork"),
    ]
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(number)}</b><span>{escape(words)}</span></div>' for number, words in tiles
        )
        + "</div>"
    )


def trained(run: Run) -> str | None:
    """What was trained: the recipe in words, its stages as a table, all settings."""
    steps = {row["stage"]: row["stage_step"] for row in run.metrics if row.get("kind") in ("sft", "rl")}
    seconds = sum(row.get("seconds", 0.0) for row in run.metrics)
    parts = []
    if run.recipe is not None:
        recipe = run.recipe
        # As the recipe has it: the path of the settings is that on this machine, if the model ships with the package.
        written = tomllib.loads(run.settings).get("model", {})
        model = written.get("path") or "a new model of random weights"
        parts.append(
            paragraph(
                f"Recipe {recipe.name}, seed {recipe.seed}, from {model}: "
                f"{len(recipe.stages)} {'stage' if len(recipe.stages) == 1 else 'stages'}, "
                f"{seconds / 60:,.1f} minutes of training and evaluation."
            )
        )
        rows = [
            (name, run.starts[name], *_stage(stage), f"{steps.get(name, 0):,} of {stage.steps:,}")
            for name, stage in recipe.stages.items()
        ]
        header = (
            "stage",
            "from",
            "learns by",
            "from answers to",
            "answers a step",
            "budget: critical path, total",
            "steps",
        )
        parts.append(table_html(Table(header, rows, names=4)))
        parts += [paragraph(line, "quiet") for line in chosen(run.metrics)]
    settings = f"<pre>{escape(run.settings)}</pre>"
    return "".join(parts) + f"<details><summary>All settings, as recipe.toml has them</summary>{settings}</details>"


def _stage(stage: SFT | RL) -> tuple[str, str, str, str]:
    """How a stage learns, from what, answers of a step, and its budget."""
    budget = f"{stage.sampling.budget.critical_path:,}, {stage.sampling.budget.total:,}"
    if isinstance(stage, RL):
        forks = "" if stage.sampling.sampler == "sequential" else f"; up to {stage.sampling.most} paths"
        learns = f"{stage.algorithm.name}: {stage.reward}"
        return learns, stage.task + forks, f"{stage.problems} x {stage.group}", budget
    tasks = stage.data.file or ", ".join(stage.data.tasks)
    share = "" if stage.data.file else f", {100 * stage.data.parallel:.0f} % of them with a fork"
    return "imitation (sft)", tasks + share, f"{stage.batch}", "-"


def results(run: Run) -> str | None:
    """The table with intervals, and a picture of them."""
    if not run.results:
        planned = run.recipe is None or run.recipe.evaluation.tasks
        why = "eval/ has none" if planned else "the recipe names no task to evaluate on"
        why = "they are measured after every stage" if run.unfinished else why
        return paragraph(f"There are no evaluations: {why}.", "quiet")
    best = run.recipe.compare[0][0] if run.recipe and run.recipe.compare else None
    parts = []
    for task in tasks(run.results):
        mine = [result for result in run.results if result.task == task]
        estimates = [
            Estimate(one.stage, 100 * one.mean, 100 * one.low, 100 * one.high, one.stage == best) for one in mine
        ]
        parts.append(table_html(results_table(run.results, task)))
        parts.append(intervals_html(estimates, " %"))
        if reasons := reasons_table(run.results, task):
            parts.append(table_html(reasons))
    note = (
        "Intervals are 95 % bootstrap intervals over problems. The critical path counts the tokens that had to be "
        "drawn one after the other; tokens counts all of them. An answer that is right but not read has the right "
        "answer elsewhere in its text."
    )
    return "".join(parts) + paragraph(note, "quiet")


def comparisons(run: Run) -> str | None:
    """Pairs of stages that the recipe compares, paired by problem."""
    wanted = run.recipe.compare if run.recipe else ()
    by_name = {(result.stage, result.task): result for result in run.results}
    parts = []
    for task in tasks(run.results):
        both = [pair for pair in wanted if all((name, task) in by_name for name in pair)]
        if both:
            parts.append(_pairs(task, [(by_name[ours, task], by_name[theirs, task]) for ours, theirs in both]))
    return "".join(parts) or None


def _pairs(task: str, twos: list[tuple[Result, Result]]) -> str:
    rows, estimates = [], []
    for pair, (ours, theirs) in zip(pairs(twos), twos, strict=True):
        name, difference = f"{pair.first} - {pair.second}", pair.difference
        rows.append(
            (
                name,
                points(difference.mean),
                f"{points(difference.low)} .. {points(difference.high)}",
                "-" if difference.relative is None else f"{100 * difference.relative:+.1f} %",
                p_text(pair.p_value),
                p_text(pair.corrected),
                f"{len(ours.differences(theirs)):,}",
                "-" if pair.needed is None else f"{pair.needed:,}",
            )
        )
        figures = (100 * difference.mean, 100 * difference.low, 100 * difference.high)
        estimates.append(Estimate(name, *figures, strong=difference.low > 0 or difference.high < 0))
    header = ("difference", "points", "95 % interval", "relative", "p", "p (Holm)", "problems", "problems needed")
    table = table_html(Table(header, rows, f"{task}: paired by problem, in percentage points of mean@k"))
    note = (
        "p is that of a paired sign-flip test, p (Holm) is corrected for the number of comparisons. Problems needed: "
        "for a difference of this size to be seen with a probability of 80 %."
    )
    return table + intervals_html(estimates, " points", signed=True) + paragraph(note, "quiet")


def warnings(run: Run) -> str | None:
    """What the monitor warned of, and what could not be read."""
    lines = [f"step {row['step']}, {row['stage']}: {row['warning']}" for row in run.rows("warning")]
    boxes = "".join(f'<div class="warning">{escape(line)}</div>' for line in (*lines, *run.notes))
    return boxes or paragraph("The monitor of the run gave no warning.", "quiet")


def environment(run: Run) -> str | None:
    """Versions, machine and command of the run."""
    data = run.environment
    if not data:
        return None
    packages = data.get("packages") or {}
    pairs = [
        ("run", data.get("run")),
        ("begun", data.get("time")),
        ("command", " ".join(map(str, data.get("command") or []))),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("Python", data.get("python")),
        ("platform", data.get("platform")),
        ("processors, threads", f"{data.get('cpus')}, {data.get('threads') or 'all'}"),
    ]
    return facts([(name, str(value)) for name, value in pairs if value])
