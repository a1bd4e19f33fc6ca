"""What a run found, for people: one table, and one picture of the run against its steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parallel_r1.attention import Layout
from parallel_r1.errors import UserError, need
from parallel_r1.evaluate import Result, compare
from parallel_r1.files import whole
from parallel_r1.trace import TRUNK, Address

HEADER = ("stage", "mean@k %", "95 % interval", "pass@k %", "parallel %", "well-formed %", "critical path", "tokens")


@dataclass(frozen=True)
class Sheet:
    """A table as text: the first column names the row, the others hold figures."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """Under its title as a heading."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(value: float | None) -> str:
    """A share as text; - if there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def sheet(results: Sequence[Result], task: str) -> Sheet:
    """The table of one task, a row for every stage."""
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
    return Sheet(title, HEADER, rows)


def comparisons(results: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The paired differences that a recipe asks for, one sentence each."""
    found = {(result.stage, result.task): result for result in results}
    lines = []
    for task in tasks(results):
        for ours, theirs in pairs:
            difference = compare(found[ours, task], found[theirs, task])
            mean, low, high, relative = (100 * value for value in astuple(difference))
            lines.append(
                f"{task}: {ours} - {theirs} = {mean:+.1f} points [{low:+.1f}, {high:+.1f}], {relative:+.1f} % relative"
            )
    return lines


def tasks(results: Sequence[Result]) -> list[str]:
    """The tasks of some results, in order."""
    return list(dict.fromkeys(result.task for result in results))


def chosen(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """Which step's weights every stage with a stop rule handed over, one sentence each."""
    last = {row["stage"]: row for row in metrics if row["kind"] == "validation"}
    return [
        f"{stage}: the weights are those of step {row['best_step']}, the best on {row['problems']} validation problems "
        f"of {row['task']}; it ended after step {row['stage_step']} of {row['stage_steps']}"
        for stage, row in last.items()
    ]


def markdown(results: Sequence[Result], pairs: Sequence[tuple[str, str]], more: Sequence[str] = ()) -> str:
    """All tables and comparisons of a run, and `more` to know about it."""
    parts = [sheet(results, task).markdown() for task in tasks(results)]
    differences = "".join(f"* {line}\n" for line in comparisons(results, pairs))
    if differences:
        parts.append(f"## Paired by problem, with 95 % intervals\n\n{differences}")
    if more:
        parts.append("## Chosen by validation\n\n" + "".join(f"* {line}\n" for line in more))
    return "\n".join(parts)


def picture(metrics: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw reward, accuracy and parallel ratio of the RL stages against the step. False if matplotlib is not there, or
    if there was no RL stage."""
    stages = list(dict.fromkeys(row["stage"] for row in metrics if row["kind"] == "rl"))
    if not stages or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    for panel, key, label in zip(
        panels, ("reward", "accuracy", "parallel_ratio"), ("reward", "accuracy", "parallel ratio"), strict=True
    ):
        for index, stage in enumerate(stages):
            mine = [row for row in metrics if row["stage"] == stage and row["kind"] == "rl"]
            steps, values = [row["step"] for row in mine], [row[key] for row in mine]
            panel.plot(steps, values, color=f"C{index}", alpha=0.25, linewidth=1)
            panel.plot(steps, _smooth(values), color=f"C{index}", linewidth=2, label=stage)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[2].set_ylim(-0.03, 1.03)
    panels[0].legend(ncols=len(stages), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    panels[2].set_xlabel("step (thin: each step; thick: moving average)")
    with whole(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:])
    return True


def relation(laid: Layout, tokens: Sequence[str], addresses: Sequence[Address], title: str, path: Path) -> None:
    """Draw who sees whom: a row for every place, a square for every place that it sees, in the colour of the path that
    it shows. Places that are only read again are pale and have no name on the left.

    Raises:
        UserError: matplotlib is not installed, it does not write such files, or this one cannot be written.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError("a file that ends with .png, .svg or .pdf", f"'{path.name}'", "rename it")
    need("matplotlib", "which draws pictures", "plot")
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    count = len(tokens)
    colours = np.array([to_rgb("0.35" if address == TRUNK else f"C{address[-1][1] % 10}") for address in addresses])
    pale = np.where(laid.drawn[:, None], colours, 1 - 0.4 * (1 - colours))
    squares = np.where(laid.mask()[:, :, None], pale[None], 1.0)
    figure = Figure(figsize=(2.2 + 0.22 * count, 1.2 + 0.22 * count), layout="constrained")
    panel = figure.subplots()
    panel.imshow(squares)
    names = [repr(token)[1:-1].replace(" ", "␣") for token in tokens]
    left = [
        f"{name}  {position}" if drawn else f"{position}"
        for name, position, drawn in zip(names, laid.positions, laid.drawn, strict=True)
    ]
    panel.set_yticks(range(count), left, fontsize=8)
    panel.set_xticks(range(count), names, rotation=90, fontsize=8)
    panel.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="0.9", linewidth=0.6)
    panel.tick_params(which="both", length=0)
    panel.xaxis.tick_top()
    panel.set_title(title)
    with whole(path) as part:
        figure.savefig(part, dpi=110, format=path.suffix[1:])


def _smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """An exponential moving average that starts at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value if smoothed else value)
    return smoothed
