"""The KV cache of the local engine: keys and values in blocks of a few tokens, which branches share.

A branch is a list of blocks: those of the branches before it, which it only reads, and its own, of which only the last
one has room. A fork makes the trunk's blocks readable for all its paths and copies nothing; a join gives the paths' own
blocks to the trunk. A prompt that several answers continue is the same: blocks with many readers. Nobody writes into a
block that has more than one reader, so how far a block is filled is the whole mask.

The pool is as large as its tokens need: it grows by a tenth of them and shrinks when more than that is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 16
"""Tokens of a block. Small, because every branch has one block that is not full."""
SPARE = 0.1
"""Blocks that a growing pool takes more than it needs, as a share of the tokens that it holds."""


@dataclass(eq=False)
class Segment:
    """Blocks of tokens that branches read, such as those of a trunk that waits for its paths.

    Attributes:
        tokens: how many tokens they hold.
    """

    blocks: list[int] = field(default_factory=list)
    tokens: int = 0


@dataclass(eq=False)
class Branch(Segment):
    """The tokens of a trunk, a path or a shared prompt, to which more can be added. Its blocks are those in which it
    alone writes; all but the last are full.

    Attributes:
        position: of its next token.
        before: what it reads before its own tokens, outermost first.
        answer: all branches of its answer, the trunk first.
        prompt: the shared prompt that its answer continues, if any.
        users: number of open answers that continue this branch, if it is a shared prompt.
    """

    position: int = 0
    before: tuple[Segment, ...] = ()
    answer: list[Branch] = field(default_factory=list)
    prompt: Branch | None = None
    users: int = 0

    @property
    def read(self) -> list[int]:
        """All blocks that it reads: those before its own, and its own."""
        return [*(block for part in self.before for block in part.blocks), *self.blocks]


class Pool:
    """Keys and values of many branches: b blocks of t tokens.

    Attributes:
        layers: layer -> its keys and its values, [b, kv heads, t, head].
        fill: by block, how many of its places hold a token.
        positions: by block and place, the position of its token.
        held: number of tokens.
        most: the most blocks that it may have; None for no limit.
    """

    def __init__(self, device: torch.device, block: int = BLOCK, most: int | None = None) -> None:
        self.device, self.block, self.most = device, block, most
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.fill: Int[np.ndarray, " b"] = np.zeros(0, dtype=np.int64)
        self.positions: Int[np.ndarray, "b t"] = np.zeros((0, block), dtype=np.int64)
        self.held = 0
        self._free: list[int] = []
        self._owner: list[list[int]] = []  # by block, the list that it is in

    def __len__(self) -> int:
        return len(self.fill)

    @property
    def used(self) -> int:
        """Number of blocks that a branch or a segment has."""
        return len(self) - len(self._free)

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(part.nbytes for part in self._parts())

    def open(self, prompt: Branch | None = None, position: int = 0) -> Branch:
        """Start an answer at a position: a trunk without tokens of its own, after a shared prompt if there is one."""
        trunk = Branch(position=position, prompt=prompt, before=(prompt,) if prompt else ())
        trunk.answer.append(trunk)
        return trunk

    def fork(self, trunk: Branch, paths: int) -> list[Branch]:
        """Start `paths` branches that read what the trunk reads and has written."""
        trunk.before = (*trunk.before, Segment(trunk.blocks, trunk.tokens))
        trunk.blocks, trunk.tokens = [], 0
        children = [
            Branch(position=trunk.position, before=trunk.before, answer=trunk.answer, prompt=trunk.prompt)
            for _ in range(paths)
        ]
        trunk.answer.extend(children)
        return children

    def join(self, trunk: Branch, paths: Sequence[Branch], keep: int) -> int:
        """Give the trunk the blocks of the first `keep` paths, so that it continues after the longest of these, and
        free those of the others. Returns the number of freed tokens."""
        *before, own = trunk.before
        trunk.before, trunk.blocks, trunk.tokens = tuple(before), own.blocks, own.tokens
        trunk.position = max(path.position for path in paths[:keep])
        for path in paths:
            trunk.answer.remove(path)
        for path in paths[:keep]:
            trunk.blocks += path.blocks
            trunk.tokens += path.tokens
        self._own(trunk.blocks)
        self._pack(trunk)
        freed = sum(path.tokens for path in paths[keep:])
        for path in paths[keep:]:
            self._release(path.blocks)
        self.held -= freed
        return freed

    def close(self, trunk: Branch) -> int:
        """End an answer, or a shared prompt. Returns the number of freed tokens."""
        shared = 1 if trunk.prompt else 0
        waiting = {id(part): part for branch in trunk.answer for part in branch.before[shared:]}.values()
        freed = 0
        for part in (*waiting, *trunk.answer):
            freed += part.tokens
            self._release(part.blocks)
        self.held -= freed
        return freed

    def place(self, feeds: Iterable[tuple[Branch, int]]) -> Int[np.ndarray, "3 n"]:
        """Give new tokens their places.

        Args:
            feeds: pairs of a branch and a number of tokens.

        Returns:
            block, place and position of every token, in the order of `feeds`.
        """
        feeds, size = list(feeds), self.block
        self.held += sum(count for _, count in feeds)
        self._reserve(sum(-(-(branch.tokens + count) // size) - len(branch.blocks) for branch, count in feeds))
        blocks, places, positions = [], [], []
        for branch, count in feeds:
            for token in range(branch.tokens, branch.tokens + count):
                place = token % size
                if not place:
                    taken = self._free.pop()
                    branch.blocks.append(taken)
                    self._owner[taken] = branch.blocks
                blocks.append(branch.blocks[-1])
                places.append(place)
                positions.append(branch.position)
                branch.position += 1
            branch.tokens += count
        table = np.array((blocks, places, positions))
        np.add.at(self.fill, table[0], 1)
        self.positions[table[0], table[1]] = table[2]
        return table

    def write(
        self,
        layer: int,
        blocks: Int[Tensor, " n"],
        places: Int[Tensor, " n"],
        key: Float[Tensor, "k n d"],
        value: Float[Tensor, "k n e"],
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of n tokens in one layer. Returns all its keys and values."""
        held = self.layers.get(layer)
        if held is None or len(held[0]) < len(self):
            keys = self._part(key.shape[0], key.shape[2], key.dtype, held and held[0])
            self.layers[layer] = held = keys, self._part(key.shape[0], value.shape[2], value.dtype, held and held[1])
        keys, values = held
        keys[blocks, :, places] = key.transpose(0, 1)
        values[blocks, :, places] = value.transpose(0, 1)
        return held

    def fit(self) -> None:
        """Give memory back if too much is free: the last blocks move to places that are free, and the end is cut."""
        if len(self._free) * self.block <= 1.5 * SPARE * self.held:
            return
        size = self.used + int(SPARE / 2 * self.held) // self.block
        holes = sorted(block for block in self._free if block < size)
        movers = np.setdiff1d(np.arange(size, len(self)), self._free)
        for block, hole in zip(movers.tolist(), holes, strict=False):
            owner = self._owner[hole] = self._owner[block]
            owner[owner.index(block)] = hole
        targets = np.array(holes[: len(movers)], dtype=np.int64)
        self.fill[targets], self.positions[targets] = self.fill[movers], self.positions[movers]
        self._free = holes[len(movers) :]
        self.fill, self.positions = self.fill[:size].copy(), self.positions[:size].copy()
        self.fill[self._free] = 0
        del self._owner[size:]
        there, here = (torch.from_numpy(index).to(self.device) for index in (targets, movers))
        for layer, (keys, values) in self.layers.items():
            kept = []
            for part in (keys, values):
                part[there] = part[here]
                kept.append(self._part(part.shape[1], part.shape[3], part.dtype, part[:size]))
            self.layers[layer] = kept[0], kept[1]

    def _part(self, heads: int, head: int, dtype: torch.dtype, before: Tensor | None) -> Tensor:
        """Memory for the keys or values of one layer, with what it held before. Zeros, because what is masked is
        multiplied by 0, and 0 times NaN is NaN."""
        # FlexAttention reads the blocks of a head as one long sequence; on a CPU a block of all heads is one matrix.
        if self.device.type == "cuda":
            part = torch.zeros(heads, len(self), self.block, head, dtype=dtype, device=self.device).transpose(0, 1)
        else:
            part = torch.zeros(len(self), heads, self.block, head, dtype=dtype, device=self.device)
        if before is not None:
            part[: len(before)] = before
        return part

    def _reserve(self, blocks: int) -> None:
        """Make sure that so many blocks are free."""
        missing = blocks - len(self._free)
        if missing > 0:
            now, spare = len(self), int(SPARE * self.held) // self.block
            if self.most is not None:
                spare = max(0, min(spare, self.most - now - missing))
            more = missing + spare
            self.fill = np.concatenate([self.fill, np.zeros(more, dtype=np.int64)])
            self.positions = np.concatenate([self.positions, np.zeros((more, self.block), dtype=np.int64)])
            self._free += range(now + more - 1, now - 1, -1)
            self._owner += [[] for _ in range(more)]

    def _release(self, blocks: list[int]) -> None:
        """Free blocks. Their keys and values become 0: in a block that is not full a mask gives what is left weight 0,
        but 0 times NaN is still NaN."""
        if blocks:
            self.fill[blocks] = 0
            self._free += blocks
            for part in self._parts():
                part[blocks] = 0

    def _parts(self) -> list[Tensor]:
        return [part for pair in self.layers.values() for part in pair]

    def _own(self, blocks: list[int]) -> None:
        for block in blocks:
            self._owner[block] = blocks

    def _pack(self, trunk: Branch) -> None:
        """Move tokens from blocks that are not full into others, until only the last one of a trunk has room."""
        size = self.block
        partly = sorted((block for block in trunk.blocks if self.fill[block] < size), key=lambda at: -self.fill[at])
        if len(partly) < 2:
            if partly and trunk.blocks[-1] != partly[0]:
                trunk.blocks.remove(partly[0])
                trunk.blocks.append(partly[0])
            return
        moves, fill = [], self.fill
        target, source = 0, len(partly) - 1
        while target < source:
            into, out = partly[target], partly[source]
            moves.append((out, fill[out] - 1, into, fill[into]))
            self.positions[into, fill[into]] = self.positions[out, fill[out] - 1]
            fill[into] += 1
            fill[out] -= 1
            target += fill[into] == size
            source -= not fill[out]
        emptied = [block for block in partly if not fill[block]]
        rest = [block for block in partly if 0 < fill[block] < size]
        last = set(emptied + rest)
        trunk.blocks[:] = [block for block in trunk.blocks if block not in last] + rest
        here, before, there, after = torch.from_numpy(np.array(moves)).to(self.device).T
        for part in self._parts():
            part[there, :, after] = part[here, :, before]
        self._release(emptied)
