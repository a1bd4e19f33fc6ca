"""A study whose recipe has an adapter: it learns instead of the weights, and goes on exactly from stage to stage."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from common import MICRO
from conftest import small_model

from parallel_r1 import models
from parallel_r1.errors import UserError
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.models.settings import LoRA
from parallel_r1.runs.curriculum import build_policy, load_checkpoint, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_file import make_recipe
from parallel_r1.runs.study import jobs
from parallel_r1.runs.study.rows import expand, items, load_study

pytest.importorskip("peft")
WITH_ADAPTER = MICRO.replace('path = "MODEL"', 'path = "MODEL"\nlora = { rank = 4 }')


@pytest.fixture
def model(tokenizer, tags, tmp_path):
    models.save(Policy(small_model(tokenizer), tokenizer, tags), tmp_path / "model")
    return tmp_path / "model"


def cells_of(folder, model, text=WITH_ADAPTER):
    (folder / "micro.toml").write_text(text.replace("MODEL", str(model)))
    study = load_study(folder / "micro.toml")
    return study, {cell.row: cell for cell in expand(study, folder / "micro.toml", [0])}


@pytest.mark.slow
def test_a_row_with_an_adapter_is_an_ordinary_run(model, tmp_path):
    study, cells = cells_of(tmp_path, model)
    cell = cells["forked"]
    assert jobs.run([item.work for item in items([cell])], tmp_path / "out", 1, lambda work, row: None) == {}
    recipe = make_recipe({**deepcopy(study.recipe), "name": "x", "seed": 0}, tmp_path, study.budgets["short"])
    run = RunFolder.create(tmp_path / "run", recipe)
    results = train(recipe, build_policy(recipe), run, lambda row: None)
    for training in cell.trainings:
        ours, theirs = (
            adapters.weights(policy.model)
            for policy in (training.policy(tmp_path / "out"), load_checkpoint(recipe, run.checkpoint(training.name)))
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
        assert len(ours) > 10
    (last,) = cell.measurements
    assert last.result(tmp_path / "out").by_problem == results[-1].by_problem
    rollouts = cell.trainings[-1].run(tmp_path / "out").path / "rollouts"
    assert '"policy_version": 2' in (rollouts / "step-1.jsonl").read_text()


def test_keys_know_the_adapter(model, tmp_path):
    """Stages have others; the base is the same, unless it is held in 4 bits."""
    keys = {}
    for table in ("{ rank = 4 }", "{ rank = 8 }", ""):
        text = WITH_ADAPTER.replace("lora = { rank = 4 }", f"lora = {table}" if table else "")
        cells = cells_of(tmp_path, model, text)[1]
        keys[table] = {(row, at): work.key for row, cell in cells.items() for at, work in enumerate(cell.works)}
    small, large, none = keys.values()
    assert small.keys() == large.keys() == none.keys()
    assert {row for row, at in small if small[row, at] in (large[row, at], none[row, at])} == {"base"}
    base = cells["base"].measurements[0]
    assert base.lora is None
    quantised = replace(base, lora=LoRA(quantise="nf4"))
    assert quantised.key != base.key


def test_an_adapter_that_does_not_fit_is_one_line(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(UserError, match=r"an adapter in .*adapter.safetensors.*a run with model.lora"):
        adapters.load(str(model), LoRA(rank=4), 0, adapter)
    (adapter / adapters.ADAPTER).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"an adapter in .*adapter.safetensors"):
        adapters.load(str(model), LoRA(rank=4), 0, adapter)
    adapters.save(adapters.load(str(model), LoRA(rank=2), 0), adapter)
    with pytest.raises(UserError, match=r"lora_A.* of shape \[4, 32\]; found \[2, 32\]"):
        adapters.load(str(model), LoRA(rank=4), 0, adapter)
    with pytest.raises(UserError, match="of shape none; found"):
        adapters.load(str(model), LoRA(rank=2, targets=("q_proj",)), 0, adapter)
