"""A stage of a recipe as verl's configuration.

The keys are those of verl 0.9.1 (`verl/trainer/config`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel_r1.errors import UserError
from parallel_r1.generation.settings import SIZE, Engine
from parallel_r1.integrations.verl.words import Raw
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
    return {**keys, **_override(keys, cluster.overrides)}


def _override(keys: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Raw]:
    """What --verl asks for, by key.

    Raises:
        UserError: a key that the recipe decides, or that changes what is learnt.
    """
    decided = {key.lstrip("+") for key in keys} - FREE
    asked = {}
    for words in overrides:
        key, _, value = words.partition("=")
        bare = key.lstrip("+")
        if not value or not re.fullmatch(r"[\w.@/]+", bare):
            raise UserError("KEY=VALUE of verl's configuration", f"'{words}'", "write --verl KEY=VALUE")
        if any(_within(bare, other) or _within(other, bare) for other in decided):
            raise UserError(
                "a key of verl that the recipe leaves open", f"--verl {bare}", "say it in the recipe, with --set"
            )
        if bare not in FREE and any(_within(bare, part) for part in LEARNING):
            raise UserError(
                "a key about speed, memory or logging",
                f"--verl {bare}, which changes what is learnt",
                "leave it out: a recipe has no setting that means this",
            )
        asked[bare if bare in keys else key] = Raw(value)
    return asked


def _within(key: str, table: str) -> bool:
    return key == table or key.startswith(f"{table}.")


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
LEARNING = (
    "algorithm",
    "critic",
    "data",
    "distillation",
    "reward",
    "trainer.use_v1",
    "trainer.v1",
    "actor_rollout_ref.rollout.agent",
    "actor_rollout_ref.rollout.multi_turn",
    "actor_rollout_ref.rollout.val_kwargs",
    "actor_rollout_ref.actor.policy_loss",
    "actor_rollout_ref.actor.optim",
)
"""Tables of verl that say what is learnt, and from what."""


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
    packs = stage.scorer == "causal" and stage.precision == "bf16"  # FlashAttention, which has no fp32
    keys: dict[str, Any] = {
        "actor_rollout_ref.model.path": str(files.model),
        "actor_rollout_ref.model.enable_gradient_checkpointing": stage.recompute,
        "actor_rollout_ref.model.use_remove_padding": packs,
    }
    if not packs:
        attention = "sdpa" if stage.scorer == "causal" else ATTENTION
        keys["+actor_rollout_ref.model.override_config.attn_implementation"] = attention
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
        "algorithm.rollout_correction.rollout_is": None if algorithm.correction is None else "token",
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
        share = float(memory.rstrip(" %")) / 100
        if 0.05 <= share <= 0.95:
            return share
    raise UserError(
        "engine.memory as a share of a GPU for verl, from '5%' to '95%', such as '60%'",
        f"{memory!r}",
        "--set engine.memory='60%'",
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
        "logger": ["console", "file"],  # trackers get our rows, as from every run
        "balance_batch": True,
    }
    # Hydra would leave a folder of its own where the command was started.
    hydra = {"hydra.run.dir": str(files.folder / "hydra"), "hydra.output_subdir": None}
    return {**{f"trainer.{key}": value for key, value in trainer.items()}, **hydra}


def environment(stage: RL, log: Path) -> dict[str, str]:
    """The environment variables of verl and of its workers on all nodes.

    Args:
        log: the file of verl's metrics.
    """
    shared = {
        name: os.environ[name] for name in ("PARALLEL_R1_DATA", "HF_HOME", "HF_HUB_OFFLINE") if name in os.environ
    }
    return {
        "VERL_ENGINE_VENDOR": LOOP,
        "PARALLEL_R1_SCORER": stage.scorer,
        "VERL_FILE_LOGGER_PATH": str(log),
        "VERL_USE_EXTERNAL_PLUGINS": "parallel_r1",
        **shared,
    }
