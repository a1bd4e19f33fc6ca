"""The generator that runs the model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parallel_r1.answers.trace import Trace
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.local.engine import LocalEngine, compiled
from parallel_r1.generation.request import OnToken, OnTrace, Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Engine
from parallel_r1.generation.threads import Answer
from parallel_r1.models.policy import Policy


class LocalGenerator:
    """A `Generator` made of a `Scheduler` and a `LocalEngine`. The KV cache is freed at the end of every `traces` call.

    Args:
        policy: the model to generate with.
        settings: rows, memory, and whether the model is compiled.
    """

    def __init__(self, policy: Policy, settings: Engine) -> None:
        self.settings, self.policy = settings, policy
        self.counts = Counts()
        self.forward: Callable[..., Any] | None = compiled(policy.model) if settings.compile else None
        self.scheduler: Scheduler | None = None
        self.answers: list[Answer] = []

    def sync(self, policy: Policy) -> None:
        if self.settings.compile and policy.model is not self.policy.model:
            self.forward = compiled(policy.model)
        self.policy = policy

    def traces(
        self, requests: Sequence[Request], *, on_token: OnToken | None = None, on_trace: OnTrace | None = None
    ) -> list[Trace]:
        policy, settings = self.policy, self.settings
        engine = LocalEngine(policy.model, forward=self.forward)
        self.scheduler = scheduler = Scheduler(
            engine, policy.tags, settings.rows, settings.memory, on_token=on_token, decode=policy.decode
        )
        try:
            self.answers = [scheduler.submit(request) for request in requests]
            while scheduler.is_busy:
                for answer in scheduler.step():
                    if on_trace:
                        on_trace(answer.index, answer.trace(policy.version))
            return [answer.trace(policy.version) for answer in self.answers]
        finally:
            self.counts.add(engine.counts)
            self.scheduler, self.answers = None, []

    def cancel(self, index: int) -> None:
        if self.scheduler is not None:
            self.scheduler.cancel(self.answers[index])
