"""Who sees whom. Mask, positions and critical path are three readings of one relation between addresses.

Two addresses are *strangers* if, at the first place where they differ, they name the same fork and different paths.
Token i sees token j iff j <= i in reading order and their addresses are no strangers. A token's position is one more
than the largest position it sees, and the critical path is one more than the largest position of all.
Source: section 3 of the Parallel-R1 paper (arXiv 2509.07980), stated for any number of paths and any nesting.

Everything here works on runs: `(address, length)` pairs in reading order. An answer has few addresses and many tokens,
so the relation is a small table between addresses, and no loop runs over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from parallel_r1.trace import TRUNK, Address, Scorer, Trace

Run = tuple[Address, int]


def strangers(a: Address, b: Address) -> bool:
    """Whether tokens at these addresses may not see each other."""
    for (fork_a, path_a), (fork_b, path_b) in zip(a, b, strict=False):
        if (fork_a, path_a) != (fork_b, path_b):
            return fork_a == fork_b
    return False


@dataclass(frozen=True)
class Layout:
    """The readings of the relation for one sequence of n tokens with a distinct addresses.

    Attributes:
        address_ids: for every token the row of its address in `sees`.
        positions: for every token its position, counted from 0.
        sees: whether tokens of two addresses may see each other; symmetric, true on the diagonal.
    """

    address_ids: Int[np.ndarray, n]
    positions: Int[np.ndarray, n]
    sees: Bool[np.ndarray, "a a"]

    @property
    def critical_path(self) -> int:
        """The length of the longest chain of tokens that must be drawn one after the other."""
        return int(self.positions.max()) + 1 if len(self.positions) else 0

    def mask(self) -> Bool[np.ndarray, "n n"]:
        """Entry (i, j) tells whether token i sees token j."""
        related = self.sees[self.address_ids[:, None], self.address_ids[None, :]]
        return related & np.tri(len(self.positions), dtype=bool)


def layout(runs: Sequence[Run], scorer: Scorer = "isolated") -> Layout:
    """Lay out a sequence under a scorer. `causal` is the same relation with every address erased."""
    if scorer == "causal":
        runs = [(TRUNK, length) for _, length in runs]
    addresses = list(dict.fromkeys(address for address, _ in runs))
    row = {address: index for index, address in enumerate(addresses)}
    sees = np.array([[not strangers(a, b) for b in addresses] for a in addresses], dtype=bool)
    sees = sees.reshape(len(addresses), len(addresses))
    reach = np.zeros(len(addresses), dtype=np.int64)  # by address: one more than its largest position so far
    positions, address_ids = [], []
    for address, length in runs:
        own = row[address]
        start = int(reach[sees[own]].max())
        positions.append(np.arange(start, start + length))
        address_ids.append(np.full(length, own))
        if length:
            reach[own] = start + length
    empty = np.zeros(0, dtype=np.int64)
    return Layout(np.concatenate([empty, *address_ids]), np.concatenate([empty, *positions]), sees)


def latency(trace: Trace) -> int:
    """Tokens of an answer that had to be drawn one after the other: its critical path, however it is scored. What a
    `causal_join` reads again is not drawn and does not count."""
    return layout(trace.runs, "causal" if trace.sampler == "sequential" else "isolated").critical_path
