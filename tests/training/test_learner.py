"""The learner: one update, however a batch is cut, and the learning rates."""

import math
import warnings
from dataclasses import replace

import common
import pytest
import torch
from architectures import random_model
from common import STAGE
from safetensors import safe_open

from parallel_r1 import models
from parallel_r1.answers.trace import Span, Trace
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.models.settings import LoRA
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO
from parallel_r1.training.algorithms.rloo import RLOO
from parallel_r1.training.algorithms.sft import CrossEntropy
from parallel_r1.training.learner import Learner
from parallel_r1.training.optimizer import learning_rate, moments_of
from parallel_r1.training.sample import Sample
from parallel_r1.training.settings import SFT, Optimizer


def examples(policy, stage, count=6):
    return common.samples(common.examples(policy, stage, count))


def weights_after(policy, stage, batches):
    start = {name: value.clone() for name, value in policy.model.state_dict().items()}
    learner = Learner(policy.model, stage, len(batches))
    metrics = [learner.update(samples, CrossEntropy()) for samples in batches]
    after = torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])
    policy.model.load_state_dict(start)
    return after, metrics


def test_the_update_does_not_depend_on_how_the_batch_is_cut_or_ordered(policy):
    """One micro-batch, many, packed rows, activations computed again, and another order give the same loss, norm and
    weights."""
    whole = SFT(**STAGE, micro_tokens=100_000)
    pieces = whole.model_copy(update={"micro_tokens": 1})
    packed = whole.model_copy(update={"packing": True, "micro_tokens": 300})
    samples = examples(policy, whole)
    expected, metrics = weights_after(policy, whole, [samples])
    again = whole.model_copy(update={"recompute": True})
    for stage, order in (
        (pieces, samples),
        (packed, samples),
        (again, samples),
        (whole, samples[::-1]),
        (pieces, samples[::-1]),
    ):
        found, others = weights_after(policy, stage, [order])
        # Adam divides a gradient by its size, and so enlarges rounding where it is almost 0: to 1.1e-5 on one machine.
        assert torch.allclose(found, expected, atol=1e-4)
        assert others[0]["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-5)
        assert others[0]["gradient_norm"] == pytest.approx(metrics[0]["gradient_norm"], rel=1e-4)


def test_log_probabilities_come_back_in_order(policy):
    """The same for every trace, however the batch is cut."""
    whole = SFT(**STAGE, micro_tokens=100_000)
    traces = common.examples(policy, whole)
    expected = Learner(policy.model, whole, 1).logprobs(traces)
    assert [len(each) for each in expected] == [len(trace.token_ids) for trace in traces]
    for change in ({"micro_tokens": 1}, {"micro_tokens": 300, "packing": True}):
        found = Learner(policy.model, whole.model_copy(update=change), 1).logprobs(traces)
        assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(found, expected, strict=True))


def test_a_trace_with_advantage_zero_counts_in_the_mean_only(policy):
    stage = SFT(**STAGE)
    samples = examples(policy, stage, 2)
    sizes = [sample.sampled for sample in samples]
    learner = Learner(policy.model, stage, 2)
    lone = learner.update(samples[:1], CrossEntropy())["loss"]
    learner = Learner(policy.model, stage.model_copy(update={"optimizer": Optimizer(lr=1e-12)}), 2)
    fresh = learner.update(samples[:1], CrossEntropy())["loss"]
    both = learner.update([samples[0], replace(samples[1], advantage=0.0)], CrossEntropy())["loss"]
    assert both == pytest.approx(fresh * sizes[0] / sum(sizes), rel=1e-4)
    assert lone != pytest.approx(both)


def test_a_batch_without_signal_changes_nothing(policy):
    stage = SFT(**STAGE)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])
    learner = Learner(policy.model, stage.model_copy(update={"optimizer": Optimizer(schedule="cosine")}), 2)
    dead = [replace(sample, advantage=0.0) for sample in examples(policy, stage, 2)]
    rates = [learner.update(dead, CrossEntropy())["lr"] for _ in range(2)]
    assert rates == [1e-4, 5e-5]  # the schedule goes on
    assert torch.equal(before, torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]))


def test_a_gradient_that_is_not_finite_is_skipped_and_many_end_the_stage(policy):
    stage = SFT(**STAGE)
    samples = examples(policy, stage, 2)
    learner = Learner(policy.model, stage, 20)

    def weights():
        return torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])

    class Broken(CrossEntropy):
        def loss(self, logprobs, batch, tokens, entropies=None):
            return logprobs.sum() * math.nan, {}

    broken = Broken()

    before = weights()
    with warnings.catch_warnings(action="error"):
        found = learner.update(samples, broken)
    assert found["skipped"] == 1
    assert all(map(math.isfinite, found.values()))
    assert torch.equal(before, weights())
    assert "skipped" not in learner.update(samples, CrossEntropy())
    assert not torch.equal(before, weights())
    for _ in range(4):
        learner.update(samples, broken)
    with pytest.raises(FloatingPointError, match="5 updates in a row"):
        learner.update(samples, broken)


@pytest.mark.parametrize("algorithm", [CrossEntropy(), GRPO(), GRPO(kl=0.1, entropy=0.1), GSPO(), RLOO()])
def test_an_update_without_a_sampled_token_changes_nothing(policy, algorithm):
    """All tokens were given, so there is no token to take a mean over; or there is no sample at all."""
    stage = SFT(**STAGE)
    learner = Learner(policy.model, stage.model_copy(update={"optimizer": Optimizer(schedule="cosine")}), 2)
    before = policy.model.get_input_embeddings().weight.detach().clone()
    trace = Trace((1, 2), (Span((3, 4, 5), (), False),))
    rates = [learner.update(batch, algorithm) for batch in ([Sample(trace, 1.0), Sample(trace, -1.0)], [])]
    assert rates == [{"lr": 1e-4}, {"lr": 5e-5}]
    assert torch.equal(before, policy.model.get_input_embeddings().weight)


def test_an_update_whose_loss_is_not_finite_is_skipped(policy):
    """Although its gradient is: the weights stay, and what is reported is finite."""

    class Infinite(CrossEntropy):
        def loss(self, logprobs, batch, tokens, entropies=None):
            value, _ = super().loss(logprobs, batch, tokens)
            return value, {"loss": math.inf}

    stage = SFT(**STAGE)
    before = policy.model.get_input_embeddings().weight.detach().clone()
    metrics = Learner(policy.model, stage, 2).update(examples(policy, stage, 2), Infinite())
    assert metrics["skipped"] == 1
    assert set(metrics) == {"lr", "gradient_norm", "skipped"}
    assert torch.equal(before, policy.model.get_input_embeddings().weight)


def test_what_a_stage_says_of_its_updates_is_done(policy):
    """Micro-batches by tokens, precision, recomputation, the optimiser's numbers."""
    optimizer = Optimizer(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.3, clip=0.01, schedule="cosine", warmup=0.5)
    stage = SFT(**{**STAGE, "micro_tokens": 1, "precision": "bf16", "recompute": True, "optimizer": optimizer})
    learner = Learner(policy.model, stage, 4)
    assert policy.model.is_activation_checkpointing
    decayed, rest = learner.optimizer.param_groups
    assert decayed["betas"] == rest["betas"] == (0.8, 0.9)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    norms, clip = [], learner.accelerator.clip_grad_norm_
    learner.accelerator.clip_grad_norm_ = lambda parameters, most: norms.append(most) or clip(parameters, most)
    passes = []

    class Counting(CrossEntropy):
        def loss(self, logprobs, batch, tokens, entropies=None):
            passes.append(len(batch.sizes))
            return super().loss(logprobs, batch, tokens)

    samples = examples(policy, stage, 3)
    precise = Learner(policy.model, stage.model_copy(update={"precision": "fp32"}), 1).logprobs(
        [sample.trace for sample in samples]
    )
    rough = learner.logprobs([sample.trace for sample in samples])
    gap = max((one - two).abs().max().item() for one, two in zip(precise, rough, strict=True))
    assert 1e-4 < gap < 0.5
    assert [learner.update(samples, Counting())["lr"] for _ in range(3)] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert passes == [1] * 9
    assert norms == [0.01] * 3


def test_learning_rates_by_hand():
    cosine = learning_rate(Optimizer(schedule="cosine", warmup=0.2), 10)
    assert [cosine(update) for update in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert cosine(6) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert cosine(10) == pytest.approx(0)
    constant = learning_rate(Optimizer(), 10)
    assert [constant(update) for update in (0, 9)] == [1.0, 1.0]


def test_moments_that_are_carried_on_are_those_of_one_long_stage(policy):
    """Two stages of two updates are one of four; with a fresh optimiser they are not. By name, whatever the order."""
    stage = SFT(**STAGE)
    batches = [examples(policy, stage, count) for count in (2, 3, 4, 5)]
    start = {name: value.clone() for name, value in policy.model.state_dict().items()}
    whole, _ = weights_after(policy, stage, batches)

    def in_two(carried):
        learner = Learner(policy.model, stage, 2)
        for samples in batches[:2]:
            learner.update(samples, CrossEntropy())
        moments = moments_of(learner.state())
        learner = Learner(policy.model, stage, 2)
        if carried:
            learner.carry(dict(reversed(moments.items())))
        for samples in batches[2:]:
            learner.update(samples, CrossEntropy())
        found = torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])
        policy.model.load_state_dict(start)
        return moments, found

    moments, found = in_two(True)
    assert set(moments) == {name for name, _ in policy.model.named_parameters()}
    assert torch.equal(found, whole)
    assert not torch.equal(in_two(False)[1], whole)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", ["whole", "adapter"])
@pytest.mark.parametrize("embeddings", ["all", "used"])
def test_the_rows_of_the_tags_learn_at_their_own_rate(tokenizer, tags, tied, kept, embeddings):
    """By hand in double precision: AdamW without decay, at seven times the rate for six rows."""
    policy = Policy(random_model("llama", len(tokenizer), tie_word_embeddings=tied), tokenizer, tags)
    if kept == "adapter":
        adapters.attach(policy.model, LoRA(rank=2), tags.ids.values(), 0)
    settings = Optimizer(lr=1e-2, tags=7.0, embeddings=embeddings, weight_decay=0.3, schedule="cosine", warmup=0.5)
    stage = SFT(**{**STAGE, "optimizer": settings})
    learner = Learner(policy.model, stage, 4, tag_ids=tags.ids.values())
    tables = adapters.embedding_rows(policy.model)
    assert len(tables) == (1 if tied else 2)
    hand = [rows.detach().double() for rows, _ in tables]
    first, second = ([torch.zeros_like(rows) for rows in hand] for _ in range(2))
    is_tag = [torch.isin(tokens, torch.tensor(sorted(tags.ids.values()))) for _, tokens in tables]
    assert all(chosen.sum() == 6 for chosen in is_tag)

    def follow(optimizer, arguments, keywords):
        step = seen[0] = seen[0] + 1
        for at, (rows, _) in enumerate(tables):
            gradient = rows.grad.double()
            first[at] = 0.9 * first[at] + 0.1 * gradient
            second[at] = 0.95 * second[at] + 0.05 * gradient**2
            rate = optimizer.param_groups[1]["lr"] * torch.where(is_tag[at], 7.0, 1.0)[:, None]
            move = first[at] / (1 - 0.9**step) / ((second[at] / (1 - 0.95**step)).sqrt() + 1e-8)
            hand[at] = hand[at] - rate * move

    seen = [0]
    learner.optimizer.optimizer.register_step_pre_hook(follow)
    samples = examples(policy, stage, 8)
    for part in range(4):
        learner.update(samples[2 * part : 2 * part + 2], CrossEntropy())
    assert seen == [4]
    for (rows, _), expected, chosen in zip(tables, hand, is_tag, strict=True):
        assert torch.allclose(rows.double(), expected, atol=1e-6)
        assert (rows.double() - expected)[chosen].abs().max() <= 1e-6


def test_tied_weights_stay_tied(policy, tmp_path):
    """Through training, on disk, and when they are loaded again."""
    model, stage = policy.model, SFT(**STAGE)
    before = model.lm_head.weight.detach().clone()
    Learner(model, stage, 1).update(examples(policy, stage), CrossEntropy())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before)
    models.save(policy, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert sum(saved.get_slice(name).get_shape() == [*before.shape] for name in saved.keys()) == 1  # noqa: SIM118
    again = models.load(str(tmp_path)).model
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
