"""The work of a study: train a stage, evaluate weights. The key of a piece of work is a digest of all that its result
depends on (`keys.py`): work that rows share is done once, and work that is in the study's folder is not repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parallel_r1 import models
from parallel_r1.evaluation.habits import habits_of_run
from parallel_r1.evaluation.measure import Result, evaluate
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.files import fingerprint as file_fingerprint
from parallel_r1.files import write_json
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.generation.training_card import FILE as CARD
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.models.settings import LoRA, Model
from parallel_r1.registry import load_plugins
from parallel_r1.runs.curriculum import build_policy, load_checkpoint, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import read_toml
from parallel_r1.runs.study.keys import digest, measurement_key, training_key
from parallel_r1.tasks.prompts import Prompt
from parallel_r1.training.settings import RL, SFT

OnRow = Callable[[dict[str, Any]], None]
"""A callback, called with every row of metrics as it is logged."""


@dataclass(frozen=True)
class Base:
    """The weights that a study starts from: a model folder or the name of a model on the hub."""

    path: str
    updates = 0

    @property
    def base(self) -> Base:
        """Itself: the weights that a chain of stages starts from."""
        return self

    @cached_property
    def key(self) -> str:
        """The fingerprint of the weights, computed once per object: hashing a large model takes seconds."""
        return fingerprint(self.path)

    def weights(self, folder: Path) -> str:
        """The path of the weights, wherever the study's folder is."""
        return self.path


@dataclass(frozen=True)
class FromWeights:
    """Work that starts from weights."""

    start: Base | Training

    @property
    def after(self) -> Training | None:
        """The stage that must be trained before; None if the work starts from the base."""
        return self.start if isinstance(self.start, Training) else None


@dataclass(frozen=True)
class Training(FromWeights):
    """A stage of a row: an ordinary run of a recipe with one stage, in a folder with the key in its name.

    Attributes:
        name: of the stage.
        save_every, engine, lora, imports: as in a recipe.
    """

    name: str
    stage: SFT | RL
    seed: int
    save_every: int
    engine: Engine
    lora: LoRA | None
    imports: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def base(self) -> Base:
        """The weights that its chain of stages starts from."""
        return self.start.base

    @cached_property
    def key(self) -> str:
        """The digest of its recipe, with keys in place of the paths of weights."""
        return training_key(self.recipe(lambda weights: weights.key))

    @property
    def updates(self) -> int:
        """RL updates of this stage and of the stages before it."""
        own = self.stage.updates if isinstance(self.stage, RL) else 0
        return self.start.updates + own

    def recipe(self, name: Callable[[Base | Training], str]) -> Recipe:
        """Its recipe. With an adapter a stage starts from the base and the adapter of the stage before, as in a run.

        Args:
            name: how weights are called in it: by their path, or by their key.
        """
        if self.lora is None:
            model = Model(path=name(self.start))
        else:
            model = Model(path=name(self.base), lora=self.lora, adapter=name(self.after) if self.after else None)
        return Recipe(
            name=self.name,
            seed=self.seed,
            model=model,
            engine=self.engine,
            stages={self.name: self.stage},
            save_every=self.save_every,
            imports=self.imports,
        )

    def run(self, folder: Path) -> RunFolder:
        """Its run folder, within the folder of the study."""
        return RunFolder(folder / "stages" / f"{self.name}-{self.key}")

    def weights(self, folder: Path) -> str:
        """The path of its weights once it is trained."""
        return str(self.run(folder).checkpoint(self.name))

    def policy(self, folder: Path) -> Policy:
        """The policy once it is trained."""
        return load_checkpoint(self.recipe(lambda weights: weights.weights(folder)), Path(self.weights(folder)))

    def is_done(self, folder: Path) -> bool:
        return Path(self.weights(folder)).exists() and not (self.run(folder).path / "state").exists()

    def do(self, folder: Path, on_row: OnRow) -> None:
        load_plugins(self.imports, Path())
        recipe = self.recipe(lambda weights: weights.weights(folder))
        self.run(folder).restate(recipe)  # as the key is the same, only the path of the start can differ
        run = RunFolder.create(self.run(folder).path, recipe)
        train(recipe, build_policy(recipe), run, on_row)
        if isinstance(self.stage, RL):
            write_json(run.path / "habits.json", [habits.to_json() for habits in habits_of_run(run.path)])
        run.finish()


@dataclass(frozen=True)
class Measurement(FromWeights):
    """An evaluation of weights on the held-out problems of a task.

    Attributes:
        lora: how the base is held, if it is measured itself and in 4 bits; None elsewhere.
    """

    task: str
    evaluation: Evaluation
    sampling: Sampling
    prompt: Prompt
    engine: Engine
    lora: LoRA | None
    imports: tuple[str, ...]

    def __str__(self) -> str:
        return f"measured on {self.task}"

    @cached_property
    def key(self) -> str:
        settings = self.evaluation.model_copy(update={"tasks": (self.task,)})
        drawn = self.sampling, self.prompt, self.engine, self.imports
        held = self.lora.model_dump_json() if self.lora else ""
        return measurement_key(self.start.key + held, self.task, settings.model_dump_json(), *drawn)

    def result(self, folder: Path) -> Result | None:
        """The saved result; None if it is not there."""
        saved = RunFolder(folder).evaluation(self.key, self.task)
        return None if saved is None else Result(**saved)

    def is_done(self, folder: Path) -> bool:
        return self.result(folder) is not None

    def do(self, folder: Path, on_row: OnRow) -> None:
        load_plugins(self.imports, Path())
        policy = self.policy(folder)
        generator = make_generator(policy, self.engine)
        result = evaluate(
            policy, self.task, self.evaluation, self.sampling, prompt=self.prompt, generator=generator
        ).to_json()
        RunFolder(folder).save_evaluation(self.key, self.task, result)

    def policy(self, folder: Path) -> Policy:
        """The policy that is measured."""
        if self.after is not None:
            return self.after.policy(folder)
        if self.lora is not None:
            return adapters.load(self.start.weights(folder), self.lora, 0, device=self.engine.device)
        return models.load(self.start.weights(folder), device=self.engine.device)


def seeds_in(folder: Path) -> list[int]:
    """The seeds of all stages in a study's folder, finished or not."""
    return sorted({read_toml(file)["seed"] for file in folder.glob("stages/*/recipe.toml")})


def fingerprint(path: str) -> str:
    """A digest of the files of a model folder, without its training card; of the name of a model on the hub."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file() and file.name != CARD)
    contents = [f"{file.relative_to(path)} {file_fingerprint(file)}" for file in files]
    return digest(*contents or [path])
