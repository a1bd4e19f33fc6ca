"""The command line. Every command imports what it needs when it runs, so that help is quick.

Here: the app, the options that several commands share, and what they make of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.config import Sampling

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Teach language models to think in parallel: fork, explore several paths at once, join, go on.",
)
console = Console()

RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as recipes/tiny/demo.toml.")]
ModelPath = Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id, with the six tags.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value: --set section.key=value. Repeatable.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="The run folder: a new one, or one in which this recipe was broken off. Default: runs/NAME."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
SamplerName = Annotated[str, typer.Option(help="How answers are drawn: isolated, causal_join or sequential.")]
ScorerName = Annotated[str, typer.Option(help="How answers are scored: isolated, replay or causal.")]
Paths = Annotated[int, typer.Option(min=1, max=64, help="Paths of every fork.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="1 is the raw policy, 0 the most probable token.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from the k most probable tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the tokens that make up this probability.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out tokens below this share of the best one.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same answers.")]
Total = Annotated[int, typer.Option(min=1, help="Budget: all tokens of an answer, over all paths.")]
Critical = Annotated[int, typer.Option(min=1, help="Budget: tokens one after the other, the answer's latency.")]
PathBudget = Annotated[int, typer.Option("--path-tokens", min=1, help="Budget: tokens of one path.")]
Forks = Annotated[int, typer.Option(min=0, help="Budget: forks of an answer.")]


def quiet() -> None:
    """No progress bars of libraries between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def budget_of(total: int, critical_path: int, path: int, forks: int) -> dict[str, int]:
    return {"total": total, "critical_path": critical_path, "path": path, "forks": forks}


def sampling_of(**values: Any) -> Sampling:
    """How answers are drawn, from the options of a command."""
    from pydantic import ValidationError

    from parallel_r1.config import Sampling
    from parallel_r1.trace import Sampler

    one_of("--sampler", values["sampler"], Sampler)
    try:
        return Sampling.model_validate(values)
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
