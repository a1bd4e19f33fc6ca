"""The generator that runs the model in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.local.capacity import blocks
from parallel_r1.generation.local.engine import LocalEngine, compiled
from parallel_r1.generation.local.packed import follow, with_packed
from parallel_r1.generation.request import OnToken, OnTrace, Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Engine
from parallel_r1.generation.threads import Answer
from parallel_r1.models.policy import Policy, device_of, dtype_of


class LocalGenerator:
    """A `Generator` made of a `Scheduler` and a `LocalEngine`. The KV cache is freed at the end of every `traces` call.

    Args:
        policy: the model to generate with.
        settings: rows, memory, dtype, and whether the model is compiled.

    Raises:
        UserError: the settings name another device than that of the model.
    """

    def __init__(self, policy: Policy, settings: Engine) -> None:
        if settings.device != "auto" and device_of(settings.device) != policy.model.device:
            raise UserError(
                f"a model on the device of the engine, {settings.device}",
                f"one on {policy.model.device}",
                f"load it there: load(.., device='{settings.device}'); an engine draws where the model is",
            )
        self.settings, self.policy = settings, policy
        self.counts = Counts()
        self.model: PreTrainedModel
        self.forward: Callable[..., Any] | None
        self._choose_model()
        self.batch: Scheduler | None = None
        self.answers: list[Answer] = []

    def sync(self, policy: Policy) -> None:
        changed, self.policy = policy.model is not self.policy.model, policy
        if changed:
            self._choose_model()

    def _choose_model(self) -> None:
        """Draw with the policy's model, or with a copy of it in the dtype of the settings, or with packed weights."""
        model: Any = self.policy.model
        dtype = model.dtype if self.settings.dtype == "auto" else dtype_of(self.settings.dtype)
        if dtype != model.dtype:
            if getattr(model, "quantization_method", None) is not None:
                raise UserError("engine.dtype = 'auto' for quantised weights", str(self.settings.dtype), "leave it out")
            model = copy.deepcopy(model)
            for parameter in model.parameters():  # not of its buffers: rotary frequencies stay in fp32
                parameter.data = parameter.data.to(dtype)
        self.model = with_packed(model)
        self.forward = compiled(self.model) if self.settings.compile else None

    @torch.no_grad()
    def _follow(self) -> None:
        """Take over the weights of the policy, which may have learnt since: in another dtype, and packed."""
        for mine, theirs in zip(self.model.parameters(), self.policy.model.parameters(), strict=True):
            if mine is not theirs:
                mine.copy_(theirs)
        follow(self.model)

    def traces(
        self, requests: Sequence[Request], *, on_token: OnToken | None = None, on_trace: OnTrace | None = None
    ) -> list[Trace]:
        self.batch = batch = self.live(on_token)
        try:
            self.answers = [batch.submit(request) for request in requests]
            return draw_all(batch, self.answers, self.policy.version, on_trace)
        finally:
            self.counts.add(batch.counts)
            batch.close()
            self.batch, self.answers = None, []

    def live(self, on_token: OnToken | None = None) -> Scheduler:
        policy, settings = self.policy, self.settings
        self._follow()
        model, limit = self.model, settings.memory
        most = blocks(limit, model.config, model.dtype, model.device) if isinstance(limit, str) else None
        tokens = limit if isinstance(limit, int) else None
        engine = LocalEngine(model, forward=self.forward, most=most)
        return Scheduler(engine, policy.tags, settings.rows, tokens, on_token=on_token, decode=policy.decode)

    def cancel(self, index: int) -> None:
        if self.batch is not None:
            self.batch.cancel(self.answers[index])
