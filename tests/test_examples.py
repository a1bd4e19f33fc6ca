import os
import subprocess
import sys

from conftest import ROOT


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
