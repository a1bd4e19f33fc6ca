"""The interface of generation: a `Generator` turns requests (prompt, sampling settings, seed) into traces.

Training, evaluation, parity, the cold start and the command line all get their generator from `make_generator`; no
other function outside this package constructs a generator, a scheduler or an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from parallel_r1.answers.trace import Address, Trace
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.models.policy import Policy

Force = Callable[[Address, int], int | None]
"""Called as `force(address, size)` after a token was sampled, where `size` counts the tokens of the thread at this
address so far. Returns a token that replaces the sampled one, or None to keep it. Parity uses it to force forks into
answers of a policy that would not open any."""
OnToken = Callable[[int, Address, int, bool], None]
"""Called as `on_token(index, address, token, sampled)` for every token, as it is sampled or given; `index` is that of
the request."""
OnTrace = Callable[[int, Trace], None]
"""Called as `on_trace(index, trace)` when the answer to the request with this index has ended."""


@dataclass(frozen=True)
class Request:
    """One answer to generate. It depends on these fields and the policy alone, not on the rest of the batch.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        sampling: the distribution to sample and the budget of the answer.
        seed: seed of this answer's random generators.
        force: replaces sampled tokens by given ones; see `Force`.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    seed: str
    force: Force | None = None


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
    """
    from parallel_r1.generation.local.generator import LocalGenerator

    return LocalGenerator(policy, engine or Engine())
