from io import StringIO

from rich.console import Console

from parallel_r1.evaluation import tables as report
from parallel_r1.evaluation.measure import Result
from parallel_r1.report.curves import picture
from parallel_r1.report.style import steps_before
from parallel_r1.report.tables import print_parity, rich_table
from parallel_r1.table import Table
from parallel_r1.training.mismatch import Mismatch


def result(stage, by_problem):
    mean = sum(by_problem.values()) / len(by_problem)
    return Result(stage, "t", 2, 4, mean, 0.1, 0.9, 1.0, 0.5, None, 1.0, 30.0, 60.0, by_problem)


RESULTS = [result("a", {"x": 0.5, "y": 0.5}), result("b", {"x": 1.0, "y": 1.0})]


def test_markdown_holds_table_and_comparison():
    text = report.markdown(RESULTS, [("b", "a")])
    assert "## t: 2 held-out problems, k = 4 answers to each" in text
    assert "| a | 50.0 | 10.0 .. 90.0 | 100.0 | 50.0 | - | 30.0 | 60.0 |" in text
    assert "* t: b - a = +50.0 points [+50.0, +50.0], +100.0 % relative" in text
    assert "Paired" not in report.markdown(RESULTS, [])


def test_nothing_against_nothing_has_no_relative_difference():
    none = [result("a", {"x": 0.0, "y": 0.0}), result("b", {"x": 0.0, "y": 0.0})]
    assert report.comparisons(none, [("b", "a")]) == ["t: b - a = +0.0 points [+0.0, +0.0], - relative"]


def printed(renderable, styles=False):
    console = Console(width=80, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text(styles=styles)


def test_a_table_in_a_terminal():
    table = Table(("name", "pair", "n"), [("a [b]", "exact", "1"), ("c", "mismatch", "20")], "Title", names=2)
    lines = [line.rstrip() for line in printed(rich_table(table)).splitlines()]
    assert lines == ["Title", "name  pair      n", "a [b] exact     1", "c     mismatch 20"]
    styled = printed(rich_table(table, ["", "bold"], {"exact": "green"}), styles=True)
    assert "\x1b[32mexact" in styled
    assert "\x1b[1mc" in styled


def test_parity_is_printed():
    console = Console(width=80, record=True, file=StringIO())
    pairs = [Mismatch("isolated", "isolated", True, 1e-6, 1e-7, None, 2e-7, 300)]
    print_parity(console, pairs)
    words = console.export_text().splitlines()[-1].split()
    assert words == ["isolated", "isolated", "exact", "1.0e-06", "1.0e-07", "-", "2.0e-07", "300"]


def test_policies_that_part_ways_are_drawn_from_a_common_start():
    starts = {"sft": "base", "easy": "sft", "hard": "easy", "grpo": "base", "late": "grpo"}
    steps = {"easy": 8, "hard": 30, "grpo": 5, "late": 2}
    assert steps_before(steps, starts) == {"easy": 0, "hard": 8, "grpo": 0, "late": 5}


def test_the_picture(tmp_path):
    metrics = [
        {"kind": "rl", "stage": stage, "step": step, "reward": 0.1 * step, "accuracy": 0.5, "parallel_ratio": 1.0}
        for stage in ("a", "b")
        for step in range(5)
    ]
    assert picture(metrics, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert not picture([{"kind": "sft", "stage": "s"}], tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()
