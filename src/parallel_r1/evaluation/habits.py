"""What saved answers say about how a policy thinks: where it forks, and how different its paths are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel_r1.answers.parser import parse_text
from parallel_r1.answers.rollout import Rollout, read_jsonl
from parallel_r1.answers.shape import mean, paths_of_rollout, self_bleu


@dataclass(frozen=True)
class Habits:
    """How the answers of a step think in parallel.

    Attributes:
        step: of the run.
        parallel_ratio: share of answers with a fork.
        position: where in its answer a fork opens, 0 at the start and 1 at the end, on average over forks; None if
            there is none.
        self_bleu: how alike the paths of a fork are, 0 .. 1, on average over answers with a fork; None likewise.

    Source: section 4 of the Parallel-R1 paper (arXiv 2509.07980), where forks move from early to late in training.
    """

    step: int
    parallel_ratio: float
    position: float | None
    self_bleu: float | None

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return asdict(self)


def habits(rollouts: Sequence[Rollout], step: int) -> Habits:
    """What the answers of a step have in common."""
    forked = [rollout for rollout in rollouts if rollout.trace.forks]
    positions = [at / len(text) for text in (rollout.text for rollout in forked) for at in parse_text(text).fork_at]
    likeness = mean(self_bleu(paths_of_rollout(rollout)) for rollout in forked)
    return Habits(step, len(forked) / len(rollouts), mean(positions), likeness)


def habits_of_run(folder: Path) -> list[Habits]:
    """Those of every step of a run whose answers were saved, in order."""
    files = {int(file.stem.removeprefix("step-")): file for file in (folder / "rollouts").glob("step-*.jsonl")}
    return [habits(list(read_jsonl(files[step])), step) for step in sorted(files)]
