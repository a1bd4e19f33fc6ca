"""What `parallel-r1` and `python -m parallel_r1` run."""

from __future__ import annotations

import os
import sys
import time
import traceback

from rich.console import Console

from parallel_r1.cli import answers, checks, coldstart, data, models, recipes, runs, study
from parallel_r1.cli.app import DEBUG, Flags, app
from parallel_r1.errors import UserError
from parallel_r1.registry import plugin_error

__all__ = [
    "answers",
    "checks",
    "coldstart",
    "data",
    "main",
    "models",
    "recipes",
    "runs",
    "study",
]  # importing them is what registers their commands
GRACE = 5.0
"""Seconds after which a process that is not the first prints its error."""


def main() -> None:
    """Run the command line. A mistake of the user, and an exception in the user's own plug-in, is one line on standard
    error and exit code 2; any other exception keeps its traceback."""
    flags = Flags(os.environ.get(DEBUG) == "1")
    try:
        app(obj=flags)
    except UserError as error:
        _fail(error, flags)
    except Exception as error:
        mistake = plugin_error(error)
        if mistake is None:
            raise
        mistake.__cause__ = error
        _fail(mistake, flags)


def _fail(error: UserError, flags: Flags) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(GRACE)  # the first process prints what all of them met, and torchrun then ends the others
    if flags.traceback:
        traceback.print_exception(error)
    Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
