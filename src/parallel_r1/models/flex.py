"""FlexAttention under the relation of who sees whom, for CUDA: compiled once, and no mask of n x n places.

A block mask says for every pair of blocks of places whether all, some or none of their places see each other; the
kernel skips pairs without any, and asks the mask function only within pairs with some. Torch finds the pairs by
computing all n x n places first. Here they follow from the addresses that a block holds: blocks x addresses numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

BLOCK = 128
"""Places of a block: the size for which the kernels of FlexAttention are made."""
LEAST = 16
"""The smallest head that the kernels of FlexAttention take."""
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Row, head, query and key -> whether the query sees the key, for indices of any shape."""


def block_mask(
    address_ids: Int[Tensor, "b n"],
    positions: Int[Tensor, "b n"],
    sees: Bool[Tensor, "b a a"],
    window: int | None,
    mask_mod: MaskMod,
) -> BlockMask:
    """The block mask of a relation, equal to the one that `create_block_mask` finds with `mask_mod`, but for pairs that
    only a window decides: it may count some of them as partly visible that are wholly visible or not at all.

    Args:
        address_ids, positions, sees, window: as in `attention.Sight`.
        mask_mod: the same relation, place by place.
    """
    some, every = _pairs(address_ids, positions, sees, window)
    some &= ~every
    n = address_ids.shape[1]
    return BlockMask.from_kv_blocks(
        *_listed(some), *_listed(every), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(n, n)
    )


def _pairs(
    address_ids: Int[Tensor, "b n"], positions: Int[Tensor, "b n"], sees: Bool[Tensor, "b a a"], window: int | None
) -> tuple[Bool[Tensor, "b k k"], Bool[Tensor, "b k k"]]:
    """By pair of k blocks, whether a place of the first sees some place of the second, and whether each sees all."""
    (rows, n), device = address_ids.shape, address_ids.device
    blocks = -(-n // BLOCK)
    places = torch.arange(n, device=device)
    held = torch.zeros(rows, blocks, sees.shape[1], device=device)
    held[torch.arange(rows, device=device)[:, None], places // BLOCK, address_ids] = 1.0
    some = held @ sees.float() @ held.mT > 0
    every = ~(held @ (~sees).float() @ held.mT > 0)
    later, earlier = torch.arange(blocks, device=device)[:, None], torch.arange(blocks, device=device)
    some &= earlier <= later
    every &= (earlier < later) & (later < n // BLOCK)  # a last block that is not full is decided place by place
    if window is not None:
        ends = positions.new_empty(2, rows, blocks)
        for side, reduce in enumerate(("amin", "amax")):
            ends[side] = positions.new_zeros(rows, blocks).scatter_reduce(
                1, (places // BLOCK).expand(rows, n), positions, reduce, include_self=False
            )
        low, high = ends
        some &= low[:, :, None] - high[:, None, :] < window
        every &= high[:, :, None] - low[:, None, :] < window
    return some, every


def _listed(pairs: Bool[Tensor, "b k k"]) -> tuple[Int[Tensor, "b 1 k"], Int[Tensor, "b 1 k k"]]:
    """By block, the number of its true entries, and their indices before all others."""
    order = pairs.int().argsort(dim=-1, descending=True, stable=True)
    return pairs.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "_ k m d"],
    value: Float[Tensor, "_ k m e"],
    mask: BlockMask,
    scale: float,
    softcap: float | None,
    *,
    with_sums: bool = False,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n"] | None]:
    """Attention under a block mask: h query heads, k key heads, n queries, m keys.

    Returns the output, and with `with_sums` the log-sum-exp of the scores, which is -inf for a query that sees nothing.
    """
    wide = value.shape[-1]
    query, key, value = (widened(part) for part in (query, key, value))
    compute: Any = compiled() if query.is_cuda else flex_attention
    found = compute(
        query,
        key,
        value,
        score_mod=score_mod(softcap, query.device),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True) if with_sums else None,
    )
    out, sums = (found[0], found[1].lse) if with_sums else (found, None)
    return out[..., :wide], sums


def score_mod(softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    """The soft cap of a layer as FlexAttention takes it; None without one."""
    if softcap is None:
        return None
    cap = torch.full((), softcap, device=device)  # FlexAttention does not compile with a float of the caller
    return lambda score, b, h, q, kv: cap * torch.tanh(score / cap)


def widened(part: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ e"]:
    """Queries, keys or values with zeros at the end if their heads are smaller than FlexAttention's kernels take: these
    change no score, and the output has as many columns too many."""
    return pad(part, (0, LEAST - part.shape[-1])) if part.shape[-1] < LEAST else part


@cache
def compiled() -> Any:
    """FlexAttention for any number of rows and places; torch would compile it anew for every length.

    It is still compiled once per precision, per shape of the heads, with and without a gradient, for one row and for
    several. Beyond 8 kinds torch would fall back to a kernel with a mask of n x n places without a word, so it may have
    more, and beyond these it is an error.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
