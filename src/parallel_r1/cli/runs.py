"""Commands that run a recipe or measure a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from parallel_r1 import distributed as processes
from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, quiet, sampling_of
from parallel_r1.errors import Missing, UserError
from parallel_r1.files import whole, write_text, written

if TYPE_CHECKING:
    from parallel_r1.runs.recipe import Recipe


@app.command()
def demo(
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
    recipe: Annotated[Path, typer.Option(help="The recipe to run.")] = Path("recipes/tiny/demo.toml"),
) -> None:
    """Watch a tiny model learn to think in parallel: the whole curriculum beside plain GRPO, in minutes on a CPU."""
    _run(recipe, out, _changes(overrides, track), None)


@app.command()
def train(
    recipe: options.RecipePath,
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
    dry_run: Annotated[bool, typer.Option(help="Check all that needs no weights, print the plan, stop.")] = False,
) -> None:
    """Run every stage of a recipe: a curriculum."""
    if dry_run:
        _plan(recipe, _changes(overrides, track))
    else:
        _run(recipe, out, _changes(overrides, track), None)


@app.command()
def sft(
    recipe: options.RecipePath,
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
) -> None:
    """Run the supervised stages of a recipe only."""
    _run(recipe, out, _changes(overrides, track), "sft")


@app.command()
def rl(
    recipe: options.RecipePath,
    out: options.Out = None,
    overrides: options.Overrides = None,
    track: options.Track = None,
) -> None:
    """Run the reinforcement-learning stages of a recipe only. Give the start with --set model.path=FOLDER."""
    _run(recipe, out, _changes(overrides, track), "rl")


def _changes(overrides: list[str] | None, track: list[str] | None) -> list[str]:
    """What the options of a command change in a recipe."""
    return [*(overrides or []), *([f"tracking={json.dumps(track)}"] if track else [])]


def _plan(path: Path, overrides: list[str]) -> None:
    from parallel_r1.runs.recipe_file import load_recipe

    recipe = load_recipe(path, overrides)
    from parallel_r1.report.tables import print_plan
    from parallel_r1.runs import estimate as plan
    from parallel_r1.runs.curriculum import check

    quiet()
    missing: list[Missing] = []
    print_plan(console, plan.make(recipe, check(recipe, missing)), missing)


def _run(path: Path, out: Path | None, overrides: list[str], kind: Literal["sft", "rl"] | None) -> None:
    from parallel_r1.runs.recipe_file import load_recipe

    recipe = load_recipe(path, overrides)
    if kind is not None:
        recipe = recipe.only(kind)
    from parallel_r1.evaluation import tables as report
    from parallel_r1.report.curves import picture
    from parallel_r1.report.progress import RunProgress
    from parallel_r1.report.tables import print_results
    from parallel_r1.runs.curriculum import build_policy, check, train
    from parallel_r1.runs.folder import RunFolder
    from parallel_r1.runs.trackers import Tracking

    quiet()
    processes.start(recipe.processes.count)
    console.quiet = not processes.is_first()
    check(recipe)
    folder, again = _choose_folder(out, recipe)
    policy = build_policy(recipe)
    run = RunFolder.create(folder, recipe)
    console.print(f"{'going on in' if again else 'writing to'} {run.path}", soft_wrap=True, highlight=False)
    with RunProgress(console) as progress, Tracking(recipe, run) as tracking:

        @processes.by_first
        def tell(row: dict[str, Any]) -> None:
            progress(row)
            tracking(row)

        results = train(recipe, policy, run, tell)
    if processes.is_first():
        chosen = report.chosen(run.metrics())
        if results:
            write_text(run.path / "table.md", report.markdown(results, recipe.compare, chosen))
            print_results(console, results, recipe.compare)
        for line in chosen:
            console.print(line, soft_wrap=True, highlight=False)
        if not picture(run.metrics(), run.path / "curves.png"):
            console.print("no picture: it needs an RL stage and `pip install 'parallel-r1[plot]'`", markup=False)
    run.finish()
    console.print(f"everything is in {run.path}", soft_wrap=True, highlight=False)


@processes.by_first
def _choose_folder(out: Path | None, recipe: Recipe) -> tuple[Path, bool]:
    """Where to write, and whether this recipe was begun there."""
    from parallel_r1.runs.folder import RunFolder

    with written(out or Path("runs")):
        run = RunFolder(out or _free_folder(Path("runs") / recipe.name, recipe))
        return run.path, run.is_begun(recipe)


def _free_folder(wanted: Path, recipe: Recipe) -> Path:
    """The first of NAME, NAME-2, NAME-3, .. that does not exist, or in which this recipe was broken off."""
    from parallel_r1.runs.folder import RunFolder

    number, folder = 1, wanted
    while folder.exists() and not RunFolder(folder).is_unfinished(recipe):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


@app.command("eval")
def evaluate(
    model: options.ModelPath,
    task: Annotated[list[str], typer.Option(help="A task, such as countdown-hard. Repeatable.")],
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each problem: the k of mean@k.")] = 8,
    sampler: options.SamplerName = "isolated",
    paths: options.Paths = 4,
    temperature: options.Temperature = 1.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = 1234,
    total: options.Total = 512,
    critical_path: options.Critical = 256,
    path_tokens: options.PathBudget = 128,
    forks: options.Forks = 4,
    rollouts: Annotated[Path | None, typer.Option(help="Write the answers to this JSONL file, for `show`.")] = None,
    shared_by: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share the work, started by torchrun.")
    ] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Measure a model on held-out problems: mean@k and pass@k with intervals, parallel ratio, latency."""
    sampling = sampling_of(
        sampler=sampler,
        paths=paths,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        total=total,
        critical_path=critical_path,
        path_tokens=path_tokens,
        forks=forks,
    )
    from parallel_r1 import models
    from parallel_r1.answers.rollout import write_jsonl
    from parallel_r1.evaluation.measure import held_out, summarise
    from parallel_r1.generation.rollouts import answer
    from parallel_r1.report.tables import print_results
    from parallel_r1.tasks.base import load_task

    quiet()
    processes.start(shared_by)
    chosen = [load_task(name) for name in task]
    if rollouts is not None and rollouts.exists():
        raise UserError("a new file for --rollouts", f"{rollouts} exists", "give another name")
    policy = models.load(model)
    drawn = [answer(policy, each, held_out(each, problems, seed), samples, sampling, seed) for each in chosen]
    if not processes.is_first():
        return
    results = [summarise(answers, model) for answers in drawn]
    if rollouts is not None:
        with whole(rollouts) as file:
            write_jsonl(file, [rollout for answers in drawn for rollout in answers])
    if as_json:
        print(json.dumps([result.to_json() for result in results]))
    else:
        print_results(console, results, ())
