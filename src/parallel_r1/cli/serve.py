"""The command that serves a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, quiet
from parallel_r1.errors import UserError, need

if TYPE_CHECKING:
    from parallel_r1.generation.settings import Engine

LOCAL = ("127.0.0.1", "localhost", "::1")


@app.command()
@options.shared()
def serve(
    model: options.ModelPath,
    engine: Engine,
    host: Annotated[str, typer.Option(help="Address to listen on. Another than this machine's own needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Name of the model for clients. Default: that of its folder.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="PARALLEL_R1_API_KEY", show_default=False, help="Clients must show this key."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="isolated or causal_join. Default: as the model was trained.")
    ] = None,
    max_prompt: Annotated[int, typer.Option(min=1, help="Most tokens of a prompt.")] = 32_768,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer, over all paths.")] = 32_768,
    max_paths: Annotated[int, typer.Option(min=1, max=64, help="Most paths of a fork.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Most answers that wait; beyond it clients get status 429.")] = 256,
    body: Annotated[int, typer.Option(min=1, help="Largest request in bytes.")] = 1_000_000,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time of one request, in seconds.")] = 600.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds in which running answers may end when the server is stopped.")
    ] = 20.0,
) -> None:
    """Serve a model over OpenAI's API, with a page at / that shows paths side by side. See docs/serving.md."""
    if host not in LOCAL and not api_key:
        raise UserError(f"an API key for the address {host}", "none", "give --api-key, or set PARALLEL_R1_API_KEY")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "which serves a model", "serve")
    from parallel_r1.generation.training_card import read_card
    from parallel_r1.models.policy import load_outline
    from parallel_r1.serve.app import Options
    from parallel_r1.serve.protocol import Caps, Reader
    from parallel_r1.serve.run import run
    from parallel_r1.serve.worker import Worker

    quiet()
    policy = load_outline(model)
    if sampler is None and engine.kind == "vllm":
        sampler = "causal_join"
    reader = Reader(
        policy, read_card(model), sampler, Caps(prompt_tokens=max_prompt, tokens=max_tokens, paths=max_paths)
    )
    settings = Options(
        name=name or os.path.basename(os.path.normpath(model)),
        api_key=api_key,
        hosts=(host, *LOCAL, "[::1]"),
        running=engine.rows,
        queue=queue,
        body=body,
        seconds=timeout,
        grace=grace,
    )

    def started(address: str) -> None:
        console.print(f"serving {settings.name} at {address}", soft_wrap=True, highlight=False)

    raise typer.Exit(run(lambda: Worker(model, engine), reader, settings, host, port, started))
