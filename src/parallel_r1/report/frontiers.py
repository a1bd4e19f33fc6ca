"""Accuracy against cost: the frontiers of several models in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel_r1.errors import UserError, need
from parallel_r1.evaluation.frontier import Cost, Frontier
from parallel_r1.files import whole
from parallel_r1.report.style import GREY, MARKERS, PALETTE, STYLE, WIDTH, can_draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS: tuple[tuple[Cost, str], ...] = (
    ("critical_path", "critical path (tokens)"),
    ("total", "all tokens"),
    ("alone", "seconds alone"),
    ("loaded", "seconds among many"),
)
DASHES = ("--", ":", "-.")
HEIGHT = 1.6
"""Inches of the panels of a task."""


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn.

    Raises:
        UserError: another suffix than .svg, .pdf or .png, or matplotlib is not installed.
    """
    if path.suffix not in (".svg", ".pdf", ".png"):
        raise UserError("a picture that ends with .svg, .pdf or .png", str(path), "give another name")
    need("matplotlib", "which draws pictures", "plot")
    if not can_draw():
        raise UserError(
            "matplotlib that can be imported", "one that cannot", "see python -c 'import matplotlib.figure'"
        )


def draw(frontiers: Mapping[str, Sequence[Frontier]], path: Path) -> None:
    """Draw the frontiers by task into a file; see `frontier_figure`."""
    check_picture(path)
    from matplotlib import rc_context

    figure = frontier_figure(frontiers)
    metadata = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else None
    with rc_context(STYLE), whole(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=200, metadata=metadata)


def frontier_figure(frontiers: Mapping[str, Sequence[Frontier]], colored: Sequence[str] = ()) -> Figure:
    """Accuracy with its 95 % interval against every cost that was measured: a row of panels for every task, a line for
    every model through its budgets.

    Args:
        colored: names that have a color in other pictures beside this one, in the order of the palette.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = {task: several for task, several in frontiers.items() if several}
    names = dict.fromkeys([*colored, *(one.name for several in drawn.values() for one in several)])
    numbers = {name: number for number, name in enumerate(names)}
    costs = [
        (cost, label)
        for cost, label in COSTS
        if any(value is not None for several in drawn.values() for one in several for value in one.costs(cost))
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(max(WIDTH, 1.7 * len(costs)), HEIGHT * len(drawn) + 0.3), layout="constrained")
        grid = figure.subplots(len(drawn), len(costs), sharey="row", squeeze=False)
        for row, (task, several) in zip(grid, drawn.items(), strict=True):
            for panel, (cost, label) in zip(row, costs, strict=True):
                for one in several:
                    _line(panel, one, cost, numbers[one.name])
                panel.set_xlabel(label)
            row[0].set_ylabel("mean@k")
            row[0].set_title(Path(task).name, loc="left")
        _percent(grid)
        _legend(figure, grid[0][0])
    return figure


def within_figure(answers: Mapping[str, Mapping[str, Sequence[float]]], colored: Sequence[str] = ()) -> Figure:
    """The share of answers that are right and done within so many tokens, a line for every stage.

    Args:
        answers: stage -> `correct`, `critical_path` and `total` of its answers.
        colored: stages that have a color in other pictures beside this one, in the order of the palette. The others
            are grey.
    """
    numbers = {stage: number for number, stage in enumerate(colored or answers)}
    others = [stage for stage in answers if stage not in numbers]
    greys = {stage: DASHES[number % len(DASHES)] for number, stage in enumerate(others)}
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, HEIGHT + 0.5), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True, squeeze=False)
        for panel, (cost, label) in zip(panels[0], COSTS[:2], strict=True):
            for stage, columns in answers.items():
                pairs = zip(columns[cost], columns["correct"], strict=True)
                right = sorted(spent for spent, correct in pairs if correct)
                shares = [(rank + 1) / len(columns["correct"]) for rank in range(len(right))]
                end = max(max(one[cost]) for one in answers.values())
                line = [0.0, *right, end], [0.0, *shares, shares[-1] if shares else 0.0]
                color = PALETTE[numbers[stage] % len(PALETTE)] if stage in numbers else GREY
                panel.step(*line, where="post", color=color, linestyle=greys.get(stage, "-"), label=stage)
            panel.set_xlabel("within so many tokens in all" if cost == "total" else f"within a {label}")
        panels[0][0].set_ylabel("right")
        _percent(panels)
        _legend(figure, panels[0][0])
    return figure


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=min(3, len(labels)), loc="outside upper center")


def _percent(grid: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    for row in grid:
        row[0].set_ylim(bottom=0)
        row[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _line(panel: Axes, one: Frontier, cost: Cost, number: int) -> None:
    """The line of a model, with an error bar at every budget."""
    points = [(x, point) for x, point in zip(one.costs(cost), one.points, strict=True) if x is not None]
    if not points:
        return
    x, accuracy = [x for x, _ in points], [point.accuracy for _, point in points]
    reach = [
        [max(0.0, point.accuracy - point.low) for _, point in points],
        [max(0.0, point.high - point.accuracy) for _, point in points],
    ]
    panel.errorbar(
        x,
        accuracy,
        yerr=reach,
        color=PALETTE[number % len(PALETTE)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=3,
        elinewidth=0.6,
        capsize=1.5,
        label=one.name,
    )
