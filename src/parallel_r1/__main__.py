"""The entry point of `parallel-r1` and of `python -m parallel_r1`."""

from __future__ import annotations

import io
import os
import sys
import time
import traceback

from rich.console import Console

from parallel_r1.cli import (
    analysis,
    answers,
    chat,
    checks,
    coldstart,
    compare,
    data,
    evaluation,
    grading,
    models,
    plan,
    recipes,
    report,
    runs,
    serve,
    study,
    watch,
)
from parallel_r1.cli.app import DEBUG, Flags, app
from parallel_r1.errors import UserError
from parallel_r1.registry import MISTAKES, plugin_error

__all__ = [
    "analysis",
    "answers",
    "chat",
    "checks",
    "coldstart",
    "compare",
    "data",
    "evaluation",
    "grading",
    "main",
    "models",
    "plan",
    "recipes",
    "report",
    "runs",
    "serve",
    "study",
    "watch",
]  # importing them is what registers their commands
GRACE = 5.0
"""Seconds that every process but the first waits before it prints its error."""


def main() -> None:
    """Run the command line. A `UserError`, or an exception in the user's own plug-in, becomes one line on standard
    error and exit code 2; any other exception keeps its traceback."""
    flags = Flags(os.environ.get(DEBUG) == "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode; standard error does so already
    try:
        app(obj=flags)
    except UserError as error:
        _fail(error, flags)
    except MISTAKES as error:
        mistake = plugin_error(error)
        if mistake is None:
            raise
        mistake.__cause__ = error
        _fail(mistake, flags)


def _fail(error: UserError, flags: Flags) -> None:
    """Print the error, with its stack if the user asks for it, and exit with code 2."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(GRACE)  # if all processes fail alike, the first prints the error and torchrun ends the others
    if flags.traceback:
        traceback.print_exception(error)
    Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
