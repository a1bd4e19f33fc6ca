"""Recipes and runs at their edges: refused before they start, or carried through."""

import copy
import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from common import RECIPE, make
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.rollout import Problem, read_jsonl
from parallel_r1.errors import UserError
from parallel_r1.generation.rollouts import PATIENCE, Readable
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.generation.training_card import read_card
from parallel_r1.runs import recipe_check
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.prompts import Prompt

LONG = "x y " * 600


def write_task(tmp_path, name, *texts, split="train"):
    rows = [{"id": str(index), "problem": text, "answer": "2", "split": split} for index, text in enumerate(texts)]
    rows.append({"id": "test", "problem": "What is 2 + 2?", "answer": "4", "split": "test"})
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{tmp_path / name}@plain"


def run(tmp_path, *overrides, text=RECIPE):
    (tmp_path / "small.toml").write_text(text)
    recipe = load_recipe(tmp_path / "small.toml", list(overrides))
    folder, rows = RunFolder.create(tmp_path / "run", recipe), []
    train(recipe, build_policy(recipe), folder, rows.append)
    return folder, rows


@pytest.mark.parametrize(
    ("setting", "name"),
    [("top_k=1", "top_k"), ("min_p=1", "min_p"), ("temperature=1e-6", "temperature"), ("top_p=1e-9", "top_p")],
)
def test_answers_that_are_all_the_same_are_refused_in_rl_alone(tmp_path, setting, name):
    with pytest.raises(UserError, match=rf"stages.rl; sampling.{name} leaves one token to choose from"):
        make(tmp_path, f"stages.rl.sampling.{setting}")
    assert make(tmp_path, f"stages.sft.sampling.{setting}")


@pytest.mark.parametrize("setting", ["path=2", "critical_path=7", "total=10", "forks=0"])
def test_a_reward_for_forks_needs_a_budget_in_which_one_fits(tmp_path, setting):
    recipe = make(tmp_path, f"stages.rl.sampling.budget.{setting}")
    with pytest.raises(UserError, match="the budget allows none; found bonus in"):
        recipe_check.check(recipe)


@given(
    paths=st.integers(1, 5),
    path=st.integers(1, 5),
    critical_path=st.integers(1, 12),
    total=st.integers(1, 30),
    forks=st.integers(0, 2),
)
def test_a_fork_can_open_exactly_where_the_settings_say(tags, paths, path, critical_path, total, forks):
    """Against the rules by which an answer grows, whose first token is `<Parallel>`."""
    from parallel_r1.generation.request import Request
    from parallel_r1.generation.threads import Answer

    budget = Budget(path=path, critical_path=critical_path, total=total, forks=forks)
    sampling = Sampling(paths=paths, budget=budget)
    answer = Answer(0, Request([1], sampling, "0"), tags)
    answer.trunk.feed.clear()
    answer.accept(answer.trunk, tags.ids["<Parallel>"], (-1.0, -1.0))
    opened = answer.finish is None and answer.trunk.then == "fork"
    assert sampling.opens_forks == (opened and paths > 1)


def test_comparing_with_a_base_that_is_not_evaluated_is_refused(tmp_path):
    text = RECIPE.replace('[["rl", "sft"]]', '[["rl", "base"]]')
    (tmp_path / "small.toml").write_text(text)
    with pytest.raises(UserError, match="compare names 'base', but a model with random weights is not evaluated"):
        load_recipe(tmp_path / "small.toml")


@pytest.mark.slow
def test_a_problem_too_long_to_read_is_left_out_of_training_and_counted(tmp_path):
    task = write_task(tmp_path, "t.jsonl", "What is 1 + 1?", LONG, "What is 1 + 2?")
    changes = ("stages.rl.task=" + json.dumps(task), "evaluation.tasks=[]", "stages.rl.reward=accuracy()")
    folder, rows = run(tmp_path, *changes)
    steps = [row for row in rows if row.get("stage") == "rl" and row["kind"] == "rl"]
    assert len(steps) == 3
    assert sum(row.get("left_out", 0) for row in steps) >= 2
    drawn = [rollout.problem.id for file in folder.path.glob("rollouts/*.jsonl") for rollout in read_jsonl(file)]
    assert "1" not in drawn
    assert {"0", "2"} <= set(drawn)


@pytest.mark.slow
def test_an_evaluation_of_a_problem_too_long_to_read_is_refused_before_training(tmp_path):
    task = write_task(tmp_path, "u.jsonl", "What is 1 + 1?", LONG, split="test")
    with pytest.raises(UserError, match=r"a prompt of at most 482 tokens.*found \d+ tokens in problem '1' of jsonl"):
        run(tmp_path, "evaluation.tasks=" + json.dumps([task]))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_source_with_nothing_to_read_ends_the_run_with_one_line(frozen):
    problems = (Problem(str(index), LONG, "1", "sums") for index in range(2 * PATIENCE))
    with pytest.raises(
        UserError, match=f"found .* tokens in problem '{PATIENCE - 1}', as in the {PATIENCE - 1} before"
    ):
        next(Readable(problems, frozen, Sampling(), Prompt()))


@pytest.mark.slow
def test_policy_version_counts_the_updates_of_all_stages(tmp_path):
    """Two of SFT, then three steps of two minibatches; `plain` starts from the base again."""
    folder, _ = run(tmp_path, "evaluation.tasks=[]")
    assert [read_card(folder.checkpoint(name)).updates for name in ("sft", "rl", "plain")] == [2, 8, 1]
    versions = {
        int(file.stem.split("-")[1]): {rollout.trace.policy_version for rollout in read_jsonl(file)}
        for file in folder.path.glob("rollouts/step-*.jsonl")
    }
    assert versions[3] == {2}  # the first step of RL draws with what SFT has learnt
    assert versions[5] == {6}
    assert versions[6] == {0}


@pytest.mark.slow
def test_what_a_run_was_restored_from_is_freed(tmp_path, monkeypatch):
    """The saved weights, and the moments of the stage before; the saved moments are those that the optimiser uses."""
    text = RECIPE.replace("save_rollouts_every = 2", "save_rollouts_every = 2\noptimizer = { carry = true }")
    loaded = []

    class Stop(Exception): ...

    def interrupt(row):
        if row.get("stage") == "rl" and row.get("stage_step") == 2:
            raise Stop

    (tmp_path / "small.toml").write_text(text)
    recipe = load_recipe(tmp_path / "small.toml", ["evaluation.tasks=[]", "save_every=1"])
    folder = RunFolder.create(tmp_path / "run", recipe)
    with pytest.raises(Stop):
        train(recipe, build_policy(recipe), folder, interrupt)
    real = torch.load

    def load(*args, **more):
        values = real(*args, **more)
        for tensor in _tensors(values):
            loaded.append(weakref.ref(tensor))
            read.append(tensor.numel())
        return values

    def look(row):
        if row.get("stage") == "rl" and row.get("stage_step") == 3:
            gc.collect()
            alive.append(sum(ref().numel() for ref in loaded if ref() is not None))

    alive, read = list[int](), list[int]()
    monkeypatch.setattr(torch, "load", load)
    train(recipe, build_policy(recipe), RunFolder(tmp_path / "run"), look)
    sizes = sum(each.numel() for each in build_policy(recipe).model.parameters())
    assert sum(read) >= 5 * sizes
    assert alive[0] <= 2.1 * sizes


def _tensors(values):
    if torch.is_tensor(values):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


@pytest.mark.parametrize("equal", [True, False])
def test_tags_that_the_model_cannot_tell_apart_are_named(tmp_path, frozen, equal):
    policy = replace(frozen, model=copy.deepcopy(frozen.model))
    table = policy.model.get_input_embeddings().weight
    if equal:
        with torch.no_grad():
            table[sorted(policy.tags.ids.values())] = table[9] + 1e-5
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "small.toml").write_text(RECIPE[: RECIPE.index("[model.")] + RECIPE[RECIPE.index("[evaluation]") :])
    changes = [f"model.path={tmp_path / 'model'}", "evaluation.tasks=[]", "stages.sft.steps=1", "stages.rl.steps=1"]
    recipe, rows = load_recipe(tmp_path / "small.toml", changes), []
    train(recipe, build_policy(recipe), RunFolder.create(tmp_path / "run", recipe), rows.append)
    warnings = [row["warning"] for row in rows if row.get("rule") == "tags"]
    assert len(warnings) == equal
    assert all("prepare --init mean" in text for text in warnings)


@pytest.mark.parametrize("key", ["rehearse={countdown-easy=1.0},rehearsal=0.1", "parallel=0.9", "paths=3"])
def test_keys_that_a_file_of_answers_would_ignore_are_refused(tmp_path, key):
    with pytest.raises(UserError, match=r"stages.sft.data; \w+ has no effect beside file: leave it out"):
        make(tmp_path, "stages.sft.data={file='x.jsonl'," + key + "}")
