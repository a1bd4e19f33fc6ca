"""The seam between what asks for answers and what draws them.

A generator takes requests and gives traces. `make_generator` is the only place that chooses one; whoever draws answers
(training, evaluation, parity, a teacher, the command line) gets it from there.
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
"""Called as `force(address, size)` before a token is drawn, where `size` counts the tokens of the thread at this
address so far; returns a token to take instead, or None. Used to look at forks that a policy would not open itself."""
OnToken = Callable[[int, Address, int, bool], None]
"""Called as `on_token(index, address, token, sampled)` for every token of the request with this index."""
OnTrace = Callable[[int, Trace], None]
"""Called as `on_trace(index, trace)` when the answer to the request with this index has ended."""


@dataclass(frozen=True)
class Request:
    """One answer to draw. What is drawn depends on these fields and the policy alone.

    Attributes:
        prompt_ids: the prompt, at least one token.
        sampling: the distribution, and the budget.
        seed: of this answer.
        force: given tokens in place of drawn ones.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    seed: str
    force: Force | None = None


class Generator(Protocol):
    """Draws answers with forks.

    Attributes:
        counts: what has been read and drawn since they were last set.
    """

    counts: Counts

    def traces(
        self, requests: Sequence[Request], *, on_token: OnToken | None = None, on_trace: OnTrace | None = None
    ) -> list[Trace]:
        """Draw one answer to every request.

        Returns:
            The traces, in the order of the requests; a cancelled answer as far as it came.

        Raises:
            UserError: a request that can never be answered, such as an empty prompt; nothing has been drawn then.
        """
        ...

    def cancel(self, index: int) -> None:
        """End the answer to a request of the call under way before the next step. May be called from `on_token` and
        `on_trace`. An answer that has ended stays as it is."""
        ...

    def sync(self, policy: Policy) -> None:
        """Draw with these weights from the next call on."""
        ...


def make_generator(policy: Policy, engine: Engine | None = None) -> Generator:
    """The generator that the settings ask for.

    Args:
        policy: what it draws with; later weights are handed over by `Generator.sync`.
        engine: the settings; the defaults if None.
    """
    from parallel_r1.generation.local.generator import LocalGenerator

    return LocalGenerator(policy, engine or Engine())
