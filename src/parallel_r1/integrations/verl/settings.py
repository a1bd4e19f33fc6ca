"""What the workers of verl need to know of a stage: one JSON file beside its data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from parallel_r1.answers.rollout import Problem
from parallel_r1.generation.settings import Sampling
from parallel_r1.registry import load_plugins
from parallel_r1.tasks.base import Task
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.rewards.base import BuiltReward
from parallel_r1.training.rewards.language import parse_reward


@dataclass(frozen=True)
class LoopSettings:
    """A stage as an agent loop reads it.

    Attributes:
        folder: where the loop writes the figures of its answers.
        seed: of the stage.
        rollouts_every: steps after which the answers of a step are written whole.
        steps: of the stage.
        group, validated: answers to a problem in training and in validation.
        validation: the task of the validation problems.
        ends: ids that end an answer beside those of the tokenizer, of `generation_config`.
        rows: rows of the embedding table.
        patience: see `draw.Patience.whole`.
    """

    folder: Path
    task: Task
    validation: Task
    reward: BuiltReward
    sampling: Sampling
    prompt: Prompt
    seed: int
    rollouts_every: int
    steps: int
    group: int
    validated: int
    ends: tuple[int, ...]
    rows: int
    patience: float


@cache
def read_settings(path: str) -> LoopSettings:
    """Read the settings that `stage.write_settings` wrote; once per process.

    Raises:
        UserError: a plug-in, task or reward of the recipe that does not load here.
    """
    values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    load_plugins(values.pop("imports"), Path(path).parent)
    return LoopSettings(
        folder=Path(path).parent,
        task=load_task(values["task"]),
        validation=load_task(values["validation"]),
        reward=parse_reward(values["reward"]),
        sampling=Sampling.model_validate(values["sampling"]),
        prompt=Prompt.model_validate(values["prompt"]),
        ends=tuple(values["ends"]),
        **{
            name: values[name] for name in ("seed", "rollouts_every", "steps", "group", "validated", "rows", "patience")
        },
    )


def problem_to_json(problem: Problem) -> str:
    """A problem as a text, which a column of a Parquet file holds without loss."""
    return json.dumps({**vars(problem), "before": list(problem.before)}, ensure_ascii=False)


def problem_from_json(text: str) -> Problem:
    """The inverse of `problem_to_json`."""
    values = json.loads(text)
    return Problem(**{**values, "before": tuple((role, said) for role, said in values["before"])})
