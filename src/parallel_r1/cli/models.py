"""Commands that prepare a model and send one to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, one_of, print_json, quiet

if TYPE_CHECKING:
    from parallel_r1.runs.push import Parcel


@app.command()
def prepare(
    model: Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    init: Annotated[
        str, typer.Option(help="Embeddings of the tags: mean (of the pieces of their text), random, or keep.")
    ] = "mean",
    schema: options.SchemaName = "parallel-r1",
    own_head: Annotated[
        bool,
        typer.Option("--own-head", help="Write a copy with tags for a vLLM server on a CPU that takes new weights."),
    ] = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Add the tags of a schema to a model's tokenizer and embeddings. Other tokens keep their ids and embeddings."""
    from parallel_r1.answers.schemas import load_schema
    from parallel_r1.models.tags import Init
    from parallel_r1.models.tags import prepare as make

    one_of("--init", init, Init)
    quiet()
    if own_head:
        _write_for_vllm(model, out, as_json)
        return
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


def _write_for_vllm(model: str, out: Path, as_json: bool) -> None:
    """Write a copy of a model that has its tags, with its head as a matrix of its own."""
    from parallel_r1.errors import UserError
    from parallel_r1.generation.vllm.weights import write_weights
    from parallel_r1.models.policy import load

    if out.exists():
        raise UserError("a new folder for --out", f"{out}, which exists", "give another name, or remove it")
    write_weights(load(model, device="cpu"), out)
    if as_json:
        print_json({"out": str(out)})
    else:
        console.print(f"wrote {out}", soft_wrap=True, highlight=False)


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a run, such as runs/demo/checkpoints/hard.")],
    repo: Annotated[str, typer.Argument(help="The repository, as OWNER/NAME. It is created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
    without_card: Annotated[
        bool, typer.Option("--without-card", help="Send a model that has no model card, README.md.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and stop, without network.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Send a checkpoint with its cards to a Hugging Face hub: that of HF_ENDPOINT, with the token of HF_TOKEN or of a
    login. After an error the same command goes on."""
    from parallel_r1 import __version__
    from parallel_r1.runs.push import check_name, pack, send

    check_name(repo)
    parcel = pack(checkpoint, card=not without_card)
    if not as_json:
        _list(parcel)
    sent = None
    if not dry_run:
        _quiet_hub(bars=console.is_terminal and not as_json)
        sent = send(
            parcel, repo, message or f"{parcel.folder.resolve().name}, sent by parallel-r1 {__version__}", private
        )
    if as_json:
        where = {"url": sent.url, "commit": sent.commit} if sent else {"url": None, "commit": None}
        print_json({"repo": repo, "files": parcel.files, "left_out": parcel.left_out, "bytes": parcel.size, **where})
    elif sent:
        console.print(f"sent to {sent.url}, commit {sent.commit[:12]}", soft_wrap=True, highlight=False)
    else:
        console.print(f"nothing was sent to {repo}: a dry run", soft_wrap=True, highlight=False)


def _list(parcel: Parcel) -> None:
    """Print the files of a parcel and their sizes."""
    from rich.filesize import decimal

    for name, size in parcel.files.items():
        console.print(f"{decimal(size):>10}  {name}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"{decimal(parcel.size):>10}  in {len(parcel.files)} files", style="bold", highlight=False)
    if parcel.left_out:
        names = ", ".join(parcel.left_out)
        console.print(f"left out, no part of the model: {names}", soft_wrap=True, highlight=False, markup=False)


def _quiet_hub(bars: bool) -> None:
    """Silence the warnings of huggingface_hub, and its progress bars unless `bars`."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not bars:
        disable_progress_bars()
