"""What an update learns from: one trace with its advantage and its weight."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from parallel_r1.answers.trace import Trace


@dataclass(frozen=True)
class Sample:
    """One trace to learn from.

    Attributes:
        trace: a prompt and its answer.
        advantage: how much better the answer is than expected; 1 in supervised fine-tuning.
        weight: factor on the loss of every token of the answer.
        old: log-probability of every token of the answer before the step, under the stage's scorer; None if the
            log-probabilities that the answer was sampled with serve.
        reference: the same under the policy that the stage started from; None if the algorithm does not need it.
    """

    trace: Trace
    advantage: float = 1.0
    weight: float = 1.0
    old: Float[Tensor, " n"] | None = None
    reference: Float[Tensor, " n"] | None = None

    @property
    def sampled(self) -> int:
        """Number of tokens that the policy sampled; given tokens do not count."""
        return sum(len(span.token_ids) for span in self.trace.spans if span.sampled)

    @property
    def length(self) -> int:
        """Number of tokens of the prompt and the answer."""
        return len(self.trace.prompt_ids) + len(self.trace.token_ids)
