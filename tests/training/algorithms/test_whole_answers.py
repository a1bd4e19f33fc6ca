"""RLOO and GSPO, whose ratio is that of a whole answer: against loops over tokens, and against TRL's own losses."""

import oracles
import pytest
import torch
from against_trl import gradient, grpo_trainer, plain_traces, trainer_arguments, trl_inputs
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from parallel_r1.answers.parser import parse
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO
from parallel_r1.training.algorithms.rloo import RLOO
from parallel_r1.training.batch import collate, score
from parallel_r1.training.sample import Sample

ADVANTAGES = [1.5, -0.5, 0.7, -1.2, 0.3, -0.8]
NESTED = (
    "a <Parallel><Path>3+5=8 <Parallel><Path>7</Path><Path>10, no</Path></Parallel>\n<Summary>b</Summary></Path>"
    "<Path>5*7=35</Path></Parallel>\n<Summary>c</Summary>\nFinal Answer: 8"
)
FORKED = "<Parallel><Path>3+5</Path><Path>5*7=35, 35-3=32 no</Path><Path>1</Path></Parallel>\n<Summary>c</Summary>\nend"
PLAIN = "3*5=15, 15+7=22 yes: 3*5+7\nFinal Answer: 3*5+7"


def weighed(algorithm, samples, longest=100):
    """The samples of the only update from one group."""
    (update,) = algorithm.updates([samples], longest)
    return update


def near(generator, size, spread):
    return -2.0 + spread * torch.randn(size, generator=generator)


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
@pytest.mark.parametrize("rows", [None, [4], [1, 3], [2, 2]])
@pytest.mark.parametrize(
    ("algorithm", "mean", "spread"),
    [(GSPO(clip_low=0.01, clip_high=0.02), True, 0.3), (RLOO(), False, 0.1), (GSPO(), True, 2e-2)],
)
def test_loss_and_gradient_equal_the_oracle(frozen, scorer, rows, algorithm, mean, spread):
    """All sampled tokens of all paths count, given tokens never, wherever in the rows an answer lies."""
    prompt = frozen.encode("Use 3, 5, 7 to make 22.\n")
    traces = [
        parse(frozen.encode(text), frozen.tags, sampler="isolated", prompt_ids=prompt)
        for text in (FORKED, PLAIN, NESTED, FORKED)
    ]
    assert [trace.forks for trace in traces] == [1, 0, 2, 1]
    generator = torch.Generator().manual_seed(0)
    old = [near(generator, len(trace.token_ids), 1.0) for trace in traces]
    new = [(row + near(generator, len(row), spread) + 2.0).requires_grad_() for row in old]
    advantages = [1.0, -0.7, 0.4, -0.2]
    samples = [Sample(t, a, old=row) for t, a, row in zip(traces, advantages, old, strict=True)]
    batch = collate(weighed(algorithm, samples), scorer, rows=rows)
    logprobs = torch.cat([*[row.detach() for row in new], torch.zeros(1)])[batch.source].requires_grad_()
    tokens = sum(sample.sampled for sample in samples)
    loss, metrics = algorithm.loss(logprobs, batch, tokens)
    loss.backward()

    flags = [[span.sampled for span in trace.spans for _ in span.token_ids] for trace in traces]
    assert sum(map(sum, flags)) == tokens < sum(map(len, flags))
    answers = [
        (advantage, list(zip(sampled, row, before.tolist(), strict=True)))
        for advantage, sampled, row, before in zip(advantages, flags, new, old, strict=True)
    ]
    expected = oracles.whole_answer_loss(answers, algorithm.clip_low, algorithm.clip_high, mean)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert 0 < metrics["clip_fraction"] < 1
    gradients = [torch.zeros_like(row) if row.grad is None else row.grad for row in new]  # none where it was clipped
    assert any(gradient.any() for gradient in gradients)
    for ours, theirs in zip(batch.gather(logprobs.grad), gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("algorithm", [GSPO(clip_low=0.02, clip_high=0.02), RLOO(), GRPO()])
def test_no_fork_no_difference(frozen, algorithm):
    """For answers without a fork the loss under `isolated` is that of plain causal text, bit for bit."""
    traces = plain_traces(frozen)
    samples = [Sample(trace, advantage) for trace, advantage in zip(traces, ADVANTAGES, strict=True)]
    losses = []
    for scorer in ("isolated", "replay", "causal"):
        batch = collate(weighed(algorithm, samples), scorer)
        logprobs = score(frozen.model, batch).detach().requires_grad_()
        loss, _ = algorithm.loss(logprobs, batch, sum(sample.sampled for sample in samples))
        (of_logprobs,) = torch.autograd.grad(loss, logprobs)
        losses.append((loss.detach(), of_logprobs))
    for loss, of_logprobs in losses[1:]:
        assert torch.equal(loss, losses[0][0])
        assert torch.equal(of_logprobs, losses[0][1])


def ours(policy, algorithm, traces):
    """Our loss and its gradient in the model."""
    samples = [Sample(trace, advantage) for trace, advantage in zip(traces, ADVANTAGES, strict=True)]
    batch = collate(weighed(algorithm, samples), "causal")
    loss, metrics = algorithm.loss(score(policy.model, batch), batch, sum(sample.sampled for sample in samples))
    loss.backward()
    found = gradient(policy.model)
    policy.model.zero_grad()
    policy.model.eval()
    assert 0 < metrics["clip_fraction"] < 1
    return loss.item(), found


@pytest.mark.parametrize(("low", "high"), [(0.03, 0.03), (0.02, 0.1)])
def test_gspo_equals_trl(policy, tmp_path, low, high):
    traces = plain_traces(policy)
    loss, of_weights = ours(policy, GSPO(clip_low=low, clip_high=high), traces)
    options = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": low, "epsilon_high": high}
    trainer = GRPOTrainer(**grpo_trainer(policy, tmp_path, **options))
    theirs = trainer._compute_loss(policy.model, trl_inputs(policy, traces, ADVANTAGES))
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(of_weights, gradient(policy.model), atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.9, 2.0)])
def test_rloo_equals_trl(policy, tmp_path, low, high):
    traces = plain_traces(policy)
    loss, of_weights = ours(policy, RLOO(clip_low=low, clip_high=high), traces)
    trainer = RLOOTrainer(**trainer_arguments(policy, RLOOConfig, tmp_path, epsilon=low, epsilon_high=high))
    theirs = trainer._compute_loss(policy.model, trl_inputs(policy, traces, ADVANTAGES))
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-4)
    assert torch.allclose(of_weights, gradient(policy.model), rtol=1e-3, atol=1e-4)


@given(st.lists(st.lists(st.floats(-2, 2), min_size=2, max_size=9), min_size=1, max_size=3))
def test_the_baseline_of_an_answer_is_the_mean_of_the_others(groups):
    for ours, rewards in zip(RLOO().advantages(groups), groups, strict=True):
        assert ours == pytest.approx(oracles.leave_one_out(rewards), abs=1e-9)


def test_an_answer_that_is_alone_has_no_advantage():
    assert RLOO().advantages([[0.5], [1.0, 1.0], [1.0, 0.0]]) == [[0.0], [0.0, 0.0], [1.0, -1.0]]


def test_gspo_compares_with_the_group_as_grpo_does():
    rewards = [[1.0, 0.0, 0.5], [1.0, 1.0]]
    for std in ("group", "batch", "none"):
        assert GSPO(std=std).advantages(rewards) == GRPO(std=std).advantages(rewards)
