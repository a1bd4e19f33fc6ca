"""What is refused before verl is launched, in its own environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from parallel_r1.errors import UserError
from parallel_r1.integrations.verl import train
from parallel_r1.integrations.verl.config import Cluster, Files, environment, overrides
from parallel_r1.integrations.verl.words import arguments
from parallel_r1.runs.recipe_file import load_recipe

pytestmark = pytest.mark.verl
RECIPE = ROOT / "tests/cluster/curriculum.toml"


def refused(tmp_path, *words, **variables):
    environ = {name: value for name, value in os.environ.items() if name not in ("VERL_PLATFORM",)} | variables
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "parallel_r1",
            "train",
            str(RECIPE),
            "--engine",
            "verl",
            "--out",
            str(tmp_path / "run"),
            *words,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environ,
    )
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "run").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_plugin_that_verl_did_not_load(tmp_path):
    line = refused(tmp_path, VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_PLUGINS="none")
    assert "parallel_r1 among the plug-ins that verl has loaded; found none of that name" in line


def test_several_nodes_without_ray(tmp_path):
    line = refused(tmp_path, "--nodes", "2")
    assert "expected a Ray that runs on 2 nodes; found none; ray start --head" in line


def test_more_gpus_than_there_are(tmp_path):
    assert "expected 8 GPUs; found 0" in refused(tmp_path, "--gpus-per-node", "8")


def test_no_room_for_saved_states(tmp_path):
    train.check_space(tmp_path, 1000)
    with pytest.raises(UserError, match="free for verl's saved states"):
        train.check_space(tmp_path, 10**15)


def composed(files, cluster=Cluster()):  # noqa: B008
    from hydra import compose, initialize_config_module

    recipe = load_recipe(RECIPE)
    words = arguments(
        overrides(recipe, "hard", files, cluster), environment(recipe.stages["hard"], files.folder / "verl-1.jsonl")
    )
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=words)


def test_any_path_reaches_verl_as_it_is():
    folder = Path('/shared/é, [a] {b}=c\'s #1 ~x "y"/run')
    config = composed(Files(folder, folder / "model", 10, 5))
    assert config.data.train_files == str(folder / "train.parquet")
    assert config.actor_rollout_ref.model.path == str(folder / "model")
    assert str(folder / "verl-1.jsonl") == config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "parallel_r1"


def test_a_key_that_verl_does_not_have_is_said_before_a_launch():
    train.check_configuration(load_recipe(RECIPE), Cluster())
    with pytest.raises(UserError, match=r"keys and values of verl's configuration; found .*nonsense"):
        train.check_configuration(load_recipe(RECIPE), Cluster(overrides=("nonsense.key=1",)))
