"""Packed weights give the same products, and follow the weights that learn."""

import pytest
import torch
from architectures import random_model

from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.local.generator import LocalGenerator
from parallel_r1.generation.local.packed import PackedLinear, follow, size, with_packed
from parallel_r1.generation.settings import Engine
from parallel_r1.models.policy import Policy

WIDE = {"intermediate_size": 4096}


@pytest.fixture
def wide(tokenizer):
    return random_model("llama", len(tokenizer), **WIDE)


def test_a_packed_model_shares_its_weights_and_gives_the_same_logits(wide):
    model = with_packed(wide)
    layers = [part for part in model.modules() if isinstance(part, PackedLinear)]
    assert len(layers) == 6  # gate, up and down of two layers
    assert {id(part) for part in model.parameters()} == {id(part) for part in wide.parameters()}
    assert not any(isinstance(part, PackedLinear) for part in wide.modules())
    for tokens in (1, 3, 64, 200):
        ids = torch.randint(10, 400, (1, tokens))
        torch.testing.assert_close(model(ids).logits, wide(ids).logits, rtol=1e-4, atol=1e-4)


def test_packed_weights_follow_those_that_learn(wide):
    model, ids = with_packed(wide), torch.randint(10, 400, (1, 5))
    before = wide(ids).logits
    with torch.no_grad():
        for part in wide.parameters():
            part.mul_(1.1)
    follow(model)
    torch.testing.assert_close(model(ids).logits, wide(ids).logits, rtol=1e-4, atol=1e-4)
    assert (wide(ids).logits - before).abs().max() > 1e-2
    for part in wide.parameters():
        part.data = part.data / 1.1
    follow(model)
    torch.testing.assert_close(model(ids).logits, wide(ids).logits, rtol=1e-4, atol=1e-4)


def test_weights_that_have_not_changed_are_not_packed_again(wide):
    model = with_packed(wide)
    layers = [part for part in model.modules() if isinstance(part, PackedLinear)]
    before = [part.packed for part in layers]
    follow(model)
    assert all(part.packed is packed for part, packed in zip(layers, before, strict=True))


def test_a_generator_draws_what_is_scored_with_packed_weights(wide, tokenizer, tags):
    policy = Policy(wide, tokenizer, tags)
    assert isinstance(LocalGenerator(policy, Engine()).model.model.layers[0].mlp.up_proj, PackedLinear)
    (found,) = measure(policy, "isolated", ["isolated"], 3, answers=3)
    assert found.max_abs <= 1e-4


def test_small_weights_other_dtypes_and_other_layers_are_left_alone(tokenizer):
    small = random_model("llama", len(tokenizer))
    assert with_packed(small) is small
    half = random_model("llama", len(tokenizer), **WIDE).to(torch.bfloat16)
    assert with_packed(half) is half
    assert size(torch.nn.Embedding(1000, 1000)) == 0


def test_a_model_that_was_made_in_inference_mode_is_left_alone(tokenizer, tags):
    """Its tensors have no version, so nothing says when one changes."""
    with torch.inference_mode():
        wide = random_model("llama", len(tokenizer), **WIDE)
        assert with_packed(wide) is wide
        (found,) = measure(Policy(wide, tokenizer, tags), "isolated", ["isolated"], 3, answers=2)
    assert found.max_abs <= 1e-4


def test_a_layer_with_a_hook_keeps_it(wide):
    layer = wide.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda module, inputs, out: out * 0)
    assert sum(isinstance(part, PackedLinear) for part in with_packed(wide).modules()) == 5
    ids = torch.randint(10, 400, (1, 3))
    torch.testing.assert_close(with_packed(wide)(ids).logits, wide(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_uses_packed_weights(wide, tokenizer, tags):
    (found,) = measure(
        Policy(wide, tokenizer, tags), "isolated", ["isolated"], 3, answers=3, engine=Engine(compile=True)
    )
    assert found.max_abs <= 1e-4
