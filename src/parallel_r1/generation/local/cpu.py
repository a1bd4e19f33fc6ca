"""Attention of a step on a CPU: batched matrix products over the blocks of the pool, merged by branch. So its cost
follows the tokens that are held, however unequal the branches are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from parallel_r1.generation.local.kv_pool import Segment
from parallel_r1.generation.local.passes import Layer, Step

READERS = 8
"""Branches that read a shared block in one product. Fewer are filled up, more take several products."""
FEWEST, MOST = 1e-30, 1e37
"""A sum of exponentials outside of these may have lost digits."""
LOG2E = 1 / math.log(2)
SUM, LARGEST = 0, 2
"""Modes of `torch.embedding_bag`."""


@dataclass
class Tables:
    """Which queries meet which blocks, for n branches.

    The products make rows: one for each of the b blocks of the pool, whose query is that of the branch that owns it,
    and after these one for each of the s shared blocks and each of its r readers.

    Attributes:
        owner: by block, the branch that it belongs to; any one for a block that no branch of the step owns.
        shared, readers: shared blocks, and the branches that read them, filled up with any.
        bags, starts: the rows of the first branch, then those of the second, and so on; where each branch begins.
    """

    owner: Int[Tensor, " b"]
    shared: Int[Tensor, " s"]
    readers: Int[Tensor, "s r"]
    bags: Int[Tensor, " _"]
    starts: Int[Tensor, " n"]


def tables(plan: Step) -> Tables:
    """The tables of a step. Computed once for all layers."""
    if "tables" in plan.cache:
        return plan.cache["tables"]
    pool, branches = plan.pool, plan.branches
    count = len(branches)
    owned = [len(branch.blocks) for branch in branches]
    owner = np.zeros(len(pool), dtype=np.int64)
    owner[[block for branch in branches for block in branch.blocks]] = np.repeat(np.arange(count), owned)
    bags = [list(branch.blocks) for branch in branches]
    reading: dict[Segment, list[int]] = {}
    for index, branch in enumerate(branches):
        for part in branch.before:
            if part.blocks:
                reading.setdefault(part, []).append(index)
    shared: list[int] = []
    readers: list[list[int]] = []
    for part, every in reading.items():
        for start in range(0, len(every), READERS):
            some = every[start : start + READERS]
            first = len(pool) + len(shared) * READERS
            for place, index in enumerate(some):
                bags[index] += range(first + place, first + place + len(part.blocks) * READERS, READERS)
            shared += part.blocks
            readers += [some + [0] * (READERS - len(some))] * len(part.blocks)
    starts = np.cumsum([0, *map(len, bags[:-1])])
    made = Tables(
        torch.from_numpy(owner),
        torch.tensor(shared, dtype=torch.long),
        torch.tensor(readers, dtype=torch.long).view(-1, READERS),
        torch.tensor([row for bag in bags for row in bag]),
        torch.from_numpy(starts),
    )
    plan.cache["tables"] = made
    return made


def attend_step(
    query: Float[Tensor, "h n d"],
    keys: Float[Tensor, "b k t d"],
    values: Float[Tensor, "b k t e"],
    plan: Step,
    layer: Layer,
) -> Float[Tensor, "n h e"]:
    """Attention of a step. Queries of the heads that share a key head are put side by side, so that no key is copied
    but those of shared blocks."""
    out, total = _products(query, keys, values, plan, layer)
    low, high = total.aminmax()
    # Scores of almost every model lie within -80 .. 80, so that their exponentials need no shift. A NaN fails here too.
    if not FEWEST < low <= high < MOST:
        out, total = _products(query, keys, values, plan, layer, shifted=True)
    return (out.view(*total.shape, -1) / total[..., None]).to(values.dtype)


def _products(
    query: Float[Tensor, "h n d"],
    keys: Float[Tensor, "b k t d"],
    values: Float[Tensor, "b k t e"],
    plan: Step,
    layer: Layer,
    *,
    shifted: bool = False,
) -> tuple[Float[Tensor, "n he"], Float[Tensor, "n h"]]:
    """By branch and head, the sum of the exponentials of its scores, and that of the values with these as weights. With
    `shifted` the branch's largest score is taken from its scores first."""
    (heads, _, head), (blocks, key_heads, size, wide) = query.shape, values.shape
    groups, route = heads // key_heads, tables(plan)
    # Rows of a contiguous table are gathered in a third of the time.
    asking, (own, far) = query.transpose(0, 1).contiguous(), _biases(plan, layer.window, key_heads, groups, query.dtype)
    laid = asking.index_select(0, route.owner).view(-1, groups, head)
    scores = _scores(laid, keys.view(-1, size, head), own, layer)
    if not len(route.shared):
        if shifted:
            top = _bag(scores.amax(-1).view(blocks, heads), route, LARGEST)
            scores -= top[route.owner].view(-1, groups, 1)
        weights = scores.exp2_()
        out = torch.bmm(weights.to(values.dtype), values.view(-1, size, wide))
        return _bag(out.view(blocks, -1), route, SUM), _bag(weights.sum(-1).view(blocks, heads), route, SUM)
    return _with_shared(asking, scores, keys, values, far, route, layer, shifted=shifted)


def _with_shared(
    asking: Float[Tensor, "n h d"],
    scores: Float[Tensor, "bk q t"],
    keys: Float[Tensor, "b k t d"],
    values: Float[Tensor, "b k t e"],
    bias: Float[Tensor, "#sk #rq t"],
    route: Tables,
    layer: Layer,
    *,
    shifted: bool,
) -> tuple[Float[Tensor, "n he"], Float[Tensor, "n h"]]:
    """The same with shared blocks, after the scores of the pool's blocks."""
    (_, heads, head), (blocks, key_heads, size, wide) = asking.shape, values.shape
    groups, some = heads // key_heads, len(route.shared)
    laid = asking[route.readers].view(some, READERS, key_heads, groups, head).transpose(1, 2)
    laid = laid.reshape(-1, READERS * groups, head)
    far = _scores(laid, keys[route.shared].view(-1, size, head), bias, layer)

    def by_row(own: Tensor, shared: Tensor) -> Tensor:
        """What the products gave, [_, q, f] or [_, q], one row for each block of the pool, and for each shared block
        and reader: [rows, h f] or [rows, h]."""
        shared = shared.view(some, key_heads, READERS, groups, -1).transpose(1, 2)
        return torch.cat([own.view(blocks, -1), shared.reshape(some * READERS, -1)])

    if shifted:
        top = _bag(by_row(scores.amax(-1), far.amax(-1)), route, LARGEST)
        scores -= top[route.owner].view(-1, groups, 1)
        high = top[route.readers].view(some, READERS, key_heads, groups).transpose(1, 2)
        far -= high.reshape(-1, READERS * groups, 1)
    weights = scores.exp2_(), far.exp2_()
    read = values.view(-1, size, wide), values[route.shared].view(-1, size, wide)
    outs = [torch.bmm(each.to(values.dtype), part) for each, part in zip(weights, read, strict=True)]
    return _bag(by_row(*outs), route, SUM), _bag(by_row(*(each.sum(-1) for each in weights)), route, SUM)


def _bag(rows: Float[Tensor, "_ f"], route: Tables, mode: int) -> Float[Tensor, "n f"]:
    """The sum, or the maximum, of the rows of every branch."""
    return torch.embedding_bag(rows.float(), route.bags, route.starts, False, mode)[0]


def _scores(
    laid: Float[Tensor, "b q d"], keys: Float[Tensor, "b t d"], bias: Float[Tensor, "#b #q t"], layer: Layer
) -> Float[Tensor, "b q t"]:
    """Scores of q queries and t keys in fp32, scaled, capped, with the bias added, and to the base 2: `exp2` takes a
    third of the time of `exp`, and a twentieth where scores are masked."""
    if layer.softcap is None:
        return torch.baddbmm(bias, laid, keys.transpose(1, 2), alpha=layer.scale * LOG2E).float()
    scores = torch.bmm(laid, keys.transpose(1, 2)).mul_(layer.scale / layer.softcap)
    return scores.tanh_().mul_(layer.softcap * LOG2E).add_(bias).float()


def _biases(
    plan: Step, window: int | None, key_heads: int, groups: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "#bk #q t"], Float[Tensor, "#sk #q t"]]:
    """Terms to add to the scores of the pool's blocks and of the shared ones: 0 for a place that is seen, else the
    dtype's smallest number. Computed once for all layers with the same window."""
    if window in plan.cache:
        return plan.cache[window]
    pool, route = plan.pool, tables(plan)
    filled = torch.arange(pool.block) < torch.from_numpy(pool.fill)[:, None]

    def bias(seen: Tensor) -> Tensor:  # [b or s, queries, t]
        zero = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        return zero[:, None].expand(-1, key_heads, -1, -1).reshape(-1, *seen.shape[1:])

    own, far = filled[:, None], filled[route.shared][:, None]
    if window is not None:
        positions, now = torch.from_numpy(pool.positions), plan.positions
        own = own & (positions > now[route.owner][:, None] - window)[:, None]
        reading = now[route.readers].repeat_interleave(groups, 1)[..., None]
        far = far & (positions[route.shared][:, None] > reading - window)
    plan.cache[window] = bias(own), bias(far)
    return plan.cache[window]
