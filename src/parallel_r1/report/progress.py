"""Progress of runs, studies and teachers: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from parallel_r1.coldstart.collect import Collection


def _bars(console: Console) -> Progress | None:
    """Progress bars with figures and the time left; None where the output is no terminal, or one without a cursor."""
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return Progress(
        TextColumn("[bold]{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class _Shown:
    """What shows progress between `with` and the end of its block.

    Attributes:
        bars: the bars; None where lines are printed instead.
        bar: the bar that grows.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.bars = console, _bars(console)
        self.bar: Any = None

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()


class RunProgress(_Shown):
    """Shows the metrics of a run: a bar per stage in a terminal, elsewhere a line every `every` steps."""

    def __init__(self, console: Console, every: int = 10) -> None:
        super().__init__(console)
        self.every, self.stage = every, ""
        self.started = time.monotonic()

    def __call__(self, row: dict[str, Any]) -> None:
        if row["kind"] in ("evaluation", "validation"):
            self.evaluation(row)
            return
        if row["kind"] == "warning":
            self.console.print(f"warning: {row['stage']}: {row['warning']}", style="yellow", soft_wrap=True)
            return
        shown = figures(row)
        if self.bars:
            if row["stage"] != self.stage:
                self.bar = self.bars.add_task(row["stage"], total=row["stage_steps"], figures="")
            self.bars.update(self.bar, completed=row["stage_step"], figures=shown)
        elif row["stage_step"] % self.every == 0 or row["stage_step"] in (1, row["stage_steps"]):
            left = row["seconds"] * (row["stage_steps"] - row["stage_step"])
            self.console.print(
                f"{time.monotonic() - self.started:5.0f} s  {row['stage']:<12} step {row['stage_step']}/"
                f"{row['stage_steps']}  {shown}  left {left:.0f} s",
                soft_wrap=True,
                highlight=False,
            )
        self.stage = row["stage"]

    def evaluation(self, row: dict[str, Any]) -> None:
        self.console.print(
            f"{time.monotonic() - self.started:5.0f} s  {row['stage']:<12} {row['task']}: mean@{row['samples']} "
            f"{100 * row['mean']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}], parallel "
            f"{100 * row['parallel_ratio']:.0f} %, critical path {row['critical_path']:.0f}, tokens {row['total']:.0f}"
            + (f"; validation, best at step {row['best_step']}" if row["kind"] == "validation" else ""),
            soft_wrap=True,
            highlight=False,
        )


def figures(row: dict[str, Any]) -> str:
    """Reward or loss of a step, parallel ratio and speed, as a few words."""
    if "reward" in row:
        first = f"reward {row['reward']:+.2f}  accuracy {row['accuracy']:.2f}"
    else:
        first = f"loss {row['loss']:.3f}" if "loss" in row else "no update"
    return f"{first}  parallel {row['parallel_ratio']:.2f}  {row['tokens_per_second']:,.0f} tokens/s"


class EvaluationProgress(_Shown):
    """Shows how many answers of an evaluation are drawn: a bar per task in a terminal, elsewhere a line every `pause`
    seconds. Call it as `evaluation.session.OnProgress`."""

    def __init__(self, console: Console, pause: float = 10.0) -> None:
        super().__init__(console)
        self.pause = pause
        self.name, self.done, self.kept = "", 0, 0
        self.started = self.last = time.monotonic()

    def __call__(self, name: str, kept: int, asked: int, number: int) -> None:
        if name != self.name:
            self.name, self.done, self.kept, self.started = name, kept, kept, time.monotonic()
            self.bar = self.bars.add_task(name, total=asked, figures="answers") if self.bars else None
        self.done += number
        if self.bars:
            self.bars.update(self.bar, completed=self.done)
        elif (now := time.monotonic()) - self.last > self.pause:
            self.last = now
            left = (now - self.started) / (self.done - self.kept) * (asked - self.done)
            line = f"{name}: {self.done:,} of {asked:,} answers, left {left:.0f} s"
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)


class StudyProgress:
    """Shows the progress of a study: a line every `every` steps of a stage, and when a piece of work is done."""

    def __init__(self, console: Console, titles: Mapping[str, str], every: int = 20) -> None:
        self.console, self.titles, self.every = console, titles, every
        self.done = 0
        self.started = time.monotonic()

    def __call__(self, key: str, row: dict[str, Any]) -> None:
        if row["kind"] == "done":
            self.done += 1
            message = f"done, {self.done} of {len(self.titles)}"
        elif row["kind"] == "warning":
            message = f"warning: {row['warning']}"
        elif row["stage_step"] % self.every:
            return
        else:
            message = f"step {row['stage_step']}/{row['stage_steps']}  {figures(row)}"
        line = f"{time.monotonic() - self.started:6.0f} s  {self.titles[key]}: {message}"
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


class AskProgress(_Shown):
    """Shows the responses of a teacher: a bar in a terminal, elsewhere a line every `every` responses."""

    def __init__(self, console: Console, total: int, every: int = 100) -> None:
        super().__init__(console)
        self.total, self.every = total, every
        self.started, self.done = time.monotonic(), 0
        self.first = 0.0  # seconds until the first response
        self.bar = self.bars.add_task("answers", total=total, figures="") if self.bars else None

    def __call__(self, collection: Collection) -> None:
        self.done += 1
        seen = len(collection.verdicts)
        figures = f"kept {collection.kept / max(1, seen):.1%}  tokens {collection.tokens:,}"
        if collection.money:
            figures += f"  spent {collection.money:.2f}"
        if self.bars:
            self.bars.update(self.bar, completed=self.done, figures=figures)
        elif self.done % self.every == 0 or self.done in (1, self.total):
            passed = time.monotonic() - self.started
            if self.done == 1:  # requests go out many at a time, so the first one says nothing about the speed
                self.first = passed
            else:
                left = (passed - self.first) / (self.done - 1) * (self.total - self.done)
                figures += f"  left {left:.0f} s"
            line = f"{passed:6.0f} s  {self.done:,}/{self.total:,}  {figures}"
            self.console.print(line, soft_wrap=True, highlight=False)
