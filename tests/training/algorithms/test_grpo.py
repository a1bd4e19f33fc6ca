"""Credit and loss: against hand numbers, and against TRL's own loss on the same tensors."""

import math
from dataclasses import replace

import pytest
import torch
from against_trl import LONGEST, gradient, grpo_trainer, plain_traces, trl_inputs
from common import samples
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOTrainer

from parallel_r1.answers.trace import Span, Trace
from parallel_r1.generation.distribution import Decoding, log_probabilities
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO
from parallel_r1.training.algorithms.rloo import RLOO
from parallel_r1.training.algorithms.sft import CrossEntropy
from parallel_r1.training.batch import collate, score, score_with_entropy
from parallel_r1.training.sample import Sample


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize(("average", "theirs"), [("tokens", "dapo"), ("answers", "grpo"), ("constant", "dr_grpo")])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_loss_and_gradient_equal_trl(policy, tmp_path, low, high, average, theirs, kl):
    traces = plain_traces(policy)
    advantages = [1.5, -0.5, 0.7, -1.2, 0.3, -0.8]
    lengths = [len(trace.token_ids) for trace in traces]
    tokens = sum(lengths)
    reference = [torch.tensor(trace.spans[0].logprobs).flip(0) - 0.1 for trace in traces]

    algorithm = GRPO(clip_low=low, clip_high=high, average=average, kl=kl)
    columns = zip(traces, advantages, algorithm.weights(lengths, LONGEST), reference, strict=True)
    batch = collate([Sample(trace, *values, reference=given) for trace, *values, given in columns], "causal")
    ours, metrics = algorithm.loss(score(policy.model, batch), batch, tokens)
    ours.backward()
    our_gradient = gradient(policy.model)
    policy.model.zero_grad()
    assert 0.05 < metrics["clip_fraction"] < 0.95

    trainer = GRPOTrainer(**grpo_trainer(policy, tmp_path, loss_type=theirs, epsilon=low, epsilon_high=high))
    trainer.beta = kl  # with it from the start it would load a reference, whose log-probabilities are given here
    policy.model.eval()
    theirs = trainer._compute_loss(policy.model, trl_inputs(policy, traces, advantages, reference))
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(our_gradient, gradient(policy.model), atol=1e-6)


def advantages(rewards, std="group"):
    return GRPO(std=std).advantages([rewards])[0]


def test_advantages_by_hand():
    assert advantages([1.0] * 3) == [0, 0, 0]
    half = advantages([1.2] * 4 + [1.0] * 4)
    assert half[0] == pytest.approx(0.935, abs=1e-3)
    assert half[-1] == pytest.approx(-0.935, abs=1e-3)
    assert advantages([1.2] + [1.0] * 7)[0] == pytest.approx(2.475, abs=1e-3)
    assert advantages([1.0, -1.0, -1.0, 1.0], "none") == [1, -1, -1, 1]


def test_the_deviation_of_the_whole_batch_keeps_small_differences_small():
    groups = [[1.0, -1.0], [1.2, 1.0], [1.0, 1.0]]
    found = GRPO(std="batch").advantages(groups)
    scale = torch.tensor(groups).std().item()
    assert found[0] == pytest.approx([1 / scale, -1 / scale], rel=1e-4)
    assert found[1] == pytest.approx([0.1 / scale, -0.1 / scale], rel=1e-4)
    assert found[2] == [0, 0]


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=9), st.sampled_from(["group", "batch", "none"]))
def test_advantages_sum_to_nothing(rewards, std):
    assert sum(advantages(rewards, std)) == pytest.approx(0, abs=1e-3)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_what_the_loss_is_a_mean_over(lengths):
    """The weights of all tokens, divided by the tokens of the batch: shares of the loss."""

    def shares(average):
        weights = GRPO(average=average).weights(lengths, longest=50)
        return [weight * length / sum(lengths) for weight, length in zip(weights, lengths, strict=True)]

    assert shares("tokens") == pytest.approx([length / sum(lengths) for length in lengths])
    assert shares("answers") == pytest.approx([1 / len(lengths)] * len(lengths))
    assert shares("constant") == pytest.approx([length / 50 / len(lengths) for length in lengths])


def test_the_entropy_bonus_is_that_of_the_distribution(policy):
    """Against the entropy of torch's own distribution; its gradient is that of the plain sum."""
    batch = collate(samples(plain_traces(policy, 2)), "causal")
    logits = policy.model(batch.token_ids).logits
    for shape in (Decoding(0.7, 20), Decoding(0.7)):
        logprobs, entropies = score_with_entropy(policy.model, batch, shape)
        oracle = torch.distributions.Categorical(logits=log_probabilities(logits.flatten(0, 1), shape)).entropy()
        oracle = oracle.view(batch.token_ids.shape).roll(1, dims=1)
        assert torch.allclose(entropies[batch.sampled], oracle[batch.sampled], atol=1e-5)
        entropies.sum().backward(retain_graph=True)
        assert torch.isfinite(gradient(policy.model)).all()
        assert (entropies[batch.source < 0] == 0).all()
    tokens = int(batch.sampled.sum())
    same = replace(batch, old=logprobs.detach())
    plain, _ = GRPO().loss(logprobs, same, tokens)
    paid, metrics = GRPO(entropy=0.1).loss(logprobs, same, tokens, entropies)
    assert metrics["entropy"] == pytest.approx(entropies.sum().item() / tokens)
    assert paid.item() == pytest.approx(plain.item() - 0.1 * metrics["entropy"], abs=1e-6)
    (gained,) = torch.autograd.grad(plain - paid, policy.model.get_input_embeddings().weight, retain_graph=True)
    (expected,) = torch.autograd.grad(0.1 * entropies.sum() / tokens, policy.model.get_input_embeddings().weight)
    assert torch.isfinite(expected).all()
    assert torch.allclose(gained, expected, atol=1e-6)


def test_the_first_update_has_ratio_one(policy):
    """Drawn by the policy itself, the loss is minus the token-weighted mean advantage and nothing is clipped."""
    traces = plain_traces(policy, 2)
    batch = collate([Sample(traces[0], 1.0), Sample(traces[1], -1.0)], "causal")
    logprobs = score(policy.model, batch)
    same = collate(
        [
            Sample(replace(trace, spans=(replace(trace.spans[0], logprobs=tuple(values.tolist())),)), advantage)
            for trace, values, advantage in zip(traces, batch.gather(logprobs), (1.0, -1.0), strict=True)
        ],
        "causal",
    )
    lengths = [len(trace.token_ids) for trace in traces]
    loss, metrics = GRPO().loss(logprobs, same, sum(lengths))
    assert loss.item() == pytest.approx(-(lengths[0] - lengths[1]) / sum(lengths), abs=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["mismatch_mean"] == pytest.approx(0, abs=1e-6)


def test_a_mismatch_is_weighed_by_truncated_importance():
    """Drawn with probabilities e^-1 and e^-3, scored with e^-2 and e^-1: the weights are e^-1 and, cut, 2."""
    trace = Trace((1,), (Span((2, 3), (), True, (-1.0, -3.0)),))
    batch = collate([Sample(trace, old=torch.tensor([-2.0, -1.0]))], "causal")
    logprobs = batch.old.clone().requires_grad_()
    plain, metrics = GRPO().loss(logprobs, batch, 2)
    assert plain.item() == pytest.approx(-1)
    assert metrics["mismatch_mean"] == pytest.approx(1.5)
    assert metrics["mismatch_max"] == pytest.approx(2)
    weighed, _ = GRPO(correction=2.0).loss(logprobs, batch, 2)
    weighed.backward()
    weights = [0.0, math.exp(-1), 2.0]
    assert weighed.item() == pytest.approx(-sum(weights) / 2)
    assert logprobs.grad[0].tolist() == pytest.approx([-weight / 2 for weight in weights])


@pytest.mark.parametrize("objective", [CrossEntropy(), GRPO(), GSPO(average="tokens"), RLOO()])
def test_given_tokens_have_no_gradient(policy, objective):
    """With the loss's own gradient on log-probabilities: zero wherever a token was given."""
    trace = plain_traces(policy, 1)[0]
    span = trace.spans[0]
    cut = len(span.token_ids) // 2
    halves = (
        Span(span.token_ids[:cut], (), False),
        Span(span.token_ids[cut:], (), True, span.logprobs[cut:]),
    )
    batch = collate([Sample(Trace(trace.prompt_ids, halves))], "causal")
    logprobs = score(policy.model, batch).detach().requires_grad_()
    objective.loss(logprobs, batch, 3)[0].backward()
    assert (logprobs.grad[~batch.sampled] == 0).all()
    assert (logprobs.grad[batch.sampled] != 0).any()


def test_a_token_that_a_filter_leaves_out_is_not_learnt_from(policy):
    """The scorer would not have drawn one token before the step, and another after it: no loss, gradient or metric of
    the others is lost, and the first counts for nothing."""
    traces = plain_traces(policy, 2)
    batch = collate([Sample(traces[0], 1.0), Sample(traces[1], -1.0)], "causal")
    first, second = (index.tolist() for index in batch.sampled.nonzero()[[0, 1]])
    old = batch.old.clone()
    old[tuple(first)] = -math.inf
    batch = replace(batch, old=old)
    gone = torch.zeros_like(batch.sampled)
    gone[tuple(first)] = gone[tuple(second)] = True
    logprobs = score(policy.model, batch).masked_fill(gone, -math.inf).detach().requires_grad_()
    for algorithm in (GRPO(), GRPO(correction=2.0), GSPO(), RLOO()):
        logprobs.grad = None
        value, metrics = algorithm.loss(logprobs, batch, 10)
        value.backward()
        assert value.isfinite()
        assert all(map(math.isfinite, metrics.values()))
        assert logprobs.grad.isfinite().all()
        assert logprobs.grad[tuple(first)] == 0
    known = replace(batch, sampled=batch.sampled & ~gone)
    assert GRPO().loss(logprobs, known, 10)[1]["mismatch_mean"] == pytest.approx(
        GRPO().loss(logprobs, batch, 10)[1]["mismatch_mean"]
    )
