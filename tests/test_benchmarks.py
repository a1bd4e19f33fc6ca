"""The benchmarks run on the smallest sizes and report ratios; how large these are means nothing here."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, needs_data


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["alone", "engine", "floor", "forks", "growth", "scoring", "scale", "serve", "products", "train_step"]
)
def test_a_benchmark_reports_ratios(name, tmp_path):
    run(f"benchmarks/{name}.py", "--quick", "--runs", "1", "--out", str(tmp_path))
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert {row["model"] for row in report["rows"]} == {"tiny", "20m"}
    assert not any("skipped" in detail for detail in report.get("details", []))
    for row in report["rows"]:
        low, high = row["range"]
        assert 0 < low <= row["ratio"] <= high < math.inf
    table = run("benchmarks/table.py", str(tmp_path))
    assert table.count("\n| tiny |") == sum(row["model"] == "tiny" for row in report["rows"])


@pytest.mark.slow
def test_one_answer_at_a_time(tmp_path):
    """A model against its copy, since the script wants two that a recipe has trained."""
    shutil.copytree(ROOT / "models/tiny-parallel", tmp_path / "copy")
    models = ["models/tiny-parallel", str(tmp_path / "copy")]
    words = ["--model", *models, "--task", "countdown-easy", "--quick", "--runs", "2", "--out", str(tmp_path)]
    run("benchmarks/latency.py", *words)
    report = json.loads((tmp_path / "latency-tiny-parallel-copy.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["copy"]
    one, two = report["details"]
    assert one["tokens"] == two["tokens"] > one["critical path"] == two["critical path"]
    refused = subprocess.run(
        [sys.executable, "benchmarks/latency.py", "--model", "models/tiny-base", "models/tiny-parallel"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "found models/tiny-base without one" in refused.stderr


@pytest.mark.slow
def test_logits_in_pieces_need_less_memory(tmp_path):
    run("benchmarks/logits.py", "--quick", "--out", str(tmp_path))
    memory, _ = json.loads((tmp_path / "logits.json").read_text())["rows"]
    assert memory["ratio"] > 2
    assert "plain / pieces" in run("benchmarks/table.py", str(tmp_path))


@pytest.mark.slow
def test_memory_keeps_its_promise(tmp_path):
    """The script itself refuses more than was promised."""
    run("benchmarks/memory.py", "--quick", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert len(rows) == 9
    assert all(0 < row["MB of the tokens held"] <= row["MB allocated"] for row in rows)


@pytest.mark.slow
@needs_data
def test_data_are_made_ready(tmp_path):
    run("benchmarks/data.py", "--quick", "--runs", "1", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert len(rows) == 6
    assert all(row["seconds"] > 0 for row in rows)
    assert "20,000 a second" in run("benchmarks/table.py", str(tmp_path))


@pytest.mark.slow
def test_a_run_is_analysed(tmp_path):
    run("benchmarks/analysis.py", "--quick", "--out", str(tmp_path))
    (row,) = json.loads((tmp_path / "analysis.json").read_text())["rows"]
    assert row["answers"] == 64
    assert 64 <= row["forks"] <= 128
    assert 0 < row["peak GB"] < row["asked for, GB"]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv-vllm").exists(), reason="`make bench-vllm` has not installed vLLM")
def test_vllm_can_be_measured(tmp_path):
    run("benchmarks/against_vllm.py", "--quick", "--runs", "1", "--model", "tiny", "--out", str(tmp_path))
    assert len(json.loads((tmp_path / "vllm-tiny.json").read_text())["rows"]) == 3


@pytest.mark.verl
def test_the_agent_loop_beside_verls(tmp_path):
    run("benchmarks/verl_loop.py", "--quick", "--runs", "1", "--out", str(tmp_path))
    (row,) = json.loads((tmp_path / "verl_loop.json").read_text())["rows"]
    assert row["answers"] == 64
    assert row["ratio"] > 0
