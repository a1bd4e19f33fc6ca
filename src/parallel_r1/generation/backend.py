"""`Backend`, what runs the model while answers grow, fork and join, and `Counts`, the counters of its work.

The scheduler decides which tokens are fed, in which order; a backend holds the KV cache and computes logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from jaxtyping import Float

from parallel_r1.generation.settings import Sampling

if TYPE_CHECKING:  # reading saved answers needs no torch
    from torch import Tensor

B = TypeVar("B")
"""A backend's own type of branch: the tokens of a trunk or of a path, to which more can be added."""


@dataclass
class Counts:
    """Work that a backend has done.

    Attributes:
        prefilled: number of tokens read several at a time: prompts, the paths that `causal_join` reads again, and
            preempted answers.
        cached: number of tokens that vLLM did not read again, because its prefix cache had them.
        decoded: number of tokens read one at a time, by `step`.
        kv: number of tokens in the KV cache now.
        peak_kv: largest number of tokens in the KV cache so far.
        preempted: number of times that an answer was taken out of the KV cache before it had ended.
        closed: number of paths that the control of branches ended (`settings.Branches`).
    """

    prefilled: int = 0
    cached: int = 0
    decoded: int = 0
    kv: int = 0
    peak_kv: int = 0
    preempted: int = 0
    closed: int = 0

    def add(self, other: Counts) -> None:
        """Add the work of another backend. The two did not run at the same time, so the larger peak counts."""
        self.prefilled += other.prefilled
        self.cached += other.cached
        self.decoded += other.decoded
        self.kv += other.kv
        self.peak_kv = max(self.peak_kv, other.peak_kv)
        self.preempted += other.preempted
        self.closed += other.closed

    def hold(self, tokens: int) -> None:
        """Count `tokens` more in the KV cache, or fewer if negative, and update the peak."""
        self.kv += tokens
        self.peak_kv = max(self.peak_kv, self.kv)


class Backend(Protocol[B]):
    """KV cache and forward passes of many answers. The paths of a fork share the tokens before it, and a join computes
    nothing again."""

    counts: Counts

    def open(self, prompts: Sequence[Sequence[int]], shared: Sequence[bool]) -> list[B]:
        """Start one trunk per prompt and read the prompt except its last token, which the caller feeds to `step`.

        Args:
            prompts: token ids.
            shared: whether other answers have the same prompt, so that it is read and stored once for all of them.
        """
        ...

    def fork(self, trunk: B, paths: int) -> list[B]:
        """Start `paths` branches that continue the trunk. The trunk is not fed until they are joined."""
        ...

    def join(self, trunk: B, paths: Sequence[B], keep: int) -> None:
        """End the paths. The trunk then sees the first `keep` of them and continues at the position after the longest
        of these; the other paths are removed from the KV cache."""
        ...

    def read(self, feeds: Sequence[tuple[B, Sequence[int]]]) -> None:
        """Append tokens to branches, without logits. The backend may wait with the forward pass until a later call
        depends on these tokens."""
        ...

    def step(self, feeds: Sequence[tuple[B, int]]) -> Float[Tensor, "n v"]:
        """Feed one token to every one of n different branches. Returns the logits of their next tokens, in the order of
        `feeds`."""
        ...

    def close(self, trunk: B) -> None:
        """End an answer with all its paths and remove it from the KV cache, except a prompt that others share."""
        ...

    def fits(self, new: Sequence[int], feeds: Iterable[B]) -> bool:
        """Whether the memory in bytes that the KV cache may take, if it is limited, suffices for one more token of
        every branch in `feeds`, and for new branches with so many tokens each."""
        ...

    def holds(self, prompt: int, sampling: Sampling) -> bool:
        """Whether that memory suffices for one answer with the whole budget of `sampling`, alone.

        Args:
            prompt: number of tokens of the prompt.
        """
        ...

    def trim(self) -> None:
        """Remove shared prompts that no open answer uses from the KV cache."""
        ...
