"""verl's FSDP engine, with our scorers: blind paths at shared positions, or read again as they were drawn.

It is registered beside verl's own under the vendor `parallel_r1`; `VERL_ENGINE_VENDOR` chooses it. The scorer is an
environment variable too, because no configuration of verl has a place for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import Scorer, Span, Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.distribution import Decoding
from parallel_r1.integrations.verl.scoring import as_rows, lay_out, model_inputs, read_logits
from parallel_r1.integrations.verl.structure import FIELD, unpack
from parallel_r1.models.attention import check_attention
from parallel_r1.models.tokens import tag_ids
from parallel_r1.training.batch import Batch
from parallel_r1.training.mismatch import measure_mismatch
from parallel_r1.training.optimizer import divide, learning_rate
from parallel_r1.training.settings import Optimizer

VENDOR = "parallel_r1"
"""The value of VERL_ENGINE_VENDOR that chooses this engine."""
SCORER = "PARALLEL_R1_SCORER"
"""The environment variable that names the scorer."""
METRIC = "parallel_r1/"
"""The beginning of the names of our metrics."""


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"], vendor=VENDOR
)
class ForkJoinEngine(FSDPEngineWithLMHead):
    """Scores rows of the agent loop of this package."""

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of the stage.

        Raises:
            UserError: the environment names none.
        """
        name = os.environ.get(SCORER, "")
        if name not in ("causal", "isolated", "replay"):
            raise UserError(
                f"causal, isolated or replay in {SCORER}", f"'{name}'", "start with parallel-r1 train --engine verl"
            )
        return cast(Scorer, name)

    @cached_property
    def tags(self) -> Tags:
        """The tags of the model that learns."""
        ends = getattr(self.model_config.generation_config, "eos_token_id", None)
        listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
        return tag_ids(self.model_config.tokenizer, listed, self.model_config.hf_config.get_text_config().vocab_size)

    def _build_optimizer(self, module: Any) -> torch.optim.Optimizer:
        """AdamW as the learner of this package has it."""
        settings = self.optimizer_config
        decayed, rest = ([weight for _, weight in named] for named in divide(module))
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=settings.lr, betas=tuple(settings.betas))

    def _build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """The learning rate as the learner of this package has it, by step."""
        settings = self.optimizer_config
        schedule = Optimizer(schedule=settings.lr_scheduler_type, warmup=settings.lr_warmup_steps_ratio)
        factor = learning_rate(schedule, settings.total_training_steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.scorer == "causal":
            inputs, args = super().prepare_model_inputs(micro_batch)
            return dict(inputs), dict(args)
        self._check(micro_batch)
        batch = lay_out([*self.traces(micro_batch)], self.scorer, micro_batch["input_ids"].device)
        return model_inputs(batch), {"batch": batch}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Any]:
        if self.scorer == "causal":
            return dict(super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func))
        batch: Batch = output_args["batch"]
        wanted = bool(tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False))
        shape = Decoding(temperature=float(micro_batch["temperature"]), missing=self.tags.missing)
        logprobs, entropies = read_logits(output.logits, batch, shape, entropy=wanted)
        offsets = micro_batch["input_ids"].offsets()
        prompts, lengths = _sizes(micro_batch["prompts"]), _sizes(micro_batch["input_ids"])

        def nested(values: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.nested.nested_tensor_from_jagged(torch.cat(as_rows(values, prompts, lengths)), offsets)

        return {"log_probs": nested(logprobs), **({"entropy": nested(entropies)} if wanted else {})}

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> tuple[Any, dict[str, Any]]:
        loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        if loss_function is not None and "rollout_log_probs" in micro_batch.keys():  # noqa: SIM118 (a TensorDict)
            output["metrics"] = {**output["metrics"], **self.differences(micro_batch)}
        return loss, output

    def differences(self, micro_batch: Any) -> dict[str, list[float]]:
        """How far the log-probabilities of the sampler are from the scorer's, by kind of token; one per answer. verl
        takes means over answers, so the mean over tokens is logged as a sum beside the number of tokens."""
        found: dict[str, list[float]] = {}
        old = micro_batch["old_log_probs"].unbind()
        for trace, scored in zip(self.traces(micro_batch, with_logprobs=True), old, strict=True):
            if not any(span.sampled for span in trace.spans):
                continue
            mismatch = measure_mismatch([trace], [scored.detach().float().cpu()], self.tags, self.scorer)
            figures = {**mismatch.differences(), "tokens": float(mismatch.tokens)}
            figures["sum"] = figures.pop("mean") * mismatch.tokens
            for name, value in figures.items():
                found.setdefault(f"{METRIC}mismatch_{name}", []).append(value)
        return found

    def traces(self, micro_batch: Any, *, with_logprobs: bool = False) -> list[Trace]:
        """The answers of a micro-batch. A row that verl adds to fill a batch, in which nothing was sampled, is text."""
        prompts = [part.tolist() for part in micro_batch["prompts"].unbind()]
        responses = [part.tolist() for part in micro_batch["responses"].unbind()]
        masks = [part.tolist() for part in micro_batch["response_mask"].unbind()]
        logprobs: list[Any] = [None] * len(prompts)
        if with_logprobs:
            logprobs = [part.tolist() for part in micro_batch["rollout_log_probs"].unbind()]
        fields = [_plain(value) for value in _listed(micro_batch.get("extra_fields", None), len(prompts))]
        return [
            unpack(each.get(FIELD), *columns) if any(mask) else Trace(tuple(columns[0]), (_given(columns[1]),))
            for each, mask, *columns in zip(fields, masks, prompts, responses, logprobs, strict=True)
        ]

    def _check(self, micro_batch: Any) -> None:
        """Refuse settings of verl under which the relation of who sees whom would be lost.

        Raises:
            UserError: packed rows, fused kernels, or another attention.
        """
        inner = getattr(self.module, "_fsdp_wrapped_module", self.module)
        check_attention(inner)
        for key in ("use_remove_padding", "use_fused_kernels"):
            if tu.get_non_tensor_data(data=micro_batch, key=key, default=False):
                raise UserError(
                    f"actor_rollout_ref.model.{key}=False with the scorer {self.scorer}",
                    "True",
                    "shared positions would be read as several texts; set it to False",
                )


def _given(token_ids: Sequence[int]) -> Span:
    return Span(tuple(token_ids), (), False)


def _sizes(column: Any) -> list[int]:
    """Lengths of the rows of a column; verl stacks rows that happen to be equally long."""
    return [len(row) for row in column.unbind()]


def _listed(fields: Any, count: int) -> list[Any]:
    """A column of objects as a list."""
    if fields is None:
        return [{}] * count
    return list(fields.tolist() if hasattr(fields, "tolist") else fields)


def _plain(value: Any) -> Mapping[str, Any]:
    """An object of a column, out of the wrapper that tensordict may put around it."""
    value = getattr(value, "data", value)
    return value if isinstance(value, Mapping) else {}
