"""The engine, the scorer and the learner on a pretended CUDA device: nothing of theirs stays on the CPU by mistake."""

import copy
from dataclasses import replace

import pytest
import torch
from common import draw, force_forks, prompts_of
from pretended import CUDA, Mixed, pretended_cuda

from parallel_r1.answers.parser import parse
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation import distribution
from parallel_r1.generation.local import cuda as cuda_room
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.local.kv_pool import Pool
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models import attention, flex
from parallel_r1.models import lora as adapters
from parallel_r1.models.settings import LoRA
from parallel_r1.training import batch as batch_room
from parallel_r1.training.batch import collate, score
from parallel_r1.training.loops import run_rl, run_sft
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import RL, SFT

SHORT = {"paths": 2, "budget": {"critical_path": 30, "path": 10, "total": 60, "forks": 2}}


def dense(query, key, value, blocks, scale, softcap):
    """In the place of FlexAttention, which has to be compiled: the same relation as a dense mask."""
    places = torch.arange(query.shape[2], device=query.device)
    row = torch.arange(len(query), device=query.device)[:, None, None, None]
    seen = blocks.mask_mod(row, torch.zeros_like(row), places[:, None], places)
    bias = torch.zeros(seen.shape, device=query.device).masked_fill(~seen, -torch.inf)
    return (attention.masked(query, key, value, bias, scale),)


@pytest.fixture
def gpu(frozen, monkeypatch):
    """A policy on the pretended device, with stand-ins for the kernels of FlexAttention."""
    with pretended_cuda(monkeypatch):
        monkeypatch.setattr(flex, "attend", dense)
        monkeypatch.setattr(cuda_room, "_on_cuda", cuda_room._slowly)
        policy = replace(frozen, model=copy.deepcopy(frozen.model).to("cuda"))
        assert policy.model.device == CUDA
        yield policy


def batch_of(policy, scorer):
    """Two answers, one with a fork, on the device."""
    prompt = policy.encode("Use 3, 5, 7 to make 22.\n")
    texts = ("a<Parallel><Path>b b</Path><Path>c</Path></Parallel>\n<Summary>d</Summary>e", "3*5=15")
    traces = [parse(policy.encode(text), policy.tags, sampler="isolated", prompt_ids=prompt) for text in texts]
    return collate([Sample(trace, 1.0) for trace in traces], scorer).to("cuda")


def test_the_pretended_device_refuses_what_cuda_refuses(monkeypatch):
    with pretended_cuda(monkeypatch):
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there.device, here.device, here.to("cuda").device) == (CUDA, torch.device("cpu"), CUDA)
        assert (there * 2 + torch.tensor(1.0)).device == CUDA
        assert there[torch.tensor([0, 1])].device == CUDA
        for mixing in (
            lambda: there + torch.zeros(3),
            lambda: torch.zeros(3)[torch.tensor([0]).to("cuda")],
            lambda: torch.cat([there, torch.zeros(1)]),
            lambda: there.numpy(),
            lambda: torch.where(there > 0, there, torch.from_numpy(here.numpy())),
        ):
            with pytest.raises(Mixed):
                mixing()


def test_a_mark_does_not_outlive_its_tensor(monkeypatch):
    with pretended_cuda(monkeypatch):
        here = torch.ones(3)
        for _ in range(200):
            torch.zeros(2, device="cuda")
            # The index is made inside torch, unseen, and may lie where the tensor on CUDA was.
            assert here[[0, 2]].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sampler", ["isolated", "causal_join", "sequential"])
def test_drawing(gpu, sampler):
    budget = Budget(total=80, critical_path=60, path=12, depth=2)
    force = force_forks(gpu.tags) if sampler != "sequential" else None
    engine = LocalEngine(gpu.model)
    sampling = Sampling(sampler=sampler, paths=2, budget=budget)
    traces = draw(engine, gpu.tags, prompts_of(gpu, 4), sampling, 0, force=force)
    assert engine.attention is cuda_room
    assert len(traces) == 4
    assert engine.counts.kv == 0


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
def test_scoring_forward_and_backward(gpu, scorer):
    batch = batch_of(gpu, scorer)
    values = score(gpu.model, batch)
    assert values.device == CUDA
    values.sum().backward()
    assert gpu.model.get_input_embeddings().weight.grad.device == CUDA


def test_parity(gpu):
    for found in measure(gpu, "isolated", ["isolated", "causal"], 2, answers=2, forks=1):
        assert found.exact == (found.max_abs <= 1e-4)


@pytest.mark.parametrize("embeddings", ["all", "used"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_of_sft(gpu, embeddings, recompute):
    optimizer = {"lr": 1e-3, "embeddings": embeddings, "tags": 2.0}
    data = {"tasks": {"countdown-easy": 1.0}, "parallel": 0.5, "paths": 2}
    stage = SFT(kind="sft", steps=2, batch=4, data=data, optimizer=optimizer, recompute=recompute)
    assert [step.metrics["loss"] > 0 for step in run_sft(gpu, stage, 0)] == [True, True]


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_of_rl(gpu, lora):
    if lora:
        adapters.attach(gpu.model, LoRA(rank=2), gpu.tags.ids.values(), 0)
        gpu.model.to("cuda")
        gpu.lora = LoRA(rank=2)
    algorithm = {"name": "grpo", "kl": 0.1, "entropy": 0.01, "minibatches": 2}
    stage = RL(kind="rl", task="countdown-easy", steps=1, problems=2, group=2, sampling=SHORT, algorithm=algorithm)
    (step,) = run_rl(gpu, stage, 0)
    assert {"loss", "reference_kl", "entropy"} <= step.metrics.keys()


# A mistake in each of the three is found.


def test_a_mixing_in_the_engine_is_found(gpu, monkeypatch):
    real = Pool._part
    monkeypatch.setattr(Pool, "_part", lambda self, *args: real(self, *args).to("cpu"))
    with pytest.raises(Mixed):
        draw(LocalEngine(gpu.model), gpu.tags, prompts_of(gpu, 1), Sampling(budget=Budget(total=5)), 0)


def test_a_mixing_in_sampling_is_found(gpu, monkeypatch):
    real = distribution.log_probabilities
    monkeypatch.setattr(distribution, "log_probabilities", lambda logits, *rest: real(logits, *rest) + torch.zeros(1))
    with pytest.raises(Mixed):
        draw(LocalEngine(gpu.model), gpu.tags, prompts_of(gpu, 1), Sampling(budget=Budget(total=5)), 0)


def test_a_mixing_in_the_scorer_is_found(gpu):
    batch = batch_of(gpu, "isolated")
    with pytest.raises(Mixed):
        score(gpu.model, replace(batch, sees=batch.sees.to("cpu")))


def test_a_mixing_in_the_learner_is_found(gpu, monkeypatch):
    stage = SFT(kind="sft", steps=1, batch=2, data={"tasks": {"countdown-easy": 1.0}})
    real = batch_room.Batch.to
    monkeypatch.setattr(batch_room.Batch, "to", lambda batch, to: replace(real(batch, to), sampled=batch.sampled))
    with pytest.raises(Mixed):
        next(run_sft(gpu, stage, 0))
