"""How much memory the backward pass of a model needs, counted in a forward pass through tensors without memory."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from parallel_r1.models import attention as attend


def activation_bytes(model: PreTrainedModel, tokens: int, half: bool, recompute: bool) -> int:
    """Bytes that the backward pass needs from the forward pass, weights not counted.

    Args:
        tokens: length of the sequence.
        half: the pass runs under autocast to bf16.
        recompute: activations are recomputed layer by layer (checkpointing): one layer at a time has them all.
    """
    whole = _saved_bytes(model, tokens, half)
    if not recompute:
        return whole
    attend.recompute(model)
    try:
        return _saved_bytes(model, tokens, half) + whole // model.config.get_text_config().num_hidden_layers
    finally:
        attend.recompute(model, on=False)


def _saved_bytes(model: PreTrainedModel, tokens: int, half: bool) -> int:
    """Bytes of the tensors that a forward pass saves for the backward pass, without the weights."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model.train()
    with (
        saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model.get_decoder()(
            torch.zeros(1, tokens, dtype=torch.long),
            attention_mask=attend.NO_MASK,
            use_cache=False,
            attention=_attention,
        )
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in saved.items() if storage not in weights)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, *_: Any
) -> Float[Tensor, "b n h e"]:
    """Plain causal attention without a mask, even in layers with a sliding window or a soft cap."""
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)
