"""The command that analyses the answers of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json, warn
from parallel_r1.errors import UserError, need
from parallel_r1.files import whole

if TYPE_CHECKING:
    from parallel_r1.evaluation.analysis import Analysis
    from parallel_r1.runs.recipe import Recipe


@app.command()
def analyse(
    path: Annotated[Path, typer.Argument(help="A run folder, or a file of rollouts.", metavar="RUN_OR_FILE")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the tables as parquet, and the figures, to this new folder.")
    ] = None,
    imports: options.Imports = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure how the saved answers of a run think in parallel: where they fork, how siblings differ and agree, what
    forks are used for, which answers a summary rescued. Needs no model."""
    from parallel_r1.evaluation.analysis import analyse, summary
    from parallel_r1.evaluation.analysis.read import run_of
    from parallel_r1.report.tables import print_table

    if out is not None:
        if out.exists():
            raise UserError("a new folder for --out", f"{out} exists", "give another name")
        summary.need_parquet()
        need("matplotlib", "which draws figures", "plot")
    run = run_of(path)
    recipe = _recipe(run) if run is not None else None
    analysis = analyse(path, imports=[*(imports or ()), *(recipe.imports if recipe else ())])
    if out is not None:
        _write(analysis, out, recipe)
    if as_json:
        print_json(summary.to_json(analysis))
        return
    for table in summary.tables(analysis):
        print_table(console, table)
        console.print()
    for alarm in analysis.alarms:
        console.print(
            f"step {alarm['step']}, {alarm['stage']}: {alarm['warning']}", style="yellow", markup=False, highlight=False
        )
    for note in analysis.notes:
        warn(note)
    if out is not None:
        console.print(f"tables and figures are in {out}", soft_wrap=True, highlight=False, markup=False)


def _recipe(run: Path) -> Recipe | None:
    """The recipe of a run; None, with a warning, if this version cannot read it: rollouts need none."""
    from parallel_r1.runs.recipe_file import load_recipe

    if not (run / "recipe.toml").is_file():
        return None
    try:
        return load_recipe(run / "recipe.toml")
    except UserError as error:
        warn(f"every stage is drawn from step 0, and tasks of its imports are not loaded: {error}")
        return None


def _write(analysis: Analysis, out: Path, recipe: Recipe | None) -> None:
    from parallel_r1.evaluation.analysis.summary import write_parquet
    from parallel_r1.report.figures import figures, save

    starts = {name: recipe.start_of(name) for name in recipe.stages} if recipe else {}
    with whole(out) as folder:
        folder.mkdir()
        write_parquet(analysis, folder)
        save(figures(analysis, starts), folder)
