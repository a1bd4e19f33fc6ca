"""The sections of a report that are pictures: training curves, strategy evolution, frontier."""

from __future__ import annotations

import importlib.util
from html import escape
from typing import TYPE_CHECKING

from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import analyse
from parallel_r1.evaluation.analysis.summary import tables
from parallel_r1.report.curves import curves
from parallel_r1.report.figures import figures, inline_svg
from parallel_r1.report.page import table_html
from parallel_r1.report.run import Run
from parallel_r1.report.sections import paragraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "No pictures: they need matplotlib. pip install 'parallel-r1[plot]', then make the report again."


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def training_curves(run: Run) -> str | None:
    """Reward, accuracy and parallel ratio against the RL steps."""
    if not run.rows("rl"):
        why = "no step of reinforcement learning yet" if run.unfinished else "no RL stage"
        return paragraph(f"The run has {why}.", "quiet")
    if not has_matplotlib():
        return paragraph(NO_MATPLOTLIB, "note")
    figure = curves(run.metrics, run.starts or None)
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
    words = "Measured on the saved answers of every stage; docs/analysis.md defines every column and figure."
    shown = paragraph(words, "quiet") + "".join(map(table_html, tables(analysis)))
    if has_matplotlib():
        drawn = figures(analysis, run.starts)
        shown += f'<div class="plots">{"".join(figure_html(one, str(one.get_label())) for one in drawn.values())}</div>'
    return shown


def frontier(run: Run) -> str | None:
    """Accuracy against latency and cost, for several models."""
    return None


def figure_html(figure: Figure, caption: str) -> str:
    """A figure as inline SVG with its caption."""
    return f'<figure class="plot">{inline_svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>'
