"""The KV cache of the local engine: keys and values in rows, and a mask of the columns that a branch sees.

A row holds one answer, or one prompt that several answers share. A column of a row holds the keys and values of one
token, on whichever path. The paths of an answer share its row and differ only in the columns that they see, which is
one slot of `visible` per branch. A fork copies the trunk's slot, a join takes the union of the paths' slots, and
columns that no branch sees any more are reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(eq=False)
class Branch:
    """The tokens of a trunk, a path or a shared prompt, to which more can be added.

    Attributes:
        row: its row in the memory.
        slot: its slot in `visible`; -1 for a trunk that waits for its paths.
        position: position of its next token.
        prompt: the shared prompt before its first token, which is stored in another memory; None if it has none.
        users: number of open answers that continue this branch, if it is a shared prompt.
    """

    row: int
    slot: int
    position: int
    prompt: Branch | None = None
    users: int = 0


@dataclass
class _Row:
    """The columns and branches of a row.

    Attributes:
        used: number of columns in use or free for reuse.
        free: columns below `used` that hold no token.
        branches: the branches with a slot in the row.
    """

    used: int = 0
    free: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def column(self) -> int:
        """Take a free column, or else the next one."""
        if self.free:
            return self.free.pop()
        self.used += 1
        return self.used - 1

    @property
    def held(self) -> int:
        """Number of tokens in the row."""
        return self.used - len(self.free)


class Memory:
    """Keys and values of many answers, or of many shared prompts: r rows, s slots, c columns.

    Rows 0 to `len(rows)` - 1 are in use, except `holes`; `compact` moves later rows into these.
    """

    def __init__(self, device: torch.device, columns: int = 64) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys, values: [rows, kv heads, columns, head]
        self.visible: Bool[Tensor, "r s c"] = torch.zeros(0, 1, columns, dtype=torch.bool, device=device)
        self.positions: Int[Tensor, "r c"] = torch.zeros(0, columns, dtype=torch.long, device=device)
        self.rows: list[_Row] = []
        self.holes: list[int] = []

    def open(self, count: int) -> list[Branch]:
        """Start `count` rows, with one branch at position 0 and no tokens in every one."""
        branches = []
        for _ in range(count):
            if self.holes:
                row = self.holes.pop()
                self.rows[row] = _Row()
            else:
                row = len(self.rows)
                self.rows.append(_Row())
            branches.append(Branch(row, 0, 0))
            self.rows[row].branches.append(branches[-1])
        self.reserve(rows=len(self.rows))
        self.visible[[branch.row for branch in branches]] = False
        return branches

    def close(self, row: int) -> int:
        """Free a row. Returns the number of tokens that it held. Its keys and values become 0: the mask of a later
        answer gives them weight 0, but 0 times NaN is still NaN."""
        held, used = self.rows[row].held, self.rows[row].used
        for part in self.parts() if used else ():
            part[row, :, :used] = 0
        self.rows[row] = _Row()
        self.holes.append(row)
        return held

    def compact(self) -> None:
        """Move the last rows into the holes, so that the rows in use are contiguous."""
        for hole in sorted(self.holes, reverse=True):
            last = len(self.rows) - 1
            moved = self.rows.pop()
            if hole == last:
                continue
            for part in self.parts() if moved.used else ():
                part[hole, :, : moved.used] = part[last, :, : moved.used]
            self.visible[hole], self.positions[hole] = self.visible[last], self.positions[last]
            self.rows[hole] = moved
            for branch in moved.branches:
                branch.row = hole
        self.holes.clear()

    def fork(self, trunk: Branch, paths: int) -> list[Branch]:
        """Start `paths` branches that see what the trunk sees, and take the trunk's slot away."""
        seen = self.visible[trunk.row, trunk.slot].clone()
        trunk.slot = -1
        children = []
        for _ in range(paths):
            slot = self._free_slot(trunk.row)
            children.append(Branch(trunk.row, slot, trunk.position, trunk.prompt))
            self.rows[trunk.row].branches.append(children[-1])
        self.visible[trunk.row, [child.slot for child in children]] = seen
        return children

    def join(self, trunk: Branch, paths: Sequence[Branch], keep: int) -> int:
        """Let the trunk see the first `keep` paths and continue after the longest of these; free the columns of the
        others. Returns the number of freed columns."""
        row = self.rows[trunk.row]
        seen = self.visible[trunk.row, [path.slot for path in paths]]
        kept, dropped = seen[:keep].any(dim=0), seen[keep:].any(dim=0)
        freed = (dropped & ~kept).nonzero().flatten().tolist() if keep < len(paths) else []
        row.free.extend(freed)
        for path in paths:
            row.branches.remove(path)
        trunk.slot = self._free_slot(trunk.row)
        trunk.position = max(path.position for path in paths[:keep])
        self.visible[trunk.row, trunk.slot] = kept
        return len(freed)

    def place(self, feeds: Iterable[tuple[Branch, int]]) -> list[tuple[int, int, int, int]]:
        """Assign columns and positions to new tokens.

        Args:
            feeds: pairs of a branch and a number of tokens.

        Returns:
            (row, slot, column, position) of every token, in the order of `feeds`.
        """
        places = []
        for branch, count in feeds:
            row = self.rows[branch.row]
            for _ in range(count):
                places.append((branch.row, branch.slot, row.column(), branch.position))
                branch.position += 1
        self.reserve(columns=self.reach)
        return places

    @property
    def reach(self) -> int:
        """Number of columns that the longest row uses."""
        return max((row.used for row in self.rows), default=0)

    def parts(self) -> list[Tensor]:
        """Keys and values of all layers."""
        return [part for pair in self.layers.values() for part in pair]

    def write(
        self,
        layer: int,
        rows: Int[Tensor, " n"],
        columns: Int[Tensor, " n"],
        key: Float[Tensor, "k n d"],
        value: Float[Tensor, "k n e"],
    ) -> None:
        """Store the keys and values of n tokens in one layer, at (`rows[i]`, `columns[i]`). Grows the layer."""
        count, _, most = self.visible.shape
        held = self.layers.get(layer)
        if held is None or held[0].shape[0] < count or held[0].shape[2] < most:
            grown = []
            for part, old in zip((key, value), held or (None, None), strict=True):
                # Zeros, not uninitialised memory: a masked value is multiplied by 0, and 0 times NaN is NaN.
                fresh = part.new_zeros(count, part.shape[0], most, part.shape[2])
                if old is not None:
                    fresh[: old.shape[0], :, : old.shape[2]] = old
                grown.append(fresh)
            self.layers[layer] = held = (grown[0], grown[1])
        held[0][rows, :, columns] = key.transpose(0, 1)
        held[1][rows, :, columns] = value.transpose(0, 1)

    def _free_slot(self, row: int) -> int:
        """The first slot of a row that no branch has."""
        taken = {branch.slot for branch in self.rows[row].branches}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        self.reserve(slots=slot + 1)
        return slot

    def reserve(self, rows: int = 0, slots: int = 0, columns: int = 0) -> None:
        """Grow `visible` and `positions` to at least these sizes. Columns grow by half, so that copies stay rare."""
        now = self.visible.shape
        wanted = (max(rows, now[0]), max(slots, now[1]), now[2] if columns <= now[2] else max(columns, now[2] * 3 // 2))
        if wanted != tuple(now):
            visible = self.visible.new_zeros(wanted)
            visible[: now[0], : now[1], : now[2]] = self.visible
            positions = self.positions.new_zeros(wanted[0], wanted[2])
            positions[: now[0], : now[2]] = self.positions
            self.visible, self.positions = visible, positions
