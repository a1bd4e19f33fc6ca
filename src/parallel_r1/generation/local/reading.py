"""Reading: several tokens on every branch, without logits. Prompts, answers that go on after a pre-emption, and the
paths that `causal_join` reads again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from parallel_r1.generation.local.kv_pool import Branch, Pool
from parallel_r1.generation.local.passes import Layer
from parallel_r1.models.attention import capped


@dataclass
class Read:
    """Several tokens on every one of k branches, at most l on one.

    Attributes:
        pool, tokens, blocks, places, positions, cache: as in `Step`.
        feed, offset: for every token, the index of its branch and its index among this branch's new tokens.
        longest: l, the largest number of new tokens on a branch.
        fresh: whether no branch has earlier tokens, so that plain causal attention among the new tokens is enough.
        seen: by branch, the w blocks that it reads, filled up with 0.
        order: by branch and place in its w blocks, 0 for a token that the branch already saw, 1 + offset for a new one,
            and l + 1 for a place without a token.
    """

    pool: Pool
    tokens: Int[Tensor, " n"]
    blocks: Int[Tensor, " n"]
    places: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    feed: Int[Tensor, " n"]
    offset: Int[Tensor, " n"]
    longest: int
    fresh: bool
    seen: Int[Tensor, "k w"]
    order: Int[Tensor, "k c"]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def lay(self, query: Float[Tensor, "h n d"]) -> Float[Tensor, "k h l d"]:
        """Queries, keys or values by branch, padded with 0."""
        laid = query.new_zeros(len(self.seen), self.longest, *query.shape[::2])
        laid[self.feed, self.offset] = query.transpose(0, 1)
        return laid.transpose(1, 2)

    def gather(self, part: Float[Tensor, "b h t d"]) -> Float[Tensor, "k h c d"]:
        """Keys or values of the w blocks of every branch, side by side."""
        return part[self.seen].transpose(1, 2).flatten(2, 3)

    def within(self, window: int | None) -> Tensor:
        """The mask of the new tokens over the places of their branch's blocks, [k, 1, l, c]. Padding gets arbitrary
        entries; its output is not used."""
        if window not in self.cache:
            steps = torch.arange(1, self.longest + 1, device=self.tokens.device)
            mask = self.order[:, None, :] <= steps[:, None]
            if window is not None:
                now = self.positions.new_zeros(len(self.seen), self.longest)
                now[self.feed, self.offset] = self.positions
                positions = torch.from_numpy(self.pool.positions).to(self.seen.device)[self.seen].flatten(1)
                mask = mask & (positions[:, None, :] > now[:, :, None] - window)
            self.cache[window] = mask[:, None]
        return self.cache[window]


def plan_read(pool: Pool, feeds: Sequence[tuple[Branch, Sequence[int]]]) -> Read:
    """Give tokens that are only read their places."""
    fresh = not any(branch.position for branch, _ in feeds)
    earlier = [branch.tokens for branch, _ in feeds]
    before = pool.fill.copy()
    table = pool.place((branch, len(tokens)) for branch, tokens in feeds)
    counts = [len(tokens) for _, tokens in feeds]
    feed = np.repeat(np.arange(len(feeds)), counts)
    offset = np.concatenate([np.arange(count) for count in counts])
    tokens = np.concatenate([np.asarray(new) for _, new in feeds])
    numbers = torch.from_numpy(np.stack([tokens, *table, feed, offset])).to(pool.device)
    new, blocks, places, positions, of, at = numbers
    longest = max(counts)
    lists = [branch.read for branch, _ in feeds]
    seen = np.zeros((len(feeds), max(map(len, lists))), dtype=np.int64)
    order = np.full((*seen.shape, pool.block), longest + 1)
    before = np.concatenate([before, np.zeros(len(pool) - len(before), dtype=before.dtype)])
    for row, ((branch, _), read) in enumerate(zip(feeds, lists, strict=True)):
        seen[row, : len(read)] = read
        order[row, : len(read)][np.arange(pool.block) < before[read][:, None]] = 0
        start = (len(read) - len(branch.blocks)) * pool.block + earlier[row]
        order[row].reshape(-1)[start : start + counts[row]] = np.arange(1, counts[row] + 1)
    shown, ordered = (torch.from_numpy(part).to(pool.device) for part in (seen, order.reshape(len(feeds), -1)))
    return Read(pool, new, blocks, places, positions, of, at, longest, fresh, shown, ordered)


def attend_read(
    query: Float[Tensor, "h n d"],
    key: Float[Tensor, "k n d"],
    value: Float[Tensor, "k n e"],
    keys: Float[Tensor, "b k t d"],
    values: Float[Tensor, "b k t e"],
    plan: Read,
    layer: Layer,
) -> Float[Tensor, "n h e"]:
    """Attention of a read, with the queries padded to the longest branch."""
    padded, softcap = plan.lay(query), layer.softcap
    if plan.fresh and layer.window is None and softcap is None:
        out = scaled_dot_product_attention(
            padded, plan.lay(key), plan.lay(value), is_causal=True, scale=layer.scale, enable_gqa=True
        )
        return out.transpose(1, 2)[plan.feed, plan.offset]
    mask, seen_keys, seen_values = plan.within(layer.window), plan.gather(keys), plan.gather(values)
    if softcap is None:
        if query.is_cuda:  # the kernel that takes a mask there has no groups
            groups = padded.shape[1] // seen_keys.shape[1]
            seen_keys, seen_values = (part.repeat_interleave(groups, 1) for part in (seen_keys, seen_values))
        out = scaled_dot_product_attention(padded, seen_keys, seen_values, mask, scale=layer.scale, enable_gqa=True)
    else:
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
        out = capped(padded, seen_keys, seen_values, bias, layer.scale, softcap)
    return out.transpose(1, 2)[plan.feed, plan.offset]
