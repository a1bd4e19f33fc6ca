"""Supervised fine-tuning: cross-entropy on the tokens that the policy would have to sample."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from parallel_r1.training.algorithms.base import Need
from parallel_r1.training.batch import Batch


@dataclass(frozen=True)
class CrossEntropy:
    """The objective of supervised fine-tuning. It needs nothing but the log-probabilities of the policy."""

    needs: frozenset[Need] = frozenset()
    learns_without_advantage: bool = False

    def loss(
        self,
        logprobs: Float[Tensor, "b n"],
        batch: Batch,
        tokens: int,
        entropies: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean negative log-probability of the sampled tokens, in nats.

        Args:
            logprobs: from `batch.score`.
            batch: a micro-batch.
            tokens: number of sampled tokens of the whole update, so that micro-batch losses add up to the mean.
            entropies: not used.
        """
        value = -(logprobs * batch.sampled).sum() / tokens
        return value, {"loss": value.item()}
