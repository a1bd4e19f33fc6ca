"""Study files: a recipe, and rows that choose a chain of its stages and change its settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from parallel_r1.errors import UserError, nearest
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.runs.recipe import Processes, Recipe
from parallel_r1.runs.recipe_check import Counted, check
from parallel_r1.runs.recipe_file import make_recipe, read_toml, validated
from parallel_r1.runs.study.work import Base, Measurement, Training
from parallel_r1.settings import Name, Section
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.settings import RL, SFT


class Row(Section):
    """A row of the table.

    Attributes:
        part: name of a group of rows, which can be run together; p-values are corrected within a part.
        like: an earlier row: its stages are the default, and its changes are applied first.
        stages: a chain of stages of the recipe; a stage starts from the one before it. Without any, the row is the
            base model, sampled as in the recipe's first stage.
        set: changes of the recipe, as for `--set` on the command line.
    """

    part: str
    like: str | None = None
    stages: tuple[str, ...] = ()
    set: tuple[str, ...] = ()


class Study(Section):
    """The rows of a table, and the recipe that they share.

    Attributes:
        against: the row that all other rows are compared with.
        seeds: seeds of the recipe; every row is trained once per seed.
        recipe: a recipe without a name. Its `imports` are relative to the folder of the study's file.
        budgets: kind of budget -> changes of the recipe, applied after those of a row.
    """

    name: Name
    against: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    recipe: dict[str, Any]
    budgets: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    rows: dict[str, Row]

    @model_validator(mode="after")
    def names_exist(self) -> Study:
        if self.against not in self.rows:
            raise ValueError(f"against is '{self.against}'; {nearest(self.against, self.rows)}")
        both = {row.part for row in self.rows.values()} & set(self.rows)
        if both:
            raise ValueError(f"'{both.pop()}' is the name of a part and of a row; rename one of them")
        earlier: list[str] = []
        for name, row in self.rows.items():
            if row.like is not None and row.like not in earlier:
                raise ValueError(f"rows.{name}.like is '{row.like}', no earlier row; {nearest(row.like, earlier)}")
            earlier.append(name)
        return self

    def row(self, name: str) -> Row:
        """A row, with the stages and changes that it takes from the row in its `like`."""
        row = self.rows[name]
        if row.like is None:
            return row
        other = self.row(row.like)
        return row.model_copy(update={"stages": row.stages or other.stages, "set": (*other.set, *row.set)})


@dataclass(frozen=True)
class Cell:
    """A row under a kind of budget with a seed: the stages to train, and the evaluations after the last one."""

    row: str
    part: str
    budget: str
    seed: int
    trainings: tuple[Training, ...]
    measurements: tuple[Measurement, ...]

    @property
    def updates(self) -> int:
        """RL updates of all stages."""
        return self.trainings[-1].updates if self.trainings else 0

    @property
    def works(self) -> list[Training | Measurement]:
        """All of its work, in order."""
        return [*self.trainings, *self.measurements]

    def __str__(self) -> str:
        return f"{self.row}, {self.budget}, seed {self.seed}"


@dataclass(frozen=True)
class Item:
    """A piece of work, and the cells that share it."""

    work: Training | Measurement
    cells: list[Cell]

    def __str__(self) -> str:
        return f"{self.cells[0]}: {self.work}"


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: no such file, bad TOML, an unknown key, a value out of range.
    """
    return validated(Study, read_toml(path), path)


def choose(study: Study, wanted: Iterable[str]) -> list[str]:
    """The rows with the given names, or in the given parts, in the study's order; all rows without names. The row that
    others are compared with is always included.

    Raises:
        UserError: no row or part has a name.
    """
    asked = set(wanted)
    names = {*study.rows, *(row.part for row in study.rows.values())}
    for name in sorted(asked - names):
        raise UserError("rows or parts of the study", f"'{name}'", nearest(name, names))
    return [
        name
        for name, row in study.rows.items()
        if not asked or name == study.against or not asked.isdisjoint((name, row.part))
    ]


def expand(
    study: Study,
    path: Path,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    asked: Collection[tuple[str, str]] | None = None,
) -> list[Cell]:
    """The cells of a study's table: every row under every kind of budget, for the first seed, then for the next.

    Args:
        path: the study's file, for error messages and relative imports.
        overrides: changes of every recipe, applied last.
        asked: the (row, kind of budget) pairs that must be valid; invalid ones not among them are left out. Default:
            all pairs.

    Raises:
        UserError: the recipe of a row is invalid, or its number of RL updates differs from the other rows.
    """
    must = set(product(study.rows, study.budgets)) if asked is None else asked
    recipes: dict[tuple[str, str], Recipe] = {}
    counts: dict[Counted, int] = {}
    for budget, row in product(study.budgets, study.rows):
        try:
            recipes[row, budget] = _recipe(study, path, row, budget, overrides, counts)
        except UserError:
            if (row, budget) in must:
                raise
    folders = {str(recipe.model.path) for recipe in recipes.values()}
    bases = {folder: Base(folder) for folder in folders}  # one object for all cells, so that its files are hashed once
    cells = [
        _cell(row, study.row(row), budget, seed, recipe, bases[str(recipe.model.path)])
        for seed in seeds
        for (row, budget), recipe in recipes.items()
    ]
    expected = {cell.budget: cell.updates for cell in cells if cell.row == study.against}
    fitting = []
    for cell in cells:
        if cell.updates in (0, expected.get(cell.budget)):
            fitting.append(cell)
        elif (cell.row, cell.budget) in must:
            raise UserError(
                f"as many RL updates in every row as in '{study.against}', {expected[cell.budget]}",
                f"{cell.updates} in '{cell.row}' of {path}",
                "change the steps of its stages",
            )
    return fitting


def _recipe(
    study: Study, path: Path, row: str, budget: str, overrides: Sequence[str], counts: dict[Counted, int]
) -> Recipe:
    """The recipe of a row, checked with the stages of the row. `counts` is a cache, as in `check`."""
    tree = {**deepcopy(study.recipe), "name": study.name}
    chosen = study.row(row)
    recipe = make_recipe(tree, path, [*chosen.set, *study.budgets[budget], *overrides])
    if recipe.model.path is None:
        raise UserError("recipe.model.path in a study", f"none in {path}", "train a base with `parallel-r1 sft` first")
    for name in chosen.stages:
        if name not in recipe.stages:
            raise UserError(
                f"a stage of the recipe in row '{row}'", f"'{name}' in {path}", nearest(name, recipe.stages)
            )
    chain = {name: recipe.stages[name] for name in chosen.stages}
    for name, stage in chain.items():
        if stage.stop is not None or stage.optimizer.carry:
            raise UserError(
                "stages of a study that take all their steps and start with fresh moments",
                f"a stop rule or optimizer.carry in stage '{name}' of {path}",
                "leave both out",
            )
    _refuse_unused(recipe, path)
    check(recipe.model_copy(update={"stages": chain}), counts=counts)
    return recipe


def _refuse_unused(recipe: Recipe, path: Path) -> None:
    """Refuse keys of a recipe that have no effect in a study."""
    given = {
        "tracking": (bool(recipe.tracking), "read its study.json instead"),
        "compare": (bool(recipe.compare), "rows are compared with the row in `against`"),
        "processes": (recipe.processes != Processes(), "give --processes on the command line"),
        "model.adapter": (recipe.model.adapter is not None, "the stages of a row say what they continue"),
    }
    for key, (is_given, advice) in given.items():
        if is_given:
            raise UserError(f"a study without recipe.{key}", f"one in {path}", advice)


def _cell(name: str, row: Row, budget: str, seed: int, recipe: Recipe, base: Base) -> Cell:
    trainings: list[Training] = []
    for stage in row.stages:
        start = trainings[-1] if trainings else base
        reduced = alone(recipe.stages[stage])
        # SFT samples nothing, so only the device of the engine counts.
        engine = recipe.engine if isinstance(reduced, RL) else Engine(device=recipe.engine.device)
        trainings.append(
            Training(start, stage, reduced, seed, recipe.save_every, engine, recipe.model.lora, recipe.imports)
        )
    last = recipe.stages[row.stages[-1] if row.stages else next(iter(recipe.stages))]
    end = trainings[-1] if trainings else base
    lora = recipe.model.lora
    held = lora if lora and lora.quantise != "none" and not trainings else None
    sampling = last.sampling, last.prompt, recipe.engine, held, recipe.imports
    measurements = (Measurement(end, task, recipe.evaluation, *sampling) for task in recipe.evaluation.tasks)
    return Cell(name, row.part, budget, seed, tuple(trainings), tuple(measurements))


def items(cells: Iterable[Cell]) -> list[Item]:
    """The work of all cells without duplicates, in the order of its dependencies."""
    by_key: dict[str, Item] = {}
    for cell in cells:
        for work in cell.works:
            by_key.setdefault(work.key, Item(work, [])).cells.append(cell)
    return list(by_key.values())


def alone(stage: SFT | RL) -> SFT | RL:
    """The stage with every setting that its weights do not depend on at its default, so that rows which differ only in
    such settings share the stage. SFT samples no answers: of its sampling and prompt only the sampler (which decides
    the tokens that are imitated) and what the model reads count."""
    if isinstance(stage, RL):
        return stage.model_copy(update={"start": None})
    sampling = Sampling(sampler=stage.sampling.sampler)
    prompt = Prompt(form=stage.prompt.form, instruction=stage.prompt.instruction)
    return stage.model_copy(update={"start": None, "sampling": sampling, "prompt": prompt})
