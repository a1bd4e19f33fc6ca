"""The command line. Every command imports what it needs when it runs, so that help is quick.

Here: the app, and what commands make of the options that several of them share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import typer
from rich.console import Console

from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.generation.settings import Sampling

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Teach language models to think in parallel: fork, explore several paths at once, join, go on.",
)
console = Console()


def quiet() -> None:
    """No progress bars of libraries between ours, and no line for every time that the hub is not reached."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    hub.set_verbosity_error()

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def sampling_of(
    *, sampler: str, total: int, critical_path: int, path_tokens: int, forks: int, **values: Any
) -> Sampling:
    """How answers are drawn, from the options of a command."""
    from pydantic import ValidationError

    from parallel_r1.answers.trace import Sampler
    from parallel_r1.generation.settings import Sampling

    one_of("--sampler", sampler, Sampler)
    budget = {"total": total, "critical_path": critical_path, "path": path_tokens, "forks": forks}
    try:
        return Sampling.model_validate({"sampler": sampler, "budget": budget, **values})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UserError(
            f"a valid --{option}", repr(first["input"]), first["msg"].removeprefix("Value error, ")
        ) from error


def one_of(option: str, value: str, names: Any) -> None:
    """Refuse a value that is none of a Literal's."""
    from parallel_r1.errors import nearest

    known = get_args(names)
    if value not in known:
        raise UserError(f"{option} one of {', '.join(known)}", f"'{value}'", nearest(value, known))
