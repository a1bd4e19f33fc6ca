"""A run as it is seen from outside: read while it is written, in any pieces."""

import json
import math
import os
import time
import tracemalloc
from unittest.mock import patch

import pytest
from common import judged
from hypothesis import given
from hypothesis import strategies as some
from pretended_run import PretendedRun

from parallel_r1.errors import UserError
from parallel_r1.files import Tail, read_jsonl
from parallel_r1.runs.follow import RunSoFar, answers

ROWS = some.lists(some.dictionaries(some.text(max_size=3), some.integers() | some.text(max_size=5), max_size=3))


class Reader(Tail):
    """A tail that reads a few bytes at a time, and to the end."""

    def read(self):
        with patch("parallel_r1.files._PIECE", 7):
            anew, rows = super().read()
            return anew, list(rows)


@given(rows=ROWS, cuts=some.lists(some.integers(0, 400)), ascii_only=some.booleans())
def test_however_a_file_grows_every_row_is_read_once(tmp_path_factory, rows, cuts, ascii_only):
    path = tmp_path_factory.mktemp("grow") / "rows.jsonl"
    text = "".join(f"{json.dumps(row, ensure_ascii=ascii_only)}\n" for row in rows).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:  # half of a surrogate pair is no text
        return
    tail, read = Reader(path), []
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    for start, end in zip([0, *ends], ends, strict=False):
        with path.open("ab") as file:
            file.write(text[start:end])
        anew, part = tail.read()
        assert not anew
        read += part
        assert len(read) == text[:end].count(b"\n")  # no half of a line, and nothing is kept back
    assert read == rows
    assert tail.read() == (False, [])
    assert read == [row for _, row in read_jsonl(path)]


def lines(*numbers):
    return "".join(f'{{"n": {number}}}\n' for number in numbers)


@pytest.mark.parametrize("replaced", [True, False], ids=["another file", "the same file"])
@pytest.mark.parametrize("after", [(1,), (1, 2), (1, 2, 9), (1, 2, 9, 4), ()])
def test_a_file_that_has_dropped_rows_is_read_anew(tmp_path, replaced, after):
    """Shorter, as long as before or longer: what was read is compared with what is there."""
    path, other = tmp_path / "rows.jsonl", tmp_path / "other"
    path.write_text(lines(1, 2, 3))
    tail = Reader(path)
    assert tail.read() == (False, [{"n": 1}, {"n": 2}, {"n": 3}])
    if replaced:
        other.write_text(lines(*after))
        other.rename(path)
    else:
        path.write_text(lines(*after))
    assert tail.read() == (True, [{"n": number} for number in after])
    with path.open("a") as file:
        file.write(lines(5))
    assert tail.read() == (False, [{"n": 5}])


def test_a_file_that_comes_and_goes(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = Reader(path)
    assert tail.read() == (False, [])
    path.write_text(lines(1))
    assert tail.read() == (False, [{"n": 1}])
    path.unlink()
    assert tail.read() == (True, [])
    assert tail.read() == (False, [])
    path.write_text(lines(2))
    assert tail.read() == (False, [{"n": 2}])


def test_a_damaged_line_is_named_by_its_place_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(1) + "\n")
    tail = Reader(path)
    tail.read()
    with path.open("a") as file:
        file.write("oops\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:3: "):
        tail.read()


def test_what_has_been_read_is_not_read_again(tmp_path):
    """20,000 rows, and then one more: that takes as long as one row."""
    path = tmp_path / "metrics.jsonl"
    row = json.dumps({"step": 1, "kind": "rl", **{f"metric_{number}": 1 / 3 for number in range(25)}}) + "\n"
    path.write_text(row * 20_000)
    tail = Tail(path)
    tracemalloc.start()
    assert sum(1 for _ in tail.read()[1]) == 20_000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2  # never all of it in memory
    tracemalloc.stop()
    with path.open("a") as file:
        file.write(row)
    started = time.perf_counter()
    assert len(list(tail.read()[1])) == 1
    assert time.perf_counter() - started < 0.1


@pytest.fixture
def pretended(tmp_path):
    return PretendedRun(tmp_path / "run")


def test_stages_and_the_time_left(pretended):
    run = RunSoFar(pretended.path)
    assert [stage.start for stage in run.stages.values()] == [None, "cold-start", "easy", None]
    assert (run.current, run.silence, run.rollouts) == (None, None, None)
    pretended.step("cold-start", "sft", 1, 4, seconds=2.0)
    read = []
    run.read(read.append)
    assert [row["loss"] for row in read] == [4.0]
    assert run.left(run.stages["cold-start"]) == 6.0
    assert run.left(run.stages["easy"]) is None
    assert run.total_left is None
    pretended.over("cold-start")
    pretended.evaluate("cold-start", seconds=10.0)
    pretended.step("easy", "rl", 1, 10, seconds=3.0)
    run.read()
    assert run.left(run.stages["cold-start"]) == 0.0
    assert (run.left(run.stages["easy"]), run.left(run.stages["hard"])) == (27.0, 60.0)
    assert run.total_left == 27 + 60 + 90 + 3 * 10
    assert run.longest == 10.0
    assert not run.is_finished
    pretended.finish()
    assert run.is_finished


def test_branches_begin_at_the_model(pretended):
    run = RunSoFar(pretended.path)
    for stage, kind, number in (("cold-start", "sft", 4), ("easy", "rl", 10), ("hard", "rl", 20)):
        pretended.step(stage, kind, number, number)
    run.read()
    assert [[stage.name for stage in branch] for branch in run.branches()] == [["easy", "hard"]]
    pretended.step("grpo", "rl", 1, 30)
    run.read()
    assert [[stage.name for stage in branch] for branch in run.branches()] == [["easy", "hard"], ["grpo"]]


def test_a_run_that_drops_rows_forgets_them(pretended):
    run = RunSoFar(pretended.path)
    for number in (1, 2, 3):
        pretended.step("easy", "rl", number, 10)
        pretended.save([judged("a", True)])
    pretended.warn("easy", "something")
    run.read()
    assert (run.step, run.rollouts[0], len(run.warnings)) == (3, 3, 1)
    pretended.rewind(2)
    run.read()
    assert (run.anew, run.step, run.rollouts[0], run.warnings) == (True, 2, 2, [])
    assert list(run.stages["easy"].series["accuracy"]) == [1 / 40, 2 / 40]
    run.read()
    assert not run.anew


def test_rows_of_other_versions(pretended):
    """Without the metrics that came later, and with kinds that nobody knows."""
    run = RunSoFar(pretended.path)
    pretended.log({"kind": "dream", "stage": "easy"})
    pretended.log({"kind": "rl", "stage": "unplanned", "stage_step": 1, "stage_steps": 2, "reward": 1.0})
    run.read()
    stage = run.stages["unplanned"]
    assert (stage.done, stage.pace, run.left(stage)) == (1, None, None)
    assert math.isnan(stage.series["surprise"][0])
    assert run.longest == 0.0


def test_a_recipe_with_a_circle(pretended):
    recipe = pretended.path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('start = "base"', 'start = "grpo"'))
    run = RunSoFar(pretended.path)
    pretended.step("grpo", "rl", 1, 30)
    run.read()
    assert [[stage.name for stage in branch] for branch in run.branches()] == [["grpo"]]


def test_answers_before_a_line_that_is_not_whole(pretended):
    pretended.at = 1
    pretended.save([judged("a", True), judged("b", False)])
    file = pretended.path / "rollouts" / "step-1.jsonl"
    with file.open("a") as unfinished:
        unfinished.write('{"id": "c", ')
    read, wrong = answers(file, 0, 9)
    assert [rollout.problem.id for rollout in read] == ["a", "b"]
    assert "step-1.jsonl:3: " in wrong
    read, wrong = answers(file, 1, 1)
    assert ([rollout.problem.id for rollout in read], wrong) == (["b"], "")
    assert answers(file, 5, 1)[0] == []
    assert answers(file.with_name("step-2.jsonl"), 0, 1)[0] == []


def test_the_newest_runs_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no folder runs/x; give the --out of a run"):
        RunSoFar(tmp_path.joinpath("runs/x").relative_to(tmp_path))
    for age, name in enumerate(("a", "b", "c", "d")):
        recipe = PretendedRun(tmp_path / "runs" / name).path / "recipe.toml"
        os.utime(recipe, (1e9 - age, 1e9 - age))
    with pytest.raises(UserError, match=r"the newest runs are runs/a, runs/b, runs/c$"):
        RunSoFar(tmp_path.joinpath("else/where").relative_to(tmp_path))
