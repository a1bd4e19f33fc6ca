"""Plans for a forward pass of the local engine: where the new tokens are stored, and what they see.

A `Step` is one token on every one of n branches, whose logits are needed. A `Read` is several tokens per branch that
are only read. Attention computes the two differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from parallel_r1.generation.local.kv_cache import Memory


@dataclass(frozen=True)
class Layer:
    """Attention settings of one layer.

    Attributes:
        index: number of the layer in the model.
        scale: factor by which scores are multiplied.
        window: size of its sliding window, in positions; None without one.
        softcap: c for scores c tanh(score / c); None without one.
    """

    index: int
    scale: float
    window: int | None
    softcap: float | None


@dataclass
class Places:
    """Where n tokens are stored: the memory, and the tokens' rows and columns in it."""

    memory: Memory
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


@dataclass
class Step:
    """One token on every one of n branches: r rows, s slots, c columns, p shared prompts, k rows that continue one.

    Attributes:
        at, tokens, positions, slots: the tokens, and where they are stored.
        shape: number of rows, slots and columns in use.
        dense: whether token i is the only one of row i for all rows, so that the flat sequence is in row order.
        members: rows that continue a shared prompt; None, as the next three, if no row does.
        prompt: for every member, the row of its prompt in the memory of prompts.
        place: for every member, its number among the answers to its prompt, from 0.
        lengths: for every member, the number of tokens of its prompt.
        prompts: number of rows in the memory of shared prompts.
        cache: masks and indices that attention computes once for all layers (with the same window).
    """

    at: Places
    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    slots: Int[Tensor, " n"]
    shape: tuple[int, int, int]
    dense: bool
    members: Int[Tensor, " k"] | None = None
    prompt: Int[Tensor, " k"] | None = None
    place: Int[Tensor, " k"] | None = None
    lengths: Int[Tensor, " k"] | None = None
    prompts: int = 0
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def lay(self, query: Float[Tensor, "h n d"]) -> Float[Tensor, "r s h d"]:
        """The queries by row and slot; 0 where a slot has no query."""
        rows, slots, _ = self.shape
        flat = query.transpose(0, 1)
        if self.dense:
            return flat[:, None]
        laid = query.new_zeros(rows, slots, *flat.shape[1:])
        laid[self.at.rows, self.slots] = flat
        return laid

    @cached_property
    def now(self) -> Int[Tensor, "r s"]:
        """The position of every query."""
        now = self.positions.new_zeros(self.shape[:2])
        now[self.at.rows, self.slots] = self.positions
        return now


@dataclass
class Read:
    """Several tokens on every one of k branches, at most l on one.

    Attributes:
        at, tokens, positions: the tokens, and where they are stored.
        feed, offset: for every token, the index of its branch and its index among this branch's new tokens.
        rows: row of every branch.
        longest: l, the largest number of new tokens on a branch.
        fresh: whether no branch has earlier tokens, so that plain causal attention among the new tokens is enough.
        order: by branch and column, 0 for a column that the branch already saw, 1 + offset for a new token, and
            l + 1 for a column that it does not see.
        prompts: by branch, the row and length of its shared prompt, both 0 without one; None if no branch has one.
        cache: as in `Step`.
    """

    at: Places
    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    feed: Int[Tensor, " n"]
    offset: Int[Tensor, " n"]
    rows: Int[Tensor, " k"]
    longest: int
    fresh: bool
    order: Int[Tensor, "k c"]
    prompts: tuple[Int[Tensor, " k"], Int[Tensor, " k"]] | None
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def lay(self, query: Float[Tensor, "h n d"]) -> Float[Tensor, "k h l d"]:
        """The queries by branch, padded with 0."""
        laid = query.new_zeros(len(self.rows), self.longest, *query.shape[::2])
        laid[self.feed, self.offset] = query.transpose(0, 1)
        return laid.transpose(1, 2)

    @cached_property
    def now(self) -> Int[Tensor, "k l"]:
        """The position of every query."""
        now = self.positions.new_zeros(len(self.rows), self.longest)
        now[self.feed, self.offset] = self.positions
        return now
