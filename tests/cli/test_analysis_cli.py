"""`analyse`: what it prints and writes, and what it refuses."""

import json

import pytest
from analysed import FAILED, RIGHT, WRONG, answer, rl, write_run
from common import make, refused, run

from parallel_r1.answers.rollout import Problem
from parallel_r1.runs.recipe_file import dump_recipe


@pytest.fixture
def folder(tmp_path):
    """A run with two stages and a warning."""
    warning = {"step": 3, "kind": "warning", "stage": "plain", "rule": "dead", "warning": "dead groups: [all] of them"}
    rows = [rl(1, "rl", mismatch_mean=1e-6), rl(2, "rl", 2), rl(3, "plain"), warning]
    steps = {
        1: [answer([RIGHT, WRONG], "Final Answer: 3*5+7"), answer([], "none", False)],
        2: [answer([FAILED, FAILED], "no", False)],
        3: [answer([], "none")],
    }
    folder = write_run(tmp_path / "run", steps, rows)
    (folder / "recipe.toml").write_text(dump_recipe(make(tmp_path)))
    return folder


def test_analyse_prints_two_narrow_tables(folder):
    done = run("analyse", folder, width="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    shape, use = ([line.split() for line in lines if line.startswith(name)] for name in ("rl", "plain"))
    assert shape[0][:5] == ["rl", "2", "3", "33.3", "66.7"]
    assert shape[1][2:6] == ["0.0", "0.0", "50.0", "25.0"]
    assert use[1] == ["plain", *"-" * 9]
    assert "step 3, plain: dead groups: [all] of them" in lines


@pytest.mark.slow
def test_analyse_writes_tables_and_figures(folder):
    from pyarrow import parquet

    out = folder / "new" / "analysis"
    done = run("analyse", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"tables and figures are in {out}" in done.stdout
    figures = ("position", "forks", "siblings", "use", "verdicts", "summary", "mismatch")
    expected = [f"{name}.{kind}" for name in figures for kind in ("svg", "pdf")]
    assert sorted(file.name for file in out.iterdir()) == sorted(
        [*expected, "answers.parquet", "forks.parquet", "steps.parquet"]
    )
    answers, forks, steps = (parquet.read_table(out / f"{name}.parquet") for name in ("answers", "forks", "steps"))
    assert answers["correct"].to_pylist() == [True, False, False, True]
    assert answers["rescued"].to_pylist() == [1.0, None, 0.0, None]
    assert forks["use"].to_pylist() == ["exploration", "neither"]
    assert forks["answer"].to_pylist() == [0, 2]
    assert steps["stage"].to_pylist() == ["rl", "rl", "plain"]
    assert steps["mismatch_mean"].to_pylist() == [1e-6, None, None]
    refused("analyse", folder, "--out", out, said=("a new folder for --out", "exists", "another name"))
    refused("analyse", folder, "--out", folder / "recipe.toml", said="recipe.toml exists")


def test_analyse_prints_one_object(folder):
    (line,) = run("analyse", folder, "--json").stdout.splitlines()
    found = json.loads(line)
    assert [(stage["stage"], stage["answers"], stage["rescued"]) for stage in found["stages"]] == [
        ("rl", 3, 0.5),
        ("plain", 1, None),
    ]
    assert [step["step"] for step in found["steps"]] == [1, 2, 3]
    assert found["alarms"][0]["rule"] == "dead"
    assert found["notes"] == []


def test_analyse_takes_a_file_and_tasks_of_ones_own(folder):
    plugin = folder / "sums.py"
    plugin.write_text(
        "from parallel_r1.tasks.base import task\n"
        '@task("sums")\nclass Sums:\n    def problems(self, split, seed):\n        return iter(())\n'
        '    def verify(self, problems, answers):\n        return ["2" in answer for answer in answers]\n'
    )
    problem = Problem("1+1", "What is 1+1?", "2", "sums")
    write_run(folder / "other", {1: [answer(["Final Answer: 2", "Final Answer: 3"], problem=problem)]})
    file = folder / "other" / "rollouts" / "step-1.jsonl"
    done = run("analyse", file, "--json")
    (stage,) = json.loads(done.stdout)["stages"]
    assert (stage["paths_unjudged"], stage["paths_right"]) == (1.0, 0.0)
    warned = run("analyse", file)
    assert "warning: paths of task 'sums' are not judged: expected a known task" in warned.stderr
    (stage,) = json.loads(run("analyse", file, "--import", plugin, "--json").stdout)["stages"]
    assert (stage["paths_unjudged"], stage["paths_right"]) == (0.0, 0.5)


def test_a_recipe_that_cannot_be_read_does_not_hide_the_answers(folder):
    (folder / "recipe.toml").write_text("name = 3\n")
    done = run("analyse", folder)
    assert done.returncode == 0
    assert "warning: every stage is drawn from step 0" in done.stderr
    assert "rl" in done.stdout


def test_what_analyse_refuses(folder, tmp_path):
    refused("analyse", tmp_path / "nowhere", said=("a run folder or a rollouts file", "nowhere", "check the path"))
    refused("analyse", tmp_path / "run" / "rollouts", said=("a run with rollouts/step-N.jsonl", "none in"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused("analyse", empty, said=("answers to analyse", "empty.jsonl"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": 1}\n')
    refused("analyse", bad, said=("bad.jsonl:1: KeyError", "correct or remove that line"))
