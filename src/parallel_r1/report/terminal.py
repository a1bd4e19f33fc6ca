"""What the command line shows: progress while a run goes on, tables, and traces in colour."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from parallel_r1.answers.parser import parse_text, text_pieces
from parallel_r1.answers.rollout import Rollout
from parallel_r1.answers.syntax import FORK_OPEN, SUMMARY_OPEN
from parallel_r1.answers.trace import TRUNK, Address
from parallel_r1.coldstart import collect as collection
from parallel_r1.coldstart.collect import Collection
from parallel_r1.coldstart.filters import MEANING, Statistics
from parallel_r1.errors import Missing
from parallel_r1.evaluation import tables as report
from parallel_r1.evaluation.measure import Result
from parallel_r1.runs.estimate import Memory, Plan
from parallel_r1.training.mismatch import Mismatch

PATH_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


def _bars(console: Console) -> Progress | None:
    """Bars with how much is done, some figures, and the time that is left; None where nothing can move."""
    if not console.is_terminal:
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


class RunProgress:
    """Follows a run: a bar that moves in a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, every: int = 10) -> None:
        self.console, self.every = console, every
        self.bars = _bars(console)
        self.bar: Any = None
        self.stage = ""
        self.started = time.monotonic()

    def __enter__(self) -> RunProgress:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

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
    """The main figures of a step in a few words."""
    if "reward" in row:
        first = f"reward {row['reward']:+.2f}  accuracy {row['accuracy']:.2f}"
    else:
        first = f"loss {row['loss']:.3f}" if "loss" in row else "no update"
    return f"{first}  parallel {row['parallel_ratio']:.2f}  {row['tokens_per_second']:,.0f} tokens/s"


class StudyProgress:
    """Follows a study: a line when a stage is some steps further, and when something is done."""

    def __init__(self, console: Console, titles: Mapping[str, str], every: int = 20) -> None:
        self.console, self.titles, self.every = console, titles, every
        self.done = 0
        self.started = time.monotonic()

    def __call__(self, key: str, row: dict[str, Any]) -> None:
        if row["kind"] == "done":
            self.done += 1
            said = f"done, {self.done} of {len(self.titles)}"
        elif row["kind"] == "warning":
            said = f"warning: {row['warning']}"
        elif row["stage_step"] % self.every:
            return
        else:
            said = f"step {row['stage_step']}/{row['stage_steps']}  {figures(row)}"
        line = f"{time.monotonic() - self.started:6.0f} s  {self.titles[key]}: {said}"
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


class AskProgress:
    """Follows the responses of a teacher: a bar in a terminal, elsewhere a line after every so many of them."""

    def __init__(self, console: Console, total: int, every: int = 100) -> None:
        self.console, self.total, self.every = console, total, every
        self.started, self.done = time.monotonic(), 0
        self.first = 0.0  # second at which the first one came
        self.bars = _bars(console)
        self.bar: Any = self.bars.add_task("answers", total=total, figures="") if self.bars else None

    def __enter__(self) -> AskProgress:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def __call__(self, so_far: Collection) -> None:
        self.done += 1
        seen = len(so_far.verdicts)
        figures = f"kept {so_far.kept / max(1, seen):.1%}  tokens {so_far.tokens:,}"
        if so_far.money:
            figures += f"  spent {so_far.money:.2f}"
        if self.bars:
            self.bars.update(self.bar, completed=self.done, figures=figures)
        elif self.done % self.every == 0 or self.done in (1, self.total):
            passed = time.monotonic() - self.started
            if self.done == 1:  # many were asked at a time: how long one took says nothing about the rest
                self.first = passed
            else:
                left = (passed - self.first) / (self.done - 1) * (self.total - self.done)
                figures += f"  left {left:.0f} s"
            line = f"{passed:6.0f} s  {self.done:,}/{self.total:,}  {figures}"
            self.console.print(line, soft_wrap=True, highlight=False)


def collected(console: Console, found: Sequence[Statistics]) -> None:
    """Print what came of asking a teacher."""
    table = _table("", *(Path(each.source).name for each in found))
    for name, value in collection.ROWS.items():
        table.add_row(name, *(value(each) for each in found))
    for reason, meaning in MEANING.items():
        if any(reason in each.reasons for each in found):
            table.add_row(meaning, *(f"{each.reasons.get(reason, 0):,}" for each in found))
    console.print(table)


def results(console: Console, found: Sequence[Result], pairs: Sequence[tuple[str, str]]) -> None:
    """Print the tables and comparisons of a run."""
    for task in report.tasks(found):
        sheet(console, report.sheet(found, task))
    for line in report.comparisons(found, pairs):
        console.print(line, soft_wrap=True, highlight=False)


def sheet(console: Console, shown: report.Sheet) -> None:
    """Print a table."""
    table = _table(*("\n".join(name.replace("-", "-\n").rsplit(" ", 1)) for name in shown.header))
    table.title, table.title_justify = shown.title, "left"
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)


def plan(console: Console, made: Plan, missing: Sequence[Missing]) -> None:
    """Print what a recipe would do and need, and what of that is not there."""
    steps = _table("stage", "from", "steps", "updates", "answers\na step", "tokens\nat most")
    for stage in made.stages:
        numbers = (stage.steps, stage.updates, stage.answers, stage.tokens)
        steps.add_row(stage.name, stage.start, *(f"{number:,}" if number else "-" for number in numbers))
    console.print(steps)
    for stage in made.stages:
        console.print(f"{stage.name}: {stage.source}", soft_wrap=True, highlight=False)
    if made.parameters is not None and made.disk is not None:
        parts = [part.name for part in fields(Memory)]
        memory = _table("GB", *(stage.name for stage in made.stages))
        for part in (*parts, "peak"):
            row = [f"{getattr(stage.memory, part) / 1e9:.2f}" for stage in made.stages]
            memory.add_row(part, *row, style="bold" if part == "peak" else None)
        console.print(memory)
        weights = f"{made.parameters:,} parameters, {made.learning:,} learn"
        console.print(f"{weights}; {decimal(made.disk)} on disk", highlight=False)
    console.print(f"evaluations draw {made.evaluated:,} tokens at most", highlight=False)
    for line in made.unknown:
        console.print(f"not known: {line}", style="yellow", soft_wrap=True, highlight=False)
    for each in missing:
        console.print(f"missing: {each}", style="yellow", soft_wrap=True, highlight=False, markup=False)


def _table(first: str, *others: str) -> Table:
    """A table with numbers on the right, narrow enough for the 80 columns that a pipe or a log has. Where it is not,
    names are broken over lines and numbers stay whole."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def colour(address: Address) -> str:
    """The colour of a place in the tree: plain for the trunk, one of six by path."""
    return "default" if address == TRUNK else PATH_COLOURS[address[-1][1] % len(PATH_COLOURS)]


def rollout(console: Console, shown: Rollout) -> None:
    """Print an answer with its structure: the trunk as it reads, every path in its own colour."""
    verdict = Text("correct", "bold green") if shown.correct else Text("wrong", "bold red")
    head = Text.assemble(shown.problem.prompt.strip(), "  ", verdict)
    if shown.reward is not None:
        head.append(f"  reward {shown.reward:+.2f}")
    head.append(f"  critical path {shown.critical_path}, tokens {shown.total}", "dim")
    tree = Tree(head, guide_style="dim")
    draw_text(tree, shown.text)
    for defect in shown.trace.defects:
        tree.add(Text(f"{defect.kind} at token {defect.at}: {defect.message}", "red"))
    console.print(tree)


def draw_text(tree: Tree, text: str) -> None:
    """Hang an answer's text on a tree: a branch per path, the trunk's text beside them in reading order."""
    nodes: dict[Address, Tree] = {TRUNK: tree}
    label = ""
    for (piece, read), address in zip(text_pieces(text), parse_text(text).addresses, strict=True):
        if address not in nodes:
            name = Text(f"path {address[-1][1] + 1}", f"bold {colour(address)}")
            nodes[address] = nodes[address[:-1]].add(name)
        if read.tag == FORK_OPEN:
            nodes[address].add(Text("fork", "bold"))
        elif read.tag == SUMMARY_OPEN:
            label = "summary: "
        elif read.tag is None and not read.blank:
            nodes[address].add(Text(label + piece.strip("\n"), colour(address)))
            label = ""


class LiveAnswer:
    """Shows one answer while it is drawn: the trunk, and the open paths side by side below it."""

    def __init__(self, console: Console, decode: Any) -> None:
        self.console, self.decode = console, decode
        self.parts: list[tuple[Address, list[int]]] = []
        self.live = Live(console=console, refresh_per_second=20) if console.is_terminal else None

    def __enter__(self) -> LiveAnswer:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update(self.view())
            self.live.stop()
        else:
            self.console.print(self.view())

    def __call__(self, answer: int, address: Address, token: int, sampled: bool) -> None:
        for known, tokens in reversed(self.parts):
            if known == address:
                tokens.append(token)
                break
            if len(known) < len(address) or address == TRUNK:
                self.parts.append((address, [token]))
                break
        else:
            self.parts.append((address, [token]))
        if self.live:
            self.live.update(self.view())

    def view(self) -> Group:
        """All parts drawn so far: trunk text, and a panel for every path."""
        shown: list[Any] = []
        for address, tokens in self.parts:
            text = self.decode(tokens)
            if address == TRUNK:
                shown.append(Text(text))
            else:
                name = " > ".join(f"fork {fork + 1} path {path + 1}" for fork, path in address)
                shown.append(
                    Panel(Text(text, colour(address)), title=name, title_align="left", border_style=colour(address))
                )
        return Group(*shown)


def parity(console: Console, found: Sequence[Mismatch]) -> None:
    """Print pairs of sampler and scorer and how far apart their log-probabilities are, in nats."""
    table = Table("sampler", "scorer", "pair", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("max", "mean", "after fork", "after join", "tokens"):
        table.add_column(name, justify="right")
    for pair in found:
        figures = (pair.max_abs, pair.mean_abs, pair.after_fork, pair.after_join)
        table.add_row(
            pair.sampler,
            pair.scorer,
            Text("exact", "green") if pair.exact else Text("mismatch", "yellow"),
            *("-" if figure is None else f"{figure:.1e}" for figure in figures),
            str(pair.tokens),
        )
    console.print(table)
