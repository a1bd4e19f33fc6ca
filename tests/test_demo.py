"""The demo's recipe, shortened, through the command line: RL improves on the cold start where the demo says so."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_short_demo_learns(tmp_path):
    short = {"easy": 4, "grpo-easy": 1, "grpo-hard": 1}
    words = [word for stage, steps in short.items() for word in ("--set", f"stages.{stage}.steps={steps}")]
    done = subprocess.run(
        [sys.executable, "-m", "parallel_r1", "demo", "--out", str(tmp_path / "run"), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr

    def result(stage):
        return json.loads((tmp_path / "run" / "eval" / f"{stage}.countdown-hard.json").read_text())

    assert result("base")["mean"] < 0.2
    assert result("base")["parallel_ratio"] == 0
    assert result("cold-start")["parallel_ratio"] > 0.5
    assert result("hard")["low"] > result("base")["high"]
    assert result("hard")["mean"] > result("cold-start")["mean"] + 0.03
    assert result("hard")["parallel_ratio"] > 0.8
