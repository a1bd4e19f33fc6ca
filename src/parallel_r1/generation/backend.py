"""What reads tokens: the Protocol of an engine, and what it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

B = TypeVar("B")
"""What an engine calls a branch: a chain of tokens that can grow."""


@dataclass
class Counts:
    """What an engine has done.

    Attributes:
        prefilled: tokens read many at a time: prompts, paths that a join reads again, and answers that had to wait.
        decoded: tokens read one at a time.
        kv: tokens whose keys and values are held now.
        peak_kv: the most that were ever held.
        preempted: how often an answer had to give its memory up.
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
        """Note that so many tokens more are held."""
        self.kv += tokens
        self.peak_kv = max(self.peak_kv, self.kv)


class Engine(Protocol[B]):
    """Memory of many growing, forking and joining answers. A fork shares its prefix; a join keeps what was read."""

    counts: Counts

    def open(self, prompts: Sequence[Sequence[int]], shared: Sequence[bool]) -> list[B]:
        """Start one trunk per prompt. A shared prompt is read once and held once for all answers to it. The last token
        of a prompt is left to be fed."""
        ...

    def fork(self, trunk: B, paths: int) -> list[B]:
        """Start paths from where a trunk is. The trunk rests until they are joined."""
        ...

    def join(self, trunk: B, paths: Sequence[B], keep: int) -> None:
        """End the paths. The trunk goes on after the longest of the first `keep` of them, sees these, and the memory
        of the others is free."""
        ...

    def read(self, feeds: Sequence[tuple[B, Sequence[int]]]) -> None:
        """Read several tokens on each of some branches, at the latest when something depends on them."""
        ...

    def step(self, feeds: Sequence[tuple[B, int]]) -> Float[Tensor, "n v"]:
        """Feed one token to each of n different branches; the logits of what comes next."""
        ...

    def close(self, trunk: B) -> None:
        """End an answer, open paths included, and free what it alone holds."""
        ...

    def trim(self) -> None:
        """Free shared prompts that no open answer uses."""
        ...
