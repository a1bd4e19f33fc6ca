"""Commands that make models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, one_of, quiet


@app.command()
def prepare(
    model: Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    init: Annotated[
        str, typer.Option(help="The tags' rows: mean (of their text's pieces), random, or keep what is there.")
    ] = "mean",
    seed: options.Seed = 0,
) -> None:
    """Give a model the six tags as tokens; nothing else that it says changes."""
    from parallel_r1.models.tags import Init
    from parallel_r1.models.tags import prepare as make

    one_of("--init", init, Init)
    quiet()
    made = make(model, out, init, seed)  # type: ignore[arg-type]
    if made is None:
        console.print(f"{model} has the six tags already: nothing to do", soft_wrap=True, highlight=False)
        return
    tokens = ", ".join(f"{tag} {token}" for tag, token in made.tokens.items())
    console.print(f"tokens: {tokens}", soft_wrap=True, highlight=False)
    console.print(f"rows: {init}; the model's tables have grown by {made.added}", highlight=False)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)
