import json
import os
import subprocess
import sys

from common import run
from conftest import ROOT, SHARED, needs_data

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import group
from parallel_r1.coldstart.examples import read_examples
from parallel_r1.generation.rollouts import judge
from parallel_r1.registry import load_plugins
from parallel_r1.tasks.countdown import EASY
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward


def test_the_tour_runs():
    done = subprocess.run(
        [sys.executable, "examples/tour.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "critical path" in done.stdout


@needs_data
def test_real_traces_are_replayed_to_a_cold_start(tmp_path):
    traces = SHARED / "parallel_gsm8k_traces.parquet"
    server = subprocess.Popen(
        [sys.executable, "examples/replay.py", str(traces), "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().split()[-1]
        words = ["--problems", f"parquet:{traces}", "--base-url", address, "--model", "replay", "--json"]
        done = run("coldstart", *words, "--out", tmp_path / "out")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (found,) = told["sources"]
    assert found["responses"] == found["problems"] > 200
    assert found["kept"] > 0.8  # they are the filtered part of what a teacher wrote
    assert 1.1 < found["forks"] < 1.5
    assert 1.9 < found["paths"] < 2.2
    assert len(read_examples(tmp_path / "out" / "answers.parquet")) == told["kept"]


def test_a_reward_of_ones_own(tiny):
    """The example's file, as a recipe imports it, on real answers to one problem."""
    load_plugins(["my_reward.py"], ROOT / "examples")
    problem = EASY.problem((3, 5, 7), 22)
    texts = ["Final Answer: 3*5+7", "3*5=15, 15+7=22\nFinal Answer: 3*5+7", "Final Answer: 3+5+7"]
    rollouts = [judge(problem, parse(tiny.encode(text), tiny.tags), EASY, tiny) for text in texts]
    reward = parse_reward("alternate(accuracy(), quick(0.3), period=2, second=1)")
    (members,) = group(rollouts)
    assert [rollout.terms for rollout in apply_reward(members, reward, 1).rollouts] == [
        {"accuracy": 1.0},
        {"accuracy": 1.0},
        {"accuracy": -1.0},
    ]
    assert [rollout.terms for rollout in apply_reward(members, reward, 2).rollouts] == [
        {"accuracy": 1.0, "quick": 0.15},
        {"accuracy": 1.0, "quick": 0.0},
        {"accuracy": -1.0, "quick": 0.0},
    ]
