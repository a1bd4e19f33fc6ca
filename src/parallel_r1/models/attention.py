"""The attention function of every model that this package loads, registered in transformers as `parallel_r1`.

A model has this name from the moment it is loaded and keeps it. The arguments of a forward pass decide what a layer
does:

* `sight=`: attention under a relation of who sees whom. This is how texts with forks are scored.
* `attention=`: the function that is given. The local engine passes one that works on its KV cache.
* neither: what transformers does by itself, so the model remains an ordinary Hugging Face model.

Attention under a relation has one meaning and four ways to compute it:

* `Ranges`: long rows on a CPU. The keys that a block of queries sees are a few ranges, so its attention is a few dense
  calls whose results are merged by their log-sum-exp. No mask of n x n exists.
* `masked`: short rows on a CPU, where one dense call costs less; and layers with a sliding window.
* `capped`: layers with a soft cap on their scores, for which torch has no CPU kernel. Matrix products and a softmax.
* FlexAttention with a block mask, on CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from parallel_r1.answers.visibility import Stretch, stretches
from parallel_r1.errors import UserError
from parallel_r1.models import flex

ATTENTION = "parallel_r1"
"""The name of `attend` in transformers: `config._attn_implementation` of every model that this package loads."""
NO_MASK = torch.empty(0, 0, 0, 0)
"""Pass it as `attention_mask` where the relation or the engine says who sees whom: transformers hands a 4-D mask on as
it is, so a model builds no mask of its own."""
CALL = 128
"""One call of `Ranges` costs about as much as a mask of CALL x CALL places; measured with `benchmarks/scoring.py`."""
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Sight:
    """Who sees whom in a batch of b rows, n places and a addresses, in the forms that attention reads.

    With a window of w a place sees another only if its position is less than w larger. The paths of a fork start at the
    same position; a row without forks has the ordinary sliding window.

    Attributes:
        address_ids: by place, the index of its address in `sees`.
        positions: by place, its position.
        sees: whether places of two addresses may see each other.
        forms: the forms that were asked for before; every layer asks for the same ones.
    """

    address_ids: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"]
    sees: Bool[Tensor, "b a a"]
    forms: dict[Any, Any] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None = None) -> Bool[Tensor, "b 1 n n"]:
        """Entry (row, 0, i, j) is True if place i sees place j. Every place sees itself."""
        rows = torch.arange(len(self.address_ids), device=self.sees.device)[:, None, None]
        related = self.sees[rows, self.address_ids[:, :, None], self.address_ids[:, None, :]].tril()
        if window is not None:
            related &= self.positions[:, :, None] - self.positions[:, None, :] < window
        return related[:, None]

    def mask_mod(self, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The mask as a function of indices, for FlexAttention's `create_block_mask`."""
        related = lambda b, h, q, kv: (kv <= q) & self.sees[b, self.address_ids[b, q], self.address_ids[b, kv]]  # noqa: E731
        if window is None:
            return related
        within = lambda b, h, q, kv: self.positions[b, q] - self.positions[b, kv] < window  # noqa: E731
        return and_masks(related, within)

    def bias(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "b 1 n n"]:
        """The mask as a term to add to the scores. Kernels turn a boolean mask into it again in every layer."""
        key = ("bias", window, dtype)
        if key not in self.forms:
            mask = self.mask(window)
            self.forms[key] = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        return self.forms[key]

    def blocks(self, window: int | None) -> BlockMask:
        """The mask as FlexAttention's block mask."""
        if ("blocks", window) not in self.forms:
            self.forms["blocks", window] = flex.block_mask(
                self.address_ids, self.positions, self.sees, window, self.mask_mod(window)
            )
        return self.forms["blocks", window]

    def stretches(self) -> list[list[Stretch]]:
        """The relation as stretches, one list per row."""
        if "stretches" not in self.forms:
            pairs = zip(self.address_ids.numpy(), self.sees.numpy(), strict=True)
            self.forms["stretches"] = [stretches(ids, sees) for ids, sees in pairs]
        return self.forms["stretches"]

    def is_long(self) -> bool:
        """Whether `Ranges` is faster than `masked`: its calls cost less than the mask that they save."""
        rows, n = self.address_ids.shape
        calls = sum(len(stretch.blocks) + bool(stretch.before) for row in self.stretches() for stretch in row)
        return calls * CALL**2 <= rows * n**2


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model that was not loaded by this package and so would ignore who sees whom."""
    name = model.config.get_text_config()._attn_implementation
    if name != ATTENTION:
        raise UserError(
            f"a model whose attention is '{ATTENTION}'",
            f"'{name}'",
            f"load it with parallel_r1.load, or call model.set_attn_implementation('{ATTENTION}')",
        )


def forward(model: PreTrainedModel, token_ids: Int[Tensor, "b n"], sight: Sight, **arguments: Any) -> Any:
    """A model's forward pass under the relation and at the positions of `sight`."""
    check_attention(model)
    return model(
        input_ids=token_ids,
        attention_mask=NO_MASK,
        position_ids=sight.positions,
        use_cache=False,
        sight=sight,
        **arguments,
    )


def recompute(model: PreTrainedModel, on: bool = True) -> None:
    """Let the backward pass compute the activations of every layer again, which costs time and saves memory; or, if not
    `on`, keep them."""
    named: Any = model
    prefix = (
        "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    )  # before transformers 5.20
    if on:
        getattr(named, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(named, f"{prefix}_checkpointing_disable")()


def attend(
    module: torch.nn.Module,
    query: Tensor,  # [b, h, n, d]; not checked, because torch.compile does not see through the check
    key: Tensor,  # [b, k, m, d]
    value: Tensor,  # [b, k, m, e]
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sight: Sight | None = None,
    attention: Callable[..., Tensor] | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a layer: h query heads, k key heads, n queries, m keys.

    Args:
        module: the attention module of the layer.
        attention_mask: who sees whom where neither `sight` nor `attention` is given; unused otherwise.
        scaling: factor of the scores; 1 / sqrt(d) if None.
        sliding_window: of this layer, in positions.
        softcap: c for scores c tanh(score / c).
        sight: who sees whom; n = m.
        attention: computes the attention; called as `attention(module, query, key, value, scale, window, softcap)`.
        others: arguments of the interface that only transformers' own attention reads.

    Returns the attention's output [b, n, h, e], and its weights where transformers returns them.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention is not None:
        return attention(module, query, key, value, scale, sliding_window, softcap), None
    if sight is not None:
        return _related(query, key, value, sight, scale, sliding_window, softcap), None
    # The soft cap is why some architectures have no SDPA; transformers then takes the function of their own module.
    usual = sdpa_attention_forward if softcap is None else sys.modules[type(module).__module__].eager_attention_forward
    return usual(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        **others,
    )


def _mask(*, config: Any, **arguments: Any) -> Tensor | None:
    """The mask that transformers would build for this model: see the last lines of `attend`."""
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return (eager_mask if capped else sdpa_mask)(config=config, **arguments)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _mask)


def _related(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b k n d"],
    value: Float[Tensor, "b k n e"],
    sight: Sight,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "b n h e"]:
    """Attention under a relation, computed in the way that suits the device, the layer and the rows."""
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as torch does for its own attention
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    if device == "cuda":
        return flex.attend(query, key, value, sight.blocks(window), scale, softcap)[0].transpose(1, 2)
    if softcap is not None:
        out = capped(query, key, value, sight.bias(window, torch.float32), scale, softcap)
    elif device == "cpu" and window is None and query.shape[-1] == value.shape[-1] and sight.is_long():
        out = Ranges.apply(query, key, value, sight.stretches(), scale)
    else:
        out = masked(query, key, value, sight.bias(window, query.dtype), scale)
    return out.transpose(1, 2)


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
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = softcap * torch.tanh((query @ key.mT).float() * (scale / softcap)) + bias
    return scores.softmax(dim=-1).to(value.dtype) @ value


def merge(
    out: Float[Tensor, "b h n e"],
    total: Float[Tensor, "b h n"],
    part: Float[Tensor, "b h n e"],
    sums: Float[Tensor, "b h n"],
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n"]]:
    """Attention over two disjoint sets of keys from the attention over either, in the ratio of their sums of
    exponentials.

    Args:
        out, total: attention over one set, and the log-sum-exp of its scores.
        part, sums: the same over the other; -inf where a query sees none of its keys.

    Returns the attention over both sets, and the log-sum-exp of all scores.

    Source: Ring Attention (arXiv 2310.01889).
    """
    empty = sums == -torch.inf
    both = torch.logaddexp(total, sums)
    share = (sums - both).exp().masked_fill(empty, 0.0).to(part.dtype)
    # A kernel may return NaN for a query without keys, and a NaN times 0 is a NaN.
    return torch.lerp(out, part.masked_fill(empty[..., None], 0.0), share[..., None]), both


class Ranges(torch.autograd.Function):
    """Attention over ranges of places instead of a mask.

    Every block attends to itself causally, every stretch to what lies before it; a place with both parts has them
    merged. In the backward pass every part uses the final output and the final log-sum-exp: with these the softmax of
    a part is its part of the whole softmax, so the gradients of the parts add up to the gradient.
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
            part, sums = _forward(query[mine], _join(key, seen), _join(value, seen), 0.0, causal, scale=scale)
            if not causal:
                part, sums = merge(out[mine], total[mine], part, sums)
            out[mine], total[mine] = part, sums
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
                start = 0
                for place in seen:
                    target = whole[place]
                    target += part[:, :, start : start + target.shape[2]]
                    start += target.shape[2]
        return *grads, None, None


Place = tuple[slice, slice, slice]
"""An index of rows, heads and places."""


def _parts(rows: Sequence[Sequence[Stretch]]) -> Iterator[tuple[bool, Place, list[Place]]]:
    """The calls that make up a batch's attention: (whether it is causal, whose queries, whose keys). A block attends to
    itself before it attends to what lies before it."""
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
    """The keys or values of a few ranges, side by side; no copy if there is only one."""
    return whole[seen[0]] if len(seen) == 1 else torch.cat([whole[place] for place in seen], dim=2)
