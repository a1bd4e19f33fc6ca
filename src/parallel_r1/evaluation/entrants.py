"""What `compare` compares: files of judged answers, and folders that `eval` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel_r1.answers.rollout import Rollout, group, read_jsonl
from parallel_r1.errors import UserError
from parallel_r1.evaluation.folder import EvaluationFolder
from parallel_r1.evaluation.frontier import Drawn, Frontier, Speed, frontier, speed
from parallel_r1.settings import flat


@dataclass(frozen=True)
class Entrant:
    """The judged answers of one model.

    Attributes:
        name: in tables.
        drawn: task -> its answers, under every budget from the smallest to the largest.
        settings: how they were drawn, if an evaluation folder tells it.
    """

    name: str
    drawn: Mapping[str, Sequence[Drawn]]
    settings: Mapping[str, Any] | None = None

    @property
    def rollouts(self) -> list[Rollout]:
        """All answers under the largest budget."""
        return [rollout for parts in self.drawn.values() for rollout in parts[-1].rollouts]


def read_entrant(name: str, path: Path) -> Entrant:
    """Read a file of rollouts or the folder of a finished evaluation.

    Raises:
        UserError: neither is there, it is empty, the evaluation is not finished, or a line is no rollout.
    """
    if path.is_dir():
        return _read_folder(name, EvaluationFolder(path))
    if not path.is_file():
        raise UserError("a file of judged answers, or a folder that eval wrote", f"no {path}", "check the path")
    rollouts = list(read_jsonl(path))
    if not rollouts:
        raise UserError("a file of judged answers", f"{path}, which is empty", "draw some, or leave it out")
    tasks = dict.fromkeys(rollout.problem.source for rollout in rollouts)
    return Entrant(name, {task: [Drawn([one for one in rollouts if one.problem.source == task])] for task in tasks})


def _read_folder(name: str, folder: EvaluationFolder) -> Entrant:
    drawn: dict[str, list[Drawn]] = {}
    settings = folder.settings()
    for measured in folder.results():
        task = measured.result.task
        file = folder.answers(task, measured.budget)
        rollouts = list(file.read().values())
        asked = measured.result.problems * measured.result.samples
        if len(rollouts) < asked:
            fix = "give the command of the evaluation again: it draws the others"
            raise UserError(f"{asked:,} answers in {file.path}", f"{len(rollouts):,}", fix)
        interval = measured.result.low, measured.result.high
        drawn.setdefault(task, []).append(Drawn(rollouts, measured.budget, measured.alone, measured.loaded, interval))
    return Entrant(name, drawn, settings)


def differing_settings(entrants: Sequence[Entrant]) -> list[str]:
    """The settings in which evaluations differ, one sentence each. They are part of every difference."""
    tables = {one.name: flat(one.settings) for one in entrants if one.settings is not None}
    budgets = any(table["budgets"] for table in tables.values())  # the table of costs has them
    names = [
        name
        for name in dict.fromkeys(name for table in tables.values() for name in table)
        if name not in ("model", "weights") and not (budgets and name.startswith("sampling.budget."))
    ]
    return [
        f"{name} differs: " + "; ".join(f"{who} {table.get(name)!s:.60}" for who, table in tables.items())
        for name in names
        if len({str(table.get(name)) for table in tables.values()}) > 1
    ]


def frontiers(entrants: Sequence[Entrant]) -> dict[str, list[Frontier]]:
    """Task -> the frontiers of those who have answers to it, on the problems that all of these have."""
    tasks = dict.fromkeys(task for one in entrants for task in one.drawn)
    return {task: _frontiers(task, [one for one in entrants if task in one.drawn]) for task in tasks}


def _frontiers(task: str, entrants: Sequence[Entrant]) -> list[Frontier]:
    keys = [{members.problem.key for members in group(part.rollouts)} for one in entrants for part in one.drawn[task]]
    shared = set.intersection(*keys)
    first = entrants[0].drawn[task][0].rollouts
    problems = [members.problem.key for members in group(first) if members.problem.key in shared]
    return [frontier(one.name, one.drawn[task], problems) for one in entrants] if problems else []


def speeds(entrants: Sequence[Entrant], all_frontiers: Mapping[str, Sequence[Frontier]]) -> dict[str, list[Speed]]:
    """Task -> the speed numbers of everybody who forks against everybody who does not."""
    forks = {
        (task, one.name): any(rollout.trace.forks for rollout in parts[-1].rollouts)
        for one in entrants
        for task, parts in one.drawn.items()
    }
    return {
        task: [
            speed(ours, theirs)
            for ours in several
            for theirs in several
            if forks[task, ours.name] and not forks[task, theirs.name]
        ]
        for task, several in all_frontiers.items()
    }
