"""A loaded model stays an ordinary Hugging Face model, and nothing on it changes while it is used."""

import threading

import pytest
import torch
from architectures import FORKED, KINDS, WINDOW, random_model
from common import draw, force_forks, prompts_of, samples
from conftest import small_model
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM, GenerationConfig
from transformers.masking_utils import AttentionMaskInterface

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.errors import UserError
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models import attention as attend
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.models.settings import LoRA
from parallel_r1.training.batch import collate, score

SAMPLING = Sampling(paths=2, budget=Budget(total=60, critical_path=40, path=12))


def pair(tmp_path, name, tokenizer):
    """A model as this package loads it, and as transformers does."""
    random_model(name, len(tokenizer)).save_pretrained(tmp_path)
    ours = models.load_model(str(tmp_path), torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert ours.config._attn_implementation == attend.ATTENTION
    assert theirs.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")
    return ours, theirs


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_loaded_model_is_an_ordinary_one(tmp_path, tokenizer, name):
    """To the bit: plain text, text longer than a sliding window, padding on either side, a KV cache, packed positions;
    and in training."""
    ours, theirs = pair(tmp_path, name, tokenizer)
    ids = torch.randint(10, len(tokenizer), (3, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[1, :5] = left[2, :11] = right[1, -5:] = right[2, -11:] = 0
    two = torch.arange(WINDOW).repeat(3)[None].expand(3, -1)
    for arguments in ({}, {"attention_mask": left}, {"attention_mask": right}, {"position_ids": two}):
        expected = theirs(ids, use_cache=False, **arguments).logits
        assert torch.equal(ours(ids, use_cache=False, **arguments).logits, expected)
    settings = GenerationConfig(do_sample=False, max_new_tokens=2 * WINDOW, eos_token_id=None, pad_token_id=0)
    written = [model.generate(ids, attention_mask=left, generation_config=settings) for model in (ours, theirs)]
    assert written[0].shape[1] == 5 * WINDOW
    assert torch.equal(*written)
    with torch.enable_grad():
        gradients = []
        for model in (ours, theirs):
            loss = model.train()(ids, labels=ids, use_cache=False).loss
            gradients.append(torch.autograd.grad(loss, [*model.parameters()]))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_no_model_builds_a_mask_that_nobody_reads(tokenizer, tags, name, monkeypatch):
    """Under the relation and in the engine; plain text goes through torch's own causal attention without a mask."""
    policy = Policy(random_model(name, len(tokenizer)), tokenizer, tags)
    batch = collate(samples([parse(tokenizer.encode(FORKED), tags)]), "isolated")

    def build(**_):
        pytest.fail("a mask was built")

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, attend.ATTENTION, build)
    assert score(policy.model, batch).isfinite().all()
    assert draw(LocalEngine(policy.model), tags, prompts_of(policy, 2), SAMPLING, 0, force=force_forks(tags))


@torch.no_grad()
def test_plain_text_needs_no_mask(frozen, monkeypatch):
    batch = collate(samples([parse(frozen.encode("Use 3, 5, 7 to make 22.\n"), frozen.tags)]), "causal")
    assert batch.plain
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def note(*arguments, **named):
        calls.append((named["attn_mask"], named["is_causal"]))
        return attention(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    score(frozen.model, batch)
    assert calls == [(None, True)] * 2


@torch.no_grad()
def test_one_model_serves_threads_that_do_different_things(policy):
    """One draws answers with forks, one scores forks, one scores plain text: each as if it were alone."""
    model, tags = policy.model, policy.tags
    forked = collate(samples([parse(policy.encode(FORKED), tags)]), "isolated")
    plain = collate(samples([parse(policy.encode(FORKED), tags)]), "causal")
    prompts = prompts_of(policy, 3)
    jobs = [
        lambda: draw(LocalEngine(model), tags, prompts, SAMPLING, 0, force=force_forks(tags)),
        lambda: [score(model, forked) for _ in range(20)][-1].tolist(),
        lambda: [score(model, plain) for _ in range(20)][-1].tolist(),
    ]
    expected = [job() for job in jobs]
    results = [None] * len(jobs)

    def run(index):
        with torch.no_grad():
            results[index] = jobs[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_a_saved_model_does_not_name_our_attention(tmp_path, tokenizer, tags):
    """So it loads where this package is not installed; one with an adapter too."""
    for name, settings in (("plain", None), ("adapted", LoRA(rank=2))):
        policy = Policy(small_model(tokenizer), tokenizer, tags, lora=settings)
        if settings is not None:
            adapters.attach(policy.model, settings, tags.ids.values(), 0)
        adapters.save(policy, tmp_path / name)
        files = [path.read_text() for path in (tmp_path / name).glob("*.json") if "config" in path.name]
        assert files
        assert not any("parallel_r1" in text or "attn_implementation" in text for text in files)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert again.config._attn_implementation == "sdpa"


def test_a_model_with_another_attention_is_refused(tokenizer, tags):
    """It would ignore who sees whom."""
    model = random_model("qwen3", len(tokenizer))
    model.set_attn_implementation("sdpa")
    batch = collate(samples([parse(tokenizer.encode(FORKED), tags)]), "isolated")
    for use in (lambda: score(model, batch), lambda: LocalEngine(model)):
        with pytest.raises(UserError, match=r"'parallel_r1'; found 'sdpa'.*set_attn_implementation"):
            use()
    model.set_attn_implementation("parallel_r1")
    assert score(model, batch).isfinite().all()
    assert LocalEngine(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda first, second: delattr(second, "layer_idx"), "'layers.1.self_attn' with layer_idx None"),
        (
            lambda first, second: setattr(second, "layer_idx", 0),
            "'layers.1.self_attn' with layer_idx 0, as layers.0.self_attn",
        ),
    ],
)
def test_layers_without_numbers_of_their_own_are_refused(tokenizer, change, message):
    model = random_model("qwen3", len(tokenizer))
    models.check_model(model)
    change(*(layer.self_attn for layer in model.model.layers))
    with pytest.raises(UserError, match=message):
        models.check_model(model)


def test_attention_that_cannot_be_replaced_is_refused():
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UserError, match="FalconForCausalLM, which has its own"):
        models.check_model(FalconForCausalLM(FalconConfig(**shape)))
