"""The settings of a whole run: a recipe."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field, model_validator

from parallel_r1.errors import UserError, nearest
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.generation.settings import Engine
from parallel_r1.models.settings import Model
from parallel_r1.settings import Count, Name, Section
from parallel_r1.training.settings import RL, SFT

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Processes(Section):
    """The processes that share the work of a run. Up to rounding, their number does not change the result.

    Attributes:
        count: number of processes; it must be the number that the launcher started.
        shard: shard the trained weights, their gradients and moments over the processes (FSDP2), instead of replicating
            them (DDP).
    """

    count: Count = 1
    shard: bool = False


class Recipe(Section):
    """A whole run: a model, stages in order, and an evaluation.

    Attributes:
        seed: of the run; every stage derives one of its own.
        compare: pairs (stage, other stage) that the result table compares, paired by problem.
        save_every: steps between saved states, from which a run resumes; every validation saves one too.
        tracking: trackers that get the metrics in addition to metrics.jsonl.
        imports: Python files, relative to the recipe's folder, and modules that register rewards, tasks or algorithms.
    """

    name: Name
    seed: int = 0
    model: Model
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()
    stages: dict[Name, Annotated[SFT | RL, Field(discriminator="kind")]] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()
    save_every: Count = 20
    tracking: tuple[Tracker, ...] = ()
    processes: Processes = Processes()
    imports: tuple[str, ...] = ()

    @model_validator(mode="after")
    def memory_holds_an_answer(self) -> Recipe:
        memory = self.engine.memory
        for name, stage in self.stages.items():
            if isinstance(memory, int) and memory <= stage.sampling.budget.total:
                raise ValueError(
                    f"engine.memory ({memory}) must be above stages.{name}.sampling.budget.total "
                    f"({stage.sampling.budget.total})"
                )
        return self

    @model_validator(mode="after")
    def vllm_draws_every_stage(self) -> Recipe:
        if self.engine.kind != "vllm":
            return self
        servers = self.engine.servers
        if self.processes.count > 1 and not servers:
            raise ValueError("engine.kind 'vllm' in several processes needs vLLM servers; name them in engine.servers")
        for name, stage in self.stages.items():
            sampling = stage.sampling
            if sampling.sampler == "isolated":
                raise ValueError(
                    f"engine.kind 'vllm' draws the samplers causal_join and sequential; stages.{name}.sampling.sampler "
                    "is isolated"
                )
            if servers and stage.kind == "rl" and (sampling.temperature != 1 or sampling.filters):
                raise ValueError(
                    f"a vLLM server reports log-probabilities under the raw policy; stages.{name} must sample it: "
                    "temperature 1, without top_k, top_p and min_p"
                )
        return self

    @model_validator(mode="after")
    def adapters_are_whole(self) -> Recipe:
        if self.model.lora is not None and self.processes.shard:
            raise ValueError("processes.shard and model.lora exclude each other: an adapter is small; leave one out")
        return self

    @model_validator(mode="after")
    def starts_are_earlier_stages(self) -> Recipe:
        earlier = ["base"]
        for name, stage in self.stages.items():
            if name == "base":
                raise ValueError("no stage may be called 'base': that is the model itself")
            if stage.start is not None and stage.start not in earlier:
                raise ValueError(f"stages.{name}.start is '{stage.start}'; {nearest(stage.start, earlier)}")
            earlier.append(name)
        for name in (name for pair in self.compare for name in pair):
            if name == "base" and self.model.path is None:
                raise ValueError("compare names 'base', but a model with random weights is not evaluated; leave it out")
            if name not in earlier:
                raise ValueError(f"compare names '{name}'; {nearest(name, earlier)}")
        return self

    def start_of(self, name: str) -> str:
        """The stage whose weights a stage starts from; `base` is the model itself."""
        names = ["base", *self.stages]
        return self.stages[name].start or names[names.index(name) - 1]

    def seed_of(self, name: str) -> int:
        """The seed of a stage, 0 .. 2**31 - 1. Stages on one task must not draw the same problems in the same order, so
        it depends on the name of the stage beside the seed of the run."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=4).digest()) >> 1

    @property
    def carried(self) -> set[str]:
        """The stages whose moments a later stage continues with."""
        return {self.start_of(name) for name, stage in self.stages.items() if stage.optimizer.carry}

    def only(self, kind: Literal["sft", "rl"]) -> Recipe:
        """The recipe with its stages of one kind. A stage that started from a removed stage starts where that one did.

        Raises:
            UserError: the recipe has no stage of this kind.
        """
        chosen = {name: stage for name, stage in self.stages.items() if stage.kind == kind}
        if not chosen:
            raise UserError(
                f"a recipe with a stage of kind '{kind}'",
                f"stages {', '.join(self.stages)}",
                "use `train`, or another recipe",
            )
        names = {"base", *chosen}
        stages = {}
        for name, stage in chosen.items():
            start = self.start_of(name)
            while start not in names:
                start = self.start_of(start)
            stages[name] = stage.model_copy(update={"start": start})
        pairs = tuple(pair for pair in self.compare if names.issuperset(pair))
        return self.model_copy(update={"stages": stages, "compare": pairs})
