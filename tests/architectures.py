"""Small random models of the architectures that users bring, each with what is its own: windows, soft caps, no rope."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
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

FORKED = (
    "Use 3, 5, 7<Parallel><Path>3+5=8 and more of it</Path><Path>5*7=35, 35-3=32 no</Path></Parallel>\n"
    "<Summary>c</Summary>\nFinal Answer: 8"
)
"""A text with a fork whose paths are longer than the window."""


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


SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "moe_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "encoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 1024),
    **dict.fromkeys(("pad_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "bos_token_id": None,
    "shared_expert_intermediate_size": 32,
}
"""What configurations call their sizes, with small values."""
LARGEST = 5_000_000
"""Parameters of the largest model that counts as small."""


def small_causal(config: type[PretrainedConfig], vocabulary: int) -> PreTrainedModel | None:
    """A small random model of any causal architecture of transformers; None where no small one can be built from the
    configuration alone, as of models that also see or hear."""
    for without in ((), ("bos_token_id",), ("head_dim", "v_head_dim"), ("bos_token_id", "head_dim", "v_head_dim")):
        sizes = {name: value for name, value in {"vocab_size": vocabulary, **SMALL}.items() if name not in without}
        try:
            known = config()
            shape = config(**{name: value for name, value in sizes.items() if hasattr(known, name)})
            with torch.device("meta"):
                size = AutoModelForCausalLM.from_config(shape).num_parameters()
            if size > LARGEST:
                return None
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation=ATTENTION).eval()
        except Exception:  # a configuration refuses sizes that do not go together in as many ways as there are
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4.0)
        return model
    return None
