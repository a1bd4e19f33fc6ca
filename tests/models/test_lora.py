"""What learns beside frozen weights: it is exact, it is small, and nothing is lost on the way."""

import json

import pytest
import torch
from architectures import random_model
from common import RECIPE, STAGE, draw, examples, force_forks, mismatch, prompts_of, samples

from parallel_r1 import errors, models
from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.models.settings import LoRA
from parallel_r1.runs.curriculum import build_policy, load_checkpoint, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_check import check
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.training.algorithms.sft import CrossEntropy
from parallel_r1.training.batch import collate, score
from parallel_r1.training.learner import Learner
from parallel_r1.training.loops import run_rl
from parallel_r1.training.settings import SFT

SMALL = LoRA(rank=4, alpha=8)
NF4 = LoRA(rank=4, alpha=8, quantise="nf4")
TIED = [("qwen3", {}), ("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gemma2", {}), ("gemma3", {})]


def shaken(policy, size=0.3):
    """The policy with an adapter and rows that are far from those that it began with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapters.learning(policy.model).values():
            weight += size * torch.randn(weight.shape, generator=generator)
    return policy


def adapted(model, tokenizer, tags, settings=SMALL):
    adapters.attach(model, settings, tags.ids.values(), 0)
    return Policy(model, tokenizer, tags, lora=settings)


def logits(model, vocabulary=300):
    tokens = torch.arange(vocabulary).view(6, -1)
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.fixture
def lora(policy):
    """A small policy whose adapter and rows say something."""
    return shaken(adapted(policy.model, policy.tokenizer, policy.tags))


@pytest.mark.parametrize(("architecture", "changes"), TIED)
def test_an_adapter_changes_nothing_until_it_learns_and_merges_into_an_ordinary_model(
    tmp_path, tokenizer, tags, architecture, changes
):
    model = random_model(architecture, len(tokenizer), **changes)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is table.weight
    before = logits(model)
    policy = adapted(model, tokenizer, tags)
    assert (logits(model) - before).abs().max() <= 1e-5
    shaken(policy)
    found = logits(model)
    assert (found - before).abs().max() > 0.1
    adapters.save(policy, tmp_path)
    again = models.load(str(tmp_path))
    plain = again.model
    assert (logits(plain) - found).abs().max() <= 1e-4 * found.abs().max()
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied
    assert torch.equal(plain.get_input_embeddings().weight[table.tag_ids], table.tag_rows)
    assert torch.equal(plain.get_output_embeddings().weight[table.tag_ids], head.tag_rows)
    assert again.tags == tags
    random_model(architecture, len(tokenizer), **changes).save_pretrained(tmp_path / "plain")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "plain")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("sampler", EXACT_SCORER)
def test_what_is_sampled_is_what_is_scored(lora, sampler):
    sampling = Sampling(sampler=sampler, paths=3, budget=Budget(total=150, critical_path=50, path=15))
    traces = draw(LocalEngine(lora.model), lora.tags, prompts_of(lora, 6), sampling, 0, force=force_forks(lora.tags))
    assert max(trace.forks for trace in traces) > (sampler != "sequential")  # there nothing closes a forced fork
    assert mismatch(lora, traces, EXACT_SCORER[sampler]) <= 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_the_tags_rows_have_the_gradient_that_all_weights_would_give_them(tokenizer, tags, tied):
    stage = SFT(**STAGE)
    whole = Policy(random_model("llama", len(tokenizer), tie_word_embeddings=tied), tokenizer, tags)
    part = adapted(random_model("llama", len(tokenizer), tie_word_embeddings=tied), tokenizer, tags)
    for policy in (whole, part):
        batch = collate(samples(examples(policy, stage)), stage.scorer)
        (score(policy.model, batch)[batch.sampled].sum()).backward()
    ids = sorted(tags.ids.values())
    for kind in ("get_input_embeddings", "get_output_embeddings"):
        expected = getattr(whole.model, kind)().weight.grad[ids]
        found = getattr(part.model, kind)().tag_rows.grad
        assert expected.abs().max() > 0.1
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len(adapters.embedding_rows(part.model)) == (1 if tied else 2)


def test_only_the_adapter_learns_and_is_kept(lora):
    model, stage = lora.model, SFT(**STAGE)
    names = set(adapters.learning(model))
    assert all("lora_" in name or name.endswith("tag_rows") for name in names)
    assert sum("tag_rows" in name for name in names) == 1
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if name not in names}
    before = adapters.weights(model)
    learner = Learner(model, stage, 2)
    learner.update(samples(examples(lora, stage)), CrossEntropy())
    assert all(torch.equal(weight, dict(model.named_parameters())[name]) for name, weight in frozen.items())
    after = adapters.weights(model)
    assert all(not torch.equal(before[name], after[name]) for name in names)
    state = learner.state()
    assert set(state["model"]) == names
    kept = sum(value.numel() for value in state["model"].values())
    assert kept < 0.2 * models.parameter_count(model)
    assert len(state["optimizer"]["state"]) == len(names)
    learner.update(samples(examples(lora, stage)), CrossEntropy())
    learner.restore(state | {"model": before})
    assert all(torch.equal(before[name], weight) for name, weight in adapters.weights(model).items())


def test_activations_that_are_computed_again_are_the_same(lora):
    stage = SFT(**STAGE)
    traces = examples(lora, stage)
    start = adapters.weights(lora.model)
    found = []
    for recompute in (False, True):
        adapters.set_weights(lora.model, start)
        learner = Learner(lora.model, stage.model_copy(update={"recompute": recompute}), 1)
        norm = learner.update(samples(traces), CrossEntropy())["gradient_norm"]
        found.append((norm, torch.cat([weight.flatten() for weight in adapters.weights(lora.model).values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("with_adapter", [True, False])
def test_other_weights_speak_for_a_while(policy, with_adapter):
    """The reference of a KL penalty: what learns as it was, in a copy of no more than that."""
    if with_adapter:
        policy = shaken(adapted(policy.model, policy.tokenizer, policy.tags))
    stage = SFT(**STAGE)
    traces = examples(policy, stage)
    learner = Learner(policy.model, stage, 2)
    reference = adapters.weights(policy.model)
    start = learner.logprobs(traces)
    learner.update(samples(traces), CrossEntropy())
    now, weights = learner.logprobs(traces), adapters.weights(policy.model)
    assert all(not torch.equal(ours, theirs) for ours, theirs in zip(now, start, strict=True))
    for _ in range(2):
        found = learner.logprobs(traces, reference)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, start, strict=True))
    assert all(torch.equal(weights[name], weight) for name, weight in adapters.weights(policy.model).items())
    with pytest.raises(KeyError), adapters.exchanged(policy.model, reference):
        raise KeyError
    assert all(torch.equal(weights[name], weight) for name, weight in adapters.weights(policy.model).items())


def test_the_engine_reads_the_weights_that_learn(lora):
    """No copy, on disk or in memory, lies between an update and the next answers."""
    engine = LocalEngine(lora.model)
    assert engine.model is lora.model
    where = {name: weight.data_ptr() for name, weight in lora.model.named_parameters()}
    stage = SFT(**STAGE, micro_tokens=500)
    traces = examples(lora, stage)
    learner = Learner(lora.model, stage, 2)
    for _ in range(2):
        learner.update(samples(traces), CrossEntropy())
        sampling = Sampling(paths=2, budget=Budget(total=60, critical_path=40, path=10))
        drawn = draw(engine, lora.tags, [[10, 11, 12]] * 2, sampling, 0, force=force_forks(lora.tags))
        scored = learner.logprobs(drawn)
        for trace, values in zip(drawn, scored, strict=True):
            known = [value for span in trace.spans for value in span.logprobs or [0.0] * len(span.token_ids)]
            sampled = [span.sampled for span in trace.spans for _ in span.token_ids]
            assert (values - torch.tensor(known))[torch.tensor(sampled)].abs().max() <= 1e-4
    assert where == {name: weight.data_ptr() for name, weight in lora.model.named_parameters()}


def recipe_of(tmp_path, policy, table, *overrides):
    """The small curriculum with an adapter, from a model on disk."""
    models.save(policy, tmp_path / "model")
    start, end = RECIPE.index("[model.architecture]"), RECIPE.index("[evaluation]")
    model = f"[model]\npath = '{tmp_path / 'model'}'\n[model.lora]\n{table}\n"
    text = "save_every = 1\n" + RECIPE[:start] + model + RECIPE[end:]
    text = text.replace("minibatches = 2", "minibatches = 2, kl = 0.1")
    text = text.replace("critical_path = 30, path = 10, total = 60", "critical_path = 16, path = 6, total = 30")
    text = text.replace('kind = "sft"', 'kind = "sft"\noptimizer = { lr = 1e-2, tags = 3.0, embeddings = "used" }')
    (tmp_path / "lora.toml").write_text(text)
    return load_recipe(tmp_path / "lora.toml", list(overrides))


def run(recipe, path, until=None):
    """Run a recipe, or go on with it; broken off when so many rows of metrics have been made."""
    rows = []

    def tell(row):
        rows.append(row)
        if len(rows) == until:
            raise KeyboardInterrupt

    folder = RunFolder.create(path, recipe)
    if until is None:
        train(recipe, build_policy(recipe), folder, tell)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, build_policy(recipe), folder, tell)
    return folder


def test_a_curriculum_goes_on_exactly_where_it_was(tmp_path, policy):
    """Through stages, and where it is broken off within one; what any command reads says the same."""
    recipe = recipe_of(tmp_path, policy, "rank = 4", "evaluation.problems=1", "stages.rl.steps=2")
    check(recipe)
    whole = run(recipe, tmp_path / "whole")
    for until in (2, 4):
        run(recipe, tmp_path / "broken", until)
    broken = run(recipe, tmp_path / "broken")
    for stage in ("base", *recipe.stages):
        one, two = (load_checkpoint(recipe, folder.checkpoint(stage)) for folder in (whole, broken))
        assert all(
            torch.equal(a, b) for a, b in zip(*(adapters.weights(p.model).values() for p in (one, two)), strict=True)
        )
        for file in (adapters.ADAPTER, "model.safetensors"):
            assert (whole.checkpoint(stage) / file).read_bytes() == (broken.checkpoint(stage) / file).read_bytes()
        plain = models.load(str(whole.checkpoint(stage)))
        assert torch.allclose(logits(plain.model), logits(one.model), atol=1e-4)
    base, tuned = (adapters.weights(load_checkpoint(recipe, whole.checkpoint(name)).model) for name in ("base", "rl"))
    assert all(not torch.equal(base[name], tuned[name]) for name in base)
    assert torch.allclose(logits(models.load(str(whole.checkpoint("base"))).model), logits(policy.model), atol=1e-5)

    def lines(folder):
        timed = ("seconds", "sampling_seconds", "tokens_per_second")
        return [{key: value for key, value in row.items() if key not in timed} for row in folder.metrics()]

    assert lines(whole) == lines(broken)


def test_the_reference_is_where_the_stage_started(tmp_path, policy):
    """A second stage has an adapter that has learnt: the divergence from it is zero, from the bare model it is not."""
    recipe = recipe_of(tmp_path, policy, "rank = 4", "stages.rl.algorithm.minibatches=1", "stages.rl.optimizer.lr=1e-2")
    start = shaken(build_policy(recipe), 0.1)
    divergence = [metrics["reference_kl"] for metrics, *_ in run_rl(start, recipe.stages["rl"], 0)]
    assert abs(divergence[0]) <= 1e-6
    assert divergence[-1] > 1e-5


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("dropout = 0.1", r"leave it out of \[model.lora\]"),
        ("rank = 0", "greater than or equal to 1"),
        ("targets = []", "targets"),
        ("quantise = 'int3'", "nf4"),
        ("rnk = 3", "rank"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, policy, table, said):
    with pytest.raises(UserError, match=said):
        recipe_of(tmp_path, policy, table)


def test_layers_that_are_not_there_are_refused(policy):
    for target, said in (("q_prj", "q_proj"), ("lm_head", "names of linear layers")):
        with pytest.raises(UserError, match=said):
            adapters.attach(policy.model, LoRA(targets=("v_proj", target)), policy.tags.ids.values(), 0)
    adapters.attach(policy.model, LoRA(targets=("q_proj", "v_proj")), policy.tags.ids.values(), 0)
    found = {name.split(".")[-4] for name in adapters.learning(policy.model) if "lora" in name}
    assert found == {"q_proj", "v_proj"}


def test_random_weights_have_no_adapter(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(UserError, match="lora needs path"):
        load_recipe(tmp_path / "r.toml", ["model.lora.rank=4"])


@pytest.mark.parametrize(("missing", "extra"), [("peft", "lora"), ("bitsandbytes", "qlora")])
def test_missing_libraries_are_said(monkeypatch, missing, extra):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=rf"{missing}.*parallel-r1\[{extra}\]"):
        adapters.check(NF4)


def test_a_machine_that_cannot_hold_4_bits_is_said(monkeypatch):
    library = pytest.importorskip("bitsandbytes.functional")
    adapters.check(NF4)

    def broken(*arguments, **keywords):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(library, "quantize_4bit", broken)
    with pytest.raises(UserError, match="no kernel for this device"):
        adapters.check(NF4)
    monkeypatch.setattr(library, "quantize_4bit", lambda numbers, **keywords: (numbers, None))
    monkeypatch.setattr(library, "dequantize_4bit", lambda numbers, state: numbers * 0)
    with pytest.raises(UserError, match="do not come back"):
        adapters.check(NF4)


def test_weights_in_4_bits_are_exact_and_go_on_exactly(tmp_path, policy):
    """Sampler and scorer read the same rounded weights; the merged model and the next stage say what this one said."""
    pytest.importorskip("bitsandbytes")
    recipe = recipe_of(tmp_path, policy, "rank = 4\nquantise = 'nf4'", "stages.rl.steps=1", "evaluation.tasks=[]")
    check(recipe)
    start = build_policy(recipe)
    layer = start.model.get_submodule("model.layers.0.mlp.up_proj").get_base_layer().weight
    assert layer.element_size() * layer.numel() * 8 == 32 * 64 * 4
    assert (logits(start.model) - logits(policy.model)).abs().max() > 1e-2
    (found,) = measure(shaken(start), "isolated", ["isolated"], 3, answers=2, forks=2)
    assert found.max_abs <= 1e-4
    folder = run(recipe, tmp_path / "run")
    rows = [row for row in folder.metrics() if row["stage"] == "sft"]
    assert all(row["gradient_norm"] > 0 for row in rows)
    first, second = (load_checkpoint(recipe, folder.checkpoint(name)) for name in ("base", "sft"))
    assert not torch.equal(logits(first.model), logits(second.model))
    assert torch.equal(logits(second.model), logits(load_checkpoint(recipe, folder.checkpoint("sft")).model))
    plain = models.load(str(folder.checkpoint("sft"))).model
    assert not hasattr(plain.config, "quantization_config")
    assert torch.allclose(logits(plain), logits(second.model), atol=1e-3)
    assert isinstance(plain.get_submodule("model.layers.0.mlp.up_proj"), torch.nn.Linear)


def test_learning_in_4_bits(tmp_path, policy):
    """The loss falls as it does with weights as they are."""
    pytest.importorskip("bitsandbytes")
    models.save(policy, tmp_path)
    losses = {}
    for settings in (SMALL, NF4):
        found = adapters.load(str(tmp_path), settings, 0)
        stage = SFT(**{**STAGE, "optimizer": {"lr": 3e-2}})
        learner = Learner(found.model, stage, 6)
        traces = examples(found, stage)
        losses[settings.quantise] = [learner.update(samples(traces), CrossEntropy())["loss"] for _ in range(6)]
    assert losses["none"][-1] < losses["none"][0] - 0.5
    assert losses["nf4"] == pytest.approx(losses["none"], rel=0.05)
