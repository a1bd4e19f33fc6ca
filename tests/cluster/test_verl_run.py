"""A whole small curriculum through verl's unmodified trainer, on a CPU by means of the shim `verl_on_cpu`.

The command line is run as a user runs it; nothing of verl is replaced but what the shim names.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from measured import measured
from safetensors.torch import load_file

from parallel_r1.answers.rollout import read_jsonl
from parallel_r1.training.loops import describe
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Outcome

pytestmark = pytest.mark.verl
RECIPE = ROOT / "tests/cluster/curriculum.toml"
REWARD = "alternate(accuracy(), bonus(0.2), period=2, second=1)"
SHIM = [
    "actor_rollout_ref.rollout.name=hf_on_cpu",
    "trainer.device=cpu",
    "+ray_kwargs.ray_init.num_gpus=1",
    "ray_kwargs.ray_init.num_cpus=32",
    "+ray_kwargs.ray_init.include_dashboard=False",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "data.dataloader_num_workers=0",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
]
"""Keys of verl for the shim: its server, its resource, and few processes."""


def command(out, *changes, recipe=RECIPE):
    words = [sys.executable, "-m", "parallel_r1", "train", str(recipe), "--engine", "verl", "--out", str(out)]
    words += [word for key in SHIM for word in ("--verl", key)]
    return words + [word for change in changes for word in ("--set", change)]


def run(out, *changes, **more):
    done = subprocess.run(command(out, *changes, **more), cwd=ROOT, capture_output=True, text=True, timeout=500)
    logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(Path(out).rglob("verl-*.log")))
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{logs}"
    return done


def metrics(out, kind="rl"):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    began = time.monotonic()
    done = run(out, "save_every=1")
    return out, done.stdout, time.monotonic() - began


def test_the_curriculum_runs_through_verls_trainer(finished):
    out, printed, seconds = finished
    rows = metrics(out)
    assert [row["stage_step"] for row in rows] == [1, 2, 3]
    assert all(row["stage"] == "hard" and row["parallel_ratio"] > 0 for row in rows)
    assert "countdown-easy" in (out / "table.md").read_text()
    assert (out / "report.html").is_file()
    weights = load_file(out / "checkpoints/hard/model.safetensors")
    assert not all(torch.equal(value.bfloat16().float(), value) for value in weights.values())  # nothing is rounded
    assert not (out / "verl/hard/states").exists()
    card = json.loads((out / "checkpoints/hard/parallel_r1.json").read_text())
    assert card["stage"] == "hard"
    assert "the report is" in printed
    assert seconds < 400


def test_metrics_are_those_of_the_answers(finished):
    """What is logged of a step is what one process would log of the same answers."""
    out, *_ = finished
    for row in metrics(out):
        rollouts = list(read_jsonl(out / f"rollouts/step-{row['step']}.jsonl"))
        assert len(rollouts) == 16
        for name, value in describe(rollouts).items():
            assert row[name] == pytest.approx(value, abs=1e-5), name


def test_the_mismatch_is_measured_for_every_kind_of_token(finished):
    """The server reads the same tokens in the same order as `replay` scores them: they agree but for rounding."""
    out, *_ = finished
    for row in metrics(out):
        for kind in ("mean", "max", "after_fork", "after_join"):
            assert 0 <= row[f"mismatch_{kind}"] < 1e-4, (kind, row)


def test_the_alternating_reward_follows_the_global_step(finished):
    """Step 1 pays for accuracy, step 2 for forks too, step 3 for accuracy: as the expression says for these steps."""
    out, *_ = finished
    reward = parse_reward(REWARD)
    paid = set()
    for row in metrics(out):
        for rollout in read_jsonl(out / f"rollouts/step-{row['step']}.jsonl"):
            terms = reward(Outcome.of(rollout, step=row["stage_step"]))
            assert rollout.terms == pytest.approx(terms)
            paid |= {(row["stage_step"], name) for name in terms}
    assert (2, "parallel") in paid
    assert not {(1, "parallel"), (3, "parallel")} & paid


def test_weights_have_learnt_and_go_back_to_the_server(finished):
    """The servers drew step 2 with the weights after step 1; the trace says so."""
    out, *_ = finished
    versions = [
        {rollout.trace.policy_version for rollout in read_jsonl(out / f"rollouts/step-{row['step']}.jsonl")}
        for row in metrics(out)
    ]
    assert versions == [{0}, {1}, {2}]
    assert sum(row["gradient_norm"] > 0 for row in metrics(out)) >= 1


def test_validation_has_mean_and_pass(finished):
    out, *_ = finished
    rows = metrics(out, "validation")
    assert [row["stage_step"] for row in rows] == [1, 2, 3]
    assert all(row["problems"] == 8 and row["samples"] == 2 and row["passed"] >= row["mean"] for row in rows)


def test_the_plan_is_checked_against_what_was_measured(finished, tmp_path):
    """The simulation knows the decode steps of this machine and the answers of a step, and predicts the rollout. It
    leaves out what Ray adds to every call."""
    out, *_ = finished
    row = metrics(out)[-1]
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(measured(out, row["step"])))
    words = [sys.executable, "-m", "parallel_r1", "plan", str(RECIPE), "--check", str(file), "--json"]
    words += ["--rollouts", str(out / f"rollouts/step-{row['step']}.jsonl")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    *steps, rollout = json.loads(done.stdout)["comparisons"]
    print(f"\nrollout of 16 answers: predicted / measured {rollout['ratio']:.2f}", rollout)
    assert all(0.7 < step["ratio"] < 1.4 for step in steps)
    assert 0.3 < rollout["ratio"] < 1.3


def test_a_run_that_is_killed_goes_on(tmp_path):
    """Killed with -9 after its first saved step, the run goes on at the next step, and ends with three."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, "save_every=1", "evaluation.tasks=[]"), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    saved = out / "verl/hard/states/latest_checkpointed_iteration.txt"
    end = time.monotonic() + 300
    while not saved.is_file():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = int(saved.read_text())
    time.sleep(5)  # the trainer ends with its parent, and Ray with the trainer
    run(out, "save_every=1", "evaluation.tasks=[]")
    assert [row["stage_step"] for row in metrics(out)] == [1, 2, 3]
    launches = sorted(out.glob("verl/hard/verl-*.jsonl"))
    assert len(launches) == 2
    again = [json.loads(line)["step"] for line in launches[1].read_text().splitlines()]
    assert again[0] == first + 1
    assert not list(out.glob("state/*"))


def test_shared_positions_are_scored_in_verl_too(tmp_path):
    """The paper's structured variant on a stock server: sampled by `causal_join`, scored `isolated`. The mismatch shows
    where it should: after a join."""
    run(tmp_path / "run", "defaults.scorer='isolated'", "stages.hard.steps=1", "evaluation.tasks=[]")
    (row,) = metrics(tmp_path / "run")
    assert row["mismatch_after_fork"] < 1e-4 < row["mismatch_after_join"]
    shutil.rmtree(tmp_path / "run")
