"""What draws tokens: the Protocol of an engine, and how one token is sampled from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

B = TypeVar("B")
"""What an engine calls a branch: a chain of tokens that it can extend by one."""


class Engine(Protocol[B]):
    """Memory of many growing, forking and joining answers. Every token is read once: a fork shares its prefix, a join
    keeps what the paths have read."""

    def open(self, prompts: Sequence[Sequence[int]]) -> list[B]:
        """Start one trunk per prompt. Equal prompts are read once. The last token of a prompt is left to be fed."""
        ...

    def fork(self, trunk: B, paths: int) -> list[B]:
        """Start paths from where a trunk is. The trunk rests until they are joined."""
        ...

    def join(self, trunk: B, paths: Sequence[B]) -> None:
        """End the paths; the trunk goes on after the longest of them and sees them all."""
        ...

    def step(self, feeds: Sequence[tuple[B, int]]) -> Float[Tensor, "n v"]:
        """Feed one token to each of n different branches; the logits of what comes next."""
        ...

    def close(self, trunk: B) -> None:
        """End an answer and free what it holds."""
        ...


def sample(
    logits: Float[Tensor, "n v"], uniforms: Sequence[float], temperature: float
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Draw one token per row by inverting the cumulative distribution at a uniform number from [0, 1).

    Args:
        logits: of the raw policy.
        uniforms: one per row, so that a row's draws depend on its own seed alone.
        temperature: divides the logits; 0 takes the most probable token.

    Returns:
        The tokens, and their log-probabilities (nats) under the distribution they were drawn from; at temperature 0,
        under the raw policy.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        cumulative = logprobs.exp().double().cumsum(dim=-1)
        at = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, at, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
