"""The command that follows a running training from another terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli.app import app, console

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions

    from parallel_r1.report.watch import Picture
    from parallel_r1.runs.follow import RunSoFar

KEYS = "n next, p previous, q quit"
TURNS = {"n": 1, "\x1b[B": 1, "\x1b[C": 1, "p": -1, "\x1b[A": -1, "\x1b[D": -1}
"""Keys, arrows among them, and by how many answers they turn."""
TICK = 0.2
"""Seconds until a pressed key and another size of the terminal are noticed."""


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run, such as runs/demo.")],
    every: Annotated[float, typer.Option(min=TICK, help="Seconds between two looks at the run.")] = 2.0,
    once: Annotated[bool, typer.Option(help="Print one picture and stop.")] = False,
) -> None:
    """Follow a run that goes on in another terminal: progress, curves, alarms, evaluations, the newest answers. It only
    reads files. In a pipe, or on a terminal without a cursor, a picture is followed by a line every ten steps."""
    from parallel_r1.report.watch import Picture
    from parallel_r1.runs.follow import RunSoFar

    so_far = RunSoFar(run)
    so_far.read()
    if once or so_far.is_finished:
        console.print(Picture(so_far))
    elif console.is_terminal and not console.is_dumb_terminal:
        _on_screen(so_far, every)
    else:
        _as_lines(so_far, every)
    if not once:
        table = f"the run is finished: `parallel-r1 show {run}` prints its table"
        end = table if so_far.is_finished else f"stopped watching {run}, which goes on"
        console.print(end, highlight=False, markup=False)


def _on_screen(run: RunSoFar, every: float) -> None:
    """Show the run until it ends or the user quits; then leave the last picture on the ordinary screen."""
    from rich.live import Live

    from parallel_r1.report.watch import Picture

    view = Picture(run, fits=True, hint=KEYS if sys.stdin.isatty() else "Ctrl-C quits")
    with _terminated(), _keyboard() as keys, Live(view, console=console, screen=True, auto_refresh=False) as live:
        while not run.is_finished:
            run.read()
            size = console.size
            live.refresh()
            if not _react(view, _wait(every, keys, size)):
                break
    run.read()
    console.print(Picture(run, first=view.first))


def _react(view: Picture, keys: str) -> bool:
    """Do what keys ask for. Returns False if that is to stop."""
    for key in re.findall(r"\x1b\[[\d;]*[A-Za-z~]|.", keys, re.DOTALL):
        if key in TURNS:
            view.turn(TURNS[key])
        elif key in ("q", "Q", "\x04"):
            return False
    return True


def _wait(seconds: float, keys: int | None, size: ConsoleDimensions) -> str:
    """Wait until keys are pressed, which are returned, the terminal has another size, or the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and console.size == size:
        if keys is None:
            time.sleep(min(left, TICK))
        elif select.select([keys], [], [], min(left, TICK))[0]:
            return os.read(keys, 64).decode(errors="replace") or "q"  # nothing to read: the terminal is gone
    return ""


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """The descriptor from which keys are read one by one, without echo; None if no terminal is there to read from."""
    if not sys.stdin.isatty():
        yield None
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        yield keys
    finally:
        termios.tcsetattr(keys, termios.TCSAFLUSH, before)


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end the program as an exception, so that the terminal is restored."""

    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_lines(run: RunSoFar, every: float) -> None:
    """Print the run as it is now, then a line for its new rows, as the run itself does in a pipe."""
    from parallel_r1.report.progress import RunProgress
    from parallel_r1.report.watch import Picture

    console.print(Picture(run))
    progress = RunProgress(console)
    if run.began is not None:
        progress.started = time.monotonic() - (time.time() - run.began)
    while not run.is_finished:
        time.sleep(every)
        run.read(lambda row: None if run.anew else progress(row))
        if run.anew:
            console.print("the run was resumed at an earlier step", style="yellow")
