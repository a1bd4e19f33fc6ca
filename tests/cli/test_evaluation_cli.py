"""eval and compare as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common import refused, run
from conftest import ROOT, TINY

from parallel_r1.answers.rollout import read_jsonl

EVAL = ("eval", TINY, "--task", "countdown-easy", "--problems", 4, "--samples", 2, "--alone", 1)


def test_eval_writes_a_folder_that_show_and_compare_read(tmp_path):
    out = tmp_path / "one"
    done = run(*EVAL, "--out", out, width="80")
    assert done.returncode == 0, done.stderr
    for said in ("mean@k %", "pass@2 %", "maj@k %", "no final answer %", "verifier gave up %", "s alone", str(out)):
        assert said in done.stdout
    assert max(map(len, done.stdout.splitlines()[:16])) <= 80
    (row,) = json.loads(run(*EVAL, "--out", out, "--json").stdout)
    assert len(row["by_problem"]) == 4
    assert {"mean", "pass@1", "pass@2", "majority", "parallel_ratio", "critical_path", "cut"} <= set(row["intervals"])
    assert len(row["alone"]) == 1
    assert run("show", out / "countdown-easy.jsonl", "--count", 2).stdout.count("critical path") == 2
    assert {path.name for path in out.iterdir()} == {"settings.json", "results.json", "countdown-easy.jsonl"}
    settings = json.loads((out / "settings.json").read_text())
    assert {"weights", "grader", "versions", "sampling", "prompt", "seed", "samples"} <= set(settings)
    other = tmp_path / "two"
    run(*EVAL, "--out", other, "--sampler", "sequential")
    page, picture = tmp_path / "c.md", tmp_path / "c.svg"
    done = run("compare", out, f"plain={other}", "--markdown", page, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert "sampling.sampler differs: one isolated; plain sequential" in done.stdout
    assert "| one |" in page.read_text()
    assert picture.read_text().count("<svg") == 1
    refused("compare", out, other, "--picture", picture, said="exists")
    refused("compare", out, other, "--picture", tmp_path / "c.gif", said=".svg, .pdf or .png")
    refused("compare", out, tmp_path, said="a folder that eval wrote")
    refused("compare", out, out, said="a different name")


@pytest.mark.slow
def test_eval_refuses_what_it_cannot_do(tmp_path):
    out = tmp_path / "one"
    run(*EVAL, "--out", out)
    refused(*EVAL, "--out", out, "--seed", 1, said="results of different settings are not mixed")
    refused(*EVAL, "--out", out, "--samples", 4, "--regrade", said=("samples", "not mixed"))
    refused(*EVAL, "--out", tmp_path / "none", "--regrade", said="a folder that eval wrote")
    refused("eval", TINY, said="--task or --suite")
    refused("eval", TINY, "--suite", "papper", said="did you mean 'paper'")
    refused(*EVAL, "--budgets", "24,x", said="--budgets")
    suite = tmp_path / "mine.toml"
    suite.write_text(f'[samples]\ncountdown-easy = 1\n"jsonl:{tmp_path}/gone.jsonl" = 1\n')
    refused("eval", TINY, "--suite", suite, said="gone.jsonl")


OWN = """
from dataclasses import replace
from pathlib import Path
import parallel_r1 as pr
from parallel_r1.tasks.countdown import EASY

@pr.task("strict-easy")
class Strict:
    def problems(self, split, seed):
        return (replace(problem, source="strict-easy") for problem in EASY.problems(split, seed))

    def verify(self, problems, answers):
        return [REVERSED != verdict for verdict in EASY.verify(problems, answers)]
"""


@pytest.mark.slow
def test_regrade_judges_by_the_verifier_of_today_without_a_model(tmp_path):
    own, out = tmp_path / "own.py", tmp_path / "e"
    own.write_text(OWN.replace("REVERSED", "False"))
    words = ("eval", TINY, "--task", "strict-easy", "--import", own, "--problems", 4, "--samples", 2, "--out", out)
    (before,) = json.loads(run(*words, "--json").stdout)
    own.write_text(OWN.replace("REVERSED", "True"))
    refused(*words, said="give --regrade first")
    (after,) = json.loads(run(*words, "--regrade", "--json").stdout)
    assert after["mean"] == 1 - before["mean"]
    assert after["alone"] == before["alone"]
    (again,) = json.loads(run(*words, "--json").stdout)
    assert again == after


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on(tmp_path):
    words = [sys.executable, "-m", "parallel_r1", "eval", str(TINY), "--task", "countdown-hard", "--problems", "60"]
    words += ["--samples", "4", "--rows", "8", "--alone", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def command(out):
        return subprocess.Popen(
            [*words, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT
        )

    out = tmp_path / "killed"
    for _ in range(2):
        victim = command(out)
        kept = written(out)
        while victim.poll() is None and written(out) < kept + 20:
            time.sleep(0.05)
        assert victim.poll() is None, "it ended before it could be killed"
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        assert written(out) >= kept + 20
    last, whole = command(out), command(tmp_path / "whole")
    (mine,), (theirs,) = (json.loads(process.communicate()[0]) for process in (last, whole))
    mine.pop("loaded"), theirs.pop("loaded")
    assert mine == theirs
    rollouts = [
        [(rollout.trace.token_ids, rollout.correct) for rollout in read_jsonl(folder / "countdown-hard.jsonl")]
        for folder in (out, tmp_path / "whole")
    ]
    assert rollouts[0] == rollouts[1]


def written(out: Path) -> int:
    """Lines of answers on disk."""
    return sum(file.read_bytes().count(b"\n") for file in out.glob("*.jsonl")) if out.is_dir() else 0
