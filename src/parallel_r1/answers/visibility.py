"""Which token sees which. Mask, positions, predecessors and critical path all derive from one relation on addresses.

Two addresses are *strangers* if, at the first place where they differ, they name the same fork and different paths.
Token i sees token j iff j <= i in the order of the row and their addresses are no strangers. A token's position is one
more than the largest position it sees, and the critical path is one more than the largest position of all.
Source: section 3 of the Parallel-R1 paper (arXiv 2509.07980), stated for any number of paths and any nesting.

A scorer is a way to write an answer into a row (`arrange`); the relation is the same for all scorers. Several sequences
share a row as if they were paths of one fork that opens before them, and several answers share their prompt as if they
were paths of one fork that opens after it (`pack`).

Everything here works on runs: `(address, length)` pairs in reading order. An answer has few addresses and many tokens,
so the relation is a small table between addresses, and no loop runs over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from parallel_r1.answers.trace import TRUNK, Address, Scorer, Trace

Run = tuple[Address, int]
SIDE_BY_SIDE, ANSWERS = -1, -2
"""Numbers of two artificial forks: one whose paths are the sequences of a row, and one whose paths are the answers to a
prompt. No fork of an answer has a negative number."""


def strangers(a: Address, b: Address) -> bool:
    """Whether tokens at these addresses may not see each other."""
    for (fork_a, path_a), (fork_b, path_b) in zip(a, b, strict=False):
        if (fork_a, path_a) != (fork_b, path_b):
            return fork_a == fork_b
    return False


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop - 1` of a sequence, written into a row.

    Attributes:
        address: their address in the row.
        start, stop: range of tokens of the sequence.
        drawn: True where they were drawn or given; False for a copy that is read again.
    """

    address: Address
    start: int
    stop: int
    drawn: bool = True


@dataclass
class _Lane:
    """A thread of `replay` together with the first path of every fork that it opens.

    Attributes:
        address: address of its next token.
        ancestors: lanes that it branched from, outermost first.
        unread: (start, stop) of pieces of paths that branched from it and that it has not read again, in reading order.
        forks: number of every fork that opened in it, and the address there.
    """

    address: Address
    ancestors: tuple[_Lane, ...] = ()
    unread: list[tuple[int, int]] = field(default_factory=list)
    forks: dict[int, Address] = field(default_factory=dict)


def arrange(runs: Sequence[Run], scorer: Scorer) -> list[Piece]:
    """Write a sequence into a row for a scorer. Every token is drawn in exactly one place of the row.

    `isolated` writes the sequence as it is; `causal` erases the addresses. `replay` imitates a server that runs the
    paths blind and then reads everything again from left to right. The first path of a fork and the text after the
    fork are one lane; every further path is a lane of its own, which branches off at the fork. Before the first lane
    goes on after the fork, it reads these paths again: copies of them lie in it. Text between paths belongs to the
    thread, and therefore reads the paths before it again.
    """
    pieces: list[Piece] = []
    lanes: dict[Address, _Lane] = {TRUNK: _Lane(TRUNK)}
    start = 0
    for address, length in runs:
        stop = start + length
        if scorer == "replay":
            lane = _lane(address, lanes)
            pieces += [Piece(lane.address, *copy, drawn=False) for copy in lane.unread]
            lane.unread.clear()
            for ancestor in lane.ancestors:
                ancestor.unread.append((start, stop))
            address = lane.address
        pieces.append(Piece(TRUNK if scorer == "causal" else address, start, stop))
        start = stop
    return pieces


def _lane(address: Address, lanes: dict[Address, _Lane]) -> _Lane:
    """The lane of an address; a new lane is added to `lanes`."""
    if address not in lanes:
        outer, (fork, path) = _lane(address[:-1], lanes), address[-1]
        if fork in outer.forks:
            lanes[address] = _Lane((*outer.forks[fork], (fork, path)), (*outer.ancestors, outer))
        else:
            outer.forks[fork] = outer.address
            outer.address = (*outer.address, (fork, path))
            lanes[address] = outer
    return lanes[address]


@dataclass(frozen=True)
class Layout:
    """Visibility and positions of a row of n places with a distinct addresses.

    Attributes:
        address_ids: by place, index of its address in `sees`.
        positions: by place, its position, counted from 0.
        previous: by place, index of the nearest earlier visible place, which predicts it; -1 if none.
        source: by place, index of its token, counted through all sequences.
        drawn: by place, whether the token was drawn there; False for a copy.
        sees: whether tokens of two addresses may see each other; symmetric, true on the diagonal.
    """

    address_ids: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]
    previous: Int[np.ndarray, " n"]
    source: Int[np.ndarray, " n"]
    drawn: Bool[np.ndarray, " n"]
    sees: Bool[np.ndarray, "a a"]

    @property
    def critical_path(self) -> int:
        """Length of the longest chain of tokens that must be drawn one after the other."""
        return int(self.positions.max()) + 1 if len(self.positions) else 0

    def mask(self) -> Bool[np.ndarray, "n n"]:
        """Entry (i, j): whether place i sees place j."""
        related = self.sees[self.address_ids[:, None], self.address_ids[None, :]]
        return related & np.tri(len(self.positions), dtype=bool)


def layout(runs: Sequence[Run], scorer: Scorer = "isolated") -> Layout:
    """Lay out one sequence for a scorer. The row is longer than the sequence only where `replay` copies paths."""
    return pack([[runs]], scorer)


def pack(families: Sequence[Sequence[Sequence[Run]]], scorer: Scorer) -> Layout:
    """Lay out several sequences in one row. No sequence sees another, and positions start from 0 in every one.

    Args:
        families: groups of sequences that begin with the same run, in the trunk, such as the answers to one prompt. The
            run is written once per group, and all sequences of the group see it.
        scorer: how the sequences are written.
    """
    pieces: list[Piece] = []
    first = 0  # token of the sequence
    for number, family in enumerate(families):
        beside: Address = ((SIDE_BY_SIDE, number),)
        for answer, runs in enumerate(family):
            own: Address = (*beside, (ANSWERS, answer)) if len(family) > 1 else beside
            for index, piece in enumerate(arrange(runs, scorer)):
                if index or not answer:
                    address = (own if index else beside) + piece.address
                    pieces.append(Piece(address, first + piece.start, first + piece.stop, piece.drawn))
            first += sum(length for _, length in runs)
    return _read(pieces)


def _read(pieces: Sequence[Piece]) -> Layout:
    """Compute positions and predecessors of a row, address by address."""
    addresses = list(dict.fromkeys(piece.address for piece in pieces))
    row = {address: index for index, address in enumerate(addresses)}
    sees = np.array([[not strangers(a, b) for b in addresses] for a in addresses], dtype=bool)
    sees = sees.reshape(len(addresses), len(addresses))
    reach = np.zeros(len(addresses), dtype=np.int64)  # by address, one more than its largest position so far
    latest = np.full(len(addresses), -1, dtype=np.int64)  # by address, its latest place so far
    columns: list[list[np.ndarray]] = [[np.zeros(0, dtype=np.int64)] for _ in range(4)]
    drawn = [np.zeros(0, dtype=bool)]
    place = 0
    for piece in pieces:
        own, length = row[piece.address], piece.stop - piece.start
        if not length:
            continue
        seen = sees[own]
        start = int(reach[seen].max())
        previous = np.arange(place - 1, place + length - 1)
        previous[0] = latest[seen].max()
        parts = (np.full(length, own), np.arange(start, start + length), previous, np.arange(piece.start, piece.stop))
        for column, values in zip(columns, parts, strict=True):
            column.append(values)
        drawn.append(np.full(length, piece.drawn))
        place += length
        reach[own], latest[own] = start + length, place - 1
    address_ids, positions, previous, source = map(np.concatenate, columns)
    return Layout(address_ids, positions, previous, source, np.concatenate(drawn), sees)


def latency(trace: Trace) -> int:
    """Critical path of an answer: tokens that had to be drawn one after the other, given ones included. It depends on
    the sampler, not on the scorer; tokens that `causal_join` reads again are not drawn and do not count."""
    return layout(trace.runs, "causal" if trace.sampler == "sequential" else "isolated").critical_path


@dataclass(frozen=True)
class Stretch:
    """Neighbouring blocks of a row. A block sees itself causally, no other block, and all places of `before`.

    Attributes:
        blocks: (start, stop) of every block.
        before: (start, stop) of the ranges that all blocks see, in order, before the first block.
    """

    blocks: tuple[tuple[int, int], ...]
    before: tuple[tuple[int, int], ...]


def stretches(address_ids: Int[np.ndarray, " n"], sees: Bool[np.ndarray, "a a"]) -> list[Stretch]:
    """Cut the mask of a row into few rectangles and triangles, so that nobody has to build it.

    The trunk and the first path of its fork are one block; the other paths of the fork are the blocks of one stretch;
    the text after the join begins a new stretch.
    """
    cuts = np.flatnonzero(np.diff(address_ids, prepend=-1, append=-1))  # no address has the number -1
    ids = address_ids[cuts[:-1]]
    seen = np.tril(sees[ids][:, ids])  # between runs
    result: list[Stretch] = []
    first = 0
    for run in range(1, len(ids) + 1):
        same = run < len(ids) and seen[run, first:run].all() and (seen[run, :first] == seen[first, :first]).all()
        if same:
            continue
        block = (int(cuts[first]), int(cuts[run]))
        edges = np.flatnonzero(np.diff(seen[first, :first], prepend=False, append=False))
        before = tuple((int(cuts[start]), int(cuts[stop])) for start, stop in zip(edges[::2], edges[1::2], strict=True))
        if result and result[-1].before == before:
            result[-1] = Stretch((*result[-1].blocks, block), before)
        else:
            result.append(Stretch((block,), before))
        first = run
    return result
