from parallel_r1.evaluation import tables as report
from parallel_r1.evaluation.measure import Result
from parallel_r1.report.curves import picture


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
