"""Curves of a run: reward, accuracy and parallel ratio against the RL steps since its start."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel_r1.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of the stages, safe for the colour-blind. Source: Okabe and Ito, "Color universal design" (2008)."""


def picture(metrics: Sequence[dict[str, Any]], path: Path, starts: Mapping[str, str] | None = None) -> bool:
    """Draw the curves of a run into an image file; see `curves`.

    Returns:
        False, and no file, if matplotlib is not installed or the run had no RL stage.
    """
    if importlib.util.find_spec("matplotlib") is None or (figure := curves(metrics, starts)) is None:
        return False
    with whole(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:])
    return True


def curves(metrics: Sequence[dict[str, Any]], starts: Mapping[str, str] | None = None) -> Figure | None:
    """Reward, accuracy and parallel ratio of the RL stages as a figure; None if the run had none.

    Args:
        starts: stage -> the stage whose weights it continues. A stage is drawn after the RL steps of those before it,
            so that policies which part ways at the base begin at one point; without, one stage after the other.
    """
    stages = list(dict.fromkeys(row["stage"] for row in metrics if row["kind"] == "rl"))
    if not stages:
        return None
    from matplotlib.figure import Figure

    by_stage = {stage: [row for row in metrics if row["stage"] == stage and row["kind"] == "rl"] for stage in stages}
    starts = dict(zip(stages[1:], stages, strict=False)) if starts is None else starts
    before = steps_before({stage: len(rows) for stage, rows in by_stage.items()}, starts)
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    for panel, key, label in zip(
        panels, ("reward", "accuracy", "parallel_ratio"), ("reward", "accuracy", "parallel ratio"), strict=True
    ):
        for index, stage in enumerate(stages):
            values = [row[key] for row in by_stage[stage]]
            steps = range(before[stage] + 1, before[stage] + 1 + len(values))
            colour = COLOURS[index % len(COLOURS)]
            panel.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            panel.plot(steps, _smooth(values), color=colour, linewidth=2, label=stage)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[2].set_ylim(-0.03, 1.03)
    panels[0].legend(ncols=len(stages), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    panels[2].set_xlabel("RL steps since the base (thin: each step; thick: moving average)")
    return figure


def steps_before(steps: Mapping[str, int], starts: Mapping[str, str]) -> dict[str, int]:
    """For stages with so many RL steps, the RL steps of the stages that each of them continues.

    Args:
        starts: stage -> the stage whose weights it continues; the base continues none.
    """

    def count(stage: str) -> int:
        return count(starts[stage]) + steps.get(starts[stage], 0) if stage in starts else 0

    return {stage: count(stage) for stage in steps}


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average that starts at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value if smoothed else value)
    return smoothed
