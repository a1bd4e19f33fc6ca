"""Figures: what is drawn where, and that their files are safe, whole and always the same."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from analysed import FAILED, OTHER, RIGHT, WRONG, answer, rl, write_run

from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import analyse
from parallel_r1.report import figures as module
from parallel_r1.report.figures import branches, figures, inline_svg, save
from parallel_r1.report.style import INK

HOSTILE = '<b>&"$x^2$</b><script>alert(1)</script>'
EASY, HARD, PLAIN = "easy", HOSTILE, "plain"
STARTS = {EASY: "base", HARD: EASY, PLAIN: "base"}
EVERY = ["position", "forks", "siblings", "use", "verdicts", "summary", "reward", "mismatch"]


@pytest.fixture
def analysis(tmp_path):
    """Three stages: 3 steps, 2 steps after it, 2 steps beside them; an alarm; one step that saved nothing."""
    terms = {"accuracy": 1.0, HOSTILE: 0.5}
    first = [
        answer([RIGHT, WRONG, FAILED], "Final Answer: 3*5+7", before="x" * 9, terms=terms),
        answer([], terms=terms),
    ]
    second = [answer([RIGHT, OTHER], "Final Answer: 3*5+7", terms=terms), answer(["?", "!"], "no", False, terms=terms)]
    alarm = {"step": 2, "kind": "warning", "stage": EASY, "rule": "dead", "warning": "dead groups"}
    stages = [EASY, EASY, EASY, HARD, HARD, PLAIN, PLAIN]
    rows = [rl(at, stage, mismatch_mean=1e-3 * at, mismatch_max=0.1) for at, stage in enumerate(stages, 1)]
    steps = {1: first, 3: second, 4: first, 5: second, 6: first, 7: second}
    return analyse(write_run(tmp_path / "run", steps, [*rows[:2], alarm, *rows[2:]]))


def texts(svg):
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_stages_are_drawn_from_a_common_origin(analysis):
    drawn = {branch.name: branch for branch in branches(analysis, STARTS)}
    assert {name: branch.x.tolist() for name, branch in drawn.items()} == {
        EASY: [1, 2, 3],
        HARD: [4, 5],
        PLAIN: [1, 2],
    }
    x, y = drawn[EASY].points("parallel_ratio")
    assert (x.tolist(), y.tolist()) == ([1, 3], [0.5, 1.0])  # the second step saved nothing
    assert len({branch.color for branch in drawn.values()}) == len({branch.marker for branch in drawn.values()}) == 3


def test_lines_and_bands_are_the_columns_of_steps(analysis):
    forks = figures(analysis, STARTS)["forks"]
    ratio = forks.axes[0]
    assert ratio.get_title() == "answers that fork"
    assert [line.get_label() for line in ratio.lines] == [EASY, HARD, PLAIN]
    assert ratio.lines[1].get_xydata().tolist() == [[4, 0.5], [5, 1.0]]
    (band, *_) = forks.axes[3].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    rows = analysis.steps["stage"] == EASY
    assert low == np.nanmin(analysis.steps["length_q25"][rows])
    assert high == np.nanmax(analysis.steps["length_q75"][rows])


def test_layers_are_shares_that_sum_to_one(analysis):
    use = figures(analysis, STARTS)["use"]
    assert [panel.get_title(loc="left") for panel in use.axes] == [EASY, HARD, PLAIN]
    tops = [layer.get_paths()[0].vertices[:, 1].max() for layer in use.axes[0].collections]
    assert tops[-1] == pytest.approx(1.0)


def test_every_figure_says_what_it_shows(analysis):
    drawn = figures(analysis, STARTS)
    assert list(drawn) == EVERY
    labels = [figure.get_label() for figure in drawn.values()]
    assert len(set(labels)) == len(labels)
    assert all(len(label) > 30 for label in labels)
    alarms = texts(inline_svg(drawn["mismatch"]))
    assert "dead" in alarms


def test_figures_without_numbers_are_left_out(tmp_path):
    run = write_run(tmp_path / "run", {1: [answer([])]})
    assert list(figures(analyse(run), {})) == ["forks"]
    one = write_run(tmp_path / "one", {1: [answer([RIGHT, WRONG])]})
    drawn = figures(analyse(one), {})
    assert list(drawn) == ["position", "forks", "siblings", "use", "verdicts", "summary"]
    for figure in drawn.values():
        ElementTree.fromstring(inline_svg(figure))


@pytest.mark.slow
def test_files_are_the_same_for_the_same_run(analysis, tmp_path):
    first, second = (save(figures(analysis, STARTS), tmp_path / name) for name in ("a", "b"))
    assert [file.name for file in first] == [f"{name}.{kind}" for name in EVERY for kind in ("svg", "pdf")]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one
    again = save(figures(analysis, STARTS), tmp_path / "a")  # over the first
    assert again == first


@pytest.mark.slow
def test_svg_holds_text_and_no_script(analysis, tmp_path):
    for file in save(figures(analysis, STARTS), tmp_path / "out"):
        if file.suffix == ".svg":
            svg = file.read_text()
            ElementTree.fromstring(svg)
            assert "<script" not in svg
            assert "<b>" not in svg
            assert re.search(r"<!--.*20\d\d-", svg) is None
    names = texts((tmp_path / "out" / "forks.svg").read_text())
    assert EASY in names  # text is text, not outlines
    assert HOSTILE in names


def test_figures_inside_a_page(analysis):
    drawn = figures(analysis, STARTS)
    pictures = [inline_svg(figure) for figure in drawn.values()]
    assert pictures == [inline_svg(figure) for figure in figures(analysis, STARTS).values()]
    page = ElementTree.fromstring(f"<div>{''.join(pictures)}</div>")
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in page.iter():
        for name, value in element.items():
            if name.endswith("href"):
                assert value.removeprefix("#") in ids
            for target in re.findall(r"url\(#([^)]*)\)", value):
                assert target in ids
    for svg, figure in zip(page, drawn.values(), strict=True):
        title = svg[0]
        assert title.text == figure.get_label()
        assert svg.get("aria-labelledby") == title.get("id")
        assert svg.get("role") == "img"
        assert svg.get("viewBox")
    for picture in pictures:
        assert picture.startswith("<svg")
        assert not re.search(r"<\?xml|<!DOCTYPE|<metadata|<style|<script|<b>", picture)
        assert INK not in picture
        assert "currentColor" in picture
        assert not re.search(r"fill: #(fff|ffffff|000|000000)\b", picture)  # nothing stands in front of the page


def test_without_matplotlib(analysis, monkeypatch):
    monkeypatch.setattr("parallel_r1.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"matplotlib, which draws figures; .*parallel-r1\[plot\]"):
        figures(analysis, STARTS)


def test_colors_stand_for_one_thing():
    assert len({module.COLORS[name] for name in module.USES}) == len(module.USES)
    assert len({module.COLORS[name] for name in module.VERDICTS}) == len(module.VERDICTS)
