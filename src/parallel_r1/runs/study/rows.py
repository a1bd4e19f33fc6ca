"""A study as a file: one recipe, and rows that say which of its stages they go through and what they change."""

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
from parallel_r1.runs.curriculum import Counted, check
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import make_recipe, read_toml, validated
from parallel_r1.runs.study.work import Base, Measurement, Training
from parallel_r1.settings import Section
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.settings import RL, SFT


class Row(Section):
    """A row of the table.

    Attributes:
        part: what it belongs to, so that it can be asked for, and is corrected for, with others.
        like: an earlier row, whose stages it goes through unless it names its own, and whose changes come first.
        stages: those of the recipe that it goes through, each from the weights of the one before it; without any it is
            the base model, drawn from as the recipe's first stage would be.
        set: changes of the recipe, as after `--set` on the command line.
    """

    part: str
    like: str | None = None
    stages: tuple[str, ...] = ()
    set: tuple[str, ...] = ()


class Study(Section):
    """The rows of a table, and what they have in common.

    Attributes:
        against: the row that all others are compared with.
        seeds: of the recipe; each makes the whole table once.
        recipe: an ordinary recipe without a name, whose stages the rows are made of.
        budgets: kind of budget -> changes of the recipe, made after those of a row.
    """

    name: str
    against: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    recipe: dict[str, Any]
    budgets: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    rows: dict[str, Row]

    @model_validator(mode="after")
    def known_names(self) -> Study:
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
        """A row with all that it takes from the one that it is like."""
        row = self.rows[name]
        if row.like is None:
            return row
        other = self.row(row.like)
        return row.model_copy(update={"stages": row.stages or other.stages, "set": (*other.set, *row.set)})


@dataclass(frozen=True)
class Cell:
    """A row under a kind of budget with a seed: what it goes through, and what is measured at its end."""

    row: str
    part: str
    budget: str
    seed: int
    trainings: tuple[Training, ...]
    measurements: tuple[Measurement, ...]

    @property
    def updates(self) -> int:
        """RL updates of all its stages."""
        return self.trainings[-1].updates if self.trainings else 0

    @property
    def works(self) -> list[Training | Measurement]:
        """All that it needs, in order."""
        return [*self.trainings, *self.measurements]

    def __str__(self) -> str:
        return f"{self.row}, {self.budget}, seed {self.seed}"


@dataclass(frozen=True)
class Item:
    """Something to do, and the cells that need it."""

    work: Training | Measurement
    cells: list[Cell]

    def __str__(self) -> str:
        return f"{self.cells[0]}: {self.work}"


def load_study(path: Path) -> Study:
    """Read a study.

    Raises:
        UserError: no such file, bad TOML, an unknown key, a value out of range.
    """
    return validated(Study, read_toml(path), path)


def choose(study: Study, wanted: Iterable[str]) -> list[str]:
    """The rows that are asked for by their own names or by their part, in the study's order; all of them if nothing is.
    The row that others are compared with is always among them.

    Raises:
        UserError: an unknown name.
    """
    asked = set(wanted)
    known = {*study.rows, *(row.part for row in study.rows.values())}
    for name in sorted(asked - known):
        raise UserError("rows or parts of the study", f"'{name}'", nearest(name, known))
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
    """Every row under every kind of budget with every seed, the first seed first.

    Args:
        path: of the study's file, for what is said about mistakes.
        overrides: more changes of every recipe, made last.
        asked: (row, kind of budget) that must fit; others that do not are left out. Default: all.

    Raises:
        UserError: a row that does not fit the recipe; rows whose numbers of RL updates differ.
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
    cells = [
        _cell(row, study.row(row), budget, seed, recipe) for seed in seeds for (row, budget), recipe in recipes.items()
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
    """The recipe of a row, with the stages that it goes through. `counts` is that of `check`."""
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
                "stages of a study that take all their steps and begin with moments of their own",
                f"a stop rule or optimizer.carry in stage '{name}' of {path}",
                "leave both out",
            )
    if recipe.tracking:
        raise UserError("a study without trackers", f"recipe.tracking in {path}", "read its study.json instead")
    check(recipe.model_copy(update={"stages": chain}), counts=counts)
    return recipe


def _cell(name: str, row: Row, budget: str, seed: int, recipe: Recipe) -> Cell:
    assert recipe.model.path is not None
    base = Base(recipe.model.path)
    trainings: list[Training] = []
    for stage in row.stages:
        start = trainings[-1] if trainings else base
        alike = alone(recipe.stages[stage])
        engine = recipe.engine if isinstance(alike, RL) else Engine()  # what is imitated is not drawn
        trainings.append(Training(start, stage, alike, seed, recipe.save_every, engine, recipe.imports))
    last = recipe.stages[row.stages[-1] if row.stages else next(iter(recipe.stages))]
    end = trainings[-1] if trainings else base
    drawn = last.sampling, last.prompt, recipe.engine, recipe.imports
    measured = (Measurement(end, task, recipe.evaluation, *drawn) for task in recipe.evaluation.tasks)
    return Cell(name, row.part, budget, seed, tuple(trainings), tuple(measured))


def items(cells: Iterable[Cell]) -> list[Item]:
    """All that there is to do, each thing once, after what it needs."""
    found: dict[str, Item] = {}
    for cell in cells:
        for work in cell.works:
            found.setdefault(work.key, Item(work, [])).cells.append(cell)
    return list(found.values())


def alone(stage: SFT | RL) -> SFT | RL:
    """A stage with nothing said that its weights do not depend on, so that rows which differ in that share it. What is
    imitated was drawn by others: all that counts of the sampling is who would write which token, after which text."""
    if isinstance(stage, RL):
        return stage.model_copy(update={"start": None})
    sampling = Sampling(sampler=stage.sampling.sampler)
    prompt = Prompt(instruction=stage.prompt.instruction)
    return stage.model_copy(update={"start": None, "sampling": sampling, "prompt": prompt})
