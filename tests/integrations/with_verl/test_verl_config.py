"""A stage of a recipe as verl's configuration, and what is refused."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from parallel_r1.errors import UserError
from parallel_r1.integrations import verl
from parallel_r1.integrations.verl.config import MODES, Cluster, Files, environment, overrides
from parallel_r1.integrations.verl.refusals import check
from parallel_r1.integrations.verl.words import arguments, lines, text
from parallel_r1.runs.recipe_file import load_recipe

DEMO = ROOT / "recipes/tiny/demo.toml"
JOINED = "defaults.sampling.sampler='causal_join'"


def keys_of(*changes, stage="hard", cluster=None, recipe=DEMO, prompt=20, validated=0):
    loaded = load_recipe(recipe, [JOINED, *changes])
    check(loaded)
    files = Files(Path("/shared/run/verl/hard"), Path("/shared/run/checkpoints/easy"), prompt, validated)
    return overrides(loaded, stage, files, cluster or Cluster())


def test_a_recipe_of_a_laptop_becomes_verls_configuration():
    keys = keys_of("save_every=7", cluster=Cluster(4, 8))
    expected = {
        "data.train_files": "/shared/run/verl/hard/train.parquet",
        "data.train_batch_size": 24,
        "data.max_prompt_length": 20,
        "data.max_response_length": 400,
        "data.shuffle": False,
        "actor_rollout_ref.model.path": "/shared/run/checkpoints/easy",
        "actor_rollout_ref.model.use_remove_padding": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "parallel_r1",
        "actor_rollout_ref.actor.optim.lr": 1e-4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 24,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 1024,
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.rollout.max_model_len": 420,
        "actor_rollout_ref.rollout.dtype": "float32",
        "algorithm.rollout_correction.rollout_is": None,
        "trainer.total_training_steps": 30,
        "trainer.nnodes": 4,
        "trainer.n_gpus_per_node": 8,
        "trainer.save_freq": 7,
        "trainer.test_freq": -1,
    }
    assert {key: keys[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("defaults.precision='bf16'", "actor_rollout_ref.rollout.dtype", "bfloat16"),
        ("defaults.recompute=true", "actor_rollout_ref.model.enable_gradient_checkpointing", True),
        ("defaults.micro_tokens=100", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", 420),
        ("stages.hard.algorithm.minibatches=4", "actor_rollout_ref.actor.ppo_mini_batch_size", 6),
        ("stages.hard.algorithm.clip_high=0.28", "actor_rollout_ref.actor.clip_ratio_high", 0.28),
        ("stages.hard.algorithm.std='none'", "algorithm.norm_adv_by_std_in_grpo", False),
        ("stages.hard.algorithm.correction=2.0", "algorithm.rollout_correction.rollout_is", "token"),
        ("stages.hard.algorithm.average='constant'", "actor_rollout_ref.actor.loss_scale_factor", 400),
        ("stages.hard.algorithm.entropy=0.01", "actor_rollout_ref.actor.entropy_coeff", 0.01),
        ("stages.hard.algorithm={ name = 'gspo' }", "actor_rollout_ref.actor.policy_loss.loss_mode", "gspo"),
        ("engine.memory='60%'", "actor_rollout_ref.rollout.gpu_memory_utilization", 0.6),
        ("engine.rows=64", "actor_rollout_ref.rollout.max_num_seqs", 64),
        ("engine.dtype='bf16'", "actor_rollout_ref.rollout.dtype", "bfloat16"),
    ],
)
def test_every_setting_has_its_key(change, key, value):
    assert keys_of(change)[key] == value
    assert keys_of().get(key) != value


def test_plain_text_is_packed_only_where_flash_attention_can():
    key = "+actor_rollout_ref.model.override_config.attn_implementation"
    plain = keys_of("stages.hard.scorer='causal'")
    assert (plain["actor_rollout_ref.model.use_remove_padding"], plain[key]) == (False, "sdpa")
    packed = keys_of("stages.hard.scorer='causal'", "defaults.precision='bf16'")
    assert packed["actor_rollout_ref.model.use_remove_padding"] is True
    assert key not in packed


def test_the_mean_of_the_loss_is_named():
    for ours, theirs in MODES.items():
        assert keys_of(f"stages.hard.algorithm.average='{ours}'")["actor_rollout_ref.actor.loss_agg_mode"] == theirs


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("defaults.sampling.sampler='isolated'", "stages.hard.sampling.sampler"),
        ("defaults.sampling.top_k=5", "stages.hard.sampling"),
        ("stages.hard.stop={ patience = 2 }", "stages.hard.stop"),
        ("defaults.packing=true", "stages.hard.packing"),
        ("stages.hard.algorithm={ name = 'rloo' }", "stages.hard.algorithm.name"),
        ("stages.hard.algorithm.refill=1", "stages.hard.algorithm.refill"),
        ("stages.hard.algorithm.truncated=false", "stages.hard.algorithm.truncated"),
        ("stages.hard.algorithm.kl=0.1", "stages.hard.algorithm.kl"),
        ("stages.hard.algorithm.std='batch'", "stages.hard.algorithm.std"),
        ("stages.hard.algorithm.split=true", "stages.hard.algorithm.split"),
        ("stages.hard.optimizer.carry=true", "stages.hard.optimizer.carry"),
        ("stages.hard.optimizer.tags=10", "stages.hard.optimizer.tags"),
        ("stages.hard.optimizer.embeddings='used'", "stages.hard.optimizer.embeddings"),
        ("model.lora={ rank = 8 }", "model.lora"),
        ("processes.count=2", "processes.count"),
        ("processes.shard=true", "processes.shard"),
        ("engine.compile=true", "engine.compile"),
        ("engine.kind='vllm'", "engine.kind"),
        ("engine.weights='/shared/w'", "engine.weights"),
        ("stages.hard.algorithm={ name = 'gspo', correction = 2 }", "stages.hard.algorithm.correction"),
    ],
)
def test_what_verl_cannot_honour_is_refused_by_name(change, key):
    with pytest.raises(UserError, match="a recipe that verl can run") as caught:
        keys_of(change)
    assert re.search(rf"\b{re.escape(key)}[:,]", caught.value.fix)


def test_isolated_sampling_names_its_alternatives():
    with pytest.raises(UserError) as caught:
        keys_of("defaults.sampling.sampler='isolated'")
    for words in ("sampler = 'causal_join'", "scorer 'replay'", "scorer = 'isolated'", "--engine own"):
        assert words in caught.value.fix


def test_answers_that_the_gpus_cannot_share_are_refused():
    with pytest.raises(UserError, match=r"stages\.hard that 7 GPUs can share; found 192"):
        keys_of(cluster=Cluster(1, 7))


def test_memory_in_bytes_is_refused():
    for memory in ("20GB", "0%", "100%"):
        with pytest.raises(UserError, match=rf"such as '60%'; found '{memory}'"):
            keys_of(f"engine.memory='{memory}'")


def test_overrides_leave_the_recipes_keys_alone():
    free = ("trainer.foo=1", "actor_rollout_ref.rollout.tensor_model_parallel_size=4")
    keys = keys_of(cluster=Cluster(overrides=free))
    assert keys["trainer.foo"] == "1"
    assert keys["actor_rollout_ref.rollout.tensor_model_parallel_size"] == "4"
    with pytest.raises(UserError, match=r"--verl data\.train_batch_size; say it in the recipe"):
        keys_of(cluster=Cluster(overrides=("data.train_batch_size=3",)))
    for words in ("nonsense", "~data.shuffle", "=1"):
        with pytest.raises(UserError, match="KEY=VALUE of verl's configuration"):
            keys_of(cluster=Cluster(overrides=(words,)))


@pytest.mark.parametrize(
    "words",
    [
        "data={shuffle:true}",
        "+actor_rollout_ref.model.override_config.attn_implementation=eager",
        "++actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp16",
        "algorithm.filter_groups.enable=True",
        "trainer.use_v1=False",
        "actor_rollout_ref.rollout.val_kwargs.top_p=0.5",
    ],
)
def test_what_is_learnt_cannot_be_overridden(words):
    with pytest.raises(UserError, match=r"recipe leaves open|speed, memory or logging"):
        keys_of(cluster=Cluster(overrides=(words,)))


def test_the_command_can_be_pasted_into_a_shell():
    stage = load_recipe(DEMO, [JOINED]).stages["hard"]
    words = arguments(keys_of(), environment(stage, Path("/shared/a b.jsonl")))
    script = "\n".join(lines(words))
    assert shlex.split(script.replace("\\\n", " ")) == ["python", "-m", "verl.trainer.main_ppo", *words]
    assert "+ray_kwargs.ray_init.runtime_env.env_vars.PARALLEL_R1_SCORER='replay'" in words
    assert environment(stage, Path("x"))["VERL_ENGINE_VENDOR"] == "parallel_r1"


def test_values_are_written_as_hydra_reads_them():
    values = (True, None, 1e-06, [1, 2.5], {"a": "b"}, "/a/b.c-d", "a b", "1e5", "null", "it's")
    written = ["True", "null", "1e-06", "[1,2.5]", "{a:b}", "/a/b.c-d", "'a b'", "'1e5'", "'null'", r"'it\'s'"]
    assert [text(value) for value in values] == written


@pytest.mark.parametrize(("version", "says"), [(None, "no verl in this environment"), ("0.9.2", "verl 0.9.2")])
def test_another_version_of_verl_is_refused_by_name(monkeypatch, version, says):
    def installed(name):
        if version is None:
            raise verl.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(verl.importlib.metadata, "version", installed)
    with pytest.raises(UserError, match=rf"verl 0\.9\.1; found {says}"):
        verl.check_version()
