"""Everything about a recipe that can be checked without a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parallel_r1.answers.schemas import load_schema
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.errors import Missing, UserError
from parallel_r1.evaluation.measure import held_out
from parallel_r1.models import lora as adapters
from parallel_r1.runs import trackers as tracking
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.base import Split, problem_stream
from parallel_r1.tasks.load import load_task
from parallel_r1.training.rewards.language import check_reward
from parallel_r1.training.settings import RL

Counted = tuple[str, int, int, Split]
"""(task, maximum number of problems, seed, split): a key of the counted problems."""


def check(
    recipe: Recipe, missing: list[Missing] | None = None, counts: dict[Counted, int] | None = None
) -> dict[str, int]:
    """Check everything about a recipe that needs no model: trackers, rewards, tasks, data files, carried moments.

    Args:
        missing: files and data sets that do not exist are appended to it; if None, the first of them is raised.
        counts: a cache of counted problems, filled here; for several recipes that evaluate the same tasks.

    Returns:
        Task -> number of evaluation problems.

    Raises:
        UserError: the first mistake in the recipe or in a file that it reads.
    """
    sizes: dict[str, int] = {}
    counts = {} if counts is None else counts
    tracking.check(recipe.tracking)
    schema = None if recipe.model.format is None else load_schema(recipe.model.format)
    if recipe.model.lora is not None:
        adapters.check(recipe.model.lora)
    settings = recipe.evaluation
    for task in settings.tasks:
        with _there(missing):
            sizes[task] = _count((task, settings.problems, settings.seed, "test"), counts)
    for name, stage in recipe.stages.items():
        if schema is not None and schema.plan and stage.sampling.branches.spare:
            raise UserError(
                f"a schema without a plan for stages.{name}.sampling.branches.spare",
                f"'{recipe.model.format}', which has no item for a spare path",
                "leave spare out, or name another schema",
            )
        if isinstance(stage, RL):
            check_reward(stage.reward, forks=stage.sampling.opens_forks)
            with _there(missing):
                next(problem_stream(load_task(stage.task), "train", recipe.seed_of(name)))
        else:
            with _there(missing):
                coldstart.check(stage.data, schema)
        if stage.stop is not None:
            with _there(missing):
                _count((stage.stop.task, stage.stop.problems, settings.seed, "validation"), counts)
        if stage.optimizer.carry and recipe.start_of(name) == "base":
            raise UserError(
                f"a stage to carry moments on from, for stages.{name}.optimizer.carry",
                "'base', which has none",
                "leave it out, or name another start",
            )
    return sizes


def _count(counted: Counted, counts: dict[Counted, int]) -> int:
    """The number of problems of a split: the maximum, or all if there are fewer."""
    if counted not in counts:
        task, most, seed, split = counted
        counts[counted] = len(held_out(load_task(task), most, seed, split))
    return counts[counted]


@contextmanager
def _there(missing: list[Missing] | None) -> Iterator[None]:
    """Append a `Missing` error to the list, if there is one, instead of raising it."""
    try:
        yield
    except Missing as error:
        if missing is None:
            raise
        if str(error) not in map(str, missing):
            missing.append(error)
