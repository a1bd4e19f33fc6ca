"""Which models can fork: models whose attention can be computed under another relation than plain causality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_vocabulary(tags: Tags, rows: int, path: str) -> None:
    """Refuse tags, or an end of text, whose token ids are beyond a model's `rows` embeddings."""
    last = max(*tags.ids.values(), *tags.gap, *tags.eos)
    if last >= rows:
        raise UserError(
            f"an embedding for every tag and the end of text in '{path}'",
            f"token {last} and {rows} embeddings",
            "add the six tags with parallel-r1 prepare MODEL --out DIR",
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
    if getattr(config, "attention_dropout", 0):
        raise UserError(
            "attention without dropout: what is sampled is what is scored",
            f"attention_dropout {config.attention_dropout}",
            "set attention_dropout to 0 in the model's config.json",
        )
    if not hasattr(config, "rope_parameters") and not hasattr(config, "rope_theta"):
        raise UserError(
            "a model with rotary positions",
            f"model type '{config.model_type}' without them",
            "choose a model such as Qwen3, Llama or Mistral",
        )
    _check_layers(model)


def _check_layers(model: PreTrainedModel) -> None:
    """Refuse a model whose attention cannot be replaced, or whose attention modules do not say which layer they are:
    the KV cache is kept by layer."""
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


def positions(config: PreTrainedConfig) -> int | None:
    """Number of positions that a model supports; None if its configuration does not say."""
    count: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return count
