"""The command `plan`, as a user meets it."""

import json

import pytest
from common import RECIPE, folder_of, refused, run

QWEN = "recipes/qwen3-4b/unseen_s2.toml"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    folder_of("qwen3-4b", folder, layers=2)
    return folder / "config.json"


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(RECIPE)
    return file


def test_a_plan_has_time_memory_and_every_assumption(config):
    done = run(
        "plan", QWEN, "--model-config", config, "--gpus", "8, 64", "--set", "stages.general.problems=32", width="80"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 110
    for start in ("8 ", "64 ", "GPUs bottleneck", "cache", "learning", "published: NVIDIA H100", "train_arithmetic"):
        assert any(line.startswith(start) for line in lines), start
    assert "the sampler is isolated, which vLLM does not draw" in done.stdout
    assert "a simulation, not a measurement" in lines[-1]


def test_a_plan_as_json(config):
    words = ("--gpu", "H200", "--gpus", "16", "--mode", "separate", "--draw-share", "0.25", "--routing", "spread")
    more = (
        "--assume",
        "train_arithmetic=0.5",
        "--lengths",
        "parallel=1,forks=2",
        "--set",
        "stages.general.problems=32",
    )
    done = run("plan", QWEN, "--model-config", config.parent, *words, *more, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["gpu"]["name"] == "h200"
    (stage,) = made["stages"]
    assert stage["forking"] == 1
    assert stage["points"][0]["servers"] == 4
    values = {row["name"]: row["value"] for row in made["assumptions"]}
    assert (values["train_arithmetic"], values["routing"], values["draw_share"]) == ("0.5", "spread", "0.25")


def test_a_plan_from_the_answers_of_a_run(small, tmp_path):
    assert run("train", small, "--out", tmp_path / "run").returncode == 0
    file = next((tmp_path / "run" / "rollouts").glob("*.jsonl"))
    done = run("plan", small, "--rollouts", file, "--gpus", "1,2", "--json")
    assert done.returncode == 0, done.stderr
    assert [stage["name"] for stage in json.loads(done.stdout)["stages"]] == ["rl", "plain"]
    assert "saved answers" in run("plan", small, "--rollouts", file, "--gpus", "1").stdout
    refused("plan", small, "--rollouts", file, "--lengths", "forks=2", said="--rollouts or --lengths")


def test_the_simulation_is_checked_against_a_measurement(small, tmp_path):
    steps = [{"batch": 1, "seconds": 0.003}, {"batch": 5, "seconds": 0.007}]
    rollout = {"answers": [[9, [4, 4], 2]], "prompt": 6, "rows": 4, "seconds": 0.05}
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"steps": steps, "rollout": rollout}))
    done = run("plan", small, "--check", file)
    assert done.returncode == 0, done.stderr
    assert "2.000 ms + 1.0000 ms a row" in done.stdout
    assert "rollout, answers: 1" in done.stdout
    made = json.loads(run("plan", small, "--check", file, "--json").stdout)
    assert made["comparisons"][-1]["predicted"] == pytest.approx(11 * 0.003 + 4 * 0.004)
    file.write_text("{}")
    refused("plan", small, "--check", file, said=("measurements in", "docs/scale.md"))


def test_what_is_wrong_is_one_line(small, config):
    real = ("plan", QWEN, "--model-config", config)
    for wrong in ("8,x", "0", "", "-3", "70000"):
        refused(*real, f"--gpus={wrong}", said="--gpus with numbers from 1 to 65,536")
    refused(*real, "--gpu", "h10", said="did you mean 'h100'?")
    refused(*real, "--routing", "stick", said="did you mean 'sticky'?")
    refused(*real, "--mode", "both", said="--mode one of")
    refused(*real, "--assume", "mfu=1", said="a name that --assume knows")
    refused(*real, "--lengths", "median=2", said="a valid --lengths median")
    refused(*real, "--gpus", "1", "--mode", "separate", said="leave some to learn")
    refused(
        *real, "--gpus", "1", "--set", "defaults.micro_tokens=900000", said=("stages.general to fit", "micro_tokens")
    )
    refused("plan", "recipes/tiny/base.toml", said="a stage of kind 'rl'")
    refused("plan", QWEN, "--model-config", "none.json", said="no none.json")
    refused("plan", QWEN, said=("models/qwen3-4b", "give --model-config FILE", "docs/scale.md"))
    refused("plan", small, "--rollouts", "none.jsonl", said="no file none.jsonl")
