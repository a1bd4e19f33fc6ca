"""The generator that draws with vLLM."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.request import OnToken, OnTrace, Request
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.generation.threads import Answer
from parallel_r1.generation.vllm.batch import VllmBatch
from parallel_r1.generation.vllm.client import Call, Piece
from parallel_r1.generation.vllm.in_process import InProcess, in_process
from parallel_r1.generation.vllm.server import Servers
from parallel_r1.models.policy import Policy

TOLERANCE = 0.25
"""Largest difference of the log-probabilities of one token by the same weights: bf16 on one side."""


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
            check_weights(policy, self.engine)
            self.holds, self.engine.owner = wanted, self
        return self.engine

    def _rest(self) -> None:
        assert self.engine is not None
        self.engine.sleep()
        if self.engine.sleeps:  # sleeping forgets the weights
            self.holds = None


@torch.no_grad()
def check_weights(policy: Policy, engine: InProcess | Servers) -> None:
    """Check that vLLM has the weights of a policy: that both give the next token of a text the same probability.

    Raises:
        UserError: they do not.
    """
    text = policy.encode_prompt("Use 3, 5, 7 to make 22.\n")
    ids = torch.tensor([text], device=policy.model.device)
    logits = policy.model(input_ids=ids).logits[0, -1].float()
    logits[list(policy.tags.missing)] = -torch.inf
    greedy = Sampling(temperature=0)
    for home in range(engine.places):
        key = f"check-{home}"
        engine.start(Call(key, home, text, greedy, seed=0, stops=(), most=1, forbidden=policy.tags.missing))
        pieces: list[Piece] = []
        while not any(piece.ended for piece in pieces):
            pieces += [piece for piece in engine.poll() if piece.key == key]
        ((token, theirs),) = [pair for piece in pieces for pair in zip(piece.tokens, piece.logprobs, strict=True)]
        ours = float(logits.log_softmax(-1)[token])
        if not abs(ours - theirs) < TOLERANCE:
            raise UserError(
                f"the weights of {policy.source or 'the policy'} in vLLM",
                f"others: log-probability {theirs:.3f} of a token, not {ours:.3f}",
                "start the server with this model",
            )
