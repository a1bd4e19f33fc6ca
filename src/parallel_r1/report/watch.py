"""A running training as one picture for a terminal: progress, evaluations, curves, alarms and the newest answers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from parallel_r1.answers.rollout import Rollout
from parallel_r1.report import bars
from parallel_r1.report.answers import PATH_COLOURS, rollout_tree
from parallel_r1.runs.follow import RunSoFar, StageSoFar, answers

CURVES = (
    ("reward", "reward", "+.2f"),
    ("accuracy", "accuracy", ".2f"),
    ("parallel_ratio", "parallel", ".2f"),
    ("critical_path", "critical path", ".1f"),
    ("surprise", "surprise", ".3f"),
)
"""(metric, its name in the picture, format of its values) of the RL stages."""
WIDE = 140
"""Columns from which the answers stand beside everything else."""
GAP = 3
BAR = 16
NAME = 15
"""Columns of the name and the range of a metric."""
BROAD = 4
"""Most columns of a bar."""
SHORT = (None, 600, 300, 160, 80, 40)
"""Longest text of an answer in characters, tried in this order until the answer has the room there is."""
SILENT = 120.0
"""Seconds without anything new from which the picture asks whether the run was interrupted, at least."""
Lines = list[list[Segment]]


@dataclass
class Picture:
    """A run as a picture that is as wide as the console.

    Attributes:
        fits: whether it is as high as the console too; else it takes the lines that it needs.
        first: index of the first of the newest answers that is shown.
        hint: words at the end of the line above the answers, such as the keys.
    """

    run: RunSoFar
    fits: bool = False
    first: int = 0
    hint: str = ""
    _read: tuple[object, tuple[list[Rollout], str]] = (None, ([], ""))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pen = Pen(console, options)
        width, height = options.max_width, options.max_height if self.fits else None
        if width < WIDE:
            lines = self._status(pen, width, height, stacked=True)
            room = None if height is None else height - len(lines)
            lines += self._answers(pen, width, room)
        else:
            half = (width - GAP) // 2
            left = self._status(pen, half, height, stacked=False)
            right = self._answers(pen, width - GAP - half, height or max(len(left), 40))
            lines = list(_beside(left, right, half))
        for line in lines[:height]:
            yield from line
            yield Segment.line()

    def turn(self, by: int) -> None:
        """Show the answers from so many further on, if there are any."""
        first, newest = max(0, self.first + by), self.run.rollouts
        if newest is not None and answers(newest[1], first, 1)[0]:
            self.first = first

    def _newest(self, file: Path, count: int) -> tuple[list[Rollout], str]:
        """See `answers`; a file is read again only when it has changed."""
        status = file.stat() if file.exists() else None
        key = (file, self.first, count, status and (status.st_mtime_ns, status.st_size))
        if self._read[0] != key:
            self._read = (key, answers(file, self.first, count))
        return self._read[1]

    def _status(self, pen: Pen, width: int, height: int | None, stacked: bool) -> Lines:
        """Everything but the answers.

        Args:
            height: number of lines of the whole picture; None: as many as it takes.
            stacked: whether answers follow below, for which a third of the height is kept.
        """
        run, size = self.run, height or 96
        share = size // 2 if stacked else size
        lines = pen.lines(_head(run), width)
        lines += pen.all(_stages(run, width, pen.ascii, most=min(12, max(6, share // 4))), width)
        lines += pen.all(_evaluations(run, most=min(8, max(1, share // 6))), width)
        alarms = pen.all(_alarms(run, most=min(3, max(1, share // 12))), width, 2 if size < 72 else 3)
        gap: Lines = [] if size < 36 else [[]]
        room = None
        if height is not None:
            room = height - len(lines) - len(alarms) - 2 * len(gap) - (max(8, height // 3) if stacked else 0)
        drawn = pen.all(curves(run, width, room, pen.ascii), width)
        return lines + (gap + drawn if drawn else []) + alarms + (gap if stacked else [])

    def _answers(self, pen: Pen, width: int, room: int | None) -> Lines:
        """The newest answers, as many as there is room for; one if there is no limit."""
        newest = self.run.rollouts
        if newest is None or (room is not None and room < 3):
            return []
        step, file = newest
        rule = Text(f"answers of step {step}, from number {self.first + 1}", "bold", no_wrap=True, overflow="crop")
        rule.append(f"   {self.hint}" if self.hint else "", "not bold dim")
        lines = pen.lines(rule, width)
        read, wrong = self._newest(file, 1 if room is None else max(1, room // 8))
        for number, rollout in enumerate(read):
            left = None if room is None else room - len(lines)
            if left is not None and (left < 1 or (number and left < 6)):
                break
            for most in SHORT if left is not None else (None,):
                tree = pen.lines(rollout_tree(rollout, most), width)
                if left is None or len(tree) <= left:
                    break
            lines += pen.cut(tree, left, width)
        if not read:
            lines += pen.cut(pen.lines(Text(f"none: {wrong or 'the file has no more'}", "dim"), width), room, width)
        return lines[:room]


class Pen:
    """Renders parts of a picture as lines of one width."""

    def __init__(self, console: Console, options: ConsoleOptions) -> None:
        self.console, self.options, self.ascii = console, options, options.ascii_only

    def lines(self, part: RenderableType, width: int) -> Lines:
        """A part as lines."""
        return self.console.render_lines(part, self.options.update(width=width, height=None), pad=False)

    def all(self, parts: Iterable[Text], width: int, most: int = 1) -> Lines:
        """Texts one below the other, each cut to `most` lines."""
        return [line for part in parts for line in self.cut(self.lines(part, width), most, width)]

    def cut(self, lines: Lines, most: int | None, width: int) -> Lines:
        """The first `most` lines; where some are left out, the last of them says how many."""
        if most is None or len(lines) <= most:
            return lines
        if most == 1:
            return lines[:1]
        return lines[: most - 1] + self.lines(Text(f".. {len(lines) - most + 1} more lines", "dim"), width)


def _beside(left: Lines, right: Lines, width: int) -> Iterator[list[Segment]]:
    """Two columns as one list of lines; the left one is `width` wide."""
    for at in range(max(len(left), len(right))):
        start = Segment.adjust_line_length(left[at] if at < len(left) else [], width + GAP)
        yield start + (right[at] if at < len(right) else [])


def duration(seconds: float) -> str:
    """A duration in words: 45 s, 12 min, 3 h 05 min, 2 d 3 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _head(run: RunSoFar) -> Text:
    """One line: the name of the run, whether it goes on, the time left, its folder."""
    head = Text(f"{run.name}  ", "bold", no_wrap=True, overflow="crop")
    silence, left = run.silence, run.total_left
    if run.is_finished:
        head.append("finished", "green")
    elif silence is None:
        head.append("no step yet", "not bold")
    elif silence > max(SILENT, 3 * run.longest):
        head.append(f"nothing new for {duration(silence)}: interrupted?", "yellow")
    else:
        head.append("running" if run.began is None else f"running for {duration(time.time() - run.began)}", "green")
        head.append(f", last written {duration(silence)} ago", "not bold dim")
        head.append(f", about {duration(left)} left" if left is not None else "", "not bold")
    return head.append(f"  {run.path}", "not bold dim")


def _stages(run: RunSoFar, places: int, ascii_only: bool, most: int) -> Iterator[Text]:
    """A line per stage with its progress; where they are more than `most`, those around the current one."""
    stages = list(run.stages.values())
    at = stages.index(run.current) if run.current else 0
    start = max(0, min(at - most // 2, len(stages) - most))
    width = _widest(stage.name for stage in stages)
    full, empty = "=-" if ascii_only else "━─"
    for number, stage in enumerate(stages[start : start + most], start):
        line = Text(f"{stage.name[:width]:<{width}} ", no_wrap=True, overflow="crop")
        done = min(BAR, BAR * stage.done // stage.steps) if stage.steps else 0
        line.append(full * done, "green" if run.is_over(stage) else "cyan").append(empty * (BAR - done), "dim")
        line.append(f" {stage.done}/{stage.steps}".ljust(9))
        if len(stages) > most and number in (start, start + most - 1):
            line.append(f"  stage {number + 1} of {len(stages)}", "dim")
        elif stage.last is not None:
            words = _figures(stage.last)
            if not run.is_over(stage) and (left := run.left(stage)) is not None:
                words.insert(0, f"left {duration(left)}")
            for word in words:
                line.append(f"  {word}" if len(line) + 2 + len(word) <= places else "")
        yield line


def _widest(names: Iterable[str]) -> int:
    """Columns for a list of names."""
    return min(16, max(map(len, names), default=0))


def _figures(row: dict[str, Any]) -> list[str]:
    """The main metrics of a step, the most important first."""
    names = CURVES[:3] if "reward" in row else [("loss", "loss", ".3f")]
    words = [f"{name} {row[key]:{form}}" for key, name, form in names if isinstance(row.get(key), int | float)]
    return [*words, f"{row['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in row else words


def _evaluations(run: RunSoFar, most: int) -> Iterator[Text]:
    """A line per evaluation and, for the current stage, one for its last validation; the newest `most` of them."""
    rows = [*run.evaluations, *run.validations[-1:]][-most:]
    width = _widest(row["stage"] for row in rows)
    for row in rows:
        line = Text(f"{row['stage'][:width]:<{width}} ", no_wrap=True, overflow="crop")
        line.append(f"{row['task']} {100 * row['mean']:.1f} % ", "bold")
        line.append(f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]  parallel {100 * row['parallel_ratio']:.0f} %")
        if row["kind"] == "validation":
            line.append(f"  validation, best at step {row['best_step']}")
        else:
            line.append(f"  critical path {row['critical_path']:.0f}")
        yield line


def _alarms(run: RunSoFar, most: int) -> list[Text]:
    """The newest warnings."""
    rows = run.warnings[-most:]
    return [Text(f"warning: {row['stage']}, step {row['step']}: {row['warning']}", "yellow") for row in rows]


def curves(run: RunSoFar, width: int, room: int | None, ascii_only: bool = False) -> list[Text]:
    """The curves of the RL stages as bars: a line, or several, per metric and branch of the run. All branches begin at
    the left, where they part ways at the model, and share steps and scale. While a run has no RL step, the loss.

    Args:
        room: most lines; the bars become lower, then only the current branch is shown. None: bars of a line or two.
    """
    branches = run.branches()
    metrics: Sequence[tuple[str, str, str]] = CURVES
    if not branches:
        if run.current is None or run.current.kind == "rl":
            return []
        branches, metrics = [[run.current]], [("loss", "loss", ".3f")]
    current = [branch for branch in branches if run.current in branch] or branches[-1:]
    usual = 2 if len(branches) == 1 else 1
    for shown, rows in ((branches, 3), (branches, 2), (branches, 1), (current, 1)):
        lines = _curves(shown, metrics, width, rows, ascii_only)
        if len(lines) <= room if room is not None else rows == usual:
            return lines
    return lines[: max(0, room or 0)]


def _curves(
    branches: list[list[StageSoFar]], metrics: Sequence[tuple[str, str, str]], width: int, rows: int, ascii_only: bool
) -> list[Text]:
    """See `curves`."""
    label = max(len(branch[-1].name) for branch in branches) + 1 if len(branches) > 1 else 0
    label, lines = min(label, 13), []
    places = max(8, width - NAME - label - 8)
    steps = max(sum(stage.done for stage in branch) for branch in branches)
    broad = min(max(1, places // steps), BROAD)  # columns per bar
    for key, name, form in metrics:
        drawn = [
            bars.columns(np.concatenate([stage.series[key] for stage in branch]), places, steps) for branch in branches
        ]
        present = [value for columns in drawn for value in columns if not math.isnan(value)]
        if not present:
            continue
        low, high = min(present), max(present)
        names = iter([name, f"{low:{form}} .. {high:{form}}"])
        for number, (branch, columns) in enumerate(zip(branches, drawn, strict=True)):
            tint = PATH_COLOURS[number % len(PATH_COLOURS)]
            characters = bars.ASCII if ascii_only else bars.BLOCKS
            for row, text in enumerate(bars.bars(columns, low, high, rows, characters)):
                line = Text(f"{next(names, ''):<{NAME}}", no_wrap=True, overflow="crop")
                line.append(f"{branch[-1].name[: label - 1] if row == rows - 1 and label else '':<{label}}", tint)
                line.append("".join(character * broad for character in text), tint)
                if row == rows - 1 and not math.isnan(columns[-1]):
                    line.append(f" {columns[-1]:{form}}", "bold")
                lines.append(line)
    return lines + [_ruler(branch, label, places, broad * min(1.0, places / steps)) for branch in branches]


def _ruler(branch: list[StageSoFar], label: int, places: int, columns: float) -> Text:
    """A line with the names of a branch's stages below their first steps, of so many columns each."""
    begin, line = 0, ""
    for stage in branch:
        at = int(begin * columns)
        line = f"{line[: max(0, at - 1)]:<{at}}|{stage.name}"
        begin += stage.done
    return Text(f"{'':<{NAME + label}}{line[:places]}", "dim", no_wrap=True, overflow="crop")
