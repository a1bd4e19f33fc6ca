"""The figures of an analysis, as a paper would print them: files in SVG and PDF, or SVG inside a web page.

Every stage has a colour and a marker. It begins after the RL steps of the stages whose weights it continues, so that
stages which part ways at one checkpoint can be compared from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from parallel_r1.errors import need
from parallel_r1.evaluation.analysis import Analysis
from parallel_r1.evaluation.analysis.columns import TERM, Columns
from parallel_r1.evaluation.analysis.paths import USES, VERDICTS
from parallel_r1.files import whole
from parallel_r1.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    WIDTH,
    share,
    steps_before,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 1.15
"""Inches of a row of panels."""
STEPS = "RL steps since the base"
NO_STAGE = "no stage"
COLORS = {
    **{"verification": BLUE, "exploration": ORANGE, "neither": GREY},
    **{"right": GREEN, "wrong": VERMILION, "failed": SKY, "undecided": GREY, "unjudged": PURPLE},
}
"""Of the layers of stacked shares."""


@dataclass(frozen=True)
class Branch:
    """The saved steps of a stage.

    Attributes:
        name: of the stage; empty if metrics.jsonl does not have its steps.
        x: RL steps since the base, of every row.
        rows: the columns of the table of steps, as far as they are of this stage.
    """

    name: str
    x: np.ndarray
    rows: Columns
    color: str
    marker: str

    @property
    def label(self) -> str:
        """The name in a legend."""
        return self.name or NO_STAGE

    def has(self, column: str) -> bool:
        """Whether a column has a number."""
        return column in self.rows and not np.isnan(self.rows[column]).all()

    def points(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps and the values of a column where it has a number."""
        there = ~np.isnan(self.rows[column])
        return self.x[there], self.rows[column][there]


def branches(analysis: Analysis, starts: Mapping[str, str]) -> list[Branch]:
    """The stages of an analysis in order.

    Args:
        starts: stage -> the stage whose weights it continues.
    """
    stages = analysis.steps["stage"].tolist()
    names = list(dict.fromkeys(stages))
    before = steps_before({name: stages.count(name) for name in names}, starts)
    drawn = []
    for index, name in enumerate(names):
        rows = {key: column[analysis.steps["stage"] == name] for key, column in analysis.steps.items()}
        x = before[name] + np.arange(1, stages.count(name) + 1) if name else rows["step"]
        drawn.append(Branch(name, x, rows, PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]))
    return drawn


def figures(analysis: Analysis, starts: Mapping[str, str]) -> dict[str, Figure]:
    """All figures for which the analysis has numbers, by name: `position`, `forks`, `siblings`, `use`, `verdicts`,
    `summary`, `reward`, `mismatch`. The label of a figure is a sentence that says what it shows.

    Args:
        starts: stage -> the stage whose weights it continues, such as `Recipe.start_of` says. A stage that it does not
            name begins at 0.

    Raises:
        UserError: matplotlib is not installed.
    """
    need("matplotlib", "which draws figures", "plot")
    import matplotlib

    drawn = branches(analysis, starts)
    with matplotlib.rc_context(STYLE):
        made = {name: draw(drawn) for name, draw in DRAWN.items()}
    for name, figure in made.items():
        if figure is not None:
            figure.set_gid(name)
    return {name: figure for name, figure in made.items() if figure is not None}


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as NAME.svg and NAME.pdf. The same analysis gives the same bytes.

    Raises:
        UserError: a file cannot be written.
    """
    import matplotlib

    written = []
    for name, figure in figures.items():
        for kind, dates in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            written.append(folder / f"{name}.{kind}")
            with whole(written[-1]) as part, matplotlib.rc_context(STYLE):
                figure.savefig(part, format=kind, metadata={"Title": figure.get_label(), "Creator": None, **dates})
    return written


def inline_svg(figure: Figure) -> str:
    """A figure as an `<svg>` element for a web page: transparent, its text and axes in the colour of the text around
    it, with a title for screen readers. Its ids begin with a digest of its content, so figures do not share any."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        file = BytesIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue().decode()
    svg = svg[svg.index("<svg") :].strip().replace(INK, "currentColor")
    # A <style> would hold for the whole page; the attribute holds for this element.
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    prefix = f"f{sha256(svg.encode()).hexdigest()[:10]}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    head, rest = svg.split(">", 1)
    head += f' role="img" aria-labelledby="{prefix}title" style="stroke-linejoin: round; stroke-linecap: butt"'
    return f'{head}>\n <title id="{prefix}title">{escape(str(figure.get_label()))}</title>{rest}'


def _panels(rows: int, columns: int, label: str, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure of one column's width with panels over one time axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, 0.45 + height * rows), layout="constrained")
    figure.set_label(label)
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for panel in panels[-columns:]:
        panel.xaxis.set_major_locator(MaxNLocator(4 if columns > 1 else 7, integer=True))
    figure.supxlabel(STEPS, fontsize=7)
    return figure, panels


def _legend(figure: Figure, panel: Axes) -> None:
    """One legend above all panels, for what a panel shows."""
    handles, labels = panel.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique.keys() - {NO_STAGE}:
        close = {"columnspacing": 1.0, "handlelength": 1.4, "handletextpad": 0.5, "borderpad": 0.1}
        columns = max(1, 62 // max(len(label) + 6 for label in unique))  # a line has room for 62 characters
        figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=columns, **close)


def _line(panel: Axes, branch: Branch, column: str, band: tuple[str, str] | None = None, style: str = "-") -> None:
    """A column of a stage against the step, with a band between two others."""
    x, y = branch.points(column)
    if band is not None:
        low, high = (branch.points(name)[1] for name in band)
        panel.fill_between(x, low, high, color=branch.color, alpha=0.18, linewidth=0)
    marker = branch.marker if len(x) <= 40 and style == "-" else ""
    panel.plot(x, y, style, color=branch.color, marker=marker, markersize=2.2, label=branch.label)


Panel = tuple[str, str, bool, bool]
"""A column of the table of steps, the title of its panel, whether it is a share, whether its quartiles are shown."""


def _grid(drawn: Sequence[Branch], wanted: Sequence[Panel], label: str) -> Figure | None:
    """Panels with a line for every stage, two side by side; None if there is no number to show."""
    shown = [
        panel
        for panel in wanted
        if any(branch.has(panel[0] if not panel[3] else f"{panel[0]}_mean") for branch in drawn)
    ]
    if not shown:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels((len(shown) + 1) // 2, 2, label)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, (column, title, is_share, spread) in zip(panels, shown, strict=False):
        for branch in drawn:
            if spread and branch.has(f"{column}_mean"):
                _line(panel, branch, f"{column}_mean", (f"{column}_q25", f"{column}_q75"))
            elif not spread and branch.has(column):
                _line(panel, branch, column)
        panel.set_title(title)
        if is_share:
            share(panel)
        elif column in ("forks", "paths"):
            panel.set_ylim(bottom=-0.04 * panel.get_ylim()[1])  # a line at 0 is not cut in half
            panel.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _legend(figure, panels[0])
    return figure


def _rows(drawn: Sequence[Branch], column: str, label: str) -> tuple[Figure, list[tuple[Axes, Branch]]] | None:
    """A panel for every stage that has numbers in a column, one below the other; None if no stage has."""
    shown = [branch for branch in drawn if branch.has(column)]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 1, label, 0.85)
    for panel, branch in zip(panels, shown, strict=True):
        panel.set_title(branch.label, loc="left")
    return figure, list(zip(panels, shown, strict=True))


def _position(drawn: Sequence[Branch]) -> Figure | None:
    made = _rows(drawn, "position_mean", "Where forks open: relative position in the answer against the step")
    if made is None:
        return None
    figure, pairs = made
    for panel, branch in pairs:
        for low, high, alpha in ((10, 90, 0.15), (25, 75, 0.3)):
            x, _ = branch.points("position_mean")
            below, above = (branch.points(f"position_q{part}")[1] for part in (low, high))
            panel.fill_between(x, below, above, color=BLUE, alpha=alpha, linewidth=0, label=f"{low}-{high} %")
        panel.plot(*branch.points("position_q50"), color=BLUE, label="median of forks")
        panel.plot(*branch.points("position_mean"), ":", color=INK, label="mean")
        share(panel)
    figure.supylabel("position of the fork", fontsize=7)
    _legend(figure, pairs[0][0])
    return figure


def _stacked(drawn: Sequence[Branch], columns: Mapping[str, str], label: str, what: str) -> Figure | None:
    """Shares that sum to 1, one panel for every stage.

    Args:
        columns: column -> name of the layer.
        what: the label of the vertical axis.
    """
    made = _rows(drawn, next(iter(columns)), label)
    if made is None:
        return None
    figure, pairs = made
    there = {column: name for column, name in columns.items() if any(np.nansum(b.rows[column]) for _, b in pairs)}
    for panel, branch in pairs:
        x, _ = branch.points(next(iter(columns)))
        layers = [branch.points(column)[1] for column in there]
        if len(x) == 1:  # an area needs two steps
            x, layers = np.array([x[0] - 0.5, x[0] + 0.5]), [np.repeat(layer, 2) for layer in layers]
        colors = [COLORS[name] for name in there.values()]
        panel.stackplot(x, layers, colors=colors, labels=list(there.values()), alpha=0.85, linewidth=0)
        share(panel)
        panel.set_ylim(0, 1)
    figure.supylabel(what, fontsize=7)
    _legend(figure, pairs[0][0])
    return figure


def _use(drawn: Sequence[Branch]) -> Figure | None:
    label = "What forks are used for: siblings agree, or one of them is chosen"
    return _stacked(drawn, {name: name for name in USES}, label, "share of forks")


def _verdicts(drawn: Sequence[Branch]) -> Figure | None:
    columns = {f"paths_{name}": name for name in VERDICTS}
    return _stacked(drawn, columns, "What paths arrive at, as the verifier of the task judges it", "share of paths")


def _forks(drawn: Sequence[Branch]) -> Figure | None:
    return _grid(
        drawn,
        [
            ("parallel_ratio", "answers that fork", True, False),
            ("forks", "forks per answer", False, False),
            ("paths", "paths per fork", False, True),
            ("length", "tokens per path", False, True),
        ],
        "How often answers fork, and how many and how long the paths are (band: quartiles of forks)",
    )


def _siblings(drawn: Sequence[Branch]) -> Figure | None:
    return _grid(
        drawn,
        [
            ("diversity", "diversity (1 - self-BLEU)", True, True),
            ("agreement", "pairs that agree", True, True),
            ("balance", "longest / mean path", False, True),
            ("longest", "tokens of the longest path", False, True),
        ],
        "How sibling paths differ, agree and balance (band: quartiles of forks)",
    )


def _summary(drawn: Sequence[Branch]) -> Figure | None:
    if not any(branch.has("rescued") for branch in drawn):
        return None
    return _grid(
        drawn,
        [
            ("accuracy", "right answers", True, False),
            ("paths_right", "right paths", True, False),
            ("rescued", "rescued by the summary", True, False),
            ("spoiled", "spoiled by the summary", True, False),
        ],
        "What summaries add: right answers after mostly wrong paths, and wrong answers after a right path",
    )


def _reward(drawn: Sequence[Branch]) -> Figure | None:
    terms = sorted({name for branch in drawn for name in branch.rows if name.startswith(TERM)})
    panels = [
        ("reward", "reward", False, False),
        ("cancelled_groups", "groups whose terms cancel", True, False),
        *((name, f"term {name.removeprefix(TERM)}", False, False) for name in terms),
    ]
    return _grid(drawn, panels, "The reward, its terms, and groups in which the terms cancel")


def _mismatch(drawn: Sequence[Branch]) -> Figure | None:
    """The mismatch on a logarithmic axis, and a triangle with the name of the rule where an alarm was raised."""
    measured = [branch for branch in drawn if branch.has("mismatch_mean") and (branch.rows["mismatch_mean"] > 0).any()]
    alarms = [
        (x, rule, branch)
        for branch in drawn
        for x, rules in zip(branch.x, branch.rows["alarms"], strict=True)
        for rule in rules.split()
    ]
    if not measured and not alarms:
        return None
    figure, (panel,) = _panels(
        1, 1, "Mismatch of sampler and scorer (line: mean, dashed: largest), and alarms of the run", 1.4
    )
    for branch in measured:
        _line(panel, branch, "mismatch_mean")
        if branch.has("mismatch_max"):
            panel.plot(*branch.points("mismatch_max"), "--", color=branch.color, linewidth=0.7)
    if measured:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")  # its own is mathematics, which STYLE forbids
        panel.set_ylabel("nats a token")
    else:
        panel.set_yticks([])
    for number, (x, rule, branch) in enumerate(alarms):
        height = 0.96 - 0.1 * (number % 4)
        panel.plot(x, height, "v", color=branch.color, markersize=4, transform=panel.get_xaxis_transform())
        panel.annotate(
            rule, (x, height), xycoords=panel.get_xaxis_transform(), xytext=(4, -2), textcoords="offset points"
        )
    _legend(figure, panel)
    return figure


DRAWN: Mapping[str, Callable[[Sequence[Branch]], Figure | None]] = {
    **{"position": _position, "forks": _forks, "siblings": _siblings, "use": _use},
    **{"verdicts": _verdicts, "summary": _summary, "reward": _reward, "mismatch": _mismatch},
}
