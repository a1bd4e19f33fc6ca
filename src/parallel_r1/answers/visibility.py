"""Which token sees which. Mask, positions, predecessors and critical path all derive from one relation on addresses.

Two addresses are *strangers* if they are on different paths of the same fork, that is, if at the first level where
they differ they have the same fork number and different path numbers. Token i sees token j iff j <= i in the order of
the row and their addresses are not strangers. A token's position is one more than the largest position it sees, and the
critical path is one more than the largest position of all.
Source: section 3 of the Parallel-R1 paper (arXiv 2509.07980), stated for any number of paths and any nesting.

A scorer is a way to write an answer into a row (`arrange`); the relation is the same for all scorers. Several sequences
in one row are treated as paths of a fork before them, and several answers to a shared prompt as paths of a fork after
it (`pack`).

Everything here works on runs: `(address, length)` pairs in reading order. An answer has few addresses and many tokens,
so the relation is a small table between addresses, and no loop runs over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from parallel_r1.answers.trace import TRUNK, Address, Scorer, Trace

Run = tuple[Address, int]
"""An address and the number of neighbouring tokens that have it."""
SIDE_BY_SIDE, ANSWERS = -1, -2
"""Numbers of two artificial forks: the paths of the first are the sequences of a row, and the paths of the second are
the answers to a shared prompt. Forks of an answer are numbered from 0."""


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
        address: address of the tokens in the row.
        start, stop: range of tokens of the sequence.
        drawn: whether the tokens were generated here; False for a copy that `replay` reads again.
    """

    address: Address
    start: int
    stop: int
    drawn: bool = True


@dataclass
class _Lane:
    """A thread under `replay`, together with the first path of every fork in it.

    Attributes:
        address: address of its next token.
        ancestors: the lanes that it branched from, outermost first.
        unread: token ranges of the lanes that branched from it and that it has yet to read again, in reading order.
        forks: fork number -> the lane's address when that fork opened.
    """

    address: Address
    ancestors: tuple[_Lane, ...] = ()
    unread: list[tuple[int, int]] = field(default_factory=list)
    forks: dict[int, Address] = field(default_factory=dict)


def arrange(runs: Sequence[Run], scorer: Scorer) -> list[Piece]:
    """Write a sequence into a row for a scorer. Every token has exactly one place with `drawn`.

    `isolated` writes the sequence as it is; `causal` erases the addresses. `replay` imitates a server that generates
    the paths in isolation and then prefills everything again from left to right. The first path of a fork and the text
    after the fork are one lane; every other path is a lane of its own, which branches off at the fork. Before the first
    lane goes on after the fork, it reads the other paths again, so copies of them are written into it. Text between
    paths belongs to the thread, and is therefore preceded by copies of the paths before it.
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
    """The lane of an address; created and added to `lanes` if it is new."""
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
        drawn: by place, whether the token was generated there; False for a copy.
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
        """Length of the longest chain of tokens that must be generated one after the other."""
        return int(self.positions.max()) + 1 if len(self.positions) else 0

    def mask(self) -> Bool[np.ndarray, "n n"]:
        """Entry (i, j): whether place i sees place j."""
        related = self.sees[self.address_ids[:, None], self.address_ids[None, :]]
        return related & np.tri(len(self.positions), dtype=bool)


def layout(runs: Sequence[Run], scorer: Scorer = "isolated") -> Layout:
    """Lay out one sequence for a scorer. Only `replay` makes the row longer than the sequence, by its copies."""
    return pack([[runs]], scorer)


def pack(families: Sequence[Sequence[Sequence[Run]]], scorer: Scorer) -> Layout:
    """Lay out several sequences in one row. No sequence sees another, and every sequence has positions from 0.

    Args:
        families: groups of sequences with the same first run, such as the answers to one prompt. That run is written
            once per group, and all sequences of the group see it.
        scorer: how the sequences are written.
    """
    pieces: list[Piece] = []
    first = 0  # index of the sequence's first token
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
    """Compute positions and predecessors of a row, one piece after the other."""
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
    """Critical path of an answer: the number of tokens, sampled or given, that had to be generated one after the other.
    It depends on the sampler, not on the scorer. Tokens that `causal_join` reads again do not count."""
    return layout(trace.runs, "causal" if trace.sampler == "sequential" else "isolated").critical_path


def critical_runs(runs: Sequence[Run], scorer: Literal["isolated", "causal"] = "isolated") -> list[int]:
    """Indices of the runs on the critical path, in order: each begins where the one before it ends, and their tokens
    together are the critical path. Of several equally long paths the first is taken."""
    if not runs:
        return []
    laid = layout(runs, scorer)
    stops = np.cumsum([length for _, length in runs])
    starts, ends = laid.positions[np.append(0, stops[:-1])], laid.positions[stops - 1] + 1
    ids = laid.address_ids[stops - 1]
    chain = [int(ends.argmax())]
    while starts[chain[-1]]:
        later = chain[-1]
        before = (ends[:later] == starts[later]) & laid.sees[ids[later], ids[:later]]
        chain.append(int(before.argmax()))
    return chain[::-1]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring blocks of a row. A block sees itself causally, all places of `before`, and no other block.

    Attributes:
        blocks: (start, stop) of the blocks, in order.
        before: (start, stop) of the ranges before the first block that all blocks see, in order.
    """

    blocks: tuple[tuple[int, int], ...]
    before: tuple[tuple[int, int], ...]


def stretches(address_ids: Int[np.ndarray, " n"], sees: Bool[np.ndarray, "a a"]) -> list[Stretch]:
    """Cut the mask of a row into a few rectangles and triangles, so that attention needs no mask of n x n entries.

    The trunk and the first path of its fork are one block; the other paths of the fork are the blocks of one stretch;
    the text after the join begins a new stretch.
    """
    cuts = np.flatnonzero(np.diff(address_ids, prepend=-1, append=-1))  # no address has the number -1
    ids = address_ids[cuts[:-1]]
    seen = np.tril(sees[ids][:, ids])  # by run and earlier run
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
