"""The saved answers of a run, or of a file, as the viewer shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from parallel_r1.answers.rollout import Rollout
from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import read
from parallel_r1.evaluation.analysis.forks import forks_of
from parallel_r1.evaluation.analysis.paths import Judge
from parallel_r1.models.policy import load_tokenizer
from parallel_r1.report.pages.pack import BLOCK, Cut, Shown, Verdicts
from parallel_r1.report.pages.token_texts import cutter

SHOWN = ("right", "wrong", "failed")
"""Verdicts on a path that the viewer marks; a path with another one is not judged."""


def shown_answers(path: Path, notes: set[str]) -> Iterator[Shown]:
    """All saved answers of a run folder or a rollouts file in order, with steps, stages and the verdicts on paths.

    Args:
        notes: gets one line for everything that could not be read or judged.

    Raises:
        UserError: no such path, no rollouts, or a line that is no rollout.
    """
    files = read.rollout_files(path)
    stages = stages_of(read.metrics(read.run_of(path)))
    judge = Judge()
    for file in files:
        yield from shown_file(file, stages, judge, notes)
    notes |= judge.notes


def stages_of(metrics: Sequence[dict[str, Any]]) -> dict[int, str]:
    """RL step -> its stage."""
    return {row["step"]: row["stage"] for row in metrics if row.get("kind") == "rl"}


def shown_file(file: Path, stages: Mapping[int, str], judge: Judge, notes: set[str]) -> Iterator[Shown]:
    """The answers of one file; see `shown_answers`."""
    for piece in read.pieces([file]):
        answers = (rollout for _, rollout in read.rollouts(piece, notes, logprobs=True))
        while batch := list(islice(answers, BLOCK)):
            for rollout, verdicts in zip(batch, verdicts_of(batch, judge), strict=True):
                yield Shown(rollout, piece.step or None, stages.get(piece.step, ""), verdicts)


def verdicts_of(rollouts: Sequence[Rollout], judge: Judge) -> list[Verdicts]:
    """The verdicts on the paths of some answers; see `evaluation.analysis.paths`."""
    concluded = [
        {
            address: judge.conclusion(rollout.problem.source, text, cut)
            for fork in forks_of(rollout)
            for address, text, cut in zip(fork.addresses, fork.texts, fork.cut, strict=True)
        }
        for rollout in rollouts
    ]
    judge.verify(
        (rollout.problem, conclusion)
        for rollout, paths in zip(rollouts, concluded, strict=True)
        for conclusion in paths.values()
    )
    judged = [
        {address: judge.verdict(rollout.problem, conclusion) for address, conclusion in paths.items()}
        for rollout, paths in zip(rollouts, concluded, strict=True)
    ]
    judge.judged.clear()
    return [{address: verdict for address, verdict in paths.items() if verdict in SHOWN} for paths in judged]


def tokenizer_of(path: Path, model: str | None = None) -> Cut | None:
    """Where tokens lie in the text of their span, by the tokenizer of a model or, if none is named, of the run that a
    path is or lies in; None if neither is there.

    Raises:
        UserError: the model that was named has no tokenizer.
    """
    run = read.run_of(path)
    base = run / "checkpoints" / "base" if run else None
    if model is None and (base is None or not base.is_dir()):
        return None
    try:
        tokenizer = load_tokenizer(model or str(base))
    except UserError:
        if model is not None:
            raise
        return None
    return cutter(lambda token_ids: str(tokenizer.decode(token_ids, skip_special_tokens=False)))
