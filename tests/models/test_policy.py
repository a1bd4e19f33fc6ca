import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import KINDS, random_model
from common import make
from conftest import TINY
from safetensors.torch import load_file, save_file

from parallel_r1 import models
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.rollouts import check_length
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models import lora as adapters
from parallel_r1.models import policy as policy_module
from parallel_r1.models.policy import Policy, device_of
from parallel_r1.models.settings import LoRA
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.training.loops import run_rl
from parallel_r1.training.settings import RL


def test_the_shipped_model_is_small_and_has_the_tags(tiny):
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 4_000_000
    assert 0.8e6 < models.parameter_count(tiny.model) < 1.2e6
    assert tiny.model.config.model_type == "qwen3"
    assert (TINY / "model.safetensors").is_file()
    assert len({tiny.tags.ids[tag] for tag in DEFAULT.tags}) == 6


@pytest.mark.parametrize(
    "text", ["Use 3, 5, 7 to make 22.\n", "né 東 \x00 <Path>x</Path>", "  two  spaces\n\n", "<Parallel>"]
)
def test_any_text_survives_the_tokenizer(tiny, text):
    assert tiny.decode(tiny.encode(text)) == text


def test_a_model_without_tags_is_refused(tmp_path, tokenizer):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: index for index, character in enumerate("<>/PathrlSumye\n")}
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, [])), eos_token="e", unk_token="\n")
    with pytest.raises(UserError, match=r"<Parallel> is one token.*add the tags"):
        models.tag_ids(plain)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        models.load(str(tmp_path / "none"))
    with pytest.raises(UserError, match="without it"):
        models.load(str(tmp_path))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_weight(path):
    """As if an index had been written without a part of the model."""
    weights = load_file(path)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "file", "said"),
    [
        (cut, "model-00002-of-00002.safetensors", "download again"),
        (Path.unlink, "model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        (Path.unlink, "model.safetensors.index.json", "model.safetensors"),
        (cut, "model.safetensors.index.json", "download again"),
        (cut, "tokenizer.json", "download again"),
        (cut, "config.json", "config.json"),
        (drop_a_weight, "model-00002-of-00002.safetensors", "without 1, such as model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_a_download_that_was_broken_off_is_one_line(tmp_path, frozen, harm, file, said):
    frozen.model.save_pretrained(tmp_path / "m", max_shard_size="70KB")
    frozen.tokenizer.save_pretrained(tmp_path / "m")
    assert models.load(str(tmp_path / "m"))
    harm(tmp_path / "m" / file)
    with pytest.raises(UserError, match="expected") as caught:
        models.load(str(tmp_path / "m"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_other_architectures_are_exact_too(tokenizer, tags, name):
    model = random_model(name, len(tokenizer))
    models.check_model(model)
    (found,) = measure(Policy(model, tokenizer, tags), "isolated", ["isolated"], 3)
    assert found.max_abs <= 1e-4
    assert found.after_fork is not None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layer_types": ["linear_attention"]}, "linear_attention"),
        ({"layer_types": ["chunked_attention"]}, "chunked_attention"),
        ({"attention_dropout": 0.1}, "dropout"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"logits_scaling": 2.0}, "logits_scaling"),
    ],
)
def test_a_model_that_nobody_repeats_is_refused(tokenizer, config, said):
    model = random_model("llama", len(tokenizer))
    for key, value in config.items():
        setattr(model.config, key, value)
    with pytest.raises(UserError, match=said):
        models.check_model(model)


def test_attention_sinks_are_refused(tokenizer):
    model = random_model("llama", len(tokenizer))
    model.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(UserError, match="sinks"):
        models.check_model(model)


@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
def test_a_model_loads_in_the_dtype_that_is_asked_for(dtype):
    policy = models.load(str(TINY), device="cpu", dtype=dtype)
    assert {weight.dtype for weight in policy.model.parameters()} == {
        torch.bfloat16 if dtype == "bf16" else torch.float32
    }
    adapted = adapters.load(str(TINY), LoRA(rank=2), 0, device="cpu", dtype=dtype)
    assert adapted.model.dtype == policy.model.dtype
    assert adapted.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_a_model_loads_on_the_device_that_is_asked_for(monkeypatch):
    best = "cuda" if torch.cuda.is_available() else "cpu"
    assert models.load(str(TINY)).model.device.type == best
    assert models.load(str(TINY), device="cpu").model.device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [str(device_of(name)) for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cuda:1",
        "cpu",
        "cuda:1",
        "cuda:0",
        "cuda:1",
    ]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps", ""])
def test_a_device_that_is_not_there_is_one_clear_error(device, monkeypatch):
    with pytest.raises(UserError, match=rf"a device of this machine: cpu.*found '{device}'.*device='auto'"):
        models.load(str(TINY), device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"a device of this machine: cpu; found 'cuda'"):
        models.load(str(TINY), device="cuda")


def test_another_dtype_is_one_clear_error():
    with pytest.raises(UserError, match=r"auto, fp32, bf16; found 'fp16'"):
        models.load(str(TINY), dtype="fp16")


def test_a_prompt_over_the_budget_is_refused(tiny):
    """Positions count: those of the critical path, or of all the text where a join reads it again."""
    budget = Budget(total=300, critical_path=100)
    check_length(tiny, 10, Sampling(budget=budget))
    with pytest.raises(UserError, match="at most 412 tokens"):
        check_length(tiny, 413, Sampling(budget=budget))
    with pytest.raises(UserError, match="at most 212 tokens"):
        check_length(tiny, 213, Sampling(sampler="causal_join", budget=budget))


def test_an_engine_on_another_device_than_the_model_is_one_line(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(
        UserError, match=r"the engine, cuda:1; found one on cpu; load it there: load\(.., device='cuda:1'"
    ):
        make_generator(tiny, Engine(device="cuda:1"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(device_of(name)) for name in ("auto", "cuda", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]


def test_drawing_in_bf16_follows_the_weights_and_its_mismatch_is_measured(frozen):
    policy = replace(frozen, model=copy.deepcopy(frozen.model))
    engine, half = Engine(dtype="bf16"), replace(frozen, model=copy.deepcopy(frozen.model))
    for parameter in half.model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    generator = make_generator(policy, engine)
    ask = [Request(policy.encode("Use 3, 5"), Sampling(paths=2), str(index)) for index in range(4)]
    assert generator.traces(ask) == make_generator(half).traces(ask)
    assert generator.traces(ask) != make_generator(policy).traces(ask)
    assert policy.model.dtype == torch.float32
    with torch.no_grad():
        for mine, theirs in zip(policy.model.parameters(), half.model.parameters(), strict=True):
            mine.mul_(1.25)
            theirs.copy_(mine)
    assert generator.traces(ask) == make_generator(half).traces(ask)
    (exact,), (rounded,) = (measure(policy, "isolated", ["isolated"], 2, engine=each) for each in (None, engine))
    assert exact.max_abs <= 1e-4 < rounded.max_abs
    stage = RL(kind="rl", task="countdown-easy", steps=1, problems=2, group=2, algorithm={"entropy": 0.01})
    row = next(run_rl(policy, stage, 0, engine=engine)).metrics
    assert 1e-4 < row["mismatch_mean"] < 0.5
    assert "mismatch_mean" in row


def test_every_stage_learns_and_draws_on_the_device_of_the_engine(tmp_path, monkeypatch):
    """The owner is asked wherever weights come from: the base, a checkpoint, an adapter, a study's weights."""
    asked = []
    real = policy_module.device_of
    monkeypatch.setattr(policy_module, "device_of", lambda name: asked.append(name) or real(name))
    recipe = make(tmp_path, "engine.device='cpu'", "evaluation.tasks=[]")
    run = RunFolder.create(tmp_path / "run", recipe)
    train(recipe, build_policy(recipe), run, lambda row: None)
    assert len(asked) >= 2
    assert set(asked) == {"cpu"}
