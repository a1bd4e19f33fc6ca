"""What a recipe will do and need: against what a run does and holds."""

import gc
import weakref
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from common import SHAPES, SMALL, folder_of, force_forks, write
from conftest import ROOT, TINY

from parallel_r1.errors import UserError
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.local import engine as engine_room
from parallel_r1.generation.local.capacity import block_bytes
from parallel_r1.generation.local.kv_pool import Pool
from parallel_r1.generation.request import Request
from parallel_r1.models import attention as attend
from parallel_r1.models import lora as adapters
from parallel_r1.models.settings import LoRA
from parallel_r1.runs import estimate as plan
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.load import load_task


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


class Noted(Pool):
    """A pool that notes how large it was, the tensor that is there twice while it grows included."""

    peak = 0

    def write(self, layer, *rest):
        parts = super().write(layer, *rest)
        if len(self.layers) > layer + 1 or layer == 0:
            Noted.peak = max(Noted.peak, self.bytes)
        return parts


@pytest.mark.parametrize("sampler", ["sequential", "isolated"])
def test_the_cache_is_what_answers_hold_that_use_their_whole_budget(frozen, tmp_path, monkeypatch, sampler):
    """The answers of a whole step, which never end and fork as often as they may."""
    frozen.model.save_pretrained(tmp_path / "model")
    frozen.tokenizer.save_pretrained(tmp_path / "model")
    changes = [
        f"model.path={tmp_path / 'model'}",
        f"stages.two.sampling.sampler={sampler}",
        "stages.two.sampling.budget={total=120, critical_path=120, path=30, forks=9}",
        "stages.two.problems=5",
        "stages.two.group=4",
        "evaluation.problems=3",
        "evaluation.samples=2",
    ]
    recipe = load_recipe(write(tmp_path, SMALL), changes)
    stage = recipe.stages["two"]
    planned = plan.make(recipe, {}).stages[1].memory.cache
    monkeypatch.setattr(engine_room, "Pool", Noted)
    monkeypatch.setattr(Noted, "peak", 0)
    endless = replace(frozen, tags=replace(frozen.tags, eos=frozenset()))
    problems = list(islice(load_task(stage.task).problems("train", 0), stage.problems))
    force = force_forks(frozen.tags)
    asks = [
        Request(endless.encode_prompt(problem.prompt), stage.sampling, f"{index}/{again}", partial(force, 0))
        for index, problem in enumerate(problems)
        for again in range(stage.group)
    ]
    traces = make_generator(endless, recipe.engine).traces(asks)
    assert all(len(trace.token_ids) >= 110 for trace in traces)
    assert Noted.peak <= planned <= 1.7 * Noted.peak


def test_the_cache_by_hand(tiny, tmp_path):
    """Blocks of answers and prompts, one not full for every branch, and a tenth to spare."""
    changes = ["engine.rows=7", "stages.two.sampling.budget.total=33", "evaluation.tasks=[]"]
    size = block_bytes(tiny.model.config, torch.float32)
    recipe = load_recipe(write(tmp_path, SMALL), changes)
    one, two = plan.make(recipe, {}).stages
    prompt = plan.prompt_tokens(recipe, recipe.stages["two"], tiny.tokenizer)
    assert 10 < prompt < 40
    assert two.memory.cache == int(((7 * 33 + prompt) // 16 + 7 + 1) * 1.1) * size
    assert one.memory.cache == 0  # nothing is drawn in the SFT stage or after it
    shares = {}
    for memory in ("1000", "'200KB'", "'50%'"):
        made = plan.make(load_recipe(write(tmp_path, SMALL), [*changes, f"engine.memory={memory}"]), {})
        shares[memory] = made.stages[1].memory.cache
    assert shares["'200KB'"] == 200_000
    assert shares["1000"] == shares["'50%'"] == two.memory.cache
    half = plan.make(load_recipe(write(tmp_path, SMALL), [*changes, "engine.dtype=bf16"]), {}).stages[1].memory
    assert half.cache == pytest.approx(two.memory.cache / 2, rel=1e-3)
    assert half.weights == two.memory.weights * 3 // 2  # the copy that draws


def test_an_sft_stage_has_the_cache_of_its_evaluation(tmp_path):
    one, two = plan.make(load_recipe(write(tmp_path, SMALL), ["evaluation.tasks=['countdown-easy']"]), {}).stages
    assert one.memory.cache > two.memory.cache > 0  # 256 answers of the evaluation; with forks in the first stage


def test_prompts_and_the_copies_of_replay_are_read_in_learning(tmp_path):
    common = ["defaults.micro_tokens=64", "stages.two.sampling.budget={total=400, critical_path=400}"]
    sizes = {}
    for sampler in ("isolated", "causal_join"):
        changes = [*common, f"stages.two.sampling.sampler={sampler}"]
        recipe = load_recipe(write(tmp_path, SMALL.replace('scorer = "causal"\n', "")), changes)
        sizes[sampler] = plan.make(recipe, {}).stages[1].memory.activations
    assert sizes["causal_join"] > 1.8 * sizes["isolated"]


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
    assert one.memory.reference == 0
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
