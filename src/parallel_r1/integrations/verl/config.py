"""A stage of a recipe as verl's configuration. What verl cannot honour is refused by name, never left out.

The keys are those of verl 0.9.1 (`verl/trainer/config`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel_r1.errors import UserError
from parallel_r1.generation.settings import SIZE, Engine
from parallel_r1.models.attention import ATTENTION
from parallel_r1.runs.recipe import Recipe
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO
from parallel_r1.training.settings import RL

LOOP = "parallel_r1"
"""The name of our agent loop in verl."""
NO_DUAL_CLIP = 1e6
"""verl clips the loss of a negative advantage a second time; the algorithms of this package do not."""
MODES = {"tokens": "token-mean", "answers": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
"""Our `algorithm.average` -> verl's `loss_agg_mode`."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
KEEP = 2
"""Saved states that stay; the last one may be half written when a run is killed."""


@dataclass(frozen=True)
class Cluster:
    """Where verl runs, and what only it knows.

    Attributes:
        nodes, gpus: number of nodes, and of GPUs in each.
        overrides: keys of verl with values, beside those that the recipe decides.
    """

    nodes: int = 1
    gpus: int = 1
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The files of a stage that verl reads and writes.

    Attributes:
        folder: where they are; every node must see it under this path.
        model: the weights that the stage starts from.
        prompt, validated: tokens of the longest prompt; number of validation problems, 0 for no validation.
    """

    folder: Path
    model: Path
    prompt: int
    validated: int = 0

    @property
    def train(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.parquet"

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def loop(self) -> Path:
        return self.folder / "loop.yaml"

    @property
    def states(self) -> Path:
        return self.folder / "states"


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


def overrides(recipe: Recipe, name: str, files: Files, cluster: Cluster) -> dict[str, Any]:
    """verl's configuration of an RL stage, by key.

    Raises:
        UserError: an override of a key that the recipe decides; answers that the GPUs cannot share.
    """
    stage = recipe.stages[name]
    assert isinstance(stage, RL)
    answers, gpus = stage.problems // stage.algorithm.minibatches * stage.group, cluster.nodes * cluster.gpus
    if answers % gpus:
        raise UserError(
            f"answers of an update of stages.{name} that {gpus} GPUs can share",
            f"{answers}",
            "give problems and group whose product is a multiple of the number of GPUs",
        )
    keys = {
        **_data(stage, files),
        **_model(stage, files),
        **_actor(stage, files),
        **_algorithm(stage),
        **_rollout(recipe, stage, files, cluster),
        **_trainer(recipe, name, stage, files, cluster),
    }
    for text in cluster.overrides:
        key, _, value = text.partition("=")
        bare = key.lstrip("+~")
        if not value or not bare:
            raise UserError("KEY=VALUE of verl's configuration", f"'{text}'", "write --verl KEY=VALUE")
        if bare in keys and bare not in FREE:
            raise UserError(
                "a key of verl that the recipe leaves open", f"--verl {bare}", "say it in the recipe, with --set"
            )
        keys.pop(bare, None)
        keys[key] = value
    return keys


FREE = {
    "actor_rollout_ref.rollout.name",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
    "actor_rollout_ref.rollout.enforce_eager",
    "actor_rollout_ref.rollout.agent.num_workers",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.actor.fsdp_config.param_offload",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload",
    "data.dataloader_num_workers",
    "trainer.logger",
}
"""Keys that --verl may change: they are about speed and memory."""


def _data(stage: RL, files: Files) -> dict[str, Any]:
    return {
        "data.train_files": str(files.train),
        "data.val_files": str(files.validation if files.validated else files.train),
        "data.train_batch_size": stage.problems,
        "data.max_prompt_length": files.prompt,
        "data.max_response_length": stage.sampling.budget.total,
        "data.shuffle": False,  # the rows stand in the order in which one process would draw them
        "data.filter_overlong_prompts": False,  # none is: the longest decides max_prompt_length
        "data.truncation": "error",
        "data.dataloader_num_workers": 2,
        "reward.num_workers": 1,  # the agent loop rewards; these processes have nothing to do
    }


def _model(stage: RL, files: Files) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "actor_rollout_ref.model.path": str(files.model),
        "actor_rollout_ref.model.enable_gradient_checkpointing": stage.recompute,
        "actor_rollout_ref.model.use_remove_padding": stage.scorer == "causal",
    }
    if stage.scorer != "causal":
        keys["+actor_rollout_ref.model.override_config.attn_implementation"] = ATTENTION
    return keys


def _actor(stage: RL, files: Files) -> dict[str, Any]:
    optimizer, precision = stage.optimizer, stage.precision
    longest = files.prompt + stage.sampling.budget.total
    mixed = {f"{part}_dtype": "fp32" for part in ("reduce", "buffer")} | {"param_dtype": precision}
    actor = {
        "strategy": "fsdp2",
        "ppo_mini_batch_size": stage.problems // stage.algorithm.minibatches,
        "ppo_epochs": 1,
        "shuffle": False,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": max(stage.micro_tokens, longest),
        "grad_clip": optimizer.clip,
        "optim.lr": optimizer.lr,
        "optim.lr_scheduler_type": optimizer.schedule,
        "optim.lr_warmup_steps_ratio": optimizer.warmup,
        "optim.weight_decay": optimizer.weight_decay,
        "optim.betas": list(optimizer.betas),
        "optim.clip_grad": optimizer.clip,
        "fsdp_config.model_dtype": "fp32",
        "fsdp_config.param_offload": False,
        "fsdp_config.optimizer_offload": False,
    }
    return {
        **{f"actor_rollout_ref.actor.{key}": value for key, value in actor.items()},
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": mixed,
    }


def _algorithm(stage: RL) -> dict[str, Any]:
    """Advantages and loss."""
    algorithm = stage.algorithm
    assert isinstance(algorithm, GRPO)
    loss = {
        "use_kl_loss": False,
        "entropy_coeff": algorithm.entropy,
        "clip_ratio_low": algorithm.clip_low,
        "clip_ratio_high": algorithm.clip_high,
        "clip_ratio": algorithm.clip_low,
        "clip_ratio_c": NO_DUAL_CLIP,
        "loss_agg_mode": MODES[algorithm.average],
        "policy_loss.loss_mode": "gspo" if isinstance(algorithm, GSPO) else "vanilla",
    }
    if algorithm.average == "constant":
        loss["loss_scale_factor"] = stage.sampling.budget.total
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": algorithm.std == "group",
        "algorithm.use_kl_in_reward": False,
        "algorithm.rollout_correction.rollout_is": "null" if algorithm.correction is None else "token",
        "algorithm.rollout_correction.rollout_is_threshold": algorithm.correction or 2.0,
        "algorithm.rollout_correction.bypass_mode": False,
        **{f"actor_rollout_ref.actor.{key}": value for key, value in loss.items()},
    }


def _rollout(recipe: Recipe, stage: RL, files: Files, cluster: Cluster) -> dict[str, Any]:
    sampling, engine = stage.sampling, recipe.engine
    dtype = DTYPES[stage.precision if engine.dtype == "auto" else engine.dtype]
    rollout: dict[str, Any] = {
        "name": "vllm",
        "mode": "async",
        "n": stage.group,
        "temperature": sampling.temperature,
        "top_k": -1,
        "top_p": 1.0,
        "dtype": dtype,
        "calculate_log_probs": True,
        "logprobs_mode": "processed_logprobs",
        "max_model_len": files.prompt + sampling.budget.total,
        "max_num_seqs": engine.rows,
        "enable_prefix_caching": True,
        "tensor_model_parallel_size": 1,
        "gpu_memory_utilization": _share(engine),
        "log_prob_use_dynamic_bsz": True,
        "agent.default_agent_loop": LOOP,
        "agent.agent_loop_config_path": str(files.loop),
        "agent.num_workers": min(stage.problems, 8 * cluster.nodes),
        "val_kwargs.temperature": sampling.temperature,
        "val_kwargs.do_sample": True,
        "val_kwargs.n": validation_samples(recipe),
    }
    return {f"actor_rollout_ref.rollout.{key}": value for key, value in rollout.items()}


def _share(engine: Engine) -> float:
    """The share of a GPU that its server may use.

    Raises:
        UserError: a number of tokens or of bytes, which verl has no key for.
    """
    memory = engine.memory
    if memory is None:
        return 0.5
    if isinstance(memory, str) and memory.rstrip().endswith("%") and SIZE.fullmatch(memory):
        return float(memory.rstrip(" %")) / 100
    raise UserError(
        "engine.memory as a share of a GPU for verl, such as '60%'", f"{memory!r}", "--set engine.memory='60%'"
    )


def validation_samples(recipe: Recipe) -> int:
    """Answers to every validation problem: as the evaluation of the first task has."""
    tasks = recipe.evaluation.tasks
    return recipe.evaluation.samples_of(tasks[0]) if tasks else 1


def _trainer(recipe: Recipe, name: str, stage: RL, files: Files, cluster: Cluster) -> dict[str, Any]:
    trainer = {
        "project_name": recipe.name,
        "experiment_name": name,
        "nnodes": cluster.nodes,
        "n_gpus_per_node": cluster.gpus,
        "total_epochs": 1,
        "total_training_steps": stage.steps,
        "save_freq": recipe.save_every,
        "test_freq": recipe.save_every if files.validated else -1,
        "val_before_train": False,
        "resume_mode": "auto",
        "default_local_dir": str(files.states),
        "max_actor_ckpt_to_keep": KEEP,
        "logger": ["console", "file", *recipe.tracking],
        "balance_batch": True,
    }
    return {f"trainer.{key}": value for key, value in trainer.items()}


def environment(stage: RL, log: Path) -> dict[str, str]:
    """The environment variables of verl and of its workers on all nodes.

    Args:
        log: the file of verl's metrics.
    """
    return {
        "VERL_ENGINE_VENDOR": LOOP,
        "PARALLEL_R1_SCORER": stage.scorer,
        "VERL_FILE_LOGGER_PATH": str(log),
        "VERL_USE_EXTERNAL_PLUGINS": "parallel_r1",
    }


def arguments(keys: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """The configuration as arguments of `python -m verl.trainer.main_ppo`."""
    remote = {f"+ray_kwargs.ray_init.runtime_env.env_vars.{key}": f'"{value}"' for key, value in variables.items()}
    return [f"{key}={text(value)}" for key, value in {**keys, **remote}.items()]


def text(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "True", False: "False", None: "null"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(text, value)) + "]"
    return repr(value) if isinstance(value, float) else str(value)


def lines(arguments: Sequence[str]) -> Iterator[str]:
    """The launch command over several lines, for people and shells."""
    words = ["python -m verl.trainer.main_ppo", *(f"    {shlex.quote(argument)}" for argument in arguments)]
    for word in words[:-1]:
        yield word + " \\"
    yield words[-1]
