"""Where saved answers fork, and how alike their paths are, against the training step: the part of an analysis that a
study compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from parallel_r1.evaluation.analysis import analyse


@dataclass(frozen=True)
class Habits:
    """How the answers of one training step think in parallel.

    Attributes:
        step: step of the run.
        parallel_ratio: share of answers with a fork, 0 .. 1.
        position: index of `<Parallel>` / tokens of the answer, 0 .. 1, mean over forks; None without a fork.
        self_bleu: how alike the paths of a fork are, 0 .. 1, mean over forks; None without a fork of two paths.

    Source: section 4 of the Parallel-R1 paper (arXiv 2509.07980), where forks move from early to late in training.
    """

    step: int
    parallel_ratio: float
    position: float | None
    self_bleu: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def habits_of_run(folder: Path) -> list[Habits]:
    """Measure every step of a run whose answers were saved, in order of steps.

    Raises:
        UserError: no step was, or a line is no rollout.
    """
    steps = analyse(folder, sample=None, processes=1).steps
    columns = ("step", "answers", "parallel_ratio", "position_mean", "diversity_mean")
    rows = zip(*(steps[name].tolist() for name in columns), strict=True)
    return [
        Habits(step, ratio, None if isnan(position) else position, None if isnan(diversity) else 1 - diversity)
        for step, answers, ratio, position, diversity in rows
        if answers
    ]
