"""The look of all figures: a paper's, safe for the colour-blind, and for web pages of either brightness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 3.35
"""Inches of one column of a paper."""
INK = "#1c1c1d"
"""The colour of text and axes, which nothing else has: on a web page it becomes the colour of the text around it."""
GREY = "#9a9a9a"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Source: Okabe and Ito, Color Universal Design (2008); without black (`INK`) and yellow (too pale)."""
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = PALETTE
MARKERS = "os^Dvp"
"""Of the same lines as `PALETTE`, so that they can be told apart in grey too."""
STYLE: dict[Any, Any] = {
    **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 7.0},
    **{"axes.titlesize": 7.0, "axes.labelsize": 7.0, "xtick.labelsize": 6.0, "ytick.labelsize": 6.0},
    **{"legend.fontsize": 6.5, "legend.frameon": False, "axes.linewidth": 0.6, "lines.linewidth": 1.2},
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor")},
    **{name: INK for name in ("xtick.color", "ytick.color", "grid.color")},
    **{f"{axis}tick.major.{key}": size for axis in "xy" for key, size in (("width", 0.6), ("size", 2.5))},
    **{"grid.linewidth": 0.4, "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False},
    **{"svg.fonttype": "none", "svg.hashsalt": "parallel-r1", "pdf.fonttype": 42},
}
"""Settings of matplotlib. Names of stages are text, never mathematics; files are the same for the same numbers."""


def can_draw() -> bool:
    """Whether matplotlib is there and can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average that starts at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value if smoothed else value)
    return smoothed


def share(panel: Axes) -> None:
    """Show shares of 0 to 1 as percent."""
    from matplotlib.ticker import PercentFormatter

    panel.set_ylim(-0.03, 1.03)
    panel.set_yticks([0, 0.5, 1])
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def steps_before(steps: Mapping[str, int], starts: Mapping[str, str]) -> dict[str, int]:
    """For stages with so many RL steps, the RL steps of the stages that each of them continues.

    Args:
        starts: stage -> the stage whose weights it continues; the base continues none.
    """

    def count(stage: str) -> int:
        return count(starts[stage]) + steps.get(starts[stage], 0) if stage in starts else 0

    return {stage: count(stage) for stage in steps}
