"""What a study does: train a stage, measure weights. Each has a key made of all that its result depends on, so what two
rows have in common is done once, and what lies in the study's folder is not done again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from parallel_r1 import models
from parallel_r1.evaluation.habits import habits_of_run
from parallel_r1.evaluation.measure import Result, evaluate
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.files import write_json
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.generation.training_card import FILE as CARD
from parallel_r1.models.settings import Model
from parallel_r1.registry import load_plugins
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import read_toml
from parallel_r1.runs.study.keys import digest, recipe_text, sampling_text
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.settings import RL, SFT

Tell = Callable[[dict[str, Any]], None]
"""Is told every row of metrics as it is made."""


@dataclass(frozen=True)
class Base:
    """The weights that a study begins with: a model folder or a hub id."""

    path: str
    updates = 0

    @cached_property
    def key(self) -> str:
        return fingerprint(self.path)

    def weights(self, folder: Path) -> str:
        return self.path


@dataclass(frozen=True)
class FromWeights:
    """Work that begins with weights."""

    start: Base | Training

    @property
    def after(self) -> Training | None:
        """What must be done before."""
        return self.start if isinstance(self.start, Training) else None


@dataclass(frozen=True)
class Training(FromWeights):
    """A stage of a row: an ordinary run of an ordinary recipe with one stage, in a folder named by its key.

    Attributes:
        name: of the stage.
        save_every, engine, imports: as in a recipe.
    """

    name: str
    stage: SFT | RL
    seed: int
    save_every: int
    engine: Engine
    imports: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    @cached_property
    def key(self) -> str:
        """A digest of its recipe, in which the key of its start stands for where that lies."""
        return digest(recipe_text(self.recipe(self.start.key)))

    @property
    def updates(self) -> int:
        """RL updates, those of the stages before it included."""
        mine = self.stage.updates if isinstance(self.stage, RL) else 0
        return self.start.updates + mine

    def recipe(self, start: str) -> Recipe:
        """Its recipe, with the weights that it begins with."""
        chain = {self.name: self.stage}
        model = Model(path=start)
        return Recipe(
            name=self.name,
            seed=self.seed,
            model=model,
            engine=self.engine,
            stages=chain,
            save_every=self.save_every,
            imports=self.imports,
        )

    def run(self, folder: Path) -> RunFolder:
        """Where it is written."""
        return RunFolder(folder / "stages" / f"{self.name}-{self.key}")

    def weights(self, folder: Path) -> str:
        """Where its weights lie once it is done."""
        return str(self.run(folder).checkpoint(self.name))

    def is_done(self, folder: Path) -> bool:
        return Path(self.weights(folder)).exists() and not (self.run(folder).path / "state").exists()

    def do(self, folder: Path, tell: Tell) -> None:
        load_plugins(self.imports, Path())
        recipe = self.recipe(self.start.weights(folder))
        self.run(folder).restate(recipe)  # its name says that nothing can differ but where its start lies
        run = RunFolder.create(self.run(folder).path, recipe)
        train(recipe, build_policy(recipe), run, tell)
        if isinstance(self.stage, RL):
            write_json(run.path / "habits.json", [each.to_json() for each in habits_of_run(run.path)])
        run.finish()


@dataclass(frozen=True)
class Measurement(FromWeights):
    """What weights do on the held-out problems of a task."""

    task: str
    evaluation: Evaluation
    sampling: Sampling
    prompt: Prompt
    engine: Engine
    imports: tuple[str, ...]

    def __str__(self) -> str:
        return f"measured on {self.task}"

    @cached_property
    def key(self) -> str:
        settings = self.evaluation.model_copy(update={"tasks": (self.task,)})
        drawn = sampling_text(self.sampling, self.prompt, self.engine)
        return digest(self.start.key, settings.model_dump_json(), drawn)

    def result(self, folder: Path) -> Result | None:
        """What was measured, if it has been."""
        known = RunFolder(folder).evaluation(f"{self.task}-{self.key}")
        return None if known is None else Result(**known)

    def is_done(self, folder: Path) -> bool:
        return self.result(folder) is not None

    def do(self, folder: Path, tell: Tell) -> None:
        load_plugins(self.imports, Path())
        policy = models.load(self.start.weights(folder))
        generator = make_generator(policy, self.engine)
        found = evaluate(
            policy, self.task, self.evaluation, self.sampling, prompt=self.prompt, generator=generator
        ).to_json()
        RunFolder(folder).save_evaluation(f"{self.task}-{self.key}", found)


def seeds_in(folder: Path) -> list[int]:
    """Those of all stages that were begun in a study's folder."""
    return sorted({read_toml(file)["seed"] for file in folder.glob("stages/*/recipe.toml")})


@lru_cache
def fingerprint(path: str) -> str:
    """A digest of the files of a model folder, its training card left out; of its name if it is one on the hub."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file() and file.name != CARD)
    contents = []
    for file in files:
        with file.open("rb") as stream:
            contents.append(f"{file.relative_to(path)} {hashlib.file_digest(stream, 'sha256').hexdigest()}")
    return digest(*contents or [path])
