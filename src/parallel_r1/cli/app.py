"""The app of the command line with the options before the command, and helpers that several commands use.

Commands import torch and most of the package inside their functions, so that `--help` is quick.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from parallel_r1 import __version__
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.generation.settings import Engine
    from parallel_r1.models.policy import Policy

DEBUG = "PARALLEL_R1_DEBUG"
"""The environment variable that shows the stack of an error when it is 1."""
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Teach language models to think in parallel: fork, explore several paths at once, join, go on.",
)
console = Console()


@dataclass
class Flags:
    """Options before the command that outlive its start.

    Attributes:
        traceback: whether to print the stack of a `UserError`.
    """

    traceback: bool = False


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def before(
    context: typer.Context,
    traceback: Annotated[
        bool, typer.Option("--traceback", help=f"Show the stack of an error; so does {DEBUG}=1.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on standard error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Apply the options before the command."""
    flags = context.ensure_object(Flags)
    flags.traceback = traceback or os.environ.get(DEBUG) == "1"
    if verbose:
        log, handler = logging.getLogger("parallel_r1"), logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def quiet() -> None:
    """Turn off the progress bars of libraries, and the warnings of the hub about failed requests."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    hub.set_verbosity_error()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def warn(message: str) -> None:
    """Print one yellow line on standard error. With several processes only the first one prints."""
    if os.environ.get("RANK", "0") == "0":
        Console(stderr=True).print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one line of JSON on standard output."""
    print(json.dumps(value))


def load_policy(model: str, engine: Engine, *, scores: bool = False) -> Policy:
    """Load a model onto the device that `engine` names, to draw in its dtype.

    Args:
        scores: whether answers are scored too, which is done in fp32.
    """
    from parallel_r1 import models

    return models.load(model, device=engine.device, dtype="auto" if scores else engine.dtype)


def one_of(option: str, value: str, names: Any) -> None:
    """Check that the value of an option is one of the names of a Literal type.

    Raises:
        UserError: it is not. The error suggests the nearest name.
    """
    from parallel_r1.errors import nearest

    allowed = get_args(names)
    if value not in allowed:
        raise UserError(f"{option} one of {', '.join(allowed)}", f"'{value}'", nearest(value, allowed))
