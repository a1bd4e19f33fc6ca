"""The sections of a report that are pictures: training curves, strategy evolution, frontier."""

from __future__ import annotations

import importlib.util
import io
import re
from html import escape
from typing import TYPE_CHECKING

from parallel_r1.report.curves import curves
from parallel_r1.report.run import Run
from parallel_r1.report.sections import paragraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MATPLOTLIB = (
    "There are no pictures: they need matplotlib. pip install 'parallel-r1[plot]', then make the report again."
)


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def training_curves(run: Run) -> str | None:
    """Reward, accuracy and parallel ratio against the RL steps."""
    if not run.rows("rl"):
        return paragraph(
            "The run has no step of reinforcement learning yet." if run.unfinished else "The run has no RL stage.",
            "quiet",
        )
    if not has_matplotlib():
        return paragraph(NO_MATPLOTLIB, "note")
    figure = curves(run.metrics, run.starts or None)
    assert figure is not None
    caption = "RL steps since the base: policies that part ways there begin at one point. Thin: each step; thick: moving average."
    return figure_html(figure, caption)


def evolution(run: Run) -> str | None:
    """How forks, paths and their use change over training."""
    return None


def frontier(run: Run) -> str | None:
    """Accuracy against latency and cost, for several models."""
    return None


def figure_html(figure: Figure, caption: str) -> str:
    """A figure as inline SVG with its caption."""
    return f'<figure class="plot">{inline_svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>'


def inline_svg(figure: Figure) -> str:
    """A figure as an SVG element, with letters as text and ids of its own."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)
