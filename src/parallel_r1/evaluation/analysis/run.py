"""From a path to the three tables of an analysis, in several processes if there is much to read."""

from __future__ import annotations

import heapq
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from parallel_r1.answers.shape import need_sacrebleu
from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import columns, read
from parallel_r1.evaluation.analysis.columns import ANSWER, FORK, Columns, Part, Sampled
from parallel_r1.evaluation.analysis.paths import Judge
from parallel_r1.evaluation.analysis.steps import alarms_of, steps_of
from parallel_r1.registry import load_plugins

Map = Callable[[Callable[..., Any], Sequence[Any]], Iterable[Any]]
"""`map`, or that of several processes."""
SMALL = 32 << 20
"""Up to so many bytes are read in this process: others would take longer to start."""
SAMPLE, MOST = 32, 6400
"""Forks of a step whose diversity is measured, and of a whole run; BLEU takes milliseconds for a fork."""


@dataclass(frozen=True)
class Analysis:
    """How the answers of a run, or of a file, think in parallel. docs/analysis.md lists the columns.

    Attributes:
        path: of the run or file.
        answers: one row per answer, in order of steps and files.
        forks: one row per fork.
        steps: one row per step, with its stage; "" for a step that metrics.jsonl does not have.
        alarms: the warnings of the run: step, stage, rule and text.
        notes: one line for everything that could not be read, judged or measured.
    """

    path: Path
    answers: Columns
    forks: Columns
    steps: Columns
    alarms: list[dict[str, Any]]
    notes: list[str]

    @property
    def stages(self) -> list[str]:
        """The stages that have saved answers, in order."""
        return list(dict.fromkeys(self.answers["stage"].tolist()))


def analyse(
    path: Path, *, imports: Sequence[str] = (), sample: int | None = SAMPLE, processes: int | None = None
) -> Analysis:
    """Analyse a run folder, or one file of rollouts.

    Args:
        imports: Python files and modules that register the tasks of the run, as in a recipe.
        sample: forks of a step whose diversity is measured, drawn at random, always the same ones; fewer in a run
            of more than 200 steps. None measures all.
        processes: as many as there are processors if None, and one for less than 32 MB. More than one need, as all of
            Python's, a script that guards its main part by `if __name__ == "__main__"`.

    Raises:
        UserError: no such path, a run without rollouts, or a line that is no rollout.
    """
    files = read.rollout_files(path)
    run = read.run_of(path)
    metrics = read.metrics(run)
    pieces = read.pieces(files)
    if sample is not None:
        sample = max(1, min(sample, MOST // len(files)))
    with _pool(pieces, imports, processes) as apply:
        parts = list(apply(partial(_measure, sample=sample), pieces))
        answers, forks = _tables(parts)
        if not len(answers["step"]):
            raise UserError("answers to analyse", f"none in {path}", "wait until a step of it has saved rollouts")
        notes = sorted({note for part in parts for note in part.notes})
        try:
            need_sacrebleu()
        except UserError as error:
            notes.append(f"diversity is not measured: {error}")
        else:
            _measure_diversity(parts, forks, sample, apply)
    stages = {row["step"]: row["stage"] for row in metrics if row.get("kind") == "rl"}
    for table in (answers, forks):
        table["stage"] = np.array([stages.get(step, "") for step in table["step"].tolist()], dtype=object)
    return Analysis(path, answers, forks, steps_of(answers, forks, metrics), alarms_of(metrics), notes)


def _tables(parts: Sequence[Part]) -> tuple[Columns, Columns]:
    """The tables of answers and forks of all parts; rows of answers are counted through all of them."""
    first = 0
    for part in parts:
        part.forks["answer"] += first
        first += len(part.answers["step"])
    return columns.joined([part.answers for part in parts], ANSWER), columns.joined(
        [part.forks for part in parts], FORK
    )


def _measure_diversity(parts: Sequence[Part], forks: Columns, sample: int | None, apply: Map) -> None:
    """Measure the diversity of the forks with the lowest ranks of every step, and write it into the table of forks."""
    by_step: dict[int, list[Sampled]] = {}
    first = 0
    for part in parts:
        by_step.setdefault(part.step, []).extend((rank, row + first, texts) for rank, row, texts in part.sampled)
        first += len(part.forks["step"])
    chosen = [
        fork
        for candidates in by_step.values()
        for fork in (candidates if sample is None else heapq.nsmallest(sample, candidates))
    ]
    batches = [chosen[at : at + SAMPLE] for at in range(0, len(chosen), SAMPLE)]
    texts = [[paths for _, _, paths in batch] for batch in batches]
    for batch, values in zip(batches, apply(columns.diversities, texts), strict=True):
        forks["diversity"][[row for _, row, _ in batch]] = values


@contextmanager
def _pool(pieces: Sequence[read.Piece], imports: Sequence[str], processes: int | None) -> Iterator[Map]:
    """A `map` over as many processes as there is work for."""
    size = sum(piece.stop - piece.start for piece in pieces)
    if processes is None:
        processes = min(os.cpu_count() or 1, ceil(size / SMALL))
    if processes <= 1:
        _start(imports)
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a forked process would inherit the locks of torch's threads
    with ProcessPoolExecutor(processes, context, _start, (imports,)) as pool:
        yield pool.map


_judges: list[Judge] = []
"""The judge of this process, which keeps its tasks from piece to piece."""


def _start(imports: Sequence[str]) -> None:
    load_plugins(imports, Path())
    _judges[:] = [Judge()]


def _measure(piece: read.Piece, sample: int | None) -> Part:
    return columns.measure(piece, _judges[0], sample)
