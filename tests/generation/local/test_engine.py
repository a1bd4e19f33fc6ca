"""The local engine on every architecture: what it draws is what the scorer scores, and what `generate` would draw."""

from dataclasses import replace

import architectures
import pytest
import torch
from common import draw, force_forks, mismatch, prompts_of, samples

from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.errors import UserError
from parallel_r1.generation.local import cuda as flex
from parallel_r1.generation.local.engine import LocalEngine, compiled
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.training.batch import collate, score

OTHERS = [name for name in EXACT_SCORER if name != "isolated"]


@pytest.fixture(params=architectures.KINDS, scope="module")
def other(request, tokenizer, tags) -> Policy:
    """A small random policy of each architecture."""
    return Policy(architectures.random_model(request.param, len(tokenizer)), tokenizer, tags)


@pytest.mark.parametrize("sampler", ["isolated", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_architecture_is_exact(other, sampler):
    """Grouped queries, sliding windows, soft caps, layers without positions; prompts alone and shared; little memory,
    so that answers are read again."""
    prompts = prompts_of(other, 3) * 2
    budget = Budget(total=100, critical_path=100, path=18, depth=2)
    sampling = Sampling(sampler=sampler, paths=3, budget=budget)
    engine = LocalEngine(other.model)
    force = force_forks(other.tags) if sampler != "sequential" else None
    traces = draw(engine, other.tags, [*prompts, other.encode("Use 1")], sampling, 0, force=force, memory=180)
    assert engine.counts.preempted > 0
    assert mismatch(other, traces, EXACT_SCORER[sampler]) <= 1e-4


def test_greedy_answers_are_those_of_generate(other):
    sampling = Sampling(sampler="sequential", temperature=0, budget=Budget(critical_path=40, total=40))
    endless = replace(other.tags, eos=frozenset())
    prompts = prompts_of(other, 2)
    traces = draw(LocalEngine(other.model), endless, prompts, sampling, 0)
    for prompt, trace in zip(prompts, traces, strict=True):
        expected = other.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=None,
        )
        assert list(trace.token_ids) == expected[0, len(prompt) :].tolist()


def test_bf16_draws_and_scores_alike(policy):
    """In bf16 what is sampled is what is scored up to its rounding, which is far below what a wrong mask would do."""
    policy.model.to(torch.bfloat16)
    sampling = Sampling(paths=3, budget=Budget(critical_path=90, path=25))
    traces = draw(
        LocalEngine(policy.model), policy.tags, prompts_of(policy, 4), sampling, 0, force=force_forks(policy.tags)
    )
    means = []
    for scorer in ("isolated", "causal"):
        batch = collate(samples(traces), scorer)
        with torch.no_grad():
            means.append((score(policy.model, batch) - batch.behaviour).abs()[batch.sampled].mean().item())
    assert means[0] < 0.1 * means[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sampler"),
    [("qwen3", "isolated"), ("qwen3", "causal_join"), ("mistral", "isolated"), ("gemma2", "causal_join")],
)
def test_flex_attention_is_exact(name, sampler, tokenizer, tags):
    """What the engine does on CUDA, checked on a CPU: own columns and shared prompts as two calls, merged."""
    small = Policy(architectures.random_model(name, len(tokenizer)), tokenizer, tags)
    check_flex(small, "cpu", sampler)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2"])
def test_flex_attention_is_exact_on_cuda(name, tokenizer, tags):
    model = architectures.random_model(name, len(tokenizer), head_dim=16)  # the least that its kernels take
    small = Policy(model.cuda(), tokenizer, tags)
    for sampler in ("isolated", "causal_join"):
        check_flex(small, "cuda", sampler)


def check_flex(small, device, sampler):
    prompts = [*prompts_of(small, 3) * 2, small.encode("Use 1")]
    budget = Budget(total=90, critical_path=40, path=12, depth=2)
    sampling = Sampling(sampler=sampler, paths=3, budget=budget)
    engine = LocalEngine(small.model, flex)
    traces = draw(engine, small.tags, prompts, sampling, 0, force=force_forks(small.tags), memory=200)
    assert engine.counts.preempted > 0
    assert max(trace.forks for trace in traces) > 1
    batch = collate(samples(traces), EXACT_SCORER[sampler]).to(device)
    with torch.no_grad():
        found = (score(small.model, batch) - batch.behaviour).abs()[batch.sampled]
    assert found.max().item() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2"])
def test_a_compiled_engine_is_exact_while_its_weights_change(name, tokenizer, tags):
    """Windows, soft caps and grouped queries; answers that end one after the other, so that steps shrink to one token;
    and no compiling again for other lengths, other engines or other weights."""
    policy = Policy(architectures.random_model(name, len(tokenizer)), tokenizer, tags)
    sampling = Sampling(paths=3, budget=Budget(total=150, critical_path=150, path=25, depth=2))
    torch._dynamo.reset()
    forward = compiled(policy.model)
    graphs = []
    for round_ in range(3):
        prompts = prompts_of(policy, 3) * (1 + round_)
        engine = LocalEngine(policy.model, forward=forward)
        traces = draw(engine, tags, prompts, sampling, round_, force=force_forks(tags), rows=4)
        assert mismatch(policy, traces, "isolated") <= 1e-4
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        with torch.no_grad():
            for weights in policy.model.parameters():
                weights += 0.01 * torch.randn_like(weights)
    assert graphs[0] > 0
    assert graphs[0] == graphs[1] == graphs[2]


def test_compiling_without_a_compiler_is_one_clear_error(policy, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._inductor.cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        compiled(policy.model)
    torch._inductor.cpp_builder.cpp_compiler_search.cache_clear()
