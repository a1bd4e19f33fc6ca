"""The interface of generation: a `Generator` turns requests (prompt, sampling settings, seed) into traces.

Training, evaluation, parity, the cold start and the command line all get their generator from `make_generator`; no
other function outside this package constructs a generator, a scheduler or an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.live import LiveBatch
from parallel_r1.generation.request import OnToken, OnTrace, Request
from parallel_r1.generation.settings import Engine
from parallel_r1.models.policy import Policy


class Generator(Protocol):
    """Generates answers that may fork.

    Attributes:
        counts: work done since the caller last set them.
    """

    counts: Counts

    def traces(
        self, requests: Sequence[Request], *, on_token: OnToken | None = None, on_trace: OnTrace | None = None
    ) -> list[Trace]:
        """Generate one answer to every request.

        Returns:
            One trace per request, in the same order. The trace of a cancelled answer holds the tokens up to there.

        Raises:
            UserError: a request that can never be answered, such as an empty prompt. Raised before any generation.
        """
        ...

    def live(self, on_token: OnToken | None = None) -> LiveBatch:
        """Start an empty batch, for a caller that adds requests one by one, such as a server. Its answers are numbered
        from 0 in the order of `submit`. Close it before the weights change."""
        ...

    def cancel(self, index: int) -> None:
        """Stop the answer to request `index` of the running `traces` call before its next step. May be called from
        `on_token` and `on_trace`. Does nothing if the answer has already ended."""
        ...

    def sync(self, policy: Policy) -> None:
        """Use this policy's weights from the next `traces` call on."""
        ...


def make_generator(policy: Policy, engine: Engine | None = None) -> Generator:
    """Construct the generator that the engine settings name.

    Args:
        policy: the model to generate with; call `Generator.sync` when its weights have changed.
        engine: engine settings; the defaults if None.

    Raises:
        UserError: something else in place of engine settings.
    """
    if engine is not None and not isinstance(engine, Engine):
        raise UserError("an Engine object", f"{engine!r:.60}", "give engine=pr.Engine(rows=..)")
    engine = engine or Engine()
    if engine.kind == "vllm":
        from parallel_r1.generation.vllm.generator import VllmGenerator

        return VllmGenerator(policy, engine)
    from parallel_r1.generation.local.generator import LocalGenerator

    return LocalGenerator(policy, engine)
