"""Where saved answers fork, and how alike their paths are, against the training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel_r1.answers.rollout import Rollout, read_jsonl
from parallel_r1.answers.shape import mean, paths_of_rollout, self_bleu


@dataclass(frozen=True)
class Habits:
    """How the answers of one training step think in parallel.

    Attributes:
        step: step of the run.
        parallel_ratio: share of answers with a fork, 0 .. 1.
        position: index of `<Parallel>` / tokens of the answer, 0 .. 1, mean over forks; None without a fork.
        self_bleu: how alike the paths of a fork are, 0 .. 1, mean over answers with a fork; None without a fork.

    Source: section 4 of the Parallel-R1 paper (arXiv 2509.07980), where forks move from early to late in training.
    """

    step: int
    parallel_ratio: float
    position: float | None
    self_bleu: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def habits(rollouts: Sequence[Rollout], step: int) -> Habits:
    """Measure the answers of one step, at least one."""
    forked = [rollout for rollout in rollouts if rollout.trace.forks]
    positions = [at / rollout.total for rollout in forked for at in rollout.trace.fork_at]
    likeness = mean(self_bleu(paths_of_rollout(rollout)) for rollout in forked)
    return Habits(step, len(forked) / len(rollouts), mean(positions), likeness)


def habits_of_run(folder: Path) -> list[Habits]:
    """Measure every step of a run whose answers were saved, in order of steps."""
    files = {int(file.stem.removeprefix("step-")): file for file in (folder / "rollouts").glob("step-*.jsonl")}
    return [habits(list(read_jsonl(files[step])), step) for step in sorted(files)]
