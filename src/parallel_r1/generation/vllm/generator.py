"""The generator that draws with vLLM."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_r1.answers.trace import Trace
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.request import OnToken, OnTrace, Request
from parallel_r1.generation.settings import Engine
from parallel_r1.generation.threads import Answer
from parallel_r1.generation.vllm.batch import VllmBatch
from parallel_r1.generation.vllm.in_process import InProcess, in_process
from parallel_r1.generation.vllm.server import Servers
from parallel_r1.models.policy import Policy


class VllmGenerator:
    """A `Generator` made of a `VllmBatch` and vLLM: an engine in this process, or the servers that the settings name.

    The engine starts with the first `traces` call, and gets the weights before every call for which they are new. In
    this process it sleeps between calls, where the platform can.

    Args:
        policy: the model to generate with.
        settings: see `Engine`.
    """

    def __init__(self, policy: Policy, settings: Engine) -> None:
        self.settings, self.policy = settings, policy
        self.counts = Counts()
        self.engine: InProcess | Servers | None = None
        self.holds: tuple[int, int] | None = None
        self.batch: VllmBatch | None = None
        self.answers: list[Answer] = []

    def sync(self, policy: Policy) -> None:
        self.policy, self.holds = policy, None

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
            self._rest()

    def live(self, on_token: OnToken | None = None) -> VllmBatch:
        policy = self.policy
        engine = self._ready()
        return VllmBatch(
            engine,
            policy.tags,
            self.settings.rows,
            on_token=on_token,
            decode=policy.decode,
            longest=engine.longest,
        )

    def cancel(self, index: int) -> None:
        if self.batch is not None:
            self.batch.cancel(self.answers[index])

    def _ready(self) -> InProcess | Servers:
        """The engine, awake and with the weights of the policy."""
        policy, wanted = self.policy, (id(self.policy.model), self.policy.version)
        if not self.settings.servers:
            self.engine = in_process(policy, self.settings)
        elif self.engine is None:
            self.engine = Servers(self.settings)
        self.engine.wake()
        if self.holds != wanted or self.engine.owner is not self:
            self.engine.take(policy)
            self.holds, self.engine.owner = wanted, self
        return self.engine

    def _rest(self) -> None:
        assert self.engine is not None
        self.engine.sleep()
        if self.engine.sleeps:  # sleeping forgets the weights
            self.holds = None
