"""What verl cannot honour in a recipe: refused by name, never left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel_r1.errors import UserError
from parallel_r1.runs.recipe import Recipe
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO
from parallel_r1.training.settings import RL


@dataclass
class Refusals:
    """What verl cannot honour in a recipe, each with what to do."""

    prefix: str
    found: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, wrong: bool, key: str, fix: str) -> None:
        if wrong:
            self.found.append((f"{self.prefix}{key}", fix))

    def raise_any(self) -> None:
        """Raise the refusals as one error.

        Raises:
            UserError: there is one.
        """
        if self.found:
            keys: dict[str, list[str]] = {}
            for key, fix in self.found:
                keys.setdefault(fix, []).append(key)
            what = "; ".join(f"{', '.join(named)}: {fix}" for fix, named in keys.items())
            raise UserError("a recipe that verl can run", f"{len(self.found)} settings that it cannot honour", what)


def check(recipe: Recipe) -> None:
    """Refuse a recipe that verl would run as something else.

    Raises:
        UserError: names every setting that verl cannot honour, and what to do.
    """
    refuse = Refusals("")
    model, engine = recipe.model, recipe.engine
    refuse(model.lora is not None, "model.lora", "adapters were not tried with verl; train all weights")
    refuse(recipe.processes.count > 1, "processes.count", "--nodes and --gpus-per-node say it for verl")
    refuse(recipe.processes.shard, "processes.shard", "verl always shards; leave it out")
    refuse(engine.kind == "vllm", "engine.kind", "verl starts its own servers; leave it out")
    refuse(bool(engine.servers), "engine.servers", "verl starts its own servers; leave it out")
    refuse(engine.weights is not None, "engine.weights", "verl hands weights over by itself; leave it out")
    refuse(engine.compile, "engine.compile", "it belongs to the local engine; leave it out")
    for name, stage in recipe.stages.items():
        if isinstance(stage, RL):
            refuse.found += _stage(name, stage)
    refuse.raise_any()
    if not any(isinstance(stage, RL) for stage in recipe.stages.values()):
        raise UserError("an rl stage for verl", f"stages {', '.join(recipe.stages)}", "leave --engine verl out")


def _stage(name: str, stage: RL) -> list[tuple[str, str]]:
    """What verl cannot honour in one stage."""
    refuse = Refusals(f"stages.{name}.")
    sampling, algorithm, optimizer = stage.sampling, stage.algorithm, stage.optimizer
    refuse(
        sampling.sampler == "isolated",
        "sampling.sampler",
        "a stock server cannot draw 'isolated', whose summaries attend to the paths' own keys and values: set "
        "sampling.sampler = 'causal_join' (exact with scorer 'replay', which is then the default), keep scorer = "
        "'isolated' beside it for the paper's structured variant (its mismatch is measured, and "
        "algorithm.correction weighs it), or train with --engine own",
    )
    refuse(sampling.filters, "sampling", "verl scores the whole distribution: top_k = 0, top_p = 1, min_p = 0")
    refuse(stage.stop is not None, "stop", "verl's trainer takes all steps; leave it out")
    refuse(stage.packing, "packing", "verl packs by itself where it can; leave it out")
    refuse(type(algorithm) not in (GRPO, GSPO), "algorithm.name", "verl has grpo and gspo in the form of this package")
    refuse(algorithm.refill > 0, "algorithm.refill", "verl's filter of groups goes on without a limit; set 0")
    refuse(not algorithm.truncated, "algorithm.truncated", "verl learns from answers that were cut; leave it out")
    refuse(
        isinstance(algorithm, GSPO) and algorithm.correction is not None,
        "algorithm.correction",
        "verl does not average the weights over an answer, as gspo does here; leave it out",
    )
    refuse(algorithm.kl > 0, "algorithm.kl", "its estimate has another gradient in verl; set 0")
    if isinstance(algorithm, GRPO):
        refuse(algorithm.std == "batch", "algorithm.std", "verl divides by the group's or by nothing")
        refuse(algorithm.split, "algorithm.split", "verl has one reward for an answer; leave it out")
    refuse(optimizer.carry, "optimizer.carry", "verl begins every stage with new moments; leave it out")
    refuse(optimizer.tags != 1, "optimizer.tags", "verl has one learning rate; leave it out")
    refuse(optimizer.embeddings != "all", "optimizer.embeddings", "verl trains all rows; leave it out")
    return refuse.found
