"""Small random models of the architectures that users bring, each with what is its own: windows, soft caps, no rope."""

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from parallel_r1.models.attention import ATTENTION

WINDOW = 8
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 20, "final_logit_softcapping": 5.0, **MIXED}
KINDS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": True, **MIXED}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {"no_rope_layers": [1, 0]}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"attn_logit_softcapping": 2.0, **GEMMA}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA),
}


def random_model(name: str, vocabulary: int, **changes: Any) -> PreTrainedModel:
    """A model of an architecture whose distributions are far from uniform, so that a wrong mask or position shows.

    Args:
        changes: of its configuration.
    """
    kind, config, own = KINDS[name]
    shape = dict(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = kind(config(**{**shape, **own, **changes}, attn_implementation=ATTENTION)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model
