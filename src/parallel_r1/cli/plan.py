"""The command that forecasts a recipe on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, one_of, print_json, quiet
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.runs.recipe import Recipe
    from parallel_r1.runs.scale.answers import Outline


@app.command()
def plan(
    recipe: options.RecipePath,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, divided by commas.")] = "8,64,512",
    gpu: Annotated[str, typer.Option(help="The GPU: h100 or h200.")] = "h100",
    overrides: options.Overrides = None,
    model_config: Annotated[
        Path | None, typer.Option(help="A config.json, or a folder with one, in place of the recipe's model.")
    ] = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Saved answers, whose lengths and forks are taken: runs/NAME/rollouts/step-N.jsonl. Repeatable."
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(help="Declared lengths of answers, such as median=0.5,parallel=0.9 (docs/scale.md). Repeatable."),
    ] = None,
    assume: Annotated[
        list[str] | None, typer.Option(help="Change an assumption, such as train_arithmetic=0.4. Repeatable.")
    ] = None,
    routing: Annotated[
        str, typer.Option(help="sticky: an answer stays on one server; spread: every call goes to the least busy.")
    ] = "sticky",
    mode: Annotated[
        str, typer.Option(help="colocated: all GPUs draw, then learn; separate: some draw while the others learn.")
    ] = "colocated",
    draw_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of the GPUs that draw in the mode separate.")
    ] = 0.5,
    seed: options.Seed = 0,
    check: Annotated[
        Path | None, typer.Option(help="Compare the simulation with the measurements in this JSON file, and stop.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """What the RL stages of a recipe would cost on a cluster with verl: hours, memory, bottleneck. Launches nothing."""
    from parallel_r1.runs.recipe_file import load_recipe
    from parallel_r1.runs.scale.answers import Lengths, read_outlines
    from parallel_r1.runs.scale.forecast import Mode, Options, forecast
    from parallel_r1.runs.scale.hardware import assume as assumptions
    from parallel_r1.runs.scale.hardware import find_gpu, parse_pairs
    from parallel_r1.runs.scale.simulate import Routing

    one_of("--routing", routing, Routing)
    one_of("--mode", mode, Mode)
    loaded = load_recipe(recipe, overrides or [])
    outlines = tuple(read_outlines(rollouts)) if rollouts else ()
    if outlines and lengths:
        raise UserError("--rollouts or --lengths", "both", "leave one out")
    if check is not None:
        _check(loaded, check, outlines, as_json)
        return
    asked = Options(
        gpus=_numbers(gpus),
        gpu=find_gpu(gpu),
        assumed=assumptions(assume or []),
        routing=routing,  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        share=draw_share,
        config=model_config,
        outlines=outlines,
        lengths=parse_pairs(Lengths, "--lengths", lengths or []),
        seed=seed,
    )
    quiet()
    made = forecast(loaded, asked)
    if as_json:
        print_json(made.to_json())
    else:
        from parallel_r1.report.scale import print_forecast

        print_forecast(console, made)


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers of GPUs, smallest first.

    Raises:
        UserError: something else.
    """
    numbers = [word.strip() for word in text.split(",")]
    wrong = [word for word in numbers if not (word.isascii() and word.isdecimal() and 1 <= int(word) <= MOST)]
    if wrong:
        raise UserError(f"--gpus with numbers from 1 to {MOST:,}, such as 8,64,512", f"'{wrong[0]}'", "correct it")
    return tuple(sorted({int(word) for word in numbers}))


MOST = 65_536
"""The largest number of GPUs."""


def _check(recipe: Recipe, file: Path, outlines: tuple[Outline, ...], as_json: bool) -> None:
    """Print predicted / measured of the file's steps and rollout. The first RL stage says what a join does."""
    from parallel_r1.report.scale import print_check
    from parallel_r1.runs.scale.calibrate import check, read_measured
    from parallel_r1.runs.scale.forecast import rl_stages

    stage = next(iter(rl_stages(recipe).values()))
    compared = check(read_measured(file), stage, outlines)
    if as_json:
        print_json(compared.to_json())
    else:
        print_check(console, compared)
