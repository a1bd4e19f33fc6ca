"""Which models can fork: models whose attention can be computed under another relation than plain causality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

TRIAL = 6
"""Tokens with which a model is tried."""


def check_vocabulary(tags: Tags, rows: int, path: str) -> None:
    """Refuse tags, or an end of text, whose token ids are beyond a model's `rows` embeddings."""
    last = max(*tags.ids.values(), *tags.join, *tags.eos)
    if last >= rows:
        raise UserError(
            f"an embedding for every tag and the end of text in '{path}'",
            f"token {last} and {rows} embeddings",
            "add the tags with parallel-r1 prepare MODEL --out DIR",
        )


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model whose attention or head is computed in a way that the engine and the scorer do not repeat."""
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(
            "layers with full or sliding attention", f"{', '.join(sorted(unknown))}", "choose another model"
        )
    scaled = [name for name in ("logit_scale", "logits_scaling") if getattr(config, name, 1) not in (1, None)]
    if scaled:
        raise UserError("logits as the head gives them", f"{scaled[0]} in its config.json", "choose another model")
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        raise UserError("a softmax over the keys alone", "attention sinks", "choose another model")
    dropouts = {name: value for name, value in config.to_dict().items() if "drop" in name and "classifier" not in name}
    for name, value in dropouts.items():
        if isinstance(value, float) and value > 0:
            raise UserError(
                "a model without dropout: what is sampled is what is scored",
                f"{name} {value}",
                f"set {name} to 0 in the model's config.json",
            )
    if not hasattr(config, "rope_parameters") and not hasattr(config, "rope_theta"):
        raise UserError(
            "a model with rotary positions",
            f"model type '{config.model_type}' without them",
            "choose a model such as Qwen3, Llama or Mistral",
        )
    layers = _check_layers(model)
    _try(model, layers)


def _check_layers(model: PreTrainedModel) -> set[int]:
    """Refuse a model whose attention cannot be replaced, or whose attention modules do not say which layer they are:
    the KV cache is kept by layer. Returns the numbers of the layers."""
    if not model._can_set_attn_implementation():
        raise UserError(
            "a model whose attention goes through the AttentionInterface of transformers",
            f"{type(model).__name__}, which has its own",
            "choose another model",
        )
    modules = model.get_decoder().named_modules()
    layers = {name: module for name, module in modules if type(module).__name__.endswith("Attention")}
    seen: dict[int, str] = {}
    for name, module in layers.items():
        index: Any = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or index in seen:
            raise UserError(
                "attention modules that are numbered by layer_idx",
                f"'{name}' with layer_idx {index}{f', as {seen[index]}' if index in seen else ''}",
                "choose another model",
            )
        seen[index] = name
    return set(seen)


def _defined(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of one layer, written out: [b, h, n, d] and twice [b, k, n, d] to [b, n, h, d]."""
    import torch

    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(query.shape[2], device=query.device)
    behind = place[:, None] - place
    hidden = (behind < 0) | (behind >= (window or TRIAL))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2).contiguous()


def _try(model: PreTrainedModel, layers: set[int]) -> None:
    """Refuse a model that is more than a softmax over queries and keys in every layer: one that needs a mask, asks
    twice for attention in a layer, or predicts something else when its attention is computed from what it hands over.

    A few tokens go through the model as it is, through the model with attention as it is defined, and once more in
    training mode. Models without real weights and quantised ones are not tried; bf16 is too coarse to be compared.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    from parallel_r1.models.attention import ATTENTION, NO_MASK

    weights = next(model.parameters())
    if (
        weights.is_meta
        or isinstance(weights, FakeTensor)
        or getattr(model, "quantization_method", None) is not None
        or model.config.get_text_config()._attn_implementation != ATTENTION
    ):
        return
    asked: list[int] = []

    def attention(module: Any, *rest: Any) -> Tensor:
        asked.append(module.layer_idx)
        return _defined(*rest)

    place = torch.arange(TRIAL, device=model.device)
    tokens, training = (1 + place)[None], model.training
    plain: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    given = {**plain, "attention_mask": NO_MASK, "position_ids": place[None], "attention": attention}
    try:
        with torch.no_grad():
            usual, ours = model.eval()(**plain).logits, model(**given).logits
            counted = sorted(asked)
            learning = model.train()(**given).logits
        near = 1e-3 * max(1.0, usual.abs().max().item()) if usual.dtype == torch.float32 else torch.inf
        reason = None
        if counted != sorted(layers):
            reason = f"attention in layers {counted} of {sorted(layers)}"
        elif not torch.allclose(usual, ours, rtol=0, atol=near):
            reason = "other predictions with its own attention"
        elif not torch.allclose(ours, learning, rtol=0, atol=near):
            reason = "other predictions while it learns, as with noise or dropout"
    except Exception as error:  # architectures fail in as many ways as there are
        reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]:.100}"
    finally:
        model.train(training)
    if reason is not None:
        raise UserError(
            "a model whose layers each ask once for attention over queries, keys and values",
            f"{type(model).__name__} with {reason}",
            "choose another model",
        )


def positions(config: PreTrainedConfig) -> int | None:
    """Number of positions that a model supports; None if its configuration does not say."""
    count: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return count
