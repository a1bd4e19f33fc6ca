"""The files of a stage for verl: problems as Parquet, the settings of the agent loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from parallel_r1.answers.rollout import Problem
from parallel_r1.errors import UserError, need
from parallel_r1.evaluation.measure import held_out
from parallel_r1.files import whole, write_json, write_text
from parallel_r1.generation.rollouts import Readable
from parallel_r1.integrations.verl.config import LOOP, Files, validation_samples
from parallel_r1.integrations.verl.settings import problem_to_json
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import as_chat
from parallel_r1.runs.inputs import task_files
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.base import problem_stream
from parallel_r1.tasks.load import load_task
from parallel_r1.training.settings import RL


def write_stage(recipe: Recipe, name: str, policy: Policy, model: Path, folder: Path) -> Files:
    """Write all that verl reads for a stage.

    The problems of training are those that one process would draw, in the same order; those of validation are the
    validation split of the first task that the recipe evaluates.

    Args:
        policy: tells how long prompts are; its weights are not used.
        model: the folder of the weights that the stage starts from.
        folder: for the files; all nodes must see it.

    Raises:
        UserError: prompts or problems that verl cannot take.
    """
    need("pyarrow", "which writes problems for verl", "data")
    stage = recipe.stages[name]
    assert isinstance(stage, RL)
    folder.mkdir(parents=True, exist_ok=True)
    longest = 0
    validated = [] if not recipe.evaluation.tasks else _validation(recipe)
    training = _readable(recipe, name, policy)
    files = Files(folder, model, 0)
    for problems, split, path in ((training, "train", files.train), (validated, "validation", files.validation)):
        lengths: list[int] = []
        rows = _rows(problems, split, policy, stage, lengths)
        first = next(rows, None)
        if first is not None:
            _write_parquet(path, first, rows)
        longest = max([longest, *lengths])
    _write_settings(recipe, name, policy, files)
    return Files(folder, model, longest, len(validated))


def _validation(recipe: Recipe) -> list[Problem]:
    """Validation problems of the first task that the recipe evaluates."""
    settings = recipe.evaluation
    return list(held_out(load_task(settings.tasks[0]), settings.problems, settings.seed, "validation"))


def _readable(recipe: Recipe, name: str, policy: Policy) -> Iterator[Problem]:
    """The training problems of all steps."""
    stage = recipe.stages[name]
    assert isinstance(stage, RL)
    stream = problem_stream(load_task(stage.task), "train", recipe.seed_of(name))
    return islice(Readable(stream, policy, stage.sampling, stage.prompt), stage.steps * stage.problems)


def _rows(
    problems: Iterable[Problem], split: str, policy: Policy, stage: RL, lengths: list[int]
) -> Iterator[dict[str, Any]]:
    """Problems as rows of verl. Appends the number of tokens of every prompt to `lengths`."""
    for index, problem in enumerate(problems):
        lengths.append(len(stage.prompt.encode(policy, problem.prompt, problem.before)))
        messages = [*problem.before, ("user", stage.prompt.instruction + problem.prompt)]
        yield {
            "data_source": problem.source,
            "prompt": as_chat(messages),
            "ability": "parallel thinking",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split, "problem": problem_to_json(problem)},
        }


def _write_parquet(path: Path, first: dict[str, Any], rest: Iterator[dict[str, Any]], size: int = 10_000) -> None:
    """Write rows as a Parquet file, some at a time."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.Table.from_pylist([first]).schema
    with whole(path) as file, pyarrow.parquet.ParquetWriter(str(file), schema) as writer:
        rows = [first, *islice(rest, size - 1)]
        while rows:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            rows = list(islice(rest, size))


def _write_settings(recipe: Recipe, name: str, policy: Policy, files: Files) -> None:
    """Write the settings of the agent loop, and the file by which verl finds it."""
    stage = recipe.stages[name]
    assert isinstance(stage, RL)
    tasks = recipe.evaluation.tasks
    values = {
        "task": everywhere(stage.task),
        "validation": everywhere(tasks[0] if tasks else stage.task),
        "reward": stage.reward,
        "sampling": stage.sampling.model_dump(mode="json"),
        "prompt": stage.prompt.model_dump(mode="json"),
        "seed": recipe.seed_of(name),
        "rollouts_every": stage.save_rollouts_every,
        "steps": stage.steps,
        "group": stage.group,
        "validated": validation_samples(recipe),
        "ends": sorted(policy.tags.eos),
        "rows": policy.model.config.get_text_config().vocab_size,
        "imports": list(recipe.imports),
        "patience": recipe.engine.patience,
    }
    write_json(files.settings, values)
    loop = {"name": LOOP, "_target_": "parallel_r1.integrations.verl.loop.ForkJoinLoop", "stage": str(files.settings)}
    write_text(files.loop, "- " + "\n  ".join(f"{key}: {json.dumps(value)}" for key, value in loop.items()) + "\n")


def everywhere(task: str) -> str:
    """The name of a task, with the absolute paths of the files that it names: workers have folders of their own."""
    for file in task_files(task):
        if not file.is_absolute():
            task = task.replace(str(file), str(file.resolve()))
    return task


def check_prompts(files: Files, positions: int | None, reach: int) -> None:
    """Check that prompts and answers fit into the model.

    Raises:
        UserError: they do not.
    """
    if positions is not None and files.prompt + reach > positions:
        raise UserError(
            f"prompts and answers within the model's {positions} positions",
            f"a prompt of {files.prompt} tokens and answers of {reach}",
            "lower sampling.budget",
        )
