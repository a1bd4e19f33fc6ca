"""A whole run as a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from parallel_r1.errors import UserError, nearest
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.generation.settings import Engine
from parallel_r1.models.settings import Model
from parallel_r1.settings import Count, Section
from parallel_r1.training.settings import RL, SFT

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Processes(Section):
    """How a run is spread over processes. The result is the same with any number of them, up to rounding.

    Attributes:
        count: how many; another number than were started is an error.
        shard: whether each keeps a share of the weights that learn, their gradients and moments (FSDP2), instead of
            all of them (DDP).
    """

    count: Count = 1
    shard: bool = False


class Recipe(Section):
    """A whole run: a model, stages in order, and what to measure.

    Attributes:
        compare: pairs (stage, against) that the table compares, paired by problem.
        save_every: steps of a stage after which all that is needed to go on is saved; it is with every validation too.
        tracking: trackers that get the metrics beside metrics.jsonl.
        imports: Python files, relative to the recipe's folder, and modules that register rewards, tasks or algorithms.
    """

    name: str
    seed: int = 0
    model: Model
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()
    stages: dict[str, Annotated[SFT | RL, Field(discriminator="kind")]] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()
    save_every: Count = 20
    tracking: tuple[Tracker, ...] = ()
    processes: Processes = Processes()
    imports: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def hold_back_what_stop_rules_need(cls, given: Any) -> Any:
        stages = given.get("stages") if isinstance(given, dict) else None
        if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
            return given
        held = {"hold_back": True} if any("stop" in stage for stage in stages.values()) else {}
        return {**given, "stages": {name: {**held, **stage} for name, stage in stages.items()}}

    @model_validator(mode="after")
    def validation_is_held_back(self) -> Recipe:
        trained = [name for name, stage in self.stages.items() if not stage.hold_back]
        if trained and any(stage.stop for stage in self.stages.values()):
            raise ValueError(
                f"stages.{trained[0]}.hold_back must be true: a stop rule is judged by problems that no stage trains on"
            )
        return self

    @model_validator(mode="after")
    def memory_holds_an_answer(self) -> Recipe:
        memory = self.engine.memory
        for name, stage in self.stages.items():
            if memory is not None and memory <= stage.sampling.budget.total:
                raise ValueError(
                    f"engine.memory ({memory}) must be above stages.{name}.sampling.budget.total "
                    f"({stage.sampling.budget.total})"
                )
        return self

    @model_validator(mode="after")
    def adapters_are_whole(self) -> Recipe:
        if self.model.lora is not None and self.processes.shard:
            raise ValueError("processes.shard divides what learns, and an adapter is small: leave one of them out")
        return self

    @model_validator(mode="after")
    def known_starts(self) -> Recipe:
        seen = ["base"]
        for name, stage in self.stages.items():
            if name == "base":
                raise ValueError("no stage may be called 'base': that is the model itself")
            if stage.start is not None and stage.start not in seen:
                raise ValueError(f"stages.{name}.start is '{stage.start}'; {nearest(stage.start, seen)}")
            seen.append(name)
        for name in (name for pair in self.compare for name in pair):
            if name not in seen:
                raise ValueError(f"compare names '{name}'; {nearest(name, seen)}")
        return self

    def start_of(self, name: str) -> str:
        """The stage whose weights a stage continues."""
        names = ["base", *self.stages]
        return self.stages[name].start or names[names.index(name) - 1]

    @property
    def carried(self) -> set[str]:
        """The stages whose moments a later stage goes on with."""
        return {self.start_of(name) for name, stage in self.stages.items() if stage.optimizer.carry}

    def only(self, kind: Literal["sft", "rl"]) -> Recipe:
        """The recipe with its stages of one kind. One that continued a stage of another kind begins where that did.

        Raises:
            UserError: it has none of this kind.
        """
        kept = {name: stage for name, stage in self.stages.items() if stage.kind == kind}
        if not kept:
            raise UserError(
                f"a recipe with a stage of kind '{kind}'",
                f"stages {', '.join(self.stages)}",
                "use `train`, or another recipe",
            )
        known = {"base", *kept}
        chain = {}
        for name, stage in kept.items():
            start = self.start_of(name)
            while start not in known:
                start = self.start_of(start)
            chain[name] = stage.model_copy(update={"start": start})
        pairs = tuple(pair for pair in self.compare if known.issuperset(pair))
        return self.model_copy(update={"stages": chain, "compare": pairs})
