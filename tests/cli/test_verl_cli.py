"""`train --engine verl` where verl is not installed: what it prints, and what it refuses before a launch."""

import json
import shlex

import pytest
from common import refused
from common import run as command
from conftest import ROOT

RECIPE = ROOT / "recipes/tiny/demo.toml"
JOINED = ["--set", "defaults.sampling.sampler='causal_join'"]


def run(*words):
    return command("train", RECIPE, *words).stdout


def test_print_shows_a_command_for_every_rl_stage(tmp_path):
    out = run("--engine", "verl", "--nodes", 4, "--gpus-per-node", 8, "--print", "--out", tmp_path, *JOINED)
    parts = out.split("# stage ")[1:]
    assert [part.split("\n")[0] for part in parts] == ["easy", "hard", "grpo-easy", "grpo-hard"]
    words = shlex.split(parts[1].partition("\n")[2].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    expected = {"trainer.nnodes=4", "trainer.n_gpus_per_node=8", "data.max_response_length=400"}
    (longest,) = [int(word.partition("=")[2]) for word in words if word.startswith("data.max_prompt_length=")]
    assert 10 < longest < 40
    assert expected | {f"actor_rollout_ref.model.path={tmp_path}/checkpoints/easy"} <= {*words}
    assert not list(tmp_path.iterdir())


def test_json_has_the_same_commands(tmp_path):
    launches = json.loads(run("--engine", "verl", "--print", "--json", "--out", tmp_path, *JOINED))
    assert list(launches) == ["easy", "hard", "grpo-easy", "grpo-hard"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--engine", "verl", "--print"],
            "stages.easy.sampling.sampler, stages.hard.sampling.sampler: a stock server cannot draw 'isolated'",
        ),
        (["--print"], "--engine verl; found an option that belongs to it"),
        (["--nodes", 2], "--engine verl; found an option that belongs to it"),
        (["--verl", "a=b"], "--engine verl; found an option that belongs to it"),
        (["--engine", "verl", *JOINED], "verl 0.9.1; found no verl in this environment"),
        (["--engine", "verl", "--print", "--verl", "data.shuffle=True", *JOINED], "--verl data.shuffle"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, words, says):
    refused("train", RECIPE, "--out", tmp_path / "run", *words, said=says)
    assert not (tmp_path / "run").exists()
