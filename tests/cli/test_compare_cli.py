"""`compare`: what it prints and writes, and what it refuses."""

import json

import pytest
from common import judged, refused, run

from parallel_r1.answers.rollout import write_jsonl


@pytest.fixture
def files(tmp_path):
    """Two files of answers to 8 and 9 problems, and one of another task."""
    for name, task, right, count in (("new", "easy", 6, 8), ("old", "easy", 2, 9), ("far", "hard", 1, 2)):
        rollouts = [judged(f"p{at}", at < right, task=task, forked=name == "new") for at in range(count)]
        write_jsonl(tmp_path / f"{name}.jsonl", rollouts)
    return tmp_path


def test_compare_prints_a_leaderboard_and_differences(files):
    out = files / "tables" / "compare.md"
    words = ("compare", files / "old.jsonl", f"Parallel-R1={files / 'new.jsonl'}", "--markdown", out)
    done = run(*words, width="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("easy: ")) <= 80  # remarks are one line; tables fit
    first, second, pair = (line.split() for line in lines if line.startswith(("old ", "Parallel-R1 ")))
    assert (first[:2], second[:2]) == (["Parallel-R1", "75.0"], ["old", "25.0"])
    assert pair[:3] == ["old", "Parallel-R1", "-50.0"]
    assert "easy: problems left out, because not every file has them: 1 of old, 0 of Parallel-R1" in lines
    text = out.read_text()
    assert "## easy: 8 problems that all have, k = 1" in text
    assert "| old | Parallel-R1 | -50.0 |" in text
    assert "* easy: problems left out" in text
    refused(*words, said=("compare.md exists", "give another name"))


def test_compare_prints_one_object_per_task(files):
    done = run("compare", files / "old.jsonl", files / "new.jsonl", "--json")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["task"], found["problems"], found["left_out"]) == ("easy", 8, {"old": 1, "new": 0})
    assert [entry["result"]["stage"] for entry in found["entries"]] == ["new", "old"]
    assert found["pairs"][0]["difference"]["mean"] == -0.5


def test_a_path_with_an_equals_sign_needs_no_name(files):
    folder = files / "lr=1e-4"
    folder.mkdir()
    (files / "old.jsonl").rename(folder / "old.jsonl")
    done = run("compare", folder / "old.jsonl", f"x={files / 'new.jsonl'}", "--json")
    assert json.loads(done.stdout)["left_out"] == {"old": 1, "x": 0}


def test_what_compare_refuses(files):
    old, new, bad = (files / f"{name}.jsonl" for name in ("old", "new", "bad"))
    refused("compare", old, said=("two files or folders", "only"))
    refused("compare", old, f"x={bad}", said=("no ", "bad.jsonl", "check the path"))
    refused("compare", old, files, said="a folder that eval wrote, with settings.json")
    refused("compare", old, old, said=("both old", "write NAME=PATH"))
    refused("compare", f"x={old}", f"x={new}", said="both x")
    refused("compare", old, f"={new}", said=("a different name", "write NAME=PATH"))
    refused("compare", old, files / "far.jsonl", said="easy with 9 of old, 0 of far; hard with 0 of old, 2 of far")
    bad.write_text("")
    refused("compare", old, bad, said=("bad.jsonl, which is empty", "leave it out"))
    row = json.loads(new.read_text().splitlines()[0])
    for line, said in (
        (new.read_text()[:-20], "bad.jsonl:8: "),
        ('{"text": "x"}', "bad.jsonl:1: KeyError"),
        (json.dumps({**row, "correct": "yes"}), "bad.jsonl:1: TypeError(\"correct is 'yes', not bool\")"),
        (json.dumps({**row, "total": None}), "total is None, not int"),
        (json.dumps({**row, "source": ["a"]}), "source is ['a'], not str"),
    ):
        bad.write_text(line)
        refused("compare", old, bad, said=said)
