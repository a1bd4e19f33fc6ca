"""What a recipe will do and need: against what a run does and holds."""

import gc
import weakref

import pytest
import torch
from common import SHAPES, SMALL, draw, folder_of, write
from conftest import ROOT, TINY

from parallel_r1.errors import UserError
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.local.kv_pool import BLOCK
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models import attention as attend
from parallel_r1.models import lora as adapters
from parallel_r1.models.settings import LoRA
from parallel_r1.runs import estimate as plan
from parallel_r1.runs.recipe_file import load_recipe


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("qwen3-0.6b-lora", 596_049_920), pytest.param("qwen3-4b", 4_022_468_096, marks=pytest.mark.slow)],
)
def test_the_longest_recipes_fit_the_gpu_that_they_name(name, parameters, tmp_path):
    """The parameters are those of the published models."""
    made = plan.make(load_recipe(ROOT / "recipes" / name / "unseen_s2.toml", [folder_of(name, tmp_path)]), {})
    assert made.parameters == parameters
    assert max(stage.memory.peak for stage in made.stages) < SHAPES[name][-1]


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_a_real_pass_keeps(tiny, tmp_path, recompute):
    """Within a tenth; what a layer needs that is computed again was not kept by it."""
    recipe = load_recipe(write(tmp_path, SMALL), [f"model.path={TINY}", f"defaults.recompute={str(recompute).lower()}"])
    stage = recipe.stages["one"]
    memory = plan.make(recipe, {}).stages[0].memory
    assert memory.weights == sum(each.numel() for each in tiny.model.parameters()) * 4
    whole = memory if not recompute else plan.make(load_recipe(write(tmp_path, SMALL)), {}).stages[0].memory
    weights = {each.untyped_storage().data_ptr() for each in tiny.model.parameters()}
    found = {}

    def note(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    if recompute:
        attend.recompute(tiny.model)
    tiny.model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            tokens = torch.zeros(1, stage.micro_tokens, dtype=torch.long)
            hidden = tiny.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    finally:
        tiny.model.eval()
        tiny.model.activation_checkpointing_disable()
    kept = sum(each.untyped_storage().nbytes() for at, each in found.items() if at not in weights)
    layer = whole.activations // 4 if recompute else 0
    assert memory.activations == pytest.approx(kept + layer, rel=0.1)
    assert hidden.requires_grad


def test_the_cache_is_what_the_engine_holds(tiny, tmp_path):
    """Bytes of a token, times the rows that are drawn at once, times what a budget allows."""
    recipe = load_recipe(write(tmp_path, SMALL), ["engine.rows=7", "stages.two.sampling.budget.total=33"])
    engine = LocalEngine(tiny.model)
    draw(engine, tiny.tags, [[10, 11]], Sampling(budget=Budget(total=4)), 0)
    token = engine.pool.bytes // (len(engine.pool) * BLOCK)
    found = plan.make(recipe, {}).stages[1]
    assert found.memory.cache == 7 * 33 * token
    bounded = plan.make(load_recipe(write(tmp_path, SMALL), ["engine.memory=1000"]), {})
    assert bounded.stages[1].memory.cache == 1000 * token


def test_counts_by_hand(tmp_path):
    changes = [
        "evaluation.tasks=['countdown-easy', 'countdown-hard']",
        "evaluation.problems=10",
        "evaluation.samples={countdown-easy=3, countdown-hard=1}",
        "stages.two.problems=6",
        "stages.two.group=5",
        "stages.two.algorithm.minibatches=3",
        "stages.two.algorithm.kl=0.1",
        "stages.two.algorithm.refill=2",
        "defaults.sampling.budget.total=100",
    ]
    made = plan.make(load_recipe(write(tmp_path, SMALL), changes), {"countdown-easy": 4})
    one, two = made.stages
    assert (one.start, one.steps, one.updates, one.answers, one.tokens) == ("base", 3, 3, 64, 0)
    assert (two.start, two.steps, two.updates, two.answers, two.tokens) == ("one", 2, 6, 30, 2 * 3 * 30 * 100)
    assert made.evaluated == 3 * (4 * 3 + 10 * 1) * 100  # the base and two stages
    assert two.memory.reference == two.memory.weights
    assert one.memory.reference == one.memory.cache == 0
    shared = plan.make(load_recipe(write(tmp_path, SMALL), ["processes={count=4, shard=true}"]), {}).stages[0].memory
    assert shared.weights == 5 * shared.gradients == 5 * shared.moments // 2 == 5 * one.memory.weights // 4
    assert made.disk == 4 * made.parameters * 9


def test_without_a_configuration_the_rest_is_planned(tmp_path):
    made = plan.make(load_recipe(write(tmp_path, SMALL), ["model.path=nobody/none"]), {})
    assert made.parameters is made.disk is made.stages[0].memory is None
    assert made.learning is None
    assert "nobody/none" in made.unknown[0]
    assert [stage.steps for stage in made.stages] == [3, 2]


def test_a_budget_over_the_models_positions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"stages.two: an answer may reach over 600"):
        plan.make(load_recipe(write(tmp_path, SMALL), ["stages.two.sampling.budget={total=600,critical_path=700}"]), {})


def test_a_model_from_nothing_has_a_plan(tmp_path):
    tables = "[model.architecture]\nhidden = 32\nheads = 2\nvocabulary = 300\n"
    made = plan.make(load_recipe(write(tmp_path, SMALL.replace('[model]\npath = "models/tiny-base"\n', tables))), {})
    assert made.parameters
    assert not made.unknown


def test_with_an_adapter_little_learns(tmp_path):
    """What is planned is what is held, on disk too; frozen layers in 4 bits need an eighth."""
    made = plan.make(load_recipe(write(tmp_path, SMALL), ["model.lora.rank=3", "stages.two.algorithm.kl=0.1"]), {})
    policy = adapters.load(str(TINY), LoRA(rank=3), 0)
    learning = sum(weight.numel() for weight in adapters.weights(policy.model).values())
    held = sum(each.numel() for each in policy.model.parameters())
    assert (made.parameters, made.learning) == (held - learning, learning)
    one, two = made.stages
    assert one.memory.weights == 4 * held
    assert one.memory.gradients == one.memory.moments / 2 == two.memory.reference == 4 * learning
    assert learning < 0.1 * held
    assert made.disk == 4 * (3 * held + 6 * learning)
    packed = plan.make(load_recipe(write(tmp_path, SMALL), ["model.lora.rank=3", "model.lora.quantise=nf4"]), {})
    linear = sum(layer.get_base_layer().weight.numel() for layer in policy.model.modules() if hasattr(layer, "lora_A"))
    saved = one.memory.weights - packed.stages[0].memory.weights
    assert saved == pytest.approx(linear * (4 - 0.516), rel=1e-3)
    some = load_recipe(write(tmp_path, SMALL), ["model.lora.targets=['q_proj','v_proj']"])
    part = adapters.load(str(TINY), some.model.lora, 0)
    assert plan.make(some, {}).learning == sum(weight.numel() for weight in adapters.weights(part.model).values())
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        plan.make(load_recipe(write(tmp_path, SMALL), ["model.lora.targets=['q_prj']"]), {})


def test_a_model_is_freed_after_its_estimate(tmp_path, monkeypatch):
    models, build = [], plan.build

    def noted(recipe):
        model = build(recipe)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(plan, "build", noted)
    plan.make(load_recipe(write(tmp_path, SMALL)), {})
    gc.collect()
    assert [model() for model in models] == [None]
