"""Whether the problems that a recipe asks fit into the positions of its model."""

from __future__ import annotations

from parallel_r1 import models
from parallel_r1.evaluation.measure import held_out
from parallel_r1.generation.rollouts import check_length
from parallel_r1.models.policy import Policy
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.base import Split
from parallel_r1.tasks.load import load_task


def check_prompts(recipe: Recipe, policy: Policy) -> None:
    """Refuse a recipe whose evaluations ask a problem that is too long for the model, which would end the run after the
    first stage was trained.

    Raises:
        UserError: there is one; names it.
    """
    if models.positions(policy.model.config) is None:
        return
    settings, seed = recipe.evaluation, recipe.evaluation.seed
    encoded: dict[tuple[str, str], int] = {}
    for stage in recipe.stages.values():
        asked: list[tuple[str, int, Split]] = [(task, settings.problems, "test") for task in settings.tasks]
        asked += [(stage.stop.task, stage.stop.problems, "validation")] if stage.stop else []
        for task, count, split in asked:
            for problem in held_out(load_task(task), count, seed, split):
                key = stage.prompt.model_dump_json(), problem.id
                if key not in encoded:
                    encoded[key] = len(stage.prompt.encode(policy, problem.prompt, problem.before))
                check_length(policy, encoded[key], stage.sampling, f"'{problem.id}' of {task}")
