"""Plans of one forward pass of the local engine: where its tokens are stored, and what they see."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from parallel_r1.generation.local.kv_cache import Memory


@dataclass(frozen=True)
class Layer:
    """How one layer attends.

    Attributes:
        index: number of the layer in the model.
        scale: factor of the scores.
        window: size of its sliding window, in positions; None without one.
        softcap: c for scores c tanh(score / c); None without one.
    """

    index: int
    scale: float
    window: int | None
    softcap: float | None


@dataclass
class Places:
    """Where n tokens are stored: a memory, and their rows and columns in it."""

    memory: Memory
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


@dataclass
class Step:
    """One token on each of n branches. r rows, s slots, c columns, p shared prompts, k rows that continue one.

    Attributes:
        at, tokens, positions, slots: the tokens, and where they are stored.
        shape: rows, slots and columns in use.
        dense: token i is the only one of row i, so the flat sequence is already in the order of rows.
        members: rows that continue a shared prompt.
        prompt: row of every member's shared prompt.
        place: number of every member among the answers to its prompt.
        lengths: number of tokens of every member's prompt.
        prompts: number of rows in the memory of shared prompts.
        cache: masks and indices that all layers (with the same window) share, in the form that attention reads.
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
        """The queries by row and slot, 0 where there is none."""
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
    """Several tokens on each of k branches, at most l on one.

    Attributes:
        at, tokens, positions: the tokens, and where they are stored.
        feed, offset: branch of every token, and its index among the new tokens of this branch.
        rows: row of every branch.
        longest: l.
        fresh: no branch has tokens yet, so attention is plain causal attention among the new tokens.
        order: 0 for a column that the branch saw before, 1 + offset for a new token, larger for any other column.
        prompts: row and length of every branch's shared prompt, 0 without one; None if no branch has one.
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
        """The queries by branch, 0 where there is none."""
        laid = query.new_zeros(len(self.rows), self.longest, *query.shape[::2])
        laid[self.feed, self.offset] = query.transpose(0, 1)
        return laid.transpose(1, 2)

    @cached_property
    def now(self) -> Int[Tensor, "k l"]:
        """The position of every query."""
        now = self.positions.new_zeros(len(self.rows), self.longest)
        now[self.feed, self.offset] = self.positions
        return now
