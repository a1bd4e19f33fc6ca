"""Measures of answers and forks as columns."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import nan
from typing import Any

import numpy as np

from parallel_r1.answers.rollout import Rollout
from parallel_r1.answers.shape import self_bleu
from parallel_r1.evaluation.analysis.forks import ForkText, forks_of
from parallel_r1.evaluation.analysis.paths import RIGHT, VERDICTS, Judge, agreement, stated, use
from parallel_r1.evaluation.analysis.read import Piece, refusing, rollouts

Columns = dict[str, np.ndarray]
"""A table: name of a column -> one value per row. NaN stands for a measure that a row does not have."""
Rows = Sequence[Mapping[str, Any]]
TERM = "reward_"
"""The beginning of the columns with a term of the reward."""
ANSWER: dict[str, type] = {
    **{"step": int, "stage": object, "task": object, "problem": object, "key": object},
    **{"correct": bool, "finish": object, "well_formed": bool, "tokens": int, "critical_path": int, "forks": int},
    **{f"paths_{verdict}": int for verdict in VERDICTS},
    **{"rescued": float, "rescued_from_none": float, "spoiled": float, "reward": float},
}
"""Columns of the table of answers and their types; a column `reward_TERM` for every term of the reward is added."""
FORK: dict[str, type] = {
    **{"step": int, "stage": object, "answer": int, "fork": int, "depth": int, "at": int, "position": float},
    **{"paths": int, "length": float, "longest": int, "balance": float, "diversity": float, "agreement": float},
    **{"use": object},
    **{f"paths_{verdict}": int for verdict in VERDICTS},
}
"""Columns of the table of forks and their types. `answer` is a row of the table of answers."""
Sampled = tuple[bytes, int, tuple[str, ...]]
"""A fork whose diversity may be measured: its rank, its row in the table of forks, the texts of its paths."""


@dataclass
class Part:
    """What a piece of a file holds.

    Attributes:
        sampled: the forks with the lowest ranks, see `Sampled`.
    """

    step: int
    answers: Columns
    forks: Columns
    sampled: list[Sampled]
    notes: set[str]


def columns(rows: Rows, types: Mapping[str, type]) -> Columns:
    """Rows as columns of these types, and floats for all other names. A value that a row lacks is NaN."""
    names = dict.fromkeys([*types, *(name for row in rows for name in row)])
    made: Columns = {}
    for name in names:
        kind = types.get(name, float)
        values = [row.get(name, "" if kind is object else nan) for row in rows]
        made[name] = np.array(values, dtype=kind)
    return made


def joined(tables: Sequence[Columns], types: Mapping[str, type]) -> Columns:
    """Tables one below the other; a column that a table lacks is NaN there."""
    sizes = [len(table["step"]) for table in tables]
    names = dict.fromkeys([*types, *(name for table in tables for name in table)])
    parts = {
        name: [table.get(name, np.full(size, nan)) for table, size in zip(tables, sizes, strict=True)] for name in names
    }
    return {
        name: np.concatenate(values) if values else np.array([], dtype=types.get(name, float))
        for name, values in parts.items()
    }


def measure(piece: Piece, judge: Judge, sample: int | None) -> Part:
    """The measures of the rollouts in a piece of a file, without stages.

    Args:
        sample: number of forks to keep for diversity; None keeps all.
    """
    notes: set[str] = set()
    read = [(at, rollout, _forks(piece, at, rollout)) for at, rollout in rollouts(piece, notes)]
    concluded = [
        [
            [judge.conclusion(rollout.problem.source, *path) for path in zip(fork.texts, fork.cut, strict=True)]
            for fork in forks
        ]
        for _, rollout, forks in read
    ]
    judge.verify(
        (rollout.problem, conclusion)
        for (_, rollout, _), forks in zip(read, concluded, strict=True)
        for fork in forks
        for conclusion in fork
    )
    answers: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    sampled: list[Sampled] = []
    for (at, rollout, forks), conclusions in zip(read, concluded, strict=True):
        trunk, ended = _trunk(rollout), rollout.trace.finish != "stop"
        states = stated(judge.conclusion(rollout.problem.source, trunk, ended), trunk, ended) if forks else None
        own = [_fork(rollout, *pair, states, judge) for pair in zip(forks, conclusions, strict=True)]
        for number, (fork, row) in enumerate(zip(forks, own, strict=True)):
            texts = tuple(filter(None, fork.texts))
            if len(texts) > 1:
                rank = blake2b(f"{piece.step}/{at}/{number}".encode(), digest_size=8).digest()
                sampled.append((rank, len(rows), texts))
            rows.append({"step": piece.step, "answer": len(answers), "fork": number, **row})
        with refusing(piece.path, at):
            answers.append({"step": piece.step, **_answer(rollout, own)})
        if sample is not None and len(sampled) > 2 * sample:
            sampled = heapq.nsmallest(sample, sampled)
    judge.judged.clear()
    if sample is not None:
        sampled = heapq.nsmallest(sample, sampled)
    return Part(piece.step, columns(answers, ANSWER), columns(rows, FORK), sampled, notes | judge.notes)


def _forks(piece: Piece, at: int, rollout: Rollout) -> list[ForkText]:
    """The forks of the rollout in a line."""
    with refusing(piece.path, at):
        return forks_of(rollout)


def _fork(
    rollout: Rollout, fork: ForkText, conclusions: Sequence[str | None], answer: str | None, judge: Judge
) -> dict[str, Any]:
    """The row of a fork.

    Args:
        conclusions: of its paths.
        answer: what the answer states.
    """
    problem = rollout.problem
    verdicts = [judge.verdict(problem, conclusion) for conclusion in conclusions]
    texts = [stated(*path) for path in zip(conclusions, fork.texts, fork.cut, strict=True)]
    views = [RIGHT if verdict == "right" else text for verdict, text in zip(verdicts, texts, strict=True)]
    summary = stated(judge.conclusion(problem.source, fork.summary, False), fork.summary, False)
    right = rollout.correct and "right" in verdicts
    agreed, counts = agreement(views), Counter(verdicts)
    mean = sum(fork.lengths) / len(fork.lengths)
    return {
        "depth": fork.depth,
        "at": fork.at,
        "position": fork.at / max(1, rollout.total),
        "paths": len(fork.lengths),
        "length": mean,
        "longest": max(fork.lengths),
        "balance": max(fork.lengths) / mean if len(fork.lengths) > 1 else nan,
        "diversity": nan,
        "agreement": nan if agreed is None else agreed,
        "use": use(agreed, right or not {answer, summary}.isdisjoint(filter(None, texts))),
        **{f"paths_{verdict}": counts[verdict] for verdict in VERDICTS},
    }


def _trunk(rollout: Rollout) -> str:
    """The text of an answer outside its paths, without tags."""
    return rollout.trace.schema.without_tags(rollout.trace.trunk_text(rollout.texts))


def _answer(rollout: Rollout, forks: Rows) -> dict[str, Any]:
    """The row of an answer.

    Args:
        forks: the rows of its forks.
    """
    counts = {f"paths_{verdict}": sum(fork[f"paths_{verdict}"] for fork in forks) for verdict in VERDICTS}
    right = counts["paths_right"]
    decided = right + counts["paths_wrong"] + counts["paths_failed"]
    rescued = rollout.correct and 2 * right <= decided
    summed = {"rescued": rescued, "rescued_from_none": rescued and not right, "spoiled": right and not rollout.correct}
    problem, trace = rollout.problem, rollout.trace
    return {
        "task": problem.source,
        "problem": problem.id,
        "key": problem.key,
        "correct": rollout.correct,
        "finish": trace.finish,
        "well_formed": trace.well_formed,
        "tokens": rollout.total,
        "critical_path": rollout.critical_path,
        "forks": len(forks),
        **counts,
        **({name: float(bool(value)) for name, value in summed.items()} if decided else {}),
        "reward": nan if rollout.reward is None else rollout.reward,
        **{TERM + name: value for name, value in (rollout.terms or {}).items()},
    }


def diversities(forks: Sequence[Sequence[str]]) -> list[float]:
    """1 - self-BLEU of every fork, by the texts of its paths, at least two."""
    return [1 - self_bleu([paths]) for paths in forks]
