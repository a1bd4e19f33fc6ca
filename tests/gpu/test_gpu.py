"""What only a GPU shows: the compiled kernels of FlexAttention, and that nothing is left behind on the CPU.

`make test-gpu` runs these tests; they need torch with CUDA and nothing from the network.
"""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from common import force_forks, prompts_of
from conftest import small_model
from transformers import Qwen3ForCausalLM

import parallel_r1 as pr
from parallel_r1.answers.parser import parse
from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models import lora as adapters
from parallel_r1.models import qwen3
from parallel_r1.models.attention import ATTENTION
from parallel_r1.models.policy import Policy
from parallel_r1.models.settings import LoRA
from parallel_r1.training.algorithms.sft import CrossEntropy
from parallel_r1.training.batch import collate, score
from parallel_r1.training.learner import Learner
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import SFT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
CUDA = torch.device("cuda")
PAIRS = [(sampler, scorer) for sampler in EXACT_SCORER for scorer in ("isolated", "replay", "causal")]
SAMPLING = Sampling(paths=3, budget=Budget(total=200, critical_path=90, path=25, depth=2))


@pytest.fixture(scope="module")
def figures(request):
    """Test -> what it measured, printed as one line of JSON after the last test."""
    measured = {}
    yield measured
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "measured": measured}
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{json.dumps(about)}")


@pytest.fixture
def record(request, figures):
    """Keep figures of this test, `record(name=value, ..)`. Every test has its own peak of memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return figures.setdefault(request.node.name, {}).update


def on_gpu(policy):
    """The same weights on the GPU."""
    return replace(policy, model=copy.deepcopy(policy.model).to(CUDA))


def answers(policy, count=6, sampling=SAMPLING):
    """Answers with forks, nested ones too, drawn where the policy is."""
    force = force_forks(policy.tags)
    prompts = prompts_of(policy, count)
    requests = [
        Request(prompt, sampling, f"0/{index}", lambda address, size, index=index: force(index, address, size))
        for index, prompt in enumerate(prompts)
    ]
    traces = make_generator(policy, Engine()).traces(requests)
    assert sum(trace.forks for trace in traces) > count
    return traces


def distance(ours, theirs):
    """||ours - theirs|| / ||theirs||."""
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(("sampler", "scorer"), PAIRS)
def test_what_is_drawn_is_what_is_scored(tiny, record, sampler, scorer):
    """The parity matrix in fp32; the pairs that do not agree are far apart."""
    (found,) = measure(on_gpu(tiny), sampler, [scorer], 3)
    record(max=found.max_abs, mean=found.mean_abs)
    if found.exact:
        assert found.max_abs < 1e-3
        assert found.mean_abs < 1e-5
    elif sampler != "sequential":
        assert found.mean_abs > 0.05


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("scorer", ["isolated", "replay"])
def test_scores_and_gradients_are_those_of_the_cpu(frozen, record, scorer, dtype, limit):
    """FlexAttention forward and backward, with fp32 weights; bf16 by autocast, as in training."""
    traces = answers(frozen)
    results = []
    for policy, device in ((frozen, "cpu"), (on_gpu(frozen), "cuda")):
        batch = collate([Sample(trace) for trace in traces], scorer).to(device)
        policy.model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and dtype == torch.bfloat16):
            values = score(policy.model, batch)
        (values * batch.sampled).sum().backward()
        gradient = torch.cat([weight.grad.flatten().cpu() for weight in policy.model.parameters()])
        results.append((values.detach().cpu(), gradient))
        policy.model.zero_grad()
    (expected, slope), (found, ours) = results
    figures = {"scores": distance(found, expected), "gradients": distance(ours, slope)}
    record(**figures)
    assert max(figures.values()) < limit


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_drawing_in_half_precision_differs_as_much_as_rounding(tiny, record, dtype):
    policy = on_gpu(tiny)
    policy.model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    (found,) = measure(policy, "isolated", ["isolated"], 4)
    record(max=found.max_abs, mean=found.mean_abs)
    assert found.mean_abs < {"fp32": 1e-5, "bf16": 0.1}[dtype]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_reinforcement_learning(tiny, record, precision):
    policy = on_gpu(tiny)
    before = policy.model.get_input_embeddings().weight.detach().clone()
    sampling = Sampling(paths=4, budget=Budget(critical_path=60, path=30, total=256, forks=1))
    settings = {"sampling": sampling, "precision": precision, "packing": True}
    (step,) = pr.rl(policy, "countdown-hard", steps=1, problems=16, group=4, **settings)
    record(**{name: step.metrics[name] for name in ("loss", "gradient_norm", "mismatch_mean") if name in step.metrics})
    assert all(math.isfinite(value) for value in step.metrics.values())
    assert policy.model.device.type == "cuda"
    assert not torch.equal(before, policy.model.get_input_embeddings().weight)


def test_an_update_of_an_adapter_is_that_of_the_cpu(tokenizer, tags, record):
    pytest.importorskip("peft")
    results = []
    for device in ("cpu", "cuda"):
        model = small_model(tokenizer)
        adapters.attach(model, LoRA(rank=4), tags.ids.values(), 0)
        policy = Policy(model, tokenizer, tags)
        traces = answers(policy)
        stage = SFT(kind="sft", steps=1, data={"tasks": {"countdown-easy": 1.0}}, optimizer={"lr": 1e-2})
        if device == "cuda":
            learner = Learner(model, stage, 1)
            learner.update([Sample(trace) for trace in traces], CrossEntropy())
            assert all(weight.is_cuda for weight in model.parameters())
        else:  # the learner itself goes where the GPU is
            batch = collate([Sample(trace) for trace in traces], "isolated")
            loss = -(score(model, batch) * batch.sampled).sum() / batch.sampled.sum()
            loss.backward()
            parameters = [weight for weight in model.parameters() if weight.requires_grad]
            torch.nn.utils.clip_grad_norm_(parameters, stage.optimizer.clip)
            optimizer = torch.optim.AdamW(parameters, 1e-2, betas=stage.optimizer.betas, weight_decay=0.0)
            optimizer.step()
        results.append({name: weight.detach().cpu() for name, weight in adapters.learning(model).items()})
    expected, found = (torch.cat([values[name].flatten() for name in sorted(values)]) for values in results)
    record(distance=distance(found, expected))
    assert distance(found, expected) < 0.02  # Adam's first step is the sign of a gradient, which rounding may turn


@pytest.fixture(scope="module")
def half_billion():
    """The shape of a model with half a billion parameters, with random weights, on the GPU."""
    config = qwen3(151_936, hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, positions=32_768)
    config._attn_implementation = ATTENTION
    with torch.device("cuda"):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()


def test_a_model_of_half_a_billion_draws_what_it_scores(half_billion, tokenizer, tags, record):
    """In fp32; every token of its 151,936 can be drawn, so the forks are given."""
    policy = Policy(half_billion, tokenizer, tags)
    (found,) = measure(policy, "isolated", ["isolated"], 4)
    record(max=found.max_abs, mean=found.mean_abs, gigabytes=torch.cuda.max_memory_allocated() / 1e9)
    assert found.mean_abs < 1e-4


def test_a_model_of_half_a_billion_learns(half_billion, tokenizer, tags, record):
    policy = Policy(half_billion, tokenizer, tags)
    traces = answers(policy, 16)
    stage = SFT(kind="sft", steps=2, data={"tasks": {"countdown-easy": 1.0}}, precision="bf16", optimizer={"lr": 1e-4})
    learner = Learner(policy.model, stage, 2)
    losses = [learner.update([Sample(trace) for trace in traces], CrossEntropy())["loss"] for _ in range(3)]
    record(first=losses[0], last=losses[-1], gigabytes=torch.cuda.max_memory_allocated() / 1e9)
    assert losses[-1] < losses[0]


def test_memory_of_scoring_grows_with_the_length_not_its_square(tiny, record):
    """16,384 and 32,768 places in one row; a mask of all places would be 1 GB of booleans at the latter."""
    policy = on_gpu(tiny)
    peaks = []
    ids = policy.encode("Use 1, 2, 3 to make 6.\n")
    words = policy.encode("1+2=3, 3+3=6 ")
    for length in (16_384, 32_768):
        path = words * (length // 4 // len(words))
        text = policy.tags.ids
        row = [
            *words * (length // 4 // len(words)),
            text["<Parallel>"], text["<Path>"], *path, text["</Path>"], text["<Path>"], *path, text["</Path>"],
            *policy.tags.join,
            *words * (length // 4 // len(words)), text["</Summary>"],
        ]  # fmt: skip
        batch = collate([Sample(replace(parse(row, policy.tags), prompt_ids=tuple(ids)))], "isolated").to("cuda")
        assert not batch.plain
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (score(policy.model, batch) * batch.sampled).sum().backward()
        policy.model.zero_grad()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    record(megabytes=[round(peak / 1e6) for peak in peaks], ratio=peaks[1] / peaks[0])
    assert peaks[1] < 2.3 * peaks[0]
