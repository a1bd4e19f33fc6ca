import json
import os
import re
import subprocess
import sys
from itertools import islice
from typing import get_args

import pytest
from common import run
from conftest import ROOT, SHARED, needs_data

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import group
from parallel_r1.coldstart.examples import read_examples
from parallel_r1.generation.rollouts import judge
from parallel_r1.registry import load_plugins
from parallel_r1.tasks.base import problem_stream, verdicts
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.load import load_task
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward


@pytest.mark.slow
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


def test_a_task_of_ones_own_is_one_file():
    """Logic puzzles, loaded as a recipe loads them: no other file of the package knows them."""
    load_plugins(["my_task.py"], ROOT / "examples")
    task = load_task("knights-knaves")
    problems = {split: list(islice(problem_stream(task, split, 0), 20)) for split in get_args(Split)}
    assert problems["train"] == list(islice(problem_stream(task, "train", 0), 20))
    assert problems["train"] != list(islice(problem_stream(task, "train", 1), 20))
    assert len({problem.prompt for split in problems.values() for problem in split}) == 60
    batch = problems["train"]
    others = []
    for problem in batch:  # whatever the two kinds are called
        one, two = re.search(r"is an? (\w+)/(\w+)", problem.prompt).groups()
        swapped = {one: two, two: one}
        others.append(re.sub(rf"\b({one}|{two})\b", lambda match, names=swapped: names[match[0]], problem.answer))
    reordered = [" and ".join(reversed(problem.answer.rstrip(".").split(", and "))) for problem in batch]
    answers = [f"So.\nFinal Answer: {problem.answer}" for problem in batch]
    assert verdicts(task, batch, answers) == [True] * 20
    assert verdicts(task, batch, [f"Final Answer: {answer}" for answer in reordered]) == [True] * 20
    assert verdicts(task, batch, [f"Final Answer: {answer}" for answer in others]) == [False] * 20
    assert verdicts(task, batch, [problem.answer for problem in batch]) == [False] * 20  # no final answer
    mixed = [answers[0], "", others[2], f"Final Answer: {others[3]}\nFinal Answer: {batch[3].answer}"]
    assert verdicts(task, batch[:4], mixed) == [True, False, False, True]


@pytest.mark.slow
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
    rollouts = judge([(problem, parse(tiny.encode(text), tiny.tags)) for text in texts], EASY, tiny)
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


@pytest.mark.slow
def test_a_training_loop_of_ones_own():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "my_loop.py"), "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy") == 2
