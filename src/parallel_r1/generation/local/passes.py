"""What one forward pass of the local engine does: where its tokens go, and what they see."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from parallel_r1.generation.local.kv_cache import Memory


@dataclass(frozen=True)
class Layer:
    """How the layer of an index attends: scores s `scale` become c tanh(s / c) under a soft cap c; within a window of
    positions."""

    index: int
    scale: float
    window: int | None
    softcap: float | None


@dataclass
class Places:
    """Where n tokens go: their memory, and their rows and columns in it."""

    memory: Memory
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


@dataclass
class Step:
    """One token on each of n branches. r rows, s slots, c columns, p shared prompts, k rows that continue one.

    Attributes:
        at, tokens, positions, slots: the tokens, and where they go.
        shape: rows, slots and columns in use.
        dense: token i is the only one of row i, so the flat sequence is laid out by rows already.
        members: rows that continue a shared prompt.
        prompt: of every member, its shared prompt.
        place: of every member, which of the answers to this prompt it is.
        lengths: of every member, the tokens of its prompt.
        prompts: rows of the memory of shared prompts.
        made: masks, one for every window of a layer, in the form that attention reads.
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
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

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
    """Many tokens on each of k branches, at most l on one.

    Attributes:
        at, tokens, positions: the tokens, and where they go.
        feed, offset: of every token, its branch and its place among the tokens of this branch.
        rows: of every branch.
        fresh: no branch holds anything yet, so plain causal attention among the new tokens is all.
        order: of every column, 0 if it was seen before, 1 + offset of a new token, else larger than all.
        prompts: of every branch, its shared prompt's row and length, if there are any.
        made: as in `Step`.
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
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

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
