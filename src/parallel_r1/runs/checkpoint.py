"""The training cards of a run's checkpoints."""

from __future__ import annotations

import hashlib
import importlib.metadata

from parallel_r1 import __version__
from parallel_r1.generation.training_card import TrainingCard, read_card
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import dump_recipe
from parallel_r1.training.settings import RL


def card_of(recipe: Recipe, name: str, updates: int) -> TrainingCard:
    """The training card of the weights after stage `name`, which have learnt from so many updates."""
    stage = recipe.stages[name]
    rl = stage if isinstance(stage, RL) else None
    return TrainingCard(
        recipe=recipe.name,
        recipe_digest=hashlib.sha256(dump_recipe(recipe).encode()).hexdigest()[:16],
        stage=name,
        updates=updates,
        kind=stage.kind,
        task=rl.task if rl else None,
        reward=rl.reward if rl else None,
        data=None if isinstance(stage, RL) else stage.data.model_dump(mode="json", exclude_none=True),
        scorer=stage.scorer,
        sampling=stage.sampling,
        prompt=stage.prompt,
        versions={
            "parallel-r1": __version__,
            **{package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        },
    )


def card_of_base(recipe: Recipe) -> TrainingCard | None:
    """The training card of the weights that a recipe starts from; None if they have none."""
    start = recipe.model.adapter or recipe.model.path
    return None if start is None else read_card(start)
