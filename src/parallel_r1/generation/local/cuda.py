"""Attention of the local engine on CUDA: FlexAttention over the KV cache, without dense masks.

Own columns and shared prompts are two calls whose results are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, and_masks, create_block_mask, flex_attention

from parallel_r1.generation.local.passes import Layer, Read, Step
from parallel_r1.models.attention import merge

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend_step(
    query: Float[Tensor, "h n d"],
    keys: Float[Tensor, "_ k _ d"],
    values: Float[Tensor, "_ k _ d"],
    far: tuple[Tensor, Tensor] | None,
    plan: Step,
    layer: Layer,
) -> Float[Tensor, "n h d"]:
    """Attention of a step: one query per branch."""
    (rows, slots, reach), memory, (heads, _, head) = plan.shape, plan.at.memory, query.shape
    laid, now, window = plan.lay(query), plan.now, layer.window
    visible, positions = memory.visible, memory.positions
    sees: Sees = lambda b, h, q, kv: visible[b, q, kv]  # noqa: E731
    if window is not None:
        sees = and_masks(sees, lambda b, h, q, kv: positions[b, kv] > now[b, q] - window)
    near = _mask(plan, ("near", window), sees, rows, slots, reach)
    out, total = _attend(laid.transpose(1, 2), keys[:rows, :, :reach], values[:rows, :, :reach], near, layer)
    if plan.members is not None and far is not None:
        assert plan.prompt is not None
        assert plan.place is not None
        assert plan.lengths is not None
        answers, longest = 1 + int(plan.place.max()), int(plan.lengths.max())
        by_prompt = query.new_zeros(plan.prompts, answers, slots, heads, head)
        by_prompt[plan.prompt, plan.place] = laid[plan.members]
        then = now.new_zeros(plan.prompts, answers, slots)
        then[plan.prompt, plan.place] = now[plan.members]
        lengths = now.new_zeros(plan.prompts)
        lengths[plan.prompt] = plan.lengths
        mask = _prompts(plan, window, lengths, then.flatten(1), longest)
        old_keys, old_values = (part[: plan.prompts, :, :longest] for part in far)
        asking = by_prompt.flatten(1, 2).transpose(1, 2)
        more, sums = _attend(asking, old_keys, old_values, mask, layer)
        more = more.unflatten(2, (answers, slots)).transpose(1, 2)[plan.prompt, plan.place]
        sums = sums.unflatten(2, (answers, slots)).transpose(1, 2)[plan.prompt, plan.place]
        out[plan.members], _ = merge(out[plan.members], total[plan.members], more, sums)
    return out.transpose(1, 2)[plan.at.rows, plan.slots]


def attend_read(
    query: Float[Tensor, "h n d"],
    keys: Float[Tensor, "_ k _ d"],
    values: Float[Tensor, "_ k _ d"],
    far: tuple[Tensor, Tensor] | None,
    plan: Read,
    layer: Layer,
) -> Float[Tensor, "n h d"]:
    """Attention of a read, with the queries padded to the longest branch."""
    count, reach = plan.order.shape
    asking, now, window = plan.lay(query), plan.now, layer.window
    positions, order = plan.at.memory.positions[plan.rows], plan.order
    sees: Sees = lambda b, h, q, kv: order[b, kv] <= q + 1  # noqa: E731
    if window is not None:
        sees = and_masks(sees, lambda b, h, q, kv: positions[b, kv] > now[b, q] - window)
    near = _mask(plan, ("near", window), sees, count, plan.longest, reach)
    out, total = _attend(asking, keys[plan.rows, :, :reach], values[plan.rows, :, :reach], near, layer)
    if plan.prompts is not None and far is not None:
        rows, lengths = plan.prompts
        longest = int(lengths.max())
        mask = _prompts(plan, window, lengths, now, longest)
        more, sums = _attend(asking, far[0][rows, :, :longest], far[1][rows, :, :longest], mask, layer)
        out, _ = merge(out, total, more, sums)
    return out.transpose(1, 2)[plan.feed, plan.offset]


def _prompts(
    plan: Step | Read, window: int | None, lengths: Int[Tensor, " b"], now: Int[Tensor, "b q"], longest: int
) -> BlockMask:
    """The mask of the queries at positions `now` over the shared prompt of `lengths[b]` tokens of their row."""
    sees: Sees = lambda b, h, q, kv: kv < lengths[b]  # noqa: E731
    if window is not None:
        sees = and_masks(sees, lambda b, h, q, kv: kv > now[b, q] - window)
    return _mask(plan, ("far", window), sees, now.shape[0], now.shape[1], longest)


def _mask(plan: Step | Read, key: object, sees: Sees, rows: int, queries: int, reach: int) -> BlockMask:
    """Create a block mask, or take it from the plan's cache: one for all layers with the same window."""
    if key not in plan.cache:
        plan.cache[key] = create_block_mask(sees, rows, None, queries, reach, device=str(plan.positions.device))
    return plan.cache[key]


def _attend(
    query: Float[Tensor, "b h q d"],
    keys: Float[Tensor, "b k c d"],
    values: Float[Tensor, "b k c d"],
    mask: BlockMask,
    layer: Layer,
) -> tuple[Float[Tensor, "b h q d"], Float[Tensor, "b h q"]]:
    """The output of attention, and the log-sum-exp of the scores, which is -inf for a query that sees nothing."""
    softcap = layer.softcap
    capped = None if softcap is None else lambda score, b, h, q, kv: softcap * torch.tanh(score / softcap)
    compute: Any = _compiled() if query.is_cuda else flex_attention
    out, more = compute(
        query,
        keys,
        values,
        score_mod=capped,
        block_mask=mask,
        scale=layer.scale,
        enable_gqa=query.shape[1] != keys.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out, more.lse


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
