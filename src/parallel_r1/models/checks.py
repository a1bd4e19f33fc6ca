"""Which models forks know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_vocabulary(tags: Tags, rows: int, path: str) -> None:
    """Refuse tags for which a model with so many embeddings has none."""
    last = max(*tags.ids.values(), *tags.gap, *tags.eos)
    if last >= rows:
        raise UserError(
            f"an embedding for every tag and the end of text in '{path}'",
            f"token {last} and {rows} embeddings",
            "add the six tags with parallel-r1 prepare MODEL --out DIR",
        )


def check_attention(attention: str) -> None:
    """Refuse attention implementations that would ignore or misread the mask of a fork."""
    if attention != "sdpa":
        raise UserError(
            "the attention implementation 'sdpa', which respects a fork's mask",
            f"'{attention}', which ignores or misreads it",
            "leave model.attention at 'sdpa'",
        )


def check_model(model: PreTrainedModel) -> None:
    """Refuse models whose attention differs from plain causal attention in a way that forks do not know."""
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


def positions(config: PreTrainedConfig) -> int | None:
    """How many positions a model knows; None if its configuration does not say."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found
