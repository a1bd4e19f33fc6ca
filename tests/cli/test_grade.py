"""`grade`: texts with their references, rollouts with their tasks, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from parallel_r1.tasks.load import load_task

TASK = """
from parallel_r1 import Problem, task
from parallel_r1.tasks.grading.extract import final_answer

@task("shouted")
class Shouted:
    def problems(self, split, seed):
        yield Problem("1", "Say it.", "yes", "shouted")

    def verify(self, problems, answers):
        return [final_answer(answer) == problem.answer.upper() for problem, answer in zip(problems, answers)]
"""


def run(*words, stdin=None, cwd=None):
    """The command in a process of its own, as users run it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "parallel_r1", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, cwd=cwd, check=False)


def written(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def rollout(text, answer, identity="3+5+7", source="countdown-easy", **more):
    return {"id": identity, "source": source, "prompt": "..", "answer": answer, "text": text, **more}


def graded(*words, **more):
    done = run("grade", *words, "--json", **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_numbers_of_json_are_references_and_other_models_are_read_too(tmp_path):
    path = written(
        tmp_path / "a.jsonl",
        {"text": "Final Answer: 72", "answer": 72},
        {"text": "Final Answer: 0.0000059", "answer": 5.9e-06},
        '{"text": "#### 0.1", "answer": 0.10}',
        '{"text": "**Final Answer**\\n12345678901234567890.5", "answer": 12345678901234567890.5}',
        {"text": "Final Answer: 3", "answer": 3.0},
        {"text": "Final Answer: 71", "answer": 72},
    )
    rows = graded(path)
    assert [row["correct"] for row in rows] == [True] * 5 + [False]
    assert [row["answer"] for row in rows] == ["72", "0.0000059", "0.1", "12345678901234567890.5", "3", "72"]
    strict = graded(path, "--find", "strict")
    assert [row["found"] for row in strict][2:4] == [None, None]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("NaN", "nan"),
        ("Infinity", "finite"),
        ("1e400000", "digits"),
        ("null", "null"),
        ('""', "blank"),
        ("[1]", "list"),
        ("true", "truth value"),
        ('{"a": 1}', "object"),
    ],
)
def test_a_reference_that_is_none_is_refused_with_its_line(tmp_path, value, said):
    path = written(
        tmp_path / "a.jsonl", {"text": "Final Answer: 1", "answer": "1"}, "", f'{{"text": "1", "answer": {value}}}'
    )
    done = run("grade", path)
    assert done.returncode == 2
    assert f"{path}:3: " in done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_rollouts_are_judged_by_their_own_task(tmp_path):
    identity = "countdown-easy/3, 5, 7/22"
    spans = [
        {"text": "<Parallel><Path>Final Answer: 3*5+7", "address": [[0, 0]]},
        {"text": "</Path></Parallel>\n<Summary>x</Summary>Final Answer: 22", "address": []},
    ]
    cut = [{"text": "Final Answer: 3*5+7", "address": []}]
    path = written(
        tmp_path / "r.jsonl",
        rollout("Final Answer: 22", "22", identity),  # no number was used
        rollout("Final Answer: 3*5+7", "22", identity),
        rollout("".join(span["text"] for span in spans), "22", identity, spans=spans),
        rollout("**Final Answer**: 3*5+7", "22", identity),
        rollout("Final Answer: 3*5+7", "22", identity, spans=cut, finish="length"),
        rollout("Final Answer: 3*5+7", "22", identity, spans=cut, finish="stop"),
        {"text": "Final Answer: 22", "answer": 22},
    )
    rows = graded(path)
    assert [row["correct"] for row in rows] == [False, True, False, False, False, True, True]
    assert [row["found"] for row in rows] == ["22", "3*5+7", "22", None, None, "3*5+7", "22"]


def test_a_task_of_ones_own_is_imported_and_one_that_is_missing_is_one_clear_line(tmp_path):
    plugin = tmp_path / "shouting.py"
    plugin.write_text(TASK)
    path = written(
        tmp_path / "r.jsonl",
        rollout("Final Answer: YES", "yes", "1", "shouted"),
        rollout("Final Answer: yes", "yes", "1", "shouted"),
    )
    assert [row["correct"] for row in graded(path, "--import", "shouting.py", cwd=tmp_path)] == [True, False]
    done = run("grade", path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for part in ("'shouted'", f"{path}:1", "--import"):
        assert part in done.stderr


def test_a_file_task_of_rollouts_takes_the_setting(tmp_path):
    data = written(tmp_path / "d.jsonl", {"problem": "1 + 1?", "answer": 2})
    path = written(tmp_path / "r.jsonl", rollout("**Final Answer**: 2", "2", "x", f"jsonl:{data}"))
    assert [row["correct"] for row in graded(path)] == [False]
    assert [row["correct"] for row in graded(path, "--find", "lenient")] == [True]
    data.unlink()
    done = run("grade", path)
    assert done.returncode == 2
    assert "put back its data" in done.stderr
    assert "lenient" in run("grade", path, "--find", "lenint").stderr


def test_other_models_are_evaluated_leniently(tmp_path):
    """`eval --find` reaches the task; a wrong value is refused before a model is loaded."""
    data = written(tmp_path / "d.jsonl", {"problem": "1 + 1?", "answer": 2, "split": "test"})
    for find, right in (("strict", False), ("lenient", True)):
        task = load_task(f"jsonl:{data}", find=find)
        (problem,) = task.problems("test", 0)
        assert task.verify([problem], ["The answer is **2**."]) == [right]
    done = run("eval", "nowhere", "--task", f"jsonl:{data}", "--find", "lenint")
    assert done.returncode == 2
    assert "did you mean 'lenient'" in done.stderr
