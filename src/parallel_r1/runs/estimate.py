"""Estimate a recipe without loading weights: steps, answers, tokens, memory by part, disk space.

The model is built from its configuration with fake tensors (shapes without memory). A forward pass through it counts
the tensors that the backward pass would need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from parallel_r1.answers.schemas import DEFAULT, load_schema
from parallel_r1.errors import UserError
from parallel_r1.generation.local import packed
from parallel_r1.generation.local.capacity import block_bytes, parse_bytes
from parallel_r1.generation.local.kv_pool import BLOCK, SPARE
from parallel_r1.models import attention as attend
from parallel_r1.models import lora as adapters
from parallel_r1.models.checks import check_model, check_vocabulary, positions
from parallel_r1.models.policy import dtype_of, load_tokenizer, parameter_count
from parallel_r1.models.tags import check_schema
from parallel_r1.models.tiny import qwen3
from parallel_r1.models.tokens import encode_prompt, schema_of, tag_ids
from parallel_r1.runs.activations import activation_bytes
from parallel_r1.runs.folder import space
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.load import load_task
from parallel_r1.training.batch import LOGITS
from parallel_r1.training.settings import RL, SFT, Stage

NUMBER = 4
"""Bytes of a number in fp32: a weight, a gradient or a moment."""
PROBLEMS = 100
"""Problems of a task whose prompts are measured."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a stage per process, in bytes, by part.

    Attributes:
        weights: of the policy. With sharding, the shard and the whole weights that sampling uses; a copy of them if
            answers are drawn in another dtype, or packed ones if `engine.device` is "cpu".
        gradients, moments: of the trained weights; two moments per weight.
        reference: the copy of the trained weights for a KL penalty.
        activations: of the largest micro-batch, with the bf16 copies of weights under autocast. Counted as if all
            weights were trained; an adapter needs a little less.
        logits: of the chunk that is scored at a time, with the tensors of its backward pass.
        cache: blocks of keys and values while answers are drawn, in training, validation or evaluation, if all of them
            use their whole budget at the same time.
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
        """The larger of drawing and learning, which take turns: the blocks are given back before the learner begins,
        and the gradients after every update."""
        return (
            self.weights
            + self.moments
            + self.reference
            + max(self.cache, self.gradients + self.activations + self.logits)
        )


@dataclass(frozen=True)
class StagePlan:
    """The estimate of a stage.

    Attributes:
        source: its task and reward, or the data that it imitates.
        mismatch: the sampler and the scorer, if they are no exact pair; None if they are.
        updates: optimiser updates over all steps.
        answers: answers per step.
        tokens: upper bound of the tokens sampled over all steps; 0 in SFT.
        memory: None if the model's configuration could not be read.
    """

    name: str
    kind: str
    start: str
    source: str
    mismatch: str | None
    steps: int
    updates: int
    answers: int
    tokens: int
    memory: Memory | None


@dataclass(frozen=True)
class Plan:
    """The estimate of a recipe.

    Attributes:
        parameters: of the model; None if its configuration could not be read.
        learning: number of trained parameters: all of the model, or those of an adapter.
        evaluated: upper bound of the tokens sampled to evaluate and validate all stages.
        disk: upper bound of the bytes of checkpoints and saved states.
        unknown: checks that could not be made, and why.
    """

    stages: tuple[StagePlan, ...]
    parameters: int | None
    learning: int | None
    evaluated: int
    disk: int | None
    unknown: tuple[str, ...]


def make(recipe: Recipe, problems: Mapping[str, int]) -> Plan:
    """Estimate a recipe.

    Args:
        problems: task -> number of evaluation problems, as `recipe_check.check` counts them. For a task not there,
            the number in the recipe counts.

    Raises:
        UserError: a budget exceeds the model's positions; the tokenizer lacks the tags, or has more tokens than the
            model has embeddings.
    """
    unknown: list[str] = []
    model, lora, path = None, recipe.model.lora, recipe.model.path
    tokenizer = None
    with suppress(UserError):  # what is wrong with it is said below
        tokenizer = load_tokenizer(path) if path else None
    if path and tokenizer and recipe.model.format:
        check_schema(schema_of(tokenizer), recipe.model.format, path)
    prompts = {name: prompt_tokens(recipe, stage, tokenizer) for name, stage in recipe.stages.items()}
    schema = schema_of(tokenizer) if tokenizer else load_schema(recipe.model.format or DEFAULT.name)
    adapter = 0
    with FakeTensorMode():  # tensors have shapes and no memory here
        try:
            model = build(recipe)
            adapter = adapters.size(model, lora, schema) if lora else 0
        except OSError as error:
            unknown.append(_unreadable(str(path), error))
        memories = {} if model is None else _memories(model, recipe, prompts, adapter)
    parameters = learning = disk = None
    if model is not None:
        check_positions(model.config, recipe)
        if path is not None:
            check_vocabulary(tag_ids(load_tokenizer(path)), model.config.get_text_config().vocab_size, path)
        parameters = parameter_count(model)
        learning, disk = adapter or parameters, space(recipe, parameters + adapter, adapter or parameters)
    stages = tuple(
        StagePlan(
            name,
            stage.kind,
            recipe.start_of(name),
            source(stage),
            None if stage.is_exact else f"sampler {stage.sampling.sampler}, scorer {stage.scorer}",
            stage.steps,
            stage.updates,
            stage.problems * stage.group if isinstance(stage, RL) else stage.batch,
            drawn(stage),
            memories.get(name),
        )
        for name, stage in recipe.stages.items()
    )
    return Plan(stages, parameters, learning, evaluated(recipe, problems), disk, tuple(unknown))


def _unreadable(path: str, error: OSError) -> str:
    """The line for a model whose configuration cannot be read."""
    where = "whose config.json cannot be read" if Path(path).is_dir() else "no folder, nor read from the hub"
    reason = str(error).splitlines()[0]
    return f"memory, positions and tags: {path}, {where} ({reason}); parallel-r1 prepare writes one"


def _memories(model: PreTrainedModel, recipe: Recipe, prompts: Mapping[str, int], adapter: int) -> dict[str, Memory]:
    """The memory of every stage. Stages with micro-batches of the same size share one pass through the model.

    Args:
        prompts: stage -> tokens of its longest prompt.
        adapter: number of weights of the adapter; 0 without one.
    """
    activations = cache(partial(activation_bytes, model))  # a local cache: it must not keep the model alive
    return {
        name: memory(model, recipe, stage, prompts[name], activations, adapter) for name, stage in recipe.stages.items()
    }


def drawn(stage: Stage) -> int:
    """Upper bound of the tokens that a stage samples, with refilled groups; 0 in SFT."""
    if not isinstance(stage, RL):
        return 0
    return stage.steps * (1 + stage.algorithm.refill) * stage.problems * stage.group * stage.sampling.budget.total


def evaluated(recipe: Recipe, problems: Mapping[str, int]) -> int:
    """Upper bound of the tokens that the evaluations and validations of a recipe sample. `problems` is as in `make`."""
    settings = recipe.evaluation
    budgets = [stage.sampling.budget.total for stage in recipe.stages.values()]
    budgets += budgets[:1] if recipe.model.path else []  # the base model is sampled as in the first stage
    answers = sum(problems.get(task, settings.problems) * settings.samples_of(task) for task in settings.tasks)
    return sum(budgets) * answers + sum(validated(stage) for stage in recipe.stages.values())


def validated(stage: Stage) -> int:
    """Upper bound of the tokens that the validations of a stage sample."""
    rule = stage.stop
    if rule is None:
        return 0
    return math.ceil(stage.steps / rule.every) * rule.problems * rule.samples * stage.sampling.budget.total


def source(stage: Stage) -> str:
    """The task and reward of an RL stage; the file, or the tasks, of an SFT stage."""
    if isinstance(stage, RL):
        return f"{stage.task}, {stage.reward}"
    assert isinstance(stage, SFT)
    return stage.data.file or ", ".join({**stage.data.tasks, **stage.data.rehearse})


def build(recipe: Recipe) -> PreTrainedModel:
    """Build the recipe's model from its configuration, with random weights (fake ones under `FakeTensorMode`).

    Raises:
        OSError: the configuration cannot be read.
    """
    if recipe.model.architecture is not None:
        shape = recipe.model.architecture.model_dump(exclude={"digits"})
        config: PretrainedConfig = qwen3(shape.pop("vocabulary"), **shape)
    else:
        assert recipe.model.path is not None
        config = AutoConfig.from_pretrained(recipe.model.path)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attend.ATTENTION)
    check_model(model)
    return model


def memory(
    model: PreTrainedModel,
    recipe: Recipe,
    stage: Stage,
    prompt: int,
    activations: Callable[[int, bool, bool], int],
    adapter: int,
) -> Memory:
    """The peak memory of a stage.

    Args:
        prompt: tokens of its longest prompt.
        activations: (tokens, half, recompute) -> bytes, as in `activation_bytes`.
        adapter: number of weights of the adapter; 0 without one.
    """
    lora, processes = recipe.model.lora, recipe.processes
    parameters = parameter_count(model)
    weights = learning = NUMBER * parameters
    if lora is not None:
        learning = NUMBER * adapter
        weights += learning
        if lora.quantise == "nf4":
            frozen = sum(layer.weight.numel() for layer in adapters.linear_layers(model).values())
            weights -= int(frozen * (NUMBER - adapters.NF4_BITS / 8))
    share = learning // processes.count if processes.shard else learning
    draws = isinstance(stage, RL) or bool(recipe.evaluation.tasks) or stage.stop is not None
    dtype = dtype_of(recipe.engine.dtype)
    copied = dtype.itemsize * parameters if draws and dtype.itemsize != NUMBER else 0
    if draws and not copied and recipe.engine.device == "cpu":  # "auto" is read as a GPU
        copied = NUMBER * sum(size for part in model.modules() if (size := packed.size(part)))
    config = model.config.get_text_config()
    # `replay` reads the paths a second time. A longer answer gets a micro-batch of its own.
    answer = stage.sampling.budget.total * (2 if stage.scorer == "replay" else 1)
    longest = max(stage.micro_tokens, prompt + answer if isinstance(stage, RL) else 0)
    return Memory(
        weights=(weights if share == learning else weights + share) + copied,
        gradients=share,
        moments=2 * share,
        reference=learning if isinstance(stage, RL) and "reference" in stage.algorithm.needs else 0,
        activations=activations(longest, stage.precision == "bf16", stage.recompute),
        # Logits, log-probabilities, the gradients of both, and one temporary tensor of that size.
        logits=5 * NUMBER * min(LOGITS, longest * config.vocab_size),
        cache=cache_bytes(recipe, stage, prompt, config, dtype) if draws else 0,
    )


def cache_bytes(recipe: Recipe, stage: Stage, prompt: int, config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of the blocks of keys and values, if all answers that are drawn at once use their whole budget.

    Args:
        prompt: tokens of the longest prompt; answers to one problem share it.
    """
    engine, sampling = recipe.engine, stage.sampling
    drawn = [(stage.problems, stage.group)] if isinstance(stage, RL) else []
    drawn += [(stage.stop.problems, stage.stop.samples)] if stage.stop else []
    drawn += [(recipe.evaluation.problems, recipe.evaluation.samples_of(task)) for task in recipe.evaluation.tasks]
    branches = 1 + (sampling.widest if sampling.opens_forks else 0)
    needed = []
    for problems, samples in drawn:
        answers = min(engine.rows, -(-problems * samples // recipe.processes.count))
        prompts = -(-answers // samples) if samples > 1 else answers
        tokens = answers * sampling.budget.total + prompts * prompt
        if isinstance(engine.memory, int):
            tokens = min(tokens, engine.memory)
        needed.append(tokens // BLOCK + answers * branches + prompts)
    most = int(max(needed) * (1 + SPARE)) * block_bytes(config, dtype)
    fixed = parse_bytes(engine.memory) if isinstance(engine.memory, str) else None
    return most if fixed is None else min(most, fixed)


def prompt_tokens(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Tokens of the longest of the first problems that a stage draws answers to, or is evaluated on. Bytes where there
    is no tokenizer, since a token is a byte or more; 0 for a set of problems that is not there."""
    names = [stage.task] if isinstance(stage, RL) else []
    names += [*recipe.evaluation.tasks, *([stage.stop.task] if stage.stop and stage.stop.task else [])]
    longest = 0
    for name in dict.fromkeys(names):
        with suppress(UserError):
            task = load_task(name)
            train = isinstance(stage, RL) and name == stage.task
            for problem in islice(task.problems("train" if train else "test", recipe.seed), PROBLEMS):
                text = stage.prompt.instruction + problem.prompt
                form, before = stage.prompt.form, problem.before
                ids = encode_prompt(tokenizer, text, form, before) if tokenizer else text.encode()
                longest = max(longest, len(ids))
    return longest


def check_positions(config: PretrainedConfig, recipe: Recipe) -> None:
    """Check that the answers fit into the model's positions, without counting the prompt.

    Raises:
        UserError: the budget of a stage exceeds the positions.
    """
    most = positions(config)
    for name, stage in recipe.stages.items():
        drawn = isinstance(stage, RL) or recipe.evaluation.tasks or stage.stop
        if drawn and most is not None and stage.sampling.reach >= most:
            raise UserError(
                f"budgets below the model's {most} positions",
                f"stages.{name}: an answer may reach over {stage.sampling.reach}",
                "lower its sampling.budget",
            )
