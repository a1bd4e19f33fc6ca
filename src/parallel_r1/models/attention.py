"""Attention of a model's forward pass under the relation of `attention`: one meaning, four ways to compute it.

* `Ranges`: long rows on a CPU. What a block of a row sees is a few ranges of places, so its attention is a few dense
  calls whose parts are merged by their log-sum-exp. No mask of n x n exists.
* `masked`: short rows on a CPU, where one call beats little work; and layers with a sliding window.
* `capped`: layers whose scores have a soft cap, which no kernel of torch knows on a CPU. Products and a softmax.
* FlexAttention with a block mask, on CUDA.

Models call `attend` through the attention interface of transformers. The name under which it is registered has no mask
function, so models build no mask of their own, and each layer says in its arguments what is its own: a sliding window,
a scale, a soft cap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from parallel_r1.answers.visibility import Stretch, stretches

ATTENTION = "parallel_r1_relation"
CALL = 128
"""One call of `Ranges` costs about as much as a mask of CALL x CALL places; measured with `benchmarks/scoring.py`."""
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Sight:
    """The relation of a batch, in the forms that attention reads; each is made once. b rows, n places, a addresses.

    A window of w means that a place sees another only if its position is less than w larger. Positions are those of
    the relation, so siblings count alike and plain causal rows have the ordinary sliding window.

    Attributes:
        address_ids: for every place the row of its address in `sees`.
        positions: for every place its position.
        sees: whether places of two addresses may see each other.
    """

    address_ids: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"]
    sees: Bool[Tensor, "b a a"]
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None = None) -> Bool[Tensor, "b 1 n n"]:
        """Entry (row, 0, i, j) tells whether place i sees place j. Every place sees itself."""
        rows = torch.arange(len(self.address_ids), device=self.sees.device)[:, None, None]
        related = self.sees[rows, self.address_ids[:, :, None], self.address_ids[:, None, :]].tril()
        if window is not None:
            related &= self.positions[:, :, None] - self.positions[:, None, :] < window
        return related[:, None]

    def mask_mod(self, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same for FlexAttention's `create_block_mask`, which never builds it whole."""
        related = lambda b, h, q, kv: (kv <= q) & self.sees[b, self.address_ids[b, q], self.address_ids[b, kv]]  # noqa: E731
        if window is None:
            return related
        within = lambda b, h, q, kv: self.positions[b, q] - self.positions[b, kv] < window  # noqa: E731
        return and_masks(related, within)

    def bias(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "b 1 n n"]:
        """The mask as what is added to scores: kernels turn a boolean mask into this in every layer."""
        key = ("bias", window, dtype)
        if key not in self.made:
            mask = self.mask(window)
            self.made[key] = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        return self.made[key]

    def blocks(self, window: int | None) -> BlockMask:
        """The relation as FlexAttention's block mask."""
        if ("blocks", window) not in self.made:
            rows, n = self.address_ids.shape
            self.made["blocks", window] = create_block_mask(
                self.mask_mod(window), rows, None, n, n, device=self.sees.device
            )
        return self.made["blocks", window]

    def stretches(self) -> list[list[Stretch]]:
        """The relation as stretches, row by row."""
        if "stretches" not in self.made:
            pairs = zip(self.address_ids.numpy(), self.sees.numpy(), strict=True)
            self.made["stretches"] = [stretches(ids, sees) for ids, sees in pairs]
        return self.made["stretches"]

    def is_long(self) -> bool:
        """Whether computing by ranges pays: whether its calls cost less than the mask that they save."""
        rows, n = self.address_ids.shape
        calls = sum(len(stretch.blocks) + bool(stretch.before) for row in self.stretches() for stretch in row)
        return calls * CALL**2 <= rows * n**2


def forward(model: PreTrainedModel, token_ids: Int[Tensor, "b n"], sight: Sight, **arguments: Any) -> Any:
    """A model's forward pass in which every layer attends to what `sight` says, at its positions."""
    AttentionInterface.register(ATTENTION, attend)
    with using(model.config.get_text_config(), ATTENTION):
        return model(input_ids=token_ids, position_ids=sight.positions, use_cache=False, sight=sight, **arguments)


@contextmanager
def using(config: PreTrainedConfig, attention: str) -> Iterator[None]:
    """Let a model of this configuration use an attention function of this name."""
    before, config._attn_implementation = config._attn_implementation, attention
    try:
        yield
    finally:
        config._attn_implementation = before


def recompute(model: PreTrainedModel) -> None:
    """Let the backward pass compute the activations of every layer again, instead of keeping them. It then uses the
    attention that the forward pass used, which transformers alone does not see to."""
    config = model.config.get_text_config()
    model.activation_checkpointing_enable(
        {
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), using(config, config._attn_implementation)),
        }
    )


def attend(
    module: torch.nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b k n d"],
    value: Float[Tensor, "b k n e"],
    attention_mask: None,
    *,
    sight: Sight,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "b n h e"], None]:
    """The attention function: h query heads, k key heads.

    Args:
        module, attention_mask: of the interface; unused on a CPU.
        sight: who sees whom.
        scaling: of scores; 1 / sqrt(d) if None.
        sliding_window: of this layer, in positions.
        softcap: c for scores c tanh(score / c).
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as torch does for its own attention
        query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if device == "cuda":
        blocks = sight.blocks(sliding_window)
        return flex_attention_forward(module, query, key, value, blocks, scaling=scale, softcap=softcap)  # type: ignore[return-value]
    if softcap is not None:
        out = capped(query, key, value, sight.bias(sliding_window, torch.float32), scale, softcap)
    elif device == "cpu" and sliding_window is None and query.shape[-1] == value.shape[-1] and sight.is_long():
        out = Ranges.apply(query, key, value, sight.stretches(), scale)
    else:
        out = masked(query, key, value, sight.bias(sliding_window, query.dtype), scale)
    return out.transpose(1, 2), None


def masked(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b k n d"],
    value: Float[Tensor, "b k n e"],
    bias: Float[Tensor, "b 1 n n"],
    scale: float,
) -> Float[Tensor, "b h n e"]:
    """Torch's own attention with a dense mask."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=True)


def capped(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b k m d"],
    value: Float[Tensor, "b k m e"],
    bias: Float[Tensor, "b 1 n m"],
    scale: float,
    softcap: float,
) -> Float[Tensor, "b h n e"]:
    """Attention of n queries to m keys whose scores s become c tanh(s / c). Source: Gemma 2 (arXiv 2408.00118)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = softcap * torch.tanh((query @ key.mT).float() * (scale / softcap)) + bias
    return scores.softmax(dim=-1).to(value.dtype) @ value


class Ranges(torch.autograd.Function):
    """Attention over ranges of places instead of a mask.

    Every block attends to itself causally, every stretch to what lies before it; where a place has both parts, they
    are merged in the ratio of their sums of exponentials. In the backward pass each part takes the final output and
    the final log-sum-exp: with these the softmax of a part is the part of the whole softmax, so the gradients of the
    parts add up to the gradient.
    Source: Ring Attention (arXiv 2310.01889) and FlashAttention-2 (arXiv 2307.08691) for the two identities.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b k n d"],
        value: Float[Tensor, "b k n d"],
        rows: Sequence[Sequence[Stretch]],
        scale: float,
    ) -> Float[Tensor, "b h n d"]:
        out = torch.empty_like(query)
        total = query.new_empty(query.shape[:3], dtype=torch.float32)  # log-sum-exp of a place's scores
        for causal, mine, seen in _parts(rows):
            q = query[mine]
            part, sums = _forward(q, _join(key, seen), _join(value, seen), 0.0, causal, scale=scale)
            if causal:
                out[mine], total[mine] = part, sums
            else:
                both = torch.logaddexp(total[mine], sums)
                out[mine] = torch.lerp(out[mine], part, (sums - both).exp().to(part.dtype)[..., None])
                total[mine] = both
        ctx.save_for_backward(query, key, value, out, total)
        ctx.rows, ctx.scale = rows, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "b h n d"]) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for causal, mine, seen in _parts(ctx.rows):
            parts = _backward(
                grad[mine],
                query[mine],
                _join(key, seen),
                _join(value, seen),
                out[mine],
                total[mine],
                0.0,
                causal,
                scale=ctx.scale,
            )
            grads[0][mine] += parts[0]
            for whole, part in zip(grads[1:], parts[1:], strict=True):
                at = 0
                for place in seen:
                    target = whole[place]
                    target += part[:, :, at : at + target.shape[2]]
                    at += target.shape[2]
        return *grads, None, None


Place = tuple[slice, slice, slice]
"""An index of rows, heads and places."""


def _parts(rows: Sequence[Sequence[Stretch]]) -> Iterator[tuple[bool, Place, list[Place]]]:
    """The calls that make up a batch's attention: (whether it is causal, whose queries, whose keys). A place's causal
    part comes before the part of what lies before its block."""
    every = slice(None)
    for index, row in enumerate(rows):
        here = slice(index, index + 1)
        for stretch in row:
            for start, stop in stretch.blocks:
                block = (here, every, slice(start, stop))
                yield True, block, [block]
            if stretch.before:
                mine = slice(stretch.blocks[0][0], stretch.blocks[-1][1])
                yield False, (here, every, mine), [(here, every, slice(*seen)) for seen in stretch.before]


def _join(whole: Float[Tensor, "b k n d"], seen: Sequence[Place]) -> Float[Tensor, "1 k _ d"]:
    """The keys or values of a few ranges, side by side; no copy if there is one."""
    return whole[seen[0]] if len(seen) == 1 else torch.cat([whole[place] for place in seen], dim=2)
