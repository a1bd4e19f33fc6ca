"""The loops: normalisation, schedules, and small runs from end to end."""

import json
import math
from functools import partial
from itertools import cycle, islice
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from test_fork_join import force_forks

from parallel_r1 import evaluate, fork_join, models
from parallel_r1 import train as train_room
from parallel_r1.algorithms import sft
from parallel_r1.config import RL, SFT, Optimizer, Sampling, load_recipe
from parallel_r1.errors import UserError
from parallel_r1.rollout import read_jsonl
from parallel_r1.run_folder import RunFolder
from parallel_r1.tasks.countdown import EASY
from parallel_r1.train import Learner, build_policy, check, learning_rate, run_rl, run_sft, train

STAGE = {
    "kind": "sft",
    "steps": 2,
    "batch": 6,
    "data": {"tasks": {"countdown-easy": 1.0}, "parallel": 0.7, "paths": 3},
    "optimizer": {"lr": 1e-3},
}
RECIPE = """
name = "small"
compare = [["rl", "sft"]]
[model.architecture]
hidden = 16
layers = 1
heads = 2
kv_heads = 1
intermediate = 32
vocabulary = 300
[evaluation]
tasks = ["countdown-easy"]
problems = 3
samples = 2
[defaults.sampling]
paths = 2
budget = { critical_path = 30, path = 10, total = 60, forks = 2 }
[stages.sft]
kind = "sft"
steps = 2
batch = 4
data = { tasks = { countdown-easy = 1.0 }, parallel = 0.5 }
[stages.rl]
kind = "rl"
task = "countdown-easy"
steps = 3
problems = 2
group = 4
reward = "alternate(accuracy(), bonus(0.2), period=2, second=1)"
grpo = { minibatches = 2 }
save_rollouts_every = 2
[stages.plain]
kind = "rl"
start = "base"
task = "countdown-easy"
steps = 1
problems = 2
group = 2
scorer = "causal"
sampling = { sampler = "sequential" }
"""


def examples(policy, stage, count=6):
    from itertools import islice

    from parallel_r1 import coldstart

    source = coldstart.examples(stage.data, 0)
    return [coldstart.to_trace(each, policy, stage.sampling.sampler) for each in islice(source, count)]


def weights_after(policy, stage, batches):
    start = {name: value.clone() for name, value in policy.model.state_dict().items()}
    learner = Learner(policy.model, stage, len(batches))
    metrics = [learner.update(traces, sft.loss) for traces in batches]
    after = torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])
    policy.model.load_state_dict(start)
    return after, metrics


def test_the_update_does_not_depend_on_how_the_batch_is_cut_or_ordered(policy):
    """One micro-batch, many, packed rows, and another order give the same loss, gradient norm and weights."""
    whole = SFT(**STAGE, micro_tokens=100_000)
    pieces = whole.model_copy(update={"micro_tokens": 1})
    packed = whole.model_copy(update={"packing": True, "micro_tokens": 300})
    traces = examples(policy, whole)
    expected, metrics = weights_after(policy, whole, [traces])
    for stage, order in ((pieces, traces), (packed, traces), (whole, traces[::-1]), (pieces, traces[::-1])):
        found, others = weights_after(policy, stage, [order])
        assert torch.allclose(found, expected, atol=1e-5)
        assert others[0]["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-5)
        assert others[0]["gradient_norm"] == pytest.approx(metrics[0]["gradient_norm"], rel=1e-4)


def test_log_probabilities_come_back_in_order(policy):
    """The same for every trace, however the batch is cut."""
    whole = SFT(**STAGE, micro_tokens=100_000)
    traces = examples(policy, whole)
    expected = Learner(policy.model, whole, 1).logprobs(traces)
    assert [len(each) for each in expected] == [len(trace.token_ids) for trace in traces]
    for change in ({"micro_tokens": 1}, {"micro_tokens": 300, "packing": True}):
        found = Learner(policy.model, whole.model_copy(update=change), 1).logprobs(traces)
        assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(found, expected, strict=True))


def test_a_trace_with_advantage_zero_counts_in_the_mean_only(policy):
    stage = SFT(**STAGE)
    traces = examples(policy, stage, 2)
    sizes = [sum(len(s.token_ids) for s in t.spans if s.sampled) for t in traces]
    learner = Learner(policy.model, stage, 2)
    lone = learner.update(traces[:1], sft.loss)["loss"]
    learner = Learner(policy.model, stage.model_copy(update={"optimizer": Optimizer(lr=1e-12)}), 2)
    fresh = learner.update(traces[:1], sft.loss)["loss"]
    both = learner.update(traces, sft.loss, [1.0, 0.0])["loss"]
    assert both == pytest.approx(fresh * sizes[0] / sum(sizes), rel=1e-4)
    assert lone != pytest.approx(both)


def test_a_batch_without_signal_changes_nothing(policy):
    stage = SFT(**STAGE)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])
    Learner(policy.model, stage, 1).update(examples(policy, stage, 2), sft.loss, [0.0, 0.0])
    assert torch.equal(before, torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()]))


def test_learning_rates_by_hand():
    cosine = learning_rate(Optimizer(schedule="cosine", warmup=0.2), 10)
    assert [cosine(update) for update in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert cosine(6) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert cosine(10) == pytest.approx(0)
    constant = learning_rate(Optimizer(), 10)
    assert [constant(update) for update in (0, 9)] == [1.0, 1.0]


def test_sft_learns(policy):
    stage = SFT(**{**STAGE, "steps": 30, "batch": 8, "optimizer": {"lr": 1e-2}})
    losses = [row["loss"] for row in run_sft(policy, stage, 0)]
    assert losses[-1] < 0.6 * losses[0]
    assert policy.version == 30


def make(tmp_path, *overrides):
    (tmp_path / "small.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "small.toml", list(overrides))


def test_a_whole_curriculum_and_its_folder(tmp_path):
    recipe = make(tmp_path)
    run = RunFolder.create(tmp_path / "run", recipe)
    rows = []
    results = train(recipe, build_policy(recipe), run, rows.append)
    assert [(result.stage, result.task) for result in results] == [
        (stage, "countdown-easy") for stage in ("sft", "rl", "plain")
    ]
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if row["kind"] != "evaluation"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["stage"] for row in steps] == ["sft"] * 2 + ["rl"] * 3 + ["plain"]
    for row in steps[2:]:
        assert (
            row.get("mismatch_mean", 0) < 1e-4 or row["stage"] == "rl"
        )  # the second mini-batch is off-policy by design
    assert sorted(path.name for path in (run.path / "rollouts").iterdir()) == [
        f"step-{step}.jsonl" for step in (3, 4, 5, 6)
    ]
    (first, *_) = read_jsonl(run.path / "rollouts" / "step-3.jsonl")
    assert first.reward is not None
    assert first.trace.sampler == "isolated"
    assert load_recipe(run.path / "recipe.toml") == recipe
    assert json.loads((run.path / "environment.json").read_text())["packages"]["torch"]
    assert (run.path / "eval" / "rl.countdown-easy.json").is_file()
    again = models.load(str(run.checkpoint("rl")))
    assert again.encode("Use 1") == models.load(str(run.checkpoint("base"))).encode("Use 1")


def test_a_run_repeats_bit_for_bit(tmp_path):
    def weights(name):
        recipe = make(tmp_path)
        run = RunFolder.create(tmp_path / name, recipe)
        train(recipe, build_policy(recipe), run, lambda row: None)
        return [models.load(str(run.checkpoint(stage))).model.state_dict() for stage in ("sft", "rl", "plain")]

    for first, second in zip(weights("a"), weights("b"), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    recipe = make(tmp_path)
    RunFolder.create(tmp_path / "run", recipe)
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="holds something already"):
        RunFolder.create(tmp_path / "run", recipe)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.rl.task=countdown-hrd", "countdown-hard"),
        ("stages.rl.reward=acuracy()", "accuracy"),
        ("evaluation.tasks=['nothing']", "countdown-easy"),
        ("stages.sft.data={file='none.jsonl'}", "none.jsonl"),
        ("stages.sft.data.tasks={nothing=1}", "countdown-easy"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(tmp_path, override, said):
    with pytest.raises(UserError, match="expected") as caught:
        check(make(tmp_path, override))
    assert said in str(caught.value)


def test_the_attention_implementation_is_checked(tmp_path):
    for attention in ("eager", "flex_attention", "flash_attention_2"):
        with pytest.raises(UserError, match="sdpa"):
            build_policy(make(tmp_path, f"model.attention={attention}"))


def test_a_checkpoint_keeps_the_weights(tmp_path):
    recipe = make(tmp_path)
    policy = build_policy(recipe)
    models.save(policy, tmp_path / "model")
    again = models.load(str(tmp_path / "model"))
    state = again.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in policy.model.state_dict().items())


def repeating(task, problems):
    """The task with these problems, over and over."""
    return SimpleNamespace(name=task.name, verify=task.verify, problems=lambda split, seed: cycle(problems))


def test_a_mismatch_is_measured_at_every_step(policy, monkeypatch):
    """The paper's Seen variant: sampled blind, scored causally. What differs is logged, and where."""
    forced = partial(fork_join.draw, force=force_forks(policy.tags))
    monkeypatch.setattr(evaluate, "draw", forced)
    problems = list(islice(EASY.problems("train", 0), 2))
    # A problem that comes twice in a step makes one larger group.
    monkeypatch.setattr(train_room, "load_task", lambda name: repeating(EASY, [problems[0], problems[0], problems[1]]))
    stage = {
        "kind": "rl",
        "task": "countdown-easy",
        "steps": 2,
        "problems": 3,
        "group": 3,
        "sampling": {"sampler": "causal_join", "paths": 3, "budget": {"critical_path": 40, "path": 12}},
        "reward": "accuracy()",
    }
    mixed = RL.model_validate(
        {**stage, "scorer": "causal", "allow_mismatch": True, "grpo": {"correction": 2.0, "minibatches": 2}}
    )
    for row, _ in run_rl(policy, mixed, 0):
        assert 1e-2 < row["mismatch_mean"] < row["mismatch_max"]
        assert row["mismatch_after_fork"] > 1e-2
        assert row["mismatch_after_join"] <= 1e-4
    for row, rollouts in run_rl(policy, RL.model_validate({**stage, "scorer": "replay"}), 0):
        assert "mismatch_after_fork" not in row
        assert row["decoded"] > 0
        assert row["prefilled"] > 0
        assert 0 < row["peak_kv"] <= sum(len(each.trace.prompt_ids) + each.total for each in rollouts)


def test_rl_refuses_greedy_answers():
    with pytest.raises(ValidationError, match="above 0"):
        RL(kind="rl", task="countdown-easy", steps=1, sampling=Sampling(temperature=0))
