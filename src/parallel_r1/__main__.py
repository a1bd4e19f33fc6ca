"""What `parallel-r1` and `python -m parallel_r1` run."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console

from parallel_r1.cli import answers, checks, coldstart, data, models, runs, study
from parallel_r1.cli.app import app
from parallel_r1.errors import UserError

__all__ = [
    "answers",
    "checks",
    "coldstart",
    "data",
    "main",
    "models",
    "runs",
    "study",
]  # importing them is what registers their commands
GRACE = 5.0
"""Seconds after which a process that is not the first says what went wrong."""


def main() -> None:
    """Run the command line; a mistake of the user is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(GRACE)  # what all processes meet the first one says, and torchrun then ends the others
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
