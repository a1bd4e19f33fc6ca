"""The command that evaluates a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from parallel_r1 import distributed as processes
from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, load_policy, one_of, print_json, quiet
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.evaluation.folder import EvaluationFolder, Measured
    from parallel_r1.generation.settings import Engine, Sampling
    from parallel_r1.tasks.prompts import Prompt

PROBLEMS, SAMPLES = 200, 8
"""Problems of a --task and answers to each where the user does not say."""


@app.command("eval")
@options.shared(paths=4)
def evaluate(
    model: options.ModelPath,
    sampling: Sampling,
    engine: Engine,
    prompt: Prompt,
    task: Annotated[list[str] | None, typer.Option(help="A task, such as countdown-hard. Repeatable.")] = None,
    suite: Annotated[
        str | None, typer.Option(help="paper, fresh, a .toml file of a suite, or a file of problems.")
    ] = None,
    problems: Annotated[
        int | None,
        typer.Option(min=1, help="Most held-out problems of a task.", show_default="200; of a set in a suite, all"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Answers to every problem: the k of mean@k.", show_default="8; of a suite, its own"),
    ] = None,
    budgets: Annotated[str | None, typer.Option(help="Measure under several critical paths, such as 24,48,96.")] = None,
    alone: Annotated[int, typer.Option(min=0, help="Answers to time one at a time, per task and budget.")] = 8,
    seed: options.Seed = 1234,
    find: Annotated[
        str, typer.Option(help="How final answers to sets of problems are located: strict or lenient (other models).")
    ] = "strict",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for answers and results.", show_default="evaluations/MODEL-DIGEST"),
    ] = None,
    regrade: Annotated[bool, typer.Option("--regrade", help="Judge the stored answers again; draw none.")] = False,
    shared_by: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share the work, started by torchrun.")
    ] = 1,
    imports: options.Imports = None,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a model: mean@k, pass@k, maj@k, forks, latency and why answers are wrong, all with 95 % intervals.

    Every answer is on disk before it counts. The same command goes on after an interruption.
    """
    from parallel_r1.evaluation.folder import EvaluationFolder, default_folder
    from parallel_r1.evaluation.session import Session
    from parallel_r1.report.progress import EvaluationProgress
    from parallel_r1.tasks.grading.extract import Find
    from parallel_r1.tasks.load import load_task

    one_of("--find", find, Find)
    asked = _asked(task, suite, samples)
    problems = problems or (None if suite else PROBLEMS)
    tasks = [load_task(name, find=find) for name in asked]  # type: ignore[arg-type]
    session = Session(model, tasks, asked, problems, seed, sampling, prompt, _budgets(budgets), alone)
    settings = session.settings(engine, find)  # type: ignore[arg-type]
    folder = EvaluationFolder(out or default_folder(settings))
    quiet()
    if regrade:
        measured = session.judge_again(folder, settings)
    else:
        processes.start(shared_by, engine.device)
        policy = load_policy(model, engine)
        with EvaluationProgress(Console(stderr=True, quiet=not processes.is_first())) as progress:
            measured = session.run(policy, engine, folder, settings, progress)
    if not measured:
        console.print("the stored answers are judged again; without --regrade the others are drawn", highlight=False)
    elif processes.is_first():
        _show(measured, folder, as_json)


def _show(measured: list[Measured], folder: EvaluationFolder, as_json: bool) -> None:
    if as_json:
        print_json([{**one.result.to_json(), **_timed(one)} for one in measured])
        return
    from parallel_r1.report.tables import print_measured

    print_measured(console, measured)
    console.print(f"answers and results are in {folder.path}", soft_wrap=True, highlight=False)


def _timed(measured: Measured) -> dict[str, Any]:
    return {key: value for key, value in measured.to_json().items() if key != "result"}


def _asked(tasks: list[str] | None, suite: str | None, samples: int | None) -> dict[str, int]:
    """Task -> answers to every problem."""
    if (tasks is None) == (suite is None):
        raise UserError("--task or --suite", "both" if suite else "neither", "give --task NAME, or --suite paper")
    if suite is None:
        assert tasks is not None
        return dict.fromkeys(tasks, samples or SAMPLES)
    from parallel_r1.evaluation.suites import load_suite

    return {name: samples or number for name, number in load_suite(suite).samples.items()}


def _budgets(words: str | None) -> tuple[int, ...]:
    """The critical paths of --budgets, smallest first."""
    if words is None:
        return ()
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in words.split(",")]
    if not all(numbers) or len(set(numbers)) < len(numbers):
        form = "different numbers of tokens above 0 for --budgets, with commas between them"
        raise UserError(form, words, "give them as in --budgets 24,48,96")
    return tuple(sorted(numbers))
