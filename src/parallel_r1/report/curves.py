"""Curves of a run: reward, accuracy and parallel ratio against the RL steps since its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel_r1.files import whole
from parallel_r1.report.style import PALETTE, STYLE, can_draw, share, smooth, steps_before

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE: dict[Any, Any] = {
    **{"font.size": 10.0, "axes.labelsize": 10.0, "xtick.labelsize": 9.0, "ytick.labelsize": 9.0},
    **{"legend.fontsize": 10.0, "lines.linewidth": 2.0},
}
"""What a picture for a screen has larger than a figure of a paper."""


def picture(metrics: Sequence[dict[str, Any]], path: Path, starts: Mapping[str, str] | None = None) -> bool:
    """Draw the curves of a run into an image file; see `curves`.

    Returns:
        False, and no file, if matplotlib is not installed or the run had no RL stage.
    """
    if not can_draw() or (figure := curves(metrics, starts)) is None:
        return False
    with whole(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:])
    return True


def curves(metrics: Sequence[dict[str, Any]], starts: Mapping[str, str] | None = None) -> Figure | None:
    """Reward, accuracy and parallel ratio of the RL stages; None if the run had none.

    Args:
        starts: stage -> the stage whose weights it continues. A stage is drawn after the RL steps of those before it,
            so that policies which part ways at the base begin at one point; without, one stage after the other.
    """
    stages = list(dict.fromkeys(row["stage"] for row in metrics if row["kind"] == "rl"))
    if not stages:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    by_stage = {stage: [row for row in metrics if row["stage"] == stage and row["kind"] == "rl"] for stage in stages}
    starts = dict(zip(stages[1:], stages, strict=False)) if starts is None else starts
    before = steps_before({stage: len(rows) for stage, rows in by_stage.items()}, starts)
    with matplotlib.rc_context({**STYLE, **LARGE}):
        figure = Figure(figsize=(9, 7), layout="constrained")
        figure.set_label("Reward, accuracy and parallel ratio against the RL steps")
        panels = figure.subplots(3, 1, sharex=True)
        names = {"reward": "reward", "accuracy": "accuracy", "parallel_ratio": "parallel ratio"}
        for panel, (key, label) in zip(panels, names.items(), strict=True):
            for index, stage in enumerate(stages):
                values = [row[key] for row in by_stage[stage]]
                steps, color = range(before[stage] + 1, before[stage] + 1 + len(values)), PALETTE[index % len(PALETTE)]
                panel.plot(steps, values, color=color, alpha=0.25, linewidth=1)
                panel.plot(steps, smooth(values), color=color, label=stage)
            panel.set_ylabel(label)
        share(panels[2])
        panels[0].legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        panels[2].set_xlabel("RL steps since the base (thin: each step; thick: moving average)")
    return figure
