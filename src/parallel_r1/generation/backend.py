"""The Protocol of an engine, which runs the model for answers that grow, fork and join, and its counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

B = TypeVar("B")
"""An engine's type of a branch: a sequence of tokens that can grow, the trunk of an answer or one of its paths."""


@dataclass
class Counts:
    """Work that an engine has done.

    Attributes:
        prefilled: tokens read many at a time: prompts, paths that a join reads again, answers that were preempted.
        decoded: tokens read one at a time.
        kv: tokens in the KV cache now.
        peak_kv: most tokens in the KV cache so far.
        preempted: number of times that an answer lost its memory to others and had to be read again.
    """

    prefilled: int = 0
    decoded: int = 0
    kv: int = 0
    peak_kv: int = 0
    preempted: int = 0

    def add(self, other: Counts) -> None:
        """Add what another engine has done, after or before this one: their peaks are not added."""
        self.prefilled += other.prefilled
        self.decoded += other.decoded
        self.kv += other.kv
        self.peak_kv = max(self.peak_kv, other.peak_kv)
        self.preempted += other.preempted

    def hold(self, tokens: int) -> None:
        """Add to the tokens in the KV cache; a negative number frees some."""
        self.kv += tokens
        self.peak_kv = max(self.peak_kv, self.kv)


class Engine(Protocol[B]):
    """KV cache and forward passes of many answers. The paths of a fork share its prefix; a join reads nothing again."""

    counts: Counts

    def open(self, prompts: Sequence[Sequence[int]], shared: Sequence[bool]) -> list[B]:
        """Start one trunk per prompt. A shared prompt is read and held once for all answers to it. The last token of a
        prompt is not read: the caller feeds it to `step`."""
        ...

    def fork(self, trunk: B, paths: int) -> list[B]:
        """Start paths at the end of a trunk. The trunk cannot be fed until they are joined."""
        ...

    def join(self, trunk: B, paths: Sequence[B], keep: int) -> None:
        """End the paths. The trunk sees the first `keep` of them and continues at the position after the longest; the
        memory of the others is freed."""
        ...

    def read(self, feeds: Sequence[tuple[B, Sequence[int]]]) -> None:
        """Append several tokens to some branches. They may be read later, but before anything depends on them."""
        ...

    def step(self, feeds: Sequence[tuple[B, int]]) -> Float[Tensor, "n v"]:
        """Feed one token to each of n different branches; the logits of their next tokens."""
        ...

    def close(self, trunk: B) -> None:
        """End an answer with all its paths, and free the memory that only it uses."""
        ...

    def trim(self) -> None:
        """Free shared prompts that no open answer uses."""
        ...
