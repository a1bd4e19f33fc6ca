"""Attention of the local engine on CUDA: FlexAttention over the blocks of the pool, by block tables.

The blocks of a branch are cut into chunks of 256 tokens. A chunk is a row of FlexAttention's batch, its blocks are the
only ones that the kernel reads, and the chunks of a branch are merged by their log-sum-exp. So the work follows the
tokens that are held, it is spread over the card whatever the lengths are, and one compiled kernel does for all of them:
only the number of chunks changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, and_masks

from parallel_r1.generation.local.kv_pool import BLOCK
from parallel_r1.generation.local.passes import Layer, Step
from parallel_r1.models.flex import compiled, score_mod, widened

CHUNK = 16
"""Blocks of a chunk."""
OPTIONS = {"BLOCK_M": 16, "BLOCK_N": BLOCK, "num_warps": 2}
"""How FlexAttention's kernel is cut: few queries, and one block of the pool at a time."""


@dataclass
class Chunks:
    """The blocks of n branches in c chunks of w blocks.

    Attributes:
        branch: by chunk, whose it is.
        sizes: by chunk, how many blocks it has.
        blocks: by chunk, its blocks, filled up with 0.
        of: by branch, its chunks, at most m, filled up with 0.
        missing: where `of` is filled up.
    """

    branch: Int[Tensor, " c"]
    sizes: Int[Tensor, " c"]
    blocks: Int[Tensor, "c w"]
    of: Int[Tensor, "n m"]
    missing: Bool[Tensor, "n m"]


def chunks(plan: Step) -> Chunks:
    """The chunks of a step. Computed once for all layers."""
    if "chunks" in plan.cache:
        return plan.cache["chunks"]
    lists = [branch.read for branch in plan.branches]
    counts = np.array([-(-len(blocks) // CHUNK) for blocks in lists])
    ends = counts.cumsum()
    table = np.zeros((ends[-1], CHUNK), dtype=np.int32)
    sizes = np.full(ends[-1], CHUNK, dtype=np.int32)
    for blocks, count, end in zip(lists, counts, ends, strict=True):
        table[end - count : end].reshape(-1)[: len(blocks)] = blocks
        sizes[end - 1] = len(blocks) - (count - 1) * CHUNK
    places = np.arange(counts.max())
    missing = places >= counts[:, None]
    of = np.where(missing, 0, (ends - counts)[:, None] + places)
    parts = (np.repeat(np.arange(len(lists)), counts), sizes, table, of, missing)
    branch, *others = (torch.from_numpy(part).to(plan.pool.device) for part in parts)
    plan.cache["chunks"] = Chunks(branch, *others)
    return plan.cache["chunks"]


def sees(plan: Step, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether the query of a chunk sees a place of one of its blocks, as a function of chunk, head, query and place."""
    pool, size = plan.pool, plan.pool.block
    fill = torch.from_numpy(pool.fill).to(pool.device)
    filled = lambda c, h, q, at: at % size < fill[at // size]  # noqa: E731
    if window is None:
        return filled
    now, positions = plan.positions[chunks(plan).branch], torch.from_numpy(pool.positions).to(pool.device).flatten()
    return and_masks(filled, lambda c, h, q, at: positions[at] > now[c] - window)


def attend_step(
    query: Float[Tensor, "h n d"],
    keys: Float[Tensor, "b k t d"],
    values: Float[Tensor, "b k t e"],
    plan: Step,
    layer: Layer,
) -> Float[Tensor, "n h e"]:
    """Attention of a step. The queries of the heads that share a key head are queries of one row."""
    (heads, count, head), key_heads, window = query.shape, keys.shape[1], layer.window
    asking = query.transpose(0, 1).view(count, key_heads, heads // key_heads, head)
    keys, values = (part.transpose(0, 1).flatten(1, 2)[None] for part in (keys, values))
    if ("sees", window) not in plan.cache:
        plan.cache["sees", window] = sees(plan, window)
    compute = _on_cuda if query.is_cuda else _slowly
    out, sums = compute(asking, keys, values, plan, layer, plan.cache["sees", window])
    return _merged(out, sums, chunks(plan)).flatten(1, 2)


def _on_cuda(
    asking: Float[Tensor, "n k g d"],
    keys: Float[Tensor, "1 k _ d"],
    values: Float[Tensor, "1 k _ e"],
    plan: Step,
    layer: Layer,
    within: Callable[..., Tensor],
) -> tuple[Float[Tensor, "c k g e"], Float[Tensor, "c k g"]]:
    """Attention of every chunk, and the log-sum-exp of its scores."""
    table, key = chunks(plan), ("blocks", layer.window)
    if key not in plan.cache:
        plan.cache[key] = BlockMask.from_kv_blocks(
            table.sizes[:, None, None],
            table.blocks[:, None, None],
            BLOCK_SIZE=(128, plan.pool.block),
            mask_mod=within,
            seq_lengths=(asking.shape[2], keys.shape[2]),
            compute_q_blocks=False,
        )
    out, more = compiled()(
        widened(asking[table.branch]),
        widened(keys),
        widened(values),
        score_mod=score_mod(layer.softcap, asking.device),
        block_mask=plan.cache[key],
        scale=layer.scale,
        return_aux=AuxRequest(lse=True),
        kernel_options=OPTIONS,
    )
    return out[..., : values.shape[-1]], more.lse


def _slowly(
    asking: Float[Tensor, "n k g d"],
    keys: Float[Tensor, "1 k _ d"],
    values: Float[Tensor, "1 k _ e"],
    plan: Step,
    layer: Layer,
    within: Callable[..., Tensor],
) -> tuple[Float[Tensor, "c k g e"], Float[Tensor, "c k g"]]:
    """The same elsewhere: FlexAttention that is not compiled reads no block tables, but all keys."""
    table, size = chunks(plan), plan.pool.block
    (count, width), arange = table.blocks.shape, partial(torch.arange, device=plan.pool.device)
    at = (table.blocks[:, :, None] * size + arange(size)).view(count, -1)
    seen = within(arange(count)[:, None], None, None, at)
    seen &= arange(width * size) // size < table.sizes[:, None]
    scores = (asking[table.branch] @ keys[0][:, at].transpose(0, 1).mT).float() * layer.scale
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    scores.masked_fill_(~seen[:, None, None], -torch.inf)
    return scores.softmax(-1).to(values.dtype) @ values[0][:, at].transpose(0, 1), scores.logsumexp(-1)


def _merged(out: Float[Tensor, "c k g e"], sums: Float[Tensor, "c k g"], table: Chunks) -> Float[Tensor, "n k g e"]:
    """The outputs of all chunks, by branch, weighted by the log-sum-exp of their scores."""
    weights = sums[table.of].masked_fill(table.missing[:, :, None, None], -torch.inf).softmax(1)
    # A chunk whose tokens all lie outside a window gives something that is not a number; its weight is 0.
    parts = out[table.of].float().masked_fill((weights == 0)[..., None], 0.0)
    return (weights[..., None] * parts).sum(1).to(out.dtype)
