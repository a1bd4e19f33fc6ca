"""What a generator is asked for, and the callbacks it calls while it works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel_r1.answers.trace import Address, Trace
from parallel_r1.generation.control import Conclude, concluded
from parallel_r1.generation.settings import Sampling

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
        conclude: reads what a path concludes, for `Branches.agree`.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    seed: str
    force: Force | None = None
    conclude: Conclude = concluded
