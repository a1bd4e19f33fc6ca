"""The command that adds the tags to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, one_of, print_json, quiet


@app.command()
def prepare(
    model: Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    init: Annotated[
        str, typer.Option(help="Embeddings of the tags: mean (of the pieces of their text), random, or keep.")
    ] = "mean",
    schema: options.SchemaName = "parallel-r1",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Add the tags of a schema to a model's tokenizer and embeddings. Other tokens keep their ids and embeddings."""
    from parallel_r1.answers.schemas import load_schema
    from parallel_r1.models.tags import Init
    from parallel_r1.models.tags import prepare as make

    one_of("--init", init, Init)
    quiet()
    prepared = make(model, out, init, seed, load_schema(schema))  # type: ignore[arg-type]
    if as_json:
        tokens, added = (prepared.tokens, prepared.added) if prepared else ({}, 0)
        print_json({"out": str(out) if prepared else None, "tokens": tokens, "added": added})
        return
    if prepared is None:
        console.print(f"{model} has these tags already: nothing to do", soft_wrap=True, highlight=False)
        return
    listed = ", ".join(f"{tag} {token}" for tag, token in prepared.tokens.items())
    console.print(f"tokens: {listed}", soft_wrap=True, highlight=False)
    console.print(f"rows: {init}; the model's tables have grown by {prepared.added}", highlight=False)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)
