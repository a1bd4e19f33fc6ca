"""What a recipe will do and need, known without weights: steps, answers, tokens, memory by part, disk.

The model is built from its configuration with tensors that have shapes and no memory, and a forward pass of it is
followed to count what the backward pass would keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Engine
from parallel_r1.models import attention as attend
from parallel_r1.models import lora as adapters
from parallel_r1.models.checks import check_model, check_vocabulary, positions
from parallel_r1.models.policy import load_tokenizer, parameter_count, tag_ids
from parallel_r1.models.settings import LoRA
from parallel_r1.models.tiny import qwen3
from parallel_r1.runs.folder import space
from parallel_r1.runs.recipe import Processes, Recipe
from parallel_r1.training.batch import LOGITS
from parallel_r1.training.settings import RL, SFT, Stage

NUMBER = 4
"""Bytes of a weight, a gradient, a moment, a key or a value: fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a stage needs at its peak in each process, by part.

    Attributes:
        weights: of the policy. Where processes have shares of them, there is a whole copy too.
        gradients, moments: of the weights that learn; two moments a weight.
        reference: the copy of the weights that learn that a KL penalty keeps.
        activations: of the largest micro-batch, and the copies of weights that another precision makes; where all
            weights learn, an adapter needs a little less.
        logits: of the piece that is scored, with what its backward pass needs.
        cache: keys and values while answers are drawn, if every one of them is as long as its budget allows.
    """

    weights: int
    gradients: int
    moments: int
    reference: int
    activations: int
    logits: int
    cache: int

    @property
    def peak(self) -> int:
        """The larger of drawing and learning, which take turns."""
        return (
            self.weights
            + self.moments
            + self.reference
            + max(self.cache, self.gradients + self.activations + self.logits)
        )


@dataclass(frozen=True)
class StagePlan:
    """What a stage does.

    Attributes:
        source: what it reads, and how it is rewarded.
        updates: of the optimiser, over all steps.
        answers: of a step.
        tokens: that it draws at most, over all steps; 0 in sft.
        memory: None if the model's configuration could not be read.
    """

    name: str
    kind: str
    start: str
    source: str
    steps: int
    updates: int
    answers: int
    tokens: int
    memory: Memory | None


@dataclass(frozen=True)
class Plan:
    """What a recipe does.

    Attributes:
        parameters: of the model; None if its configuration could not be read.
        learning: those that learn: all of them, or those of an adapter.
        evaluated: tokens that are drawn at most to measure and validate every stage.
        disk: bytes of checkpoints and of the state to go on from, at the most.
        unknown: what could not be checked, and why.
    """

    stages: tuple[StagePlan, ...]
    parameters: int | None
    learning: int | None
    evaluated: int
    disk: int | None
    unknown: tuple[str, ...]


def make(recipe: Recipe, problems: Mapping[str, int]) -> Plan:
    """The plan of a recipe.

    Args:
        problems: how many of each task are measured, as `curriculum.check` counted them; where it could not, as many as
            the recipe allows.

    Raises:
        UserError: a budget over the positions that the model knows; a tokenizer without the tags, or with more tokens
            than the model has embeddings.
    """
    unknown: list[str] = []
    model, lora, path = None, recipe.model.lora, recipe.model.path
    with FakeTensorMode():  # tensors have shapes and no memory here
        try:
            model = build(recipe)
        except OSError as error:
            where = (
                "whose config.json cannot be read" if Path(str(path)).is_dir() else "no folder, nor read from the hub"
            )
            reason = str(error).splitlines()[0]
            unknown.append(f"memory, positions and tags: {path}, {where} ({reason}); parallel-r1 prepare writes one")
        memories = {
            name: None if model is None else memory(model, lora, stage, recipe.processes, recipe.engine)
            for name, stage in recipe.stages.items()
        }
    parameters = learning = disk = None
    if model is not None:
        check_positions(model.config, recipe)
        if path is not None:
            check_vocabulary(tag_ids(load_tokenizer(path)), model.config.get_text_config().vocab_size, path)
        parameters, adapter = parameter_count(model), adapters.size(model, lora) if lora else 0
        learning, disk = adapter or parameters, space(recipe, parameters + adapter, adapter or parameters)
    stages = tuple(
        StagePlan(
            name,
            stage.kind,
            recipe.start_of(name),
            source(stage),
            stage.steps,
            stage.updates,
            stage.problems * stage.group if isinstance(stage, RL) else stage.batch,
            drawn(stage),
            memories[name],
        )
        for name, stage in recipe.stages.items()
    )
    settings = recipe.evaluation
    measured = [stage.sampling.budget.total for stage in recipe.stages.values()]
    measured += measured[:1] if recipe.model.path else []  # the model itself, as the first stage draws
    evaluated = sum(measured) * sum(
        problems.get(task, settings.problems) * settings.samples_of(task) for task in settings.tasks
    )
    evaluated += sum(validated(stage) for stage in recipe.stages.values())
    return Plan(stages, parameters, learning, evaluated, disk, tuple(unknown))


def drawn(stage: Stage) -> int:
    """Tokens that a stage draws at most, groups that are replaced included; 0 in sft."""
    if not isinstance(stage, RL):
        return 0
    return stage.steps * (1 + stage.algorithm.refill) * stage.problems * stage.group * stage.sampling.budget.total


def validated(stage: Stage) -> int:
    """Tokens that the validations of a stage draw at most."""
    rule = stage.stop
    if rule is None:
        return 0
    return math.ceil(stage.steps / rule.every) * rule.problems * rule.samples * stage.sampling.budget.total


def source(stage: Stage) -> str:
    """What a stage reads, and how it is rewarded."""
    if isinstance(stage, RL):
        return f"{stage.task}, {stage.reward}"
    assert isinstance(stage, SFT)
    return stage.data.file or ", ".join({**stage.data.tasks, **stage.data.rehearse})


def build(recipe: Recipe) -> PreTrainedModel:
    """The recipe's model, with weights of the kind that tensors have where it is called.

    Raises:
        OSError: its configuration cannot be read.
    """
    if recipe.model.architecture is not None:
        shape = recipe.model.architecture.model_dump()
        config: PretrainedConfig = qwen3(shape.pop("vocabulary"), **shape)
    else:
        assert recipe.model.path is not None
        config = AutoConfig.from_pretrained(recipe.model.path)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attend.ATTENTION)
    check_model(model)
    return model


def memory(model: PreTrainedModel, lora: LoRA | None, stage: Stage, processes: Processes, engine: Engine) -> Memory:
    """What a stage of a model needs, of which all learns or an adapter."""
    weights = learning = NUMBER * parameter_count(model)
    if lora is not None:
        learning = NUMBER * adapters.size(model, lora)
        weights += learning
        if lora.quantise == "nf4":
            packed = sum(layer.weight.numel() for layer in adapters.linear_layers(model).values())
            weights -= int(packed * (NUMBER - adapters.NF4_BITS / 8))
    share = learning // processes.count if processes.shard else learning
    config = model.config.get_text_config()
    drawing = isinstance(stage, RL)
    longest = max(stage.micro_tokens, stage.sampling.budget.total if drawing else 0)
    held = engine.memory or engine.rows * stage.sampling.budget.total
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Memory(
        weights=weights if share == learning else weights + share,
        gradients=share,
        moments=2 * share,
        reference=learning if isinstance(stage, RL) and "reference" in stage.algorithm.needs else 0,
        activations=kept(model, longest, stage.precision == "bf16", stage.recompute),
        # Logits, log-probabilities, and the gradients of both, beside one that is being made.
        logits=5 * NUMBER * min(LOGITS, longest * config.vocab_size),
        cache=2 * NUMBER * config.num_hidden_layers * heads * head * held if drawing else 0,
    )


@lru_cache(maxsize=1)  # the stages of a recipe often ask the same
def kept(model: PreTrainedModel, tokens: int, half: bool, recompute: bool) -> int:
    """Bytes that the backward pass over so many tokens needs from the forward pass, weights not counted; of weights and
    activations in bf16 if `half`. Where activations are computed again, those of one layer more."""
    whole = _kept(model, tokens, half)
    if not recompute:
        return whole
    attend.recompute(model)
    try:
        return _kept(model, tokens, half) + whole // model.config.get_text_config().num_hidden_layers
    finally:
        model.activation_checkpointing_disable()


def _kept(model: PreTrainedModel, tokens: int, half: bool) -> int:
    weights = {each.untyped_storage()._cdata for each in model.parameters()}
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model.train()
    with (
        saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model.get_decoder()(
            torch.zeros(1, tokens, dtype=torch.long),
            attention_mask=attend.NO_MASK,
            use_cache=False,
            attention=_attention,
        )
    return sum(each.untyped_storage().nbytes() for storage, each in found.items() if storage not in weights)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, *_: Any
) -> Float[Tensor, "b n h e"]:
    """Plain causal attention without a mask, in layers with a sliding window or a soft cap too."""
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def check_positions(config: PretrainedConfig, recipe: Recipe) -> None:
    """Refuse budgets that the model's positions cannot hold, whatever the prompt."""
    most = positions(config)
    for name, stage in recipe.stages.items():
        drawn = isinstance(stage, RL) or recipe.evaluation.tasks or stage.stop
        if drawn and most is not None and stage.sampling.reach >= most:
            raise UserError(
                f"budgets below the {most} positions that the model knows",
                f"stages.{name}: an answer may reach over {stage.sampling.reach}",
                "lower its sampling.budget",
            )
