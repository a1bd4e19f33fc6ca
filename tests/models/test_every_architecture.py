"""Every causal architecture of transformers that can be built small: each is exact, or refused by name when loaded."""

import pytest
import torch
from architectures import random_model, small_causal
from transformers import DiffLlamaConfig, GPT2Config, NemotronConfig, PhimoeConfig, Qwen3MoeConfig, StableLmConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from parallel_r1 import models
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.models.policy import Policy


def verdict(model, tokenizer, tags):
    """ "exact", the line with which a model is refused, or what is wrong."""
    try:
        models.check_model(model)
    except UserError as error:
        return f"refused: {error}"
    (found,) = measure(Policy(model, tokenizer, tags), "isolated", ["isolated"], 3, answers=3)
    return "exact" if found.max_abs <= 1e-4 and found.after_fork is not None else f"inexact: {found.max_abs}"


@pytest.mark.slow
def test_every_causal_architecture_is_exact_or_refused_by_name(tokenizer, tags):
    verdicts = {}
    for config in dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING.keys()):
        model = small_causal(config, len(tokenizer))
        if model is not None:
            try:
                verdicts[config.__name__] = verdict(model, tokenizer, tags)
            except Exception as error:  # all of them are shown at once
                verdicts[config.__name__] = f"crashed: {type(error).__name__}: {error}"
    wrong = {name: text for name, text in verdicts.items() if not text.startswith(("exact", "refused: expected"))}
    assert not wrong
    exact = {name for name, text in verdicts.items() if text == "exact"}
    assert len(verdicts) >= 150
    assert len(exact) >= 60
    assert {"LlamaConfig", "Qwen2Config", "Qwen3Config", "MistralConfig", "Gemma2Config", "Olmo2Config"} <= exact


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (StableLmConfig, "StableLmForCausalLM with RuntimeError"),
        (NemotronConfig, "NemotronForCausalLM with RuntimeError"),
        (DiffLlamaConfig, r"DiffLlamaForCausalLM with attention in layers \[0, 0, 1, 1\] of \[0, 1\]"),
        (PhimoeConfig, "PhimoeForCausalLM with other predictions while it learns, as with noise or dropout"),
        (GPT2Config, "expected"),
    ],
)
def test_architectures_that_are_more_than_their_attention_are_refused(tokenizer, config, said):
    """They ask for a mask that nobody builds, or for attention more than once in a layer, or learn with noise."""
    with pytest.raises(UserError, match=said):
        models.check_model(small_causal(config, len(tokenizer)))


def test_experts_are_exact(tokenizer, tags):
    assert verdict(small_causal(Qwen3MoeConfig, len(tokenizer)), tokenizer, tags) == "exact"


def test_a_layer_that_changes_what_attention_gave_by_more_than_it_hands_over_is_refused(tokenizer, monkeypatch):
    model = random_model("llama", len(tokenizer))
    attention = model.model.layers[1].self_attn
    original = attention.forward

    def forward(*args, **named):
        out, weights = original(*args, **named)
        return (out if "attention" in named else out * 1.5), weights

    monkeypatch.setattr(attention, "forward", forward)
    with pytest.raises(UserError, match="LlamaForCausalLM with other predictions with its own attention"):
        models.check_model(model)
    assert not model.training


@pytest.mark.parametrize("name", ["attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"])
def test_dropout_of_any_kind_is_refused(tokenizer, name):
    model = random_model("llama", len(tokenizer))
    setattr(model.config, name, 0.1)
    with pytest.raises(UserError, match=f"{name} 0.1; set {name} to 0"):
        models.check_model(model)
    setattr(model.config, name, 0.0)
    models.check_model(model)


def test_weights_without_values_are_not_tried(tokenizer):
    with torch.device("meta"):
        models.check_model(random_model("qwen3", len(tokenizer)))
