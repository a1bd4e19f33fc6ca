"""Commands that run recipes."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from parallel_r1 import distributed as processes
from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json, quiet, warn
from parallel_r1.errors import Missing, UserError
from parallel_r1.files import write_text, written

if TYPE_CHECKING:
    from parallel_r1.evaluation.measure import Result
    from parallel_r1.integrations.verl.config import Cluster
    from parallel_r1.runs.estimate import Plan
    from parallel_r1.runs.folder import RunFolder
    from parallel_r1.runs.recipe import Recipe

log = logging.getLogger(__name__)


@app.command()
def demo(
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
    recipe: Annotated[Path | None, typer.Option(help="Another recipe to run.")] = None,
    quick: Annotated[bool, typer.Option(help="A few steps of every stage, in two minutes.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Watch a tiny model learn to think in parallel: the whole curriculum and plain GRPO, in minutes on a CPU."""
    if recipe is not None and quick:
        raise UserError("--recipe or --quick", "both", "leave one out")
    recipe = recipe or Path(f"recipes/tiny/{'quick' if quick else 'demo'}.toml")
    _run(recipe, out, _changes(overrides, track), None, as_json)


@app.command()
def train(
    recipe: options.RecipePath,
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
    dry_run: Annotated[
        bool, typer.Option(help="Check the recipe without loading weights, print the plan and stop.")
    ] = False,
    engine: options.StageEngine = "own",
    nodes: options.Nodes = 1,
    gpus: options.GpusPerNode = 1,
    verl: options.VerlKeys = None,
    print_only: options.PrintOnly = False,
    as_json: options.AsJson = False,
) -> None:
    """Run all stages of a recipe."""
    if dry_run and print_only:
        raise UserError("--dry-run or --print", "both", "leave one out")
    changes = _changes(overrides, track)
    if dry_run:
        _plan(recipe, changes, as_json)
    else:
        _start(recipe, out, changes, None, as_json, engine, nodes, gpus, verl, print_only)


@app.command()
def sft(
    recipe: options.RecipePath,
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the supervised stages of a recipe only."""
    _run(recipe, out, _changes(overrides, track), "sft", as_json)


@app.command()
def rl(
    recipe: options.RecipePath,
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
    engine: options.StageEngine = "own",
    nodes: options.Nodes = 1,
    gpus: options.GpusPerNode = 1,
    verl: options.VerlKeys = None,
    print_only: options.PrintOnly = False,
    as_json: options.AsJson = False,
) -> None:
    """Run the reinforcement-learning stages of a recipe only. --set model.path=FOLDER names the model to start from."""
    _start(recipe, out, _changes(overrides, track), "rl", as_json, engine, nodes, gpus, verl, print_only)


def _start(
    recipe: Path,
    out: Path | None,
    changes: list[str],
    kind: Literal["rl"] | None,
    as_json: bool,
    engine: Literal["own", "verl"],
    nodes: int,
    gpus: int,
    verl: list[str] | None,
    print_only: bool,
) -> None:
    """Run the stages of a recipe in this process or with verl, or print how verl would be launched."""
    if engine == "own":
        if print_only or verl or nodes > 1 or gpus > 1:
            raise UserError(
                "--engine verl", "an option that belongs to it", "add --engine verl, or leave the option out"
            )
        return _run(recipe, out, changes, kind, as_json)
    from parallel_r1.integrations.verl.config import Cluster

    cluster = Cluster(nodes, gpus, tuple(verl or ()))
    if print_only:
        return _print_commands(recipe, out, changes, kind, cluster, as_json)
    return _run(recipe, out, changes, kind, as_json, cluster)


def _changes(overrides: list[str] | None, track: list[str] | None) -> list[str]:
    """The changes of a recipe that --set and --track ask for."""
    return [*(overrides or []), *([f"tracking={json.dumps(track)}"] if track else [])]


def _plan(path: Path, overrides: list[str], as_json: bool) -> None:
    """Print what `train` would do, and what is missing for it."""
    from parallel_r1.runs.recipe_file import load_recipe

    recipe = load_recipe(path, overrides)
    from parallel_r1.report.tables import print_plan
    from parallel_r1.runs import estimate as plan
    from parallel_r1.runs.recipe_check import check

    quiet()
    missing: list[Missing] = []
    planned = plan.make(recipe, check(recipe, missing))
    if as_json:
        print_json(_plan_json(planned, missing))
    else:
        print_plan(console, planned, missing)


def _plan_json(planned: Plan, missing: list[Missing]) -> dict[str, Any]:
    stages = [
        {**asdict(stage), "memory": stage.memory and {**asdict(stage.memory), "peak": stage.memory.peak}}
        for stage in planned.stages
    ]
    return {**asdict(planned), "stages": stages, "missing": [str(error) for error in missing]}


def _print_commands(
    path: Path, out: Path | None, overrides: list[str], kind: Literal["rl"] | None, cluster: Cluster, as_json: bool
) -> None:
    """Print how verl would be launched for every RL stage of a recipe. verl need not be installed for it."""
    from parallel_r1.integrations.verl import refusals
    from parallel_r1.integrations.verl.train import commands
    from parallel_r1.runs.recipe_check import check
    from parallel_r1.runs.recipe_file import load_recipe

    quiet()
    recipe = load_recipe(path, overrides)
    recipe = recipe if kind is None else recipe.only(kind)
    refusals.check(recipe)
    check(recipe, [])
    folder = out or Path("runs") / recipe.name
    launches = dict(commands(recipe, cluster, folder))
    if as_json:
        print_json(launches)
        return
    for name, lines in launches.items():
        console.print(f"# stage {name}", *lines, sep="\n", soft_wrap=True, highlight=False, markup=False)


def _run(
    path: Path,
    out: Path | None,
    overrides: list[str],
    kind: Literal["sft", "rl"] | None,
    as_json: bool,
    cluster: Cluster | None = None,
) -> None:
    """Run the stages of a recipe: all, or only the sft or rl stages. With `as_json` the only output is one object at
    the end, with the run folder and the results of every stage.

    Args:
        cluster: where verl runs the RL stages; this process does if None.
    """
    from parallel_r1.runs.recipe_file import load_recipe

    recipe = load_recipe(path, overrides)
    if kind is not None:
        recipe = recipe.only(kind)
    from parallel_r1.report.progress import RunProgress
    from parallel_r1.runs.curriculum import Curriculum, build_policy, train
    from parallel_r1.runs.folder import RunFolder
    from parallel_r1.runs.recipe_check import check
    from parallel_r1.runs.trackers import Tracking

    quiet()
    make: Any = Curriculum
    if cluster is not None:
        from parallel_r1.integrations.verl.train import VerlCurriculum, check_all

        check_all(recipe, cluster)
        make = partial(VerlCurriculum, cluster=cluster)
    processes.start(recipe.processes.count, recipe.engine.device)
    console.quiet = as_json or not processes.is_first()
    check(recipe)
    folder, resumed = _choose_folder(out, recipe)
    policy = build_policy(recipe)
    run = RunFolder.create(folder, recipe)
    console.print(f"{'going on in' if resumed else 'writing to'} {run.path}", soft_wrap=True, highlight=False)
    with RunProgress(console) as progress, Tracking(recipe, run) as tracking:

        @processes.by_first
        def on_row(row: dict[str, Any]) -> None:
            progress(row)
            tracking(row)

        results = train(recipe, policy, run, on_row, make)
    if processes.is_first():
        _conclude(recipe, run, results)
    run.finish()
    console.print(f"everything is in {run.path}", soft_wrap=True, highlight=False)
    if not processes.is_first():
        return
    report = _report(run)
    if as_json:
        results_json = [result.to_json() for result in results]
        print_json({"run": str(run.path), "report": report and str(report), "results": results_json})
    elif report:
        console.print(f"the report is {report}", soft_wrap=True, highlight=False, markup=False)


def _report(run: RunFolder) -> Path | None:
    """Write the report of a finished run. If it cannot be written, a warning says why: the run is whole without it."""
    from parallel_r1.report.pages.report import write_report

    try:
        return write_report(run.path)
    except Exception as error:  # whatever it is, hours of training must not end as a failure
        log.info("no report", exc_info=True)
        reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        warn(f"no report: {reason}; `parallel-r1 report {run.path}` tries again")
        return None


def _conclude(recipe: Recipe, run: RunFolder, results: list[Result]) -> None:
    """Write table.md and curves.png of a run, and print the table."""
    from parallel_r1.evaluation import tables as report
    from parallel_r1.report.curves import picture
    from parallel_r1.report.tables import print_results

    chosen = report.chosen(run.metrics())
    if results:
        write_text(run.path / "table.md", report.markdown(results, recipe.compare, chosen))
        print_results(console, results, recipe.compare)
    for line in chosen:
        console.print(line, soft_wrap=True, highlight=False)
    if not picture(run.metrics(), run.path / "curves.png", {name: recipe.start_of(name) for name in recipe.stages}):
        console.print("no picture: it needs an RL stage and `pip install 'parallel-r1[plot]'`", markup=False)


@processes.by_first
def _choose_folder(out: Path | None, recipe: Recipe) -> tuple[Path, bool]:
    """The folder to write to, and whether it holds an interrupted run of this recipe."""
    from parallel_r1.runs.folder import RunFolder

    with written(out or Path("runs")):
        run = RunFolder(out or _free_folder(Path("runs") / recipe.name, recipe))
        return run.path, run.is_begun(recipe)


def _free_folder(wanted: Path, recipe: Recipe) -> Path:
    """The first of NAME, NAME-2, NAME-3, .. that does not exist, or that holds an interrupted run of this recipe."""
    from parallel_r1.runs.folder import RunFolder

    number, folder = 1, wanted
    while folder.exists() and not RunFolder(folder).is_unfinished(recipe):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
