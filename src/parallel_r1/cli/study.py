"""The command that runs a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json
from parallel_r1.errors import UserError, nearest
from parallel_r1.files import written
from parallel_r1.shipped import resolve

if TYPE_CHECKING:
    from parallel_r1.runs.study.rows import Cell, Item


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study, such as recipes/tiny/study.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the study; work finished in it is not repeated. Default: runs/NAME."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Parts or rows, such as main,ablations or unseen-s2. Default: all.")] = "",
    budgets: Annotated[str, typer.Option(help="Kinds of budget, such as critical-path. Default: all.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2. Default: the study's.")] = "",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of processes, of one thread per process. Default: usable cores.")
    ] = None,
    overrides: options.Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is left to do, and stop.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run every row of a study with several seeds, and compare the rows. After an interruption the same command
    continues."""
    from parallel_r1.answers.shape import need_sacrebleu
    from parallel_r1.report.progress import StudyProgress
    from parallel_r1.report.tables import print_table
    from parallel_r1.runs.study import findings
    from parallel_r1.runs.study import jobs as pool
    from parallel_r1.runs.study.rows import choose, expand, items, load_study
    from parallel_r1.runs.study.work import Measurement, seeds_in

    file = resolve(file)
    plan = load_study(file)
    with written(out or Path("runs")):
        folder = (out or Path("runs") / plan.name).resolve()
        begun = seeds_in(folder)
    chosen, kinds, numbers = choose(plan, _words(rows)), _kinds(budgets, plan.budgets), _numbers(seeds) or plan.seeds
    asked = {(row, kind) for row in chosen for kind in kinds}
    every = expand(plan, file, list(dict.fromkeys([*numbers, *plan.seeds, *begun])), overrides or [], asked)
    cells = [cell for cell in every if (cell.row, cell.budget) in asked and cell.seed in numbers]
    todo = items(cells)
    if dry_run:
        if as_json:
            print_json(_plan_json(todo, cells, folder))
        else:
            _explain(todo, cells, folder)
        return
    console.quiet = as_json
    need_sacrebleu()
    console.print(f"writing to {folder}", soft_wrap=True, highlight=False)
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        titles = {item.work.key: str(item) for item in todo if not item.work.is_done(folder)}
    progress = StudyProgress(console, titles)

    def tell(work: pool.Work, row: dict[str, Any]) -> None:
        progress(work.key, row)
        if row["kind"] == "done" and isinstance(work, Measurement):
            findings.write(every, folder, plan.against)

    failed = pool.run([item.work for item in todo], folder, jobs or _cores(), tell)
    for shown in findings.write(every, folder, plan.against):
        print_table(console, shown)
    console.print(f"everything is in {folder}", soft_wrap=True, highlight=False)
    if as_json:
        print_json({"folder": str(folder), **json.loads((folder / "study.json").read_text(encoding="utf-8"))})
    if failed:
        key, why = next(iter(failed.items()))
        raise UserError(
            "a study without failures",
            f"{len(failed)} of {len(titles)}; the first is {titles[key]}: {why}",
            "correct the cause; the same command then goes on",
        )


def _stages(todo: list[Item], folder: Path) -> list[dict[str, Any]]:
    """The stages of a study: name, steps, the rows and budgets that share the stage, its seeds, how many are done."""
    from operator import attrgetter

    from parallel_r1.runs.study.work import Training

    place = attrgetter("row", "budget")
    alike: dict[tuple[str, int, tuple[str, ...], tuple[str, ...]], list[Item]] = {}
    for item in todo:
        if isinstance(item.work, Training):
            rows, kinds = (tuple(dict.fromkeys(names)) for names in zip(*map(place, item.cells), strict=True))
            alike.setdefault((item.work.name, item.work.stage.steps, rows, kinds), []).append(item)
    return [
        {
            "stage": name,
            "steps": steps,
            "rows": list(rows),
            "budgets": list(kinds),
            "seeds": [item.cells[0].seed for item in members],
            "done": sum(item.work.is_done(folder) for item in members),
        }
        for (name, steps, rows, kinds), members in alike.items()
    ]


def _plan_json(todo: list[Item], cells: list[Cell], folder: Path) -> dict[str, Any]:
    """The plan of a study: its stages, and what of them is left to do."""
    from parallel_r1.runs.study.work import Training

    left = [item.work for item in todo if not item.work.is_done(folder)]
    stages = [work for work in left if isinstance(work, Training)]
    return {
        "folder": str(folder),
        "stages": _stages(todo, folder),
        "measured_only": list(dict.fromkeys(cell.row for cell in cells if not cell.trainings)),
        "to_do": {
            "stages": len(stages),
            "steps": sum(work.stage.steps for work in stages),
            "measurements": len(left) - len(stages),
        },
        "cells": len(cells),
        "stages_without_sharing": sum(len(cell.trainings) for cell in cells),
    }


def _explain(todo: list[Item], cells: list[Cell], folder: Path) -> None:
    """Print the plan of a study."""
    plan = _plan_json(todo, cells, folder)
    for stage in plan["stages"]:
        seeds, rows, kinds = (", ".join(map(str, stage[key])) for key in ("seeds", "rows", "budgets"))
        state = f"  {stage['done']} done" if stage["done"] else ""
        _say(f"{stage['stage']}: {stage['steps']} steps, seeds {seeds}{state}; for {rows} under {kinds}")
    if plan["measured_only"]:
        _say(f"nothing to train, only to measure; for {', '.join(plan['measured_only'])}")
    left = plan["to_do"]
    _say(
        f"to do: {left['stages']} stages of {left['steps']:,} steps, {left['measurements']} measurements; the "
        f"{plan['cells']} cells of the table would be {plan['stages_without_sharing']} stages if nothing were shared"
    )


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False)


def _cores() -> int:
    """The number of cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(text: str) -> list[str]:
    """The words of a text with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _kinds(text: str, budgets: dict[str, tuple[str, ...]]) -> list[str]:
    """The kinds of budget that --budgets names; all of the study if it names none."""
    for word in _words(text):
        if word not in budgets:
            raise UserError("a kind of budget of the study", f"'{word}'", nearest(word, budgets))
    return _words(text) or list(budgets)


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(word) for word in _words(text)))
    except ValueError as error:
        raise UserError("--seeds as numbers with commas between them", f"'{text}'", "write them like 0,1,2") from error
