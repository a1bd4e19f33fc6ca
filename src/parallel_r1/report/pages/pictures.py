"""The sections of a report that are pictures: training curves, strategy evolution, frontier."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import analyse
from parallel_r1.evaluation.analysis.summary import tables
from parallel_r1.evaluation.entrants import Entrant, frontiers, read_entrant, speeds
from parallel_r1.evaluation.folder import EVALUATIONS, EvaluationFolder
from parallel_r1.evaluation.tables import frontier_table, speed_tables
from parallel_r1.report.curves import curves as training_figure
from parallel_r1.report.figures import figures, inline_svg
from parallel_r1.report.frontiers import frontier_figure, within_figure
from parallel_r1.report.pages.page import table_html
from parallel_r1.report.pages.run import Run
from parallel_r1.report.pages.sections import COST_TERMS, paragraph
from parallel_r1.report.style import WIDTH, can_draw
from parallel_r1.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "No pictures: they need matplotlib. pip install 'parallel-r1[plot]', then make the report again."


def training_curves(run: Run) -> str | None:
    """Reward, accuracy and parallel ratio against the RL steps."""
    if not run.rows("rl"):
        planned = run.recipe is not None and any(stage.kind == "rl" for stage in run.recipe.stages.values())
        why = "no step of reinforcement learning in metrics.jsonl" if planned else "no RL stage"
        why = "no step of reinforcement learning yet" if run.unfinished else why
        return paragraph(f"The run has {why}.", "quiet")
    if not can_draw():
        return paragraph(NO_MATPLOTLIB, "note")
    figure = training_figure(run.metrics, run.starts or None)
    assert figure is not None  # there are RL steps
    caption = "RL steps since the base: policies that part ways there begin at one point."
    return figure_html(figure, caption)


def evolution(run: Run) -> str | None:
    """How forks, paths and their use change over training, in tables and figures."""
    try:
        analysis = analyse(run.path)
    except UserError as error:
        if run.rows("rl"):
            run.notes.append(f"answers are not analysed: {error}")
        return None
    run.notes.extend(analysis.notes)
    words = (
        "Measured on the saved answers of every stage; the documentation (analysis.md) defines every column and figure."
    )
    shown = paragraph(words, "quiet") + "".join(map(table_html, tables(analysis)))
    if can_draw():
        drawn = figures(analysis, run.starts)
        shown += f'<div class="plots">{"".join(figure_html(one, str(one.get_label())) for one in drawn.values())}</div>'
    return shown


def frontier(run: Run) -> str | None:
    """Accuracy against latency and cost: of the evaluations of the run by the tokens that an answer takes, and of those
    evaluations of its checkpoints that were drawn under several budgets."""
    shown = [*_within(run), *_evaluations(run)]
    return "".join(shown) or None


def _within(run: Run) -> Iterator[str]:
    """For every task, the share of answers that are right within so many tokens."""
    folder = RunFolder(run.path)
    for task in dict.fromkeys(result.task for result in run.results):
        answers = {}
        for stage in (result.stage for result in run.results if result.task == task):
            file = folder.answers(stage, task)
            names = ("correct", "critical_path", "total")
            if file.exists:
                answers[stage] = dict(zip(names, file.columns(*names), strict=True))
        if not answers:
            continue
        if not can_draw():
            yield paragraph(NO_MATPLOTLIB, "note")
            return
        caption = f"{Path(task).name}: the share of answers that are right and done within so many tokens."
        yield figure_html(within_figure(answers, _trained(run)), caption)


def _trained(run: Run) -> list[str]:
    """The RL stages, in the order in which every picture of the report gives them colours."""
    return list(dict.fromkeys(row["stage"] for row in run.rows("rl")))


def _evaluations(run: Run) -> Iterator[str]:
    """The evaluations of checkpoints of the run, against each other if there are several."""
    entrants: list[Entrant] = []
    for path in sorted((run.path / EVALUATIONS).glob("*")):
        folder = EvaluationFolder(path)
        if not folder.is_finished:
            continue
        try:
            stage = Path(folder.settings()["model"]).name
            name = path.name if stage in (one.name for one in entrants) else stage
            entrants.append(read_entrant(name, path))
        except UserError as error:
            run.notes.append(f"{path.name} is not shown: {error}")
    curves = frontiers(entrants)
    fast = speeds(entrants, curves)
    if curves:
        yield paragraph(
            "Evaluations of checkpoints under several budgets of the critical path (eval --budgets). They have "
            "problems and numbers of answers of their own, so a figure may differ from the results above. "
            + COST_TERMS,
            "quiet",
        )
    for task, several in curves.items():
        if several:
            yield table_html(frontier_table(task, several))
        yield from map(table_html, speed_tables(task, fast[task]))
    if can_draw() and any(len(one.points) > 1 for several in curves.values() for one in several):
        yield figure_html(
            frontier_figure(curves, _trained(run)), "Accuracy under several budgets, with 95 % intervals."
        )


def figure_html(figure: Figure, caption: str) -> str:
    """A figure as inline SVG with its caption; a wide one scrolls in its own box where the window is narrow."""
    kind = "plot wide" if figure.get_figwidth() > 1.5 * WIDTH else "plot"
    return f'<figure class="{kind}">{inline_svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>'
