"""The user's own files in a study, and files that change between two readings of it."""

import shutil

import pytest
from common import MICRO, make
from conftest import small_model

from parallel_r1 import models
from parallel_r1.models.policy import Policy
from parallel_r1.registry import plugin_error
from parallel_r1.runs.curriculum import train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.study import jobs, keys
from parallel_r1.runs.study.rows import expand, load_study

PLUGIN = """import parallel_r1 as pr

@pr.reward
def steady(outcome):
    return 1.0 if outcome.correct else 0.5

@pr.reward
def broken(outcome):
    return {}["x"]

@pr.reward
def overflowing(outcome):
    raise FloatingPointError("overflow")
"""
ROW = '[rows.broken]\npart = "plain-ones"\nlike = "plain"\nset = ["stages.hard.reward=broken()"]\n'


@pytest.fixture
def model(tokenizer, tags, tmp_path):
    models.save(Policy(small_model(tokenizer), tokenizer, tags), tmp_path / "model")
    return tmp_path / "model"


def cells_of(file):
    return {cell.row: cell for cell in expand(load_study(file), file, [0])}


@pytest.mark.slow
def test_the_imports_of_a_study_are_relative_to_its_file(model, tmp_path):
    """The workers of the study load them too; an exception in one is one line that names the file."""
    (tmp_path / "my_rewards.py").write_text(PLUGIN)
    text = MICRO.replace("save_every = 1", 'save_every = 1\nimports = ["my_rewards.py"]').replace("MODEL", str(model))
    text = text.replace('kind = "rl"\n', 'kind = "rl"\nreward = "steady()"\n') + ROW
    (tmp_path / "micro.toml").write_text(text)
    cells = cells_of(tmp_path / "micro.toml")
    (steady,), (broken,) = cells["plain"].trainings, cells["broken"].trainings
    (measurement,) = cells["broken"].measurements
    assert steady.imports == broken.imports == (str(tmp_path / "my_rewards.py"),)
    failed = jobs.run([steady, broken, measurement], tmp_path / "out", 2, lambda work, row: None)
    assert set(failed) == {broken.key, measurement.key}
    assert f"expected my_rewards.py to run; found {tmp_path / 'my_rewards.py'}:9: KeyError: 'x'" in failed[broken.key]
    assert "starts from failed" in failed[measurement.key]
    assert steady.is_done(tmp_path / "out")
    rewards = [row["reward"] for row in steady.run(tmp_path / "out").metrics() if row["kind"] == "rl"]
    assert rewards
    assert all(0.5 <= reward <= 1.0 for reward in rewards)


@pytest.mark.parametrize(("name", "kind", "line"), [("broken", KeyError, 9), ("overflowing", FloatingPointError, 13)])
def test_an_exception_in_a_reward_passes_through_a_run(tmp_path, policy, name, kind, line):
    """Even one that would mean diverged weights if the learner had raised it."""
    (tmp_path / "my_rewards.py").write_text(PLUGIN)
    recipe = make(tmp_path, "imports=['my_rewards.py']", f"stages.plain.reward={name}()", "evaluation.tasks=[]")
    recipe = recipe.model_copy(update={"stages": {"plain": recipe.stages["plain"]}})
    with pytest.raises(kind) as caught:
        train(recipe, policy, RunFolder.create(tmp_path / "run", recipe), lambda row: None)
    assert f"my_rewards.py:{line}: {kind.__name__}" in str(plugin_error(caught.value))


def test_a_changed_model_folder_has_other_keys(model, tmp_path):
    (tmp_path / "micro.toml").write_text(MICRO.replace("MODEL", str(model)))
    before = cells_of(tmp_path / "micro.toml")
    assert len({id(cell.trainings[0].start) for cell in before.values() if cell.trainings}) == 1  # hashed once
    keys = {row: [work.key for work in cell.works] for row, cell in before.items()}
    assert {row: [work.key for work in cell.works] for row, cell in cells_of(tmp_path / "micro.toml").items()} == keys
    (model / "notes.txt").write_text("changed")
    after = cells_of(tmp_path / "micro.toml")
    for row, cell in after.items():
        assert not set(keys[row]) & {work.key for work in cell.works}, row


def keys_of(file):
    return {(cell.row, index): work.key for cell in cells_of(file).values() for index, work in enumerate(cell.works)}


def test_keys_know_what_the_files_of_a_recipe_hold(model, tmp_path):
    """Of the user's own Python files and of data files the content counts, and not where they lie."""
    text = MICRO.replace("save_every = 1", 'save_every = 1\nimports = ["my_rewards.py"]').replace("MODEL", str(model))
    text = text.replace("data = { tasks = { countdown-easy = 1.0 }, parallel = 0.5 }", 'data = { file = "FILE" }')
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_rewards.py").write_text(PLUGIN if folder == "one" else "")
        (tmp_path / "answers.jsonl").write_text('{"prompt": "What is 1?", "text": "Final Answer: 1"}\n')
        (tmp_path / folder / "micro.toml").write_text(text.replace("FILE", str(tmp_path / "answers.jsonl")))
    one, two = (keys_of(tmp_path / folder / "micro.toml") for folder in ("one", "two"))
    assert all(one[at] != two[at] for at in one)
    (tmp_path / "two" / "my_rewards.py").write_text(PLUGIN)
    assert keys_of(tmp_path / "two" / "micro.toml") == one
    (tmp_path / "answers.jsonl").write_text('{"prompt": "What is 2?", "text": "Final Answer: 2"}\n')
    two = keys_of(tmp_path / "two" / "micro.toml")
    assert {row for row, _ in one if one[row, 0] != two[row, 0]} == {"taught", "forked"}


def test_keys_know_the_code_that_computes_a_result(model, tmp_path, monkeypatch):
    """Another verifier or loss gives other keys, another version too; what only shows results does not."""
    (tmp_path / "micro.toml").write_text(MICRO.replace("MODEL", str(model)))
    source = tmp_path / "source"
    shutil.copytree(keys.SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "SOURCE", source)

    def now():
        keys.code.cache_clear()
        return keys_of(tmp_path / "micro.toml")

    first = now()
    for file, counts in (("cli/runs.py", False), ("report/html.py", False), ("tasks/grading/grader.py", True)):
        before = now()
        (source / file).write_text((source / file).read_text() + "# changed\n")
        assert all((now()[at] != before[at]) is counts for at in before)
    monkeypatch.setattr(keys, "__version__", "9.9")
    assert not set(now().values()) & {*before.values(), *first.values()}
    keys.code.cache_clear()
