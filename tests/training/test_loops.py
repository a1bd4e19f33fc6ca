"""The loops, and small runs from end to end."""

import copy
import json
import math
import random
import re
from itertools import cycle, islice
from statistics import fmean
from types import SimpleNamespace
from unittest.mock import patch

import processes
import pytest
import torch
import victim
from common import RECIPE, STAGE, Forcing, force_forks, make
from conftest import small_model

import parallel_r1 as pr
from parallel_r1 import models
from parallel_r1.answers.rollout import Group, read_jsonl
from parallel_r1.errors import UserError
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.settings import Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.report.progress import figures
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_check import check
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.load import load_task
from parallel_r1.training import loops as train_room
from parallel_r1.training.algorithms.sft import CrossEntropy
from parallel_r1.training.learner import Learner
from parallel_r1.training.loops import draw_groups, run_rl, run_sft
from parallel_r1.training.settings import RL, SFT


@pytest.mark.parametrize("rule", [False, True])
def test_a_run_that_diverges_keeps_and_names_its_last_good_weights(tmp_path, monkeypatch, rule):
    """Those before the first update that was skipped, whatever a stop rule thinks is best."""
    learnt, calls = CrossEntropy.loss, []

    def loss(self, logprobs, batch, tokens, entropies=None):
        calls.append(tokens)
        found, metrics = learnt(self, logprobs, batch, tokens)
        return found * (1 if len(calls) <= 3 else math.nan), metrics

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    stop = ["stages.sft.stop={task='countdown-easy',every=1,problems=1,samples=1,patience=9}"] if rule else []
    recipe = make(tmp_path, "stages.sft.steps=9", "evaluation.tasks=[]", *stop).only("sft")
    run = RunFolder.create(tmp_path / "run", recipe)
    policy = build_policy(recipe)
    with pytest.raises(UserError, match=r"stage sft.*state/weights-7") as caught:  # four more steps were skipped
        train(recipe, policy, run, lambda row: None)
    kept = models.load(str(caught.value.fix.split(" are ")[1])).model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in policy.model.state_dict().items())


def test_weights_that_are_no_numbers_are_not_good(tmp_path, monkeypatch):
    def loss(self, logprobs, batch, tokens, entropies=None):
        policy.model.get_input_embeddings().weight.data.fill_(math.nan)
        return logprobs.sum() * math.nan, {}

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    recipe = make(tmp_path, "stages.sft.steps=9")
    run = RunFolder.create(tmp_path / "run", recipe)
    policy = build_policy(recipe)
    with pytest.raises(UserError, match=r"stage sft.*checkpoints/base"):
        train(recipe, policy, run, lambda row: None)
    assert models.load(str(run.checkpoint("base")))


def test_a_model_whose_logits_are_no_numbers_draws_nothing_to_learn_from(policy, tmp_path):
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="no answer with a token"):
        next(run_rl(policy, rl_stage(tmp_path), 0))


@pytest.mark.slow
def test_what_a_model_cannot_hold_is_refused_before_it_learns(tmp_path):
    long = {"prompt": "x", "text": "1 " * 600}
    (tmp_path / "long.jsonl").write_text(json.dumps({**long, "text": "ok"}) + "\n" + json.dumps(long) + "\n")
    for change, said in (
        (f"stages.sft.data={{file='{tmp_path / 'long.jsonl'}'}}", "row 2 of"),
        ("stages.rl.sampling.budget={total=600,critical_path=600}", "stages.rl: an answer may reach over 600"),
        ("stages.sft.sampling.budget={total=600,critical_path=600}", "stages.sft: an answer may reach over 600"),
    ):
        recipe = make(tmp_path, "model.architecture.positions=512", change)
        (tmp_path / "data").mkdir(exist_ok=True)
        policy = build_policy(make(tmp_path, "model.architecture.positions=512"))
        with pytest.raises(UserError, match=re.escape(said)):
            train(recipe, policy, RunFolder(tmp_path / "run"), lambda row: None)


def test_what_a_recipe_says_reaches_the_update(policy, tmp_path, monkeypatch):
    """Reward and step, group, weights of answers, clip range and all else of the loss, whole groups a mini-batch."""
    seen = []

    def update(self, samples, algorithm):
        seen.append((samples, algorithm))
        return {"lr": 0.0}

    monkeypatch.setattr(Learner, "update", update)
    stage = rl_stage(
        tmp_path,
        "stages.rl.reward='switch(accuracy(wrong=-1), accuracy(wrong=-3), at=1)'",
        "stages.rl.algorithm={minibatches=2,std='none',average='constant',clip_low=0.1,clip_high=0.3,correction=2.0}",
        "stages.rl.problems=4",
        "stages.rl.steps=2",
    )
    monkeypatch.setattr(train_room, "load_task", lambda *_: Coin())
    for step, (_, rollouts, _) in enumerate(run_rl(policy, stage, 0), 1):
        assert {rollout.reward for rollout in rollouts} == {1.0, [-1.0, -3.0][step - 1]}
        rewards = {id(rollout.trace): rollout.reward for rollout in rollouts}
        groups = {rollout.trace.prompt_ids: [] for rollout in rollouts}
        for rollout in rollouts:
            groups[rollout.trace.prompt_ids].append(rollout.reward)
        parts = [{sample.trace.prompt_ids for sample in samples} for samples, _ in seen]
        assert [len(part) for part in parts] == [2, 2]
        assert not parts[0] & parts[1]
        for samples, algorithm in seen:
            assert algorithm == stage.algorithm
            traces = [sample.trace for sample in samples]
            earned = [rewards[id(t)] - fmean(groups[t.prompt_ids]) for t in traces]
            assert [sample.advantage for sample in samples] == earned
            sampled = [sum(len(span.token_ids) for span in t.spans if span.sampled) for t in traces]
            assert [sample.weight for sample in samples] == [fmean(sampled) / stage.sampling.budget.total] * len(traces)
            assert all(sample.old is None and sample.reference is None for sample in samples)
        seen.clear()


class Coin:
    """Countdown whose every second answer is right."""

    name = "countdown-easy"

    def __init__(self):
        self.asked, self.verdicts = EASY.problems("train", 0), cycle((True, False))

    def problems(self, split, seed):
        return self.asked

    def verify(self, problems, answers):
        return [next(self.verdicts) for _ in answers]


def test_in_bf16_ratios_are_to_what_the_learner_says_itself(policy, tmp_path):
    """The engine draws in fp32, so the two differ; but the first ratio is 1, and the difference is measured."""
    kept = {}

    def step(precision):
        stage = rl_stage(
            tmp_path, f"stages.rl.precision={precision}", "stages.rl.algorithm={clip_low=1e-6,clip_high=1e-6}"
        )
        return next(run_rl(copy.deepcopy(policy), stage, 0)).metrics

    with patch.object(train_room, "load_task", lambda *_: Coin()):
        kept = {precision: step(precision) for precision in ("fp32", "bf16")}
    assert kept["bf16"]["clip_fraction"] == 0
    assert kept["bf16"]["mismatch_mean"] > 100 * kept["fp32"]["mismatch_mean"]
    assert kept["bf16"]["loss"] == pytest.approx(kept["fp32"]["loss"], abs=1e-3)


def test_the_metrics_of_a_step_are_means_over_the_updates_that_have_them():
    updates = [{"lr": 1.0}, {"lr": 3.0, "loss": 5.0}, {"lr": 2.0, "skipped": 1.0}, {"lr": 2.0}]
    assert train_room.means(updates) == {"lr": 2.0, "loss": 5.0, "skipped": 0.25}


def rl_stage(tmp_path, *overrides):
    return make(tmp_path, *overrides).stages["rl"]


def test_groups_without_signal_are_refilled(policy, tmp_path, monkeypatch):
    """Whatever a group earns by its problem: the first problem of every draw has equal rewards."""
    stage = rl_stage(tmp_path, "stages.rl.algorithm.refill=2", "stages.rl.problems=4")
    task = load_task(stage.task)
    dead = set()

    def rewarded(members):
        if not dead or members.problem.id in dead:
            dead.add(members.problem.id)
            return Group(members.problem, tuple(rollout.rewarded({"a": 1.0}) for rollout in members.rollouts))
        return Group(members.problem, tuple(r.rewarded({"a": float(i)}) for i, r in enumerate(members.rollouts)))

    source = task.problems("train", 0)
    groups, thrown = draw_groups(policy, task, source, stage, rewarded, 0, make_generator(policy))
    assert thrown == 1
    assert len(groups) == 4
    assert not dead & {members.problem.id for members in groups}
    texts = [rollout.text for members in groups for rollout in members.rollouts]
    assert len(set(texts)) > 1

    def alike(members):
        return Group(members.problem, tuple(rollout.rewarded({"a": 1.0}) for rollout in members.rollouts))

    groups, thrown = draw_groups(policy, task, source, stage, alike, 0, make_generator(policy))
    assert (len(groups), thrown) == (4, 8)  # the last try is kept as it is


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        (["kl=0.1"], {"reference_kl"}),
        (["entropy=0.01"], {"entropy"}),
        (["std=batch", "average=answers", "refill=1"], {"thrown_groups"}),
        (["std=none", "average=constant", "truncated=false"], set()),
        (["name=gspo", "kl=0.1", "entropy=0.01"], {"reference_kl", "entropy", "clip_fraction"}),
        (["name=rloo", "kl=0.1", "entropy=0.01", "refill=1"], {"reference_kl", "entropy", "thrown_groups"}),
    ],
)
def test_every_member_of_the_family_runs(policy, tmp_path, changes, measured):
    stage = rl_stage(tmp_path, *(f"stages.rl.algorithm.{change}" for change in changes), "stages.rl.steps=2")
    before = torch.cat([parameter.detach().flatten().clone() for parameter in policy.model.parameters()])
    rows = [metrics for metrics, *_ in run_rl(policy, stage, 0)]
    assert measured <= set(rows[0])
    assert all(math.isfinite(value) for row in rows for value in row.values())
    if "kl=0.1" in changes:
        assert rows[0]["reference_kl"] == pytest.approx(0, abs=1e-2)  # two updates from the policy itself
    after = torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])
    if "entropy=0.01" in changes:  # whatever was earned
        assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["grpo", "gspo", "rloo"])
def test_every_algorithm_learns_from_rewards(policy, tmp_path, monkeypatch, name):
    """Two updates from a batch, the second with ratios that are not 1; the algorithm needs no more than its name."""
    monkeypatch.setattr(train_room, "load_task", lambda *_: Coin())
    stage = rl_stage(tmp_path, f"stages.rl.algorithm={{name='{name}',minibatches=2}}", "stages.rl.steps=2")
    assert stage.algorithm.name == name
    assert stage.updates == 4
    before = policy.model.get_input_embeddings().weight.detach().clone()
    rows = [step.metrics for step in run_rl(policy, stage, 0)]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert not torch.equal(before, policy.model.get_input_embeddings().weight)
    assert policy.version == 4


def test_the_old_log_probabilities_and_the_reference_are_where_the_algorithm_needs_them(policy, tmp_path, monkeypatch):
    """Those of the scorer before the step and of where the stage started, at every sample of every mini-batch."""
    seen = []
    monkeypatch.setattr(Learner, "update", lambda self, samples, algorithm: seen.extend(samples) or {"lr": 0.0})
    monkeypatch.setattr(train_room, "load_task", lambda *_: Coin())
    stage = rl_stage(tmp_path, "stages.rl.algorithm={minibatches=2,kl=0.1}", "stages.rl.precision=bf16")
    next(run_rl(policy, stage, 0))
    assert len(seen) == stage.problems * stage.group
    scored = Learner(policy.model, stage, 1).logprobs([sample.trace for sample in seen])
    for sample, values in zip(seen, scored, strict=True):
        for column in (sample.old, sample.reference):  # nothing was learnt, so the policy is its own reference
            assert torch.allclose(column, values, atol=0.1)
            assert len(column) == len(sample.trace.token_ids)


def test_a_step_whose_loss_is_not_a_number_is_skipped_and_shown(policy, monkeypatch):
    """The row has no loss, `skipped` counts it, and the line that a terminal shows says so."""

    def loss(self, logprobs, batch, tokens, entropies=None):
        return logprobs.sum() * math.nan, {"loss": math.nan}

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    step = next(run_sft(policy, SFT(**STAGE), 0))
    assert step.metrics["skipped"] == 1
    assert "loss" not in step.metrics
    assert figures(step.metrics).startswith("no update  parallel")
    assert step.rollouts == []


def test_what_was_cut_is_not_learnt_from_if_a_recipe_says_so(policy, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Learner, "update", lambda self, samples, algorithm: seen.append(samples) or {"lr": 0.0})
    for truncated in (True, False):
        stage = rl_stage(tmp_path, f"stages.rl.algorithm.truncated={str(truncated).lower()}", "stages.rl.steps=1")
        (_, rollouts, _), *_ = run_rl(policy, stage, 0)
        cut = {id(rollout.trace) for rollout in rollouts if rollout.trace.finish == "length"}
        assert cut
        learnt = {id(sample.trace) for samples in seen for sample in samples}
        assert learnt == {id(rollout.trace) for rollout in rollouts} - (set() if truncated else cut)
        seen.clear()


def test_sft_learns(policy):
    stage = SFT(**{**STAGE, "steps": 30, "batch": 8, "optimizer": {"lr": 1e-2}})
    losses = [row["loss"] for row, *_ in run_sft(policy, stage, 0)]
    assert losses[-1] < 0.6 * losses[0]
    assert policy.version == 30


@pytest.mark.parametrize(("name", "run"), [("sft", run_sft), ("rl", run_rl)])
def test_the_rate_of_the_tags_reaches_every_kind_of_stage(tokenizer, tags, tmp_path, name, run):
    moves = {}
    for rate in (1, 50):
        changes = [f"stages.{name}.optimizer={{lr=1e-4,tags={rate}}}", "stages.rl.algorithm={entropy=0.01}"]
        model = small_model(tokenizer)
        table = model.get_input_embeddings().weight
        before = table.detach().clone()
        next(run(Policy(model, tokenizer, tags), make(tmp_path, *changes).stages[name], 0))
        moves[rate] = (table - before).detach()
    factor = torch.ones(len(before), 1)
    factor[list(tags.ids.values())] = 50
    assert moves[1].abs().sum(1).min() > 0
    assert torch.allclose(moves[50], factor * moves[1], rtol=0.02, atol=1e-6)


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


@pytest.mark.slow
def test_a_run_repeats_bit_for_bit(tmp_path):
    def weights(name):
        recipe = make(tmp_path)
        run = RunFolder.create(tmp_path / name, recipe)
        train(recipe, build_policy(recipe), run, lambda row: None)
        return [models.load(str(run.checkpoint(stage))).model.state_dict() for stage in ("sft", "rl", "plain")]

    for first, second in zip(weights("a"), weights("b"), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path, policy):
    """Killed at twelve random moments one after the other, while it writes too, the run ends as if nothing had been.
    A stop rule ends a stage and chooses its weights, and moments are carried from stage to stage."""
    stop = "stop = { metric = 'parallel_ratio', every = 2, patience = 2, problems = 6, samples = 2 }"
    changes = "save_every = 3\n" + RECIPE.replace("[stages.rl]", f"[stages.rl]\ngroup = 3\n{stop}")
    changes = changes.replace("group = 4\n", "").replace("steps = 3", "steps = 20")
    changes = changes.replace("minibatches = 2", "minibatches = 2, kl = 0.1")
    changes = changes.replace("save_rollouts_every", "optimizer = { lr = 3e-3, carry = true }\nsave_rollouts_every")
    models.save(policy, tmp_path / "model")
    start, end = changes.index("[model.architecture]"), changes.index("[evaluation]")
    model = f"[model]\npath = '{tmp_path / 'model'}'\n"
    (tmp_path / "small.toml").write_text(changes[:start] + model + changes[end:])
    recipe = load_recipe(tmp_path / "small.toml")
    whole = RunFolder.create(tmp_path / "whole", recipe)
    results = train(recipe, build_policy(recipe), whole, lambda row: None)
    last = [row for row in whole.metrics() if row["kind"] == "validation"][-1]
    assert last["best_step"] < last["stage_step"] < 20

    drawing = random.Random(0)
    for moments in [drawing.randint(1, 12) for _ in range(12)] + [0]:
        process = processes.start(victim.run, tmp_path / "small.toml", tmp_path / "killed", moments)
        process.join()
        assert process.exitcode == (-9 if moments else 0)
    killed = RunFolder(tmp_path / "killed")
    assert not (killed.path / "state").exists()
    assert [row["stage"] for row in killed.metrics() if row["kind"] == "evaluation"] == [
        result.stage for result in results
    ]

    def lines(run):
        timed = ("seconds", "sampling_seconds", "tokens_per_second")
        return [{key: value for key, value in row.items() if key not in timed} for row in run.metrics()]

    assert lines(killed) == lines(whole)
    for stage in ("base", *recipe.stages):
        one, two = (models.load(str(run.checkpoint(stage))).model.state_dict() for run in (whole, killed))
        assert all(torch.equal(one[key], two[key]) for key in one)
    for file in sorted((whole.path / "rollouts").iterdir()):
        assert (killed.path / "rollouts" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.rl.task=countdown-hrd", "countdown-hard"),
        ("stages.rl.reward=acuracy()", "accuracy"),
        ("evaluation.tasks=['nothing']", "countdown-easy"),
        ("stages.sft.data={file='none.jsonl'}", "none.jsonl"),
        ("stages.sft.data.tasks={nothing=1}", "countdown-easy"),
        ("stages.sft.data.tasks={gsm8k=1}", "procedural teacher"),
        ("stages.rl.task=aime24", "a set with a train split"),
        ("stages.rl.task=jsonl:FOLDER/columns.jsonl", "columns problem"),
        ("evaluation.tasks=['jsonl:FOLDER/cut.jsonl']", "cut.jsonl:2"),
        ("evaluation.tasks=['dapo']", "a set with a test split"),
        ("stages.rl.sampling={budget={forks=0}}", "the budget allows none"),
        ("stages.rl.sampling={paths=1}", "a fork has one path"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(tmp_path, override, said):
    (tmp_path / "columns.jsonl").write_text('{"problem": "1 + 1"}\n')
    (tmp_path / "cut.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n{"problem": "2')
    override = override.replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError, match="expected") as caught:
        check(make(tmp_path, override))
    assert said in str(caught.value)


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


def test_a_problem_that_is_drawn_twice_makes_two_groups(policy):
    """3 problems, 6 in a step: six groups of 3, never three of 6."""
    sizes, short = [], Sampling(budget={"total": 40, "critical_path": 40})

    @pr.algorithm("test-groups")
    class Noting(pr.PolicyGradient):
        def advantages(self, groups):
            sizes.extend(map(len, groups))
            return groups

    task = repeating(EASY, list(islice(EASY.problems("train", 0), 3)))
    (step,) = pr.rl(policy, task, steps=1, problems=6, group=3, algorithm={"name": "test-groups"}, sampling=short)
    assert sizes == [3] * 6
    assert len({rollout.problem.key for rollout in step.rollouts}) == 3


def test_a_mismatch_is_measured_at_every_step(policy, monkeypatch):
    """The paper's Seen variant: sampled blind, scored causally. What differs is logged, and where."""
    monkeypatch.setattr(train_room, "make_generator", lambda policy, engine: Forcing(policy, force_forks(policy.tags)))
    problems = list(islice(EASY.problems("train", 0), 2))
    monkeypatch.setattr(train_room, "load_task", lambda name: repeating(EASY, [problems[0]] * 3 + [problems[1]]))
    stage = {
        "kind": "rl",
        "task": "countdown-easy",
        "steps": 2,
        "problems": 4,
        "group": 3,
        "sampling": {"sampler": "causal_join", "paths": 3, "budget": {"critical_path": 40, "path": 12}},
        "reward": "accuracy()",
    }
    mixed = RL.model_validate({**stage, "scorer": "causal", "algorithm": {"correction": 2.0, "minibatches": 2}})
    for row, *_ in run_rl(policy, mixed, 0):
        assert 1e-2 < row["mismatch_mean"] < row["mismatch_max"]
        assert row["mismatch_after_fork"] > 1e-2
        assert row["mismatch_after_join"] <= 1e-4
    for row, rollouts, _ in run_rl(policy, RL.model_validate({**stage, "scorer": "replay"}), 0):
        assert "mismatch_after_fork" not in row
        assert row["decoded"] > 0
        assert row["prefilled"] > 0
        assert 0 < row["peak_kv"] <= sum(len(each.trace.prompt_ids) + each.total for each in rollouts)


def test_rl_refuses_greedy_answers():
    with pytest.raises(UserError, match=r"sampling.temperature leaves one token"):
        RL(kind="rl", task="countdown-easy", steps=1, sampling=Sampling(temperature=0))
