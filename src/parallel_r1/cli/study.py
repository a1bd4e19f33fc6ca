"""The command that runs a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console
from parallel_r1.errors import UserError, nearest
from parallel_r1.files import written

if TYPE_CHECKING:
    from parallel_r1.runs.study.rows import Cell, Item


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study, such as recipes/tiny/study.toml.")],
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; what it holds is not done again. Default: runs/NAME.")
    ] = None,
    rows: Annotated[str, typer.Option(help="Parts or rows, such as main,ablations or unseen-s2. Default: all.")] = "",
    budgets: Annotated[str, typer.Option(help="Kinds of budget, such as critical-path. Default: all.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2. Default: the study's.")] = "",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes, one thread each. Default: one for each core that it may use.")
    ] = None,
    overrides: options.Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
) -> None:
    """Run every row of a study with several seeds, and compare them. Broken off, the same command goes on."""
    from parallel_r1.answers.shape import need_sacrebleu
    from parallel_r1.report.progress import StudyProgress
    from parallel_r1.report.tables import print_table
    from parallel_r1.runs.study import findings
    from parallel_r1.runs.study import jobs as pool
    from parallel_r1.runs.study.rows import choose, expand, items, load_study
    from parallel_r1.runs.study.work import Measurement, seeds_in

    found = load_study(file)
    with written(out or Path("runs")):
        folder = (out or Path("runs") / found.name).resolve()
        begun = seeds_in(folder)
    chosen, kinds, numbers = choose(found, _words(rows)), _known(budgets, found.budgets), _numbers(seeds) or found.seeds
    asked = {(row, kind) for row in chosen for kind in kinds}
    every = expand(found, file, list(dict.fromkeys([*numbers, *found.seeds, *begun])), overrides or [], asked)
    cells = [cell for cell in every if (cell.row, cell.budget) in asked and cell.seed in numbers]
    todo = items(cells)
    if dry_run:
        _explain(todo, cells, folder)
        return
    need_sacrebleu()
    console.print(f"writing to {folder}", soft_wrap=True, highlight=False)
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        titles = {item.work.key: str(item) for item in todo if not item.work.is_done(folder)}
    progress = StudyProgress(console, titles)

    def tell(work: pool.Work, row: dict[str, Any]) -> None:
        progress(work.key, row)
        if row["kind"] == "done" and isinstance(work, Measurement):
            findings.write(every, folder, found.against)

    failed = pool.run([item.work for item in todo], folder, jobs or _cores(), tell)
    for shown in findings.write(every, folder, found.against):
        print_table(console, shown)
    console.print(f"everything is in {folder}", soft_wrap=True, highlight=False)
    if failed:
        key, why = next(iter(failed.items()))
        raise UserError(
            "a study without failures",
            f"{len(failed)} of {len(titles)}; the first is {titles[key]}: {why}",
            "mend it; the same command then goes on",
        )


def _explain(todo: list[Item], cells: list[Cell], folder: Path) -> None:
    """Print the stages that there are, who shares them, which rows have none, and how many steps are left."""
    from operator import attrgetter

    from parallel_r1.runs.study.work import Training

    place = attrgetter("row", "budget")
    alike: dict[tuple[str, int, str], list[Item]] = {}
    for item in todo:
        if isinstance(item.work, Training):
            who, kinds = (", ".join(dict.fromkeys(names)) for names in zip(*map(place, item.cells), strict=True))
            alike.setdefault((item.work.name, item.work.stage.steps, f"{who} under {kinds}"), []).append(item)
    for (name, steps, needed), found in alike.items():
        seeds = ", ".join(str(item.cells[0].seed) for item in found)
        done = sum(item.work.is_done(folder) for item in found)
        state = f"  {done} done" if done else ""
        console.print(f"{name}: {steps} steps, seeds {seeds}{state}; for {needed}", soft_wrap=True, highlight=False)
    if plain := dict.fromkeys(cell.row for cell in cells if not cell.trainings):
        console.print(f"nothing to train, only to measure; for {', '.join(plain)}", soft_wrap=True, highlight=False)
    left = [item.work for item in todo if not item.work.is_done(folder)]
    stages = [work for work in left if isinstance(work, Training)]
    alone = sum(len(cell.trainings) for cell in cells)
    console.print(
        f"to do: {len(stages)} stages of {sum(work.stage.steps for work in stages):,} steps, "
        f"{len(left) - len(stages)} measurements; the {len(cells)} cells of the table would be {alone} stages if "
        "nothing were shared",
        soft_wrap=True,
        highlight=False,
    )


def _cores() -> int:
    """How many cores this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _known(text: str, known: dict[str, tuple[str, ...]]) -> list[str]:
    """Kinds of budget that the study has; all of them if none is named."""
    for word in _words(text):
        if word not in known:
            raise UserError("a kind of budget of the study", f"'{word}'", nearest(word, known))
    return _words(text) or list(known)


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(word) for word in _words(text)))
    except ValueError as error:
        raise UserError("--seeds as numbers with commas between them", f"'{text}'", "write them like 0,1,2") from error
