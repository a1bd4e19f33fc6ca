"""Pictures of accuracy against cost, and the page of a comparison."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from common import judged

from parallel_r1.errors import UserError
from parallel_r1.evaluation.compare import compare
from parallel_r1.evaluation.frontier import Drawn, frontier, speed
from parallel_r1.evaluation.tables import comparison_report
from parallel_r1.report.figures import inline_svg
from parallel_r1.report.frontiers import draw, frontier_figure, within_figure
from parallel_r1.report.pages.leaderboard import leaderboard


def answers(right, total, forked):
    return [judged(f"p{number}", number < right, total=total, forked=forked) for number in range(8)]


@pytest.fixture
def curves():
    """Two models on one task, one with times."""
    forks = [Drawn(answers(right, total, True), total, (0.1, 0.2), 0.01) for right, total in ((2, 20), (6, 40))]
    plain = [Drawn(answers(right, total, False), total) for right, total in ((1, 20), (3, 40))]
    return {"countdown-easy": [frontier("<b>forks", forks), frontier("plain", plain)], "nothing in common": []}


def test_a_line_for_every_model_and_a_panel_for_every_cost_that_was_measured(curves):
    figure = frontier_figure(curves)
    assert [panel.get_xlabel() for panel in figure.axes] == [
        "critical path (tokens)",
        "all tokens",
        "seconds alone",
        "seconds among many",
    ]
    path, total, alone, _ = figure.axes
    assert len(path.get_legend_handles_labels()[0]) == 2
    assert len(alone.get_legend_handles_labels()[0]) == 1  # the other model was not timed
    (forks, plain) = [container.lines[0] for container in path.containers]
    assert list(forks.get_xdata()) == [10, 20]  # half of all tokens, as `judged` has it
    assert list(forks.get_ydata()) == [0.25, 0.75]
    assert list(plain.get_ydata()) == [0.125, 0.375]
    assert list(total.containers[0].lines[0].get_xdata()) == [20, 40]


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_a_picture_is_the_same_for_the_same_numbers(curves, tmp_path, suffix):
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        draw(curves, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == "svg":
        ElementTree.parse(paths[0])
        assert "<b>" not in paths[0].read_text()
    with pytest.raises(UserError, match=r"\.svg, \.pdf or \.png"):
        draw(curves, tmp_path / "x.gif")


def test_how_many_are_right_within_so_many_tokens():
    columns = {"correct": [True, False, True, True], "critical_path": [5, 1, 9, 7], "total": [10, 1, 30, 8]}
    path, total = within_figure({"hard": columns, "none": {**columns, "correct": [False] * 4}}).axes
    hard, none = path.get_lines()
    assert list(hard.get_xdata()) == [0, 5, 7, 9, 9]
    assert list(hard.get_ydata()) == [0, 0.25, 0.5, 0.75, 0.75]
    assert set(none.get_ydata()) == {0}
    assert list(total.get_lines()[0].get_xdata()) == [0, 8, 10, 30, 30]


def test_the_page_of_a_comparison(curves):
    several = curves["countdown-easy"]
    comparisons = compare({one.name: answers(4, 10, one.name != "plain") for one in several})
    speeds = {"countdown-easy": [speed(*several)]}
    shown, lines = comparison_report(comparisons, curves, speeds, ["sampler differs: <i>"])
    page = leaderboard(shown, lines, curves)
    HTMLParser().feed(page)
    for said in ("&lt;b&gt;forks", "speed at equal accuracy", "sampler differs: &lt;i&gt;", "<svg"):
        assert said in page
    assert "<b>forks" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    ElementTree.fromstring(inline_svg(frontier_figure(curves)))
