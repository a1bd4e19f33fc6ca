"""Several processes: two that torchrun starts do what one does."""

import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import draw
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1 import distributed as processes
from parallel_r1 import models
from parallel_r1.answers.rollout import read_jsonl
from parallel_r1.errors import UserError
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.training.learner import add_up

HERE = Path(__file__).parent
RECIPE = """
name = "crew"
save_every = 2
processes = {{ count = 2, shard = {shard} }}
[model]
path = "{model}"
[evaluation]
tasks = ["countdown-easy"]
problems = 3
samples = 3
[defaults]
micro_tokens = 100
optimizer = {{ lr = 1e-3, tags = 5.0, embeddings = "used", clip = 0.5, schedule = "cosine" }}
[defaults.sampling]
paths = 2
budget = {{ critical_path = 30, path = 10, total = 60, forks = 2 }}
[stages.sft]
kind = "sft"
steps = 3
batch = 5
recompute = true
stop = {{ task = "countdown-easy", every = 2, problems = 3, samples = 1 }}
data = {{ tasks = {{ countdown-easy = 1.0 }}, parallel = 0.5 }}
[stages.rl]
kind = "rl"
task = "countdown-easy"
steps = 3
problems = 4
group = 3
reward = "additive()"
scorer = "causal"
sampling = {{ sampler = "causal_join" }}
optimizer = {{ lr = 1e-4, carry = true }}
algorithm = {{ minibatches = 2, kl = 0.1, entropy = 0.01, correction = 2.0 }}
save_rollouts_every = 1
"""


def torchrun(*words, count=2, limit=900):
    """What torchrun starts: a script, or a module with -m."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc_per_node", count, "--master_addr", "127.0.0.1", "--master_port", port]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [str(word) for word in (sys.executable, "-m", *launcher, *words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)


def alone(recipe, folder):
    """The run by one process."""
    run = RunFolder.create(folder, load_recipe(recipe))
    train(load_recipe(recipe), build_policy(load_recipe(recipe)), run, lambda row: None)
    return run


def weights(run):
    """Of every stage, by name."""
    return {
        f"{stage}.{name}": value
        for stage in ("sft", "rl")
        for name, value in models.load(str(run.checkpoint(stage))).model.state_dict().items()
    }


def metrics(run):
    """The figures of every step and evaluation, but for what is read: a prompt may be read by several processes."""
    own = {"seconds", "sampling_seconds", "tokens_per_second", "prefilled", "peak_kv", "by_problem"}
    return [{key: value for key, value in row.items() if key not in own} for row in run.metrics()]


def check_same(run, other, tolerance=1e-5):
    """Two runs learnt the same from the same answers."""
    ours, theirs = weights(run), weights(other)
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=0, atol=tolerance), name
    rows = zip(metrics(run), metrics(other), strict=True)
    for row, expected in rows:
        assert list(row) == list(expected)
        for name, value in expected.items():
            near = pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value
            assert row[name] == near, name
    for step in (4, 5, 6):
        drawn, expected = (
            [rollout.trace.token_ids for rollout in read_jsonl(each.path / "rollouts" / f"step-{step}.jsonl")]
            for each in (run, other)
        )
        assert drawn == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory, frozen):
    """Two recipes, and what two processes made of them."""
    folder = tmp_path_factory.mktemp("crew")
    models.save(frozen, folder / "model")
    for name, shard in (("ddp", "false"), ("shares", "true")):
        (folder / f"{name}.toml").write_text(RECIPE.format(shard=shard, model=folder / "model"))
    (folder / "log").write_text(torchrun(HERE / "crew.py", folder).stderr)
    shutil.copytree(folder / "killed", folder / "killed-too")
    return folder


@pytest.fixture(scope="module")
def one(folder):
    return alone(folder / "ddp.toml", folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "shares"])
def test_two_processes_do_what_one_does(folder, one, name):
    """With different numbers of answers and micro-batches, recomputed activations, a stop rule, moments that are
    carried on, a reference, an entropy bonus, old log-probabilities, clipped gradients, rows that must not move."""
    run = RunFolder(folder / name)
    check_same(run, one)
    norms = [row["gradient_norm"] for row in run.metrics() if "gradient_norm" in row]
    assert len(norms) == 6
    assert max(norms) > 0.5


@pytest.mark.slow
def test_what_the_first_process_must_refuse_all_refuse(folder):
    for rank in (0, 1):
        count, taken = (folder / f"refusals-{rank}").read_text().splitlines()
        assert count.startswith("expected 3 processes")
        assert "found 2; `torchrun --nproc_per_node 3" in count
        assert "holds something already" in taken


@pytest.mark.slow
def test_two_killed_processes_go_on_bit_for_bit(folder):
    """By the real command, which prints once."""
    killed = RunFolder(folder / "killed")
    assert max(row["step"] for row in killed.metrics()) == 5
    done = torchrun("-m", "parallel_r1", "train", folder / "shares.toml", "--out", folder / "killed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on in") == done.stdout.count("everything is in") == 1
    assert not (folder / "killed" / "state").exists()
    assert (folder / "killed" / "table.md").is_file()
    found, whole = weights(killed), weights(RunFolder(folder / "shares"))
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert metrics(killed) == metrics(RunFolder(folder / "shares"))


@pytest.mark.slow
def test_another_number_of_processes_takes_a_run_up(folder, one):
    check_same(alone(folder / "ddp.toml", shutil.copytree(folder / "killed-too", folder / "killed-alone")), one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "{folder}/none", "--set", "processes.count=1"), "expected 1 process"),
        (("--out", "{folder}/taken"), "holds something already"),
    ],
)
def test_a_mistake_is_said_once(folder, words, said):
    done = torchrun("-m", "parallel_r1", "train", folder / "ddp.toml", *(word.format(folder=folder) for word in words))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said in line
    assert done.stderr.count("Traceback") == 1  # torchrun's own


@pytest.mark.slow
def test_more_processes_with_uneven_shares_take_a_run_up(folder, one):
    run = RunFolder(shutil.copytree(folder / "killed-too", folder / "killed-three"))
    words = ("train", folder / "shares.toml", "--out", run.path, "--set", "processes.count=3")
    done = torchrun("-m", "parallel_r1", *words, count=3)
    assert done.returncode == 0, done.stderr
    check_same(run, one)


@pytest.mark.slow
def test_evaluation_by_two_processes(folder):
    words = ("-m", "parallel_r1", "eval", folder / "model", "--task", "countdown-easy", "--problems", 5, "--json")
    both = torchrun(*words, "--processes", 2, "--out", folder / "eval-by-two")
    assert both.returncode == 0, both.stderr
    alone = torchrun(*words, "--out", folder / "eval-by-one", count=1)
    results = [json.loads(done.stdout)[0] for done in (both, alone)]
    for result in results:
        assert result.pop("loaded") > 0
        assert len(result.pop("alone")) == 5
    assert results[0] == results[1]
    files = [list(read_jsonl(folder / f"eval-by-{name}" / "countdown-easy.jsonl")) for name in ("two", "one")]
    assert [one.trace.token_ids for one in files[0]] == [one.trace.token_ids for one in files[1]]


@pytest.mark.slow
@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_two_processes_teach_an_adapter_as_one_does(folder, quantise):
    name = f"lora-{quantise}"
    table = f"[model.lora]\nrank = 4\nquantise = '{quantise}'\n[evaluation]"
    (folder / f"{name}.toml").write_text((folder / "ddp.toml").read_text().replace("[evaluation]", table))
    done = torchrun(HERE / "crew.py", folder / f"{name}.toml", folder / name, 0)
    assert done.returncode == 0, done.stderr
    check_same(RunFolder(folder / name), alone(folder / f"{name}.toml", folder / f"{name}-one"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "shares"])
def test_killed_at_any_moment_two_processes_go_on_bit_for_bit(folder, name):
    """The two die at different moments, or one of them because the other has."""
    drawing = random.Random(0)
    for moments in [drawing.randint(1, 20) for _ in range(8)] + [0]:
        done = torchrun(HERE / "crew.py", folder / f"{name}.toml", folder / f"{name}-again", moments)
        assert (done.returncode == 0) == (moments == 0)
    again, whole = (RunFolder(folder / each) for each in (f"{name}-again", name))
    found = weights(again)
    assert all(torch.equal(found[key], value) for key, value in weights(whole).items())
    assert metrics(again) == metrics(whole)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_all_and_come_back_in_order(size, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "count", lambda: count)
        parts = []
        for rank in range(count):
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            parts.append(processes.share(range(size)))
    assert [item for part in parts for item in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_is_drawn_as_it_is_in_the_whole(frozen):
    sampling = Sampling(paths=2, budget=Budget(critical_path=20, path=8, total=40))
    prompts = [frozen.encode(text) for text in ("Use 3, 5 to make 8.\n", "Use 1, 2 to make 3.\n")] * 3
    engine = LocalEngine(frozen.model)
    whole = draw(engine, frozen.tags, prompts, sampling, 7)
    parts = [draw(engine, frozen.tags, prompts[at : at + 3], sampling, 7, first=at) for at in (0, 3)]
    assert [trace.token_ids for trace in whole] == [trace.token_ids for part in parts for trace in part]


def test_metrics_of_parts_add_up():
    parts = [{"loss": 1.0, "mismatch_max": 3.0}, {"loss": 2.0, "mismatch_max": 2.0, "entropy": 1.0}]
    assert add_up(parts) == {"loss": 3.0, "mismatch_max": 3.0, "entropy": 1.0}
    assert add_up([]) == {}


def test_a_mistake_can_be_told_to_other_processes():
    error = UserError("a", "b", "c")
    again = pickle.loads(pickle.dumps(error))
    assert (again.expected, again.found, again.fix, str(again)) == ("a", "b", "c", str(error))
