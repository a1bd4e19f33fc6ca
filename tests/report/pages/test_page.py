"""The report of a run: its sections, and runs that are empty, unfinished, damaged or of another version."""

import base64
import gzip
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from common import judged, make, refused, run

from parallel_r1.answers.rollout import to_json, write_jsonl
from parallel_r1.errors import UserError
from parallel_r1.files import write_json, write_text
from parallel_r1.report.pages import pictures
from parallel_r1.report.pages.examples import ANSWERS, STEPS, examples
from parallel_r1.report.pages.intervals import Estimate, intervals_html
from parallel_r1.report.pages.page import Section, check_new, page, shell, table_html
from parallel_r1.report.pages.report import LAST, SECTIONS, report, write_report
from parallel_r1.report.pages.run import read_run
from parallel_r1.runs.recipe_file import dump_recipe
from parallel_r1.table import Table

EMPTY = {"meta", "link", "br", "img", "input"}


def unpacked(file, block):
    """A data block of a page."""
    packed = re.search(f'id="{block}">([^<]*)<', file.read_text())[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


class Read(HTMLParser):
    """Reads a page strictly: every element is closed in order. Keeps its text, and the text of its headings."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.headings = [], "", []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
            if self.open[-1] == "h2":
                self.headings.append(data)


def evaluation(stage, mean):
    by_problem = {f"p{index}": float(index < 10 * mean) for index in range(10)}
    figures = {"parallel_ratio": 0.5, "well_formed": None, "forks": 1.0, "critical_path": 30.5, "total": 60.25}
    return {
        **{"stage": stage, "task": "countdown-easy", "problems": 10, "samples": 2, "mean": mean, "low": mean - 0.1},
        **{"high": mean + 0.1, "passed": mean, "by_problem": by_problem, **figures},
    }


def step(number, stage="rl", **more):
    figures = {"reward": 0.1 * number, "accuracy": 0.5, "parallel_ratio": 1.0, "seconds": 2.0}
    place = {"step": number, "kind": "rl", "stage": stage, "stage_step": number - 2, "stage_steps": 3}
    return {**place, **figures, **more}


def known(rollout):
    """An answer with a probability of 1/2 for every token."""
    spans = tuple(replace(span, logprobs=(-math.log(2),)) for span in rollout.trace.spans)
    return replace(rollout, trace=replace(rollout.trace, spans=spans))


@pytest.fixture
def folder(tmp_path):
    """A finished run, written by hand."""
    path = tmp_path / "run"
    (path / "rollouts").mkdir(parents=True)
    write_text(path / "recipe.toml", dump_recipe(make(tmp_path)))
    write_json(path / "environment.json", {"run": "ab", "command": ["parallel-r1", "demo"], "packages": {"torch": "1"}})
    rows = [step(number) for number in (3, 4, 5)]
    rows.append({"step": 5, "kind": "warning", "stage": "rl", "rule": "dead", "warning": "dead groups: <all>"})
    write_text(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for stage, mean in (("rl", 0.6), ("sft", 0.2), ("base", 0.1)):
        write_json(path / "eval" / f"{stage}.countdown-easy.json", evaluation(stage, mean))
    answers = [known(judged(f"p{index}", index % 2 == 0, forked=True)) for index in range(4)]
    write_jsonl(path / "rollouts" / "step-4.jsonl", answers)
    return path


def test_a_report_is_read_from_top_to_bottom(folder):
    html = report(read_run(folder))
    shown = Read(html)
    expected = ["What was trained", "Results", "Comparisons", "Training", "How the strategy evolves", "Answers"]
    assert shown.headings == [*expected, "Warnings", "Environment"]
    assert set(re.findall(r'<a href="#([^"]*)"', html)) == set(re.findall(r'<section id="([^"]*)"', html))
    for words in (
        "Recipe small, seed 0",
        "3 of 3",  # steps of the stage rl
        "0 of 2",  # none of sft is in these metrics
        "+40.0",  # rl - sft
        "step 5, rl: dead groups: <all>",
        "parallel-r1 demo",
        "4 of the saved answers",
        "60.0 %",
    ):
        assert words in shown.text, words
    assert shown.text.index("base10.0") < shown.text.index("sft20.0") < shown.text.index("rl60.0")
    assert 'id="answers-index"' in html
    assert html.count("<svg") > 2
    assert "unfinished" not in shown.text


def test_a_report_loads_nothing(folder):
    html = report(read_run(folder))
    addresses = set(re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"|url\((?!#)[^)]*\)", html))
    assert addresses == set()
    assert "default-src 'none'" in html


def test_every_section_may_be_missing(tmp_path):
    """A run that has just begun."""
    write_text(tmp_path / "r" / "recipe.toml", dump_recipe(make(tmp_path)))
    (tmp_path / "r" / "state").mkdir()
    shown = Read(report(read_run(tmp_path / "r")))
    for words in (
        "This run is unfinished: 0 of 6 steps",
        "There are no evaluations: they are measured after every stage",
        "The run has no step of reinforcement learning yet",
        "The run has no saved answers: its first step of reinforcement learning saves some",
        "environment.json cannot be read",
    ):
        assert words in shown.text, words
    assert shown.headings == ["What was trained", "Results", "Training", "Answers", "Warnings"]


def test_a_finished_run_without_reinforcement_learning(folder):
    for file in (folder / "rollouts").iterdir():
        file.unlink()
    write_text(folder / "metrics.jsonl", json.dumps({"step": 1, "kind": "sft", "stage": "sft", "stage_step": 1}) + "\n")
    shown = Read(report(read_run(folder)))
    assert "The run has no step of reinforcement learning in metrics.jsonl." in shown.text
    assert "The run has no saved answers: steps of an RL stage save them." in shown.text


def test_a_run_that_is_being_written(folder):
    """A half-written last line of metrics and of rollouts is left out, and said so."""
    (folder / "state").mkdir()
    for name in ("metrics.jsonl", "rollouts/step-4.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 6, "ki')
    (folder / "rollouts" / ".step-6.jsonl.part").write_text("{")
    shown = Read(report(read_run(folder)))
    assert "This run is unfinished: 5 of 6 steps" in shown.text
    assert "the last line of metrics.jsonl is unfinished: left out" in shown.text
    assert "step-4.jsonl is unfinished: left out" in shown.text
    assert "4 of the saved answers" in shown.text


def test_files_of_another_version_are_named(folder):
    write_json(folder / "eval" / "old.json", {"stage": "x", "accuracy": 1})
    write_text(folder / "environment.json", "[")
    write_text(folder / "recipe.toml", 'name = "x"\n[stages.a]\nkind = "unheard-of"\n')
    shown = Read(report(read_run(folder)))
    assert "eval/old.json is no evaluation that this version reads" in shown.text
    assert "environment.json cannot be read" in shown.text
    assert "recipe.toml is none that this version reads" in shown.text
    assert "4 of the saved answers" in shown.text


def test_rollouts_before_spans_had_texts_are_shown_and_others_named(folder):
    file = folder / "rollouts" / "step-4.jsonl"
    old = to_json(judged("p", True))
    for span in old["spans"]:
        del span["text"]
    file.write_text(json.dumps(old) + "\n")
    assert "1 of the saved answers" in Read(report(read_run(folder))).text
    file.write_text('{"prompt": "of another program"}\n')
    shown = Read(report(read_run(folder)))
    assert "answers are left out: expected a rollout per line" in shown.text
    assert "The run has no saved answers" in shown.text


def test_without_matplotlib_a_report_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    html = report(read_run(folder))
    assert "pip install 'parallel-r1[plot]'" in Read(html).text
    assert "<svg" not in html.partition("<script")[0]


def test_examples_are_spread_over_the_run(folder):
    answers = [judged(f"p{index}", True, total=20) for index in range(50)]
    for number in range(1, 101):
        write_jsonl(folder / "rollouts" / f"step-{number}.jsonl", answers)
    notes = set()
    shown = list(examples(read_run(folder), notes))
    steps = sorted({one.step for one in shown})
    assert (steps[0], steps[-1], len(steps)) == (1, 100, STEPS)
    assert len(shown) == ANSWERS
    assert notes == set()


def test_long_answers_are_fewer(folder):
    write_jsonl(folder / "rollouts" / "step-4.jsonl", [judged("p", True, total=150_000) for _ in range(9)])
    assert len(list(examples(read_run(folder), set()))) == 2


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_run(tmp_path / "x")
    with pytest.raises(UserError, match=r"expected a run folder with recipe.toml; found none in .*"):
        read_run(tmp_path)


def test_the_file_of_a_report(folder, tmp_path):
    assert write_report(folder) == write_report(folder) == folder / "report.html"
    with pytest.raises(UserError, match="a new file for --out"):
        check_new(folder / "report.html", "--out")
    check_new(tmp_path / "new.html", "--out")


def test_sections_are_functions_of_a_run(folder):
    one = read_run(folder)
    for _, section in (*SECTIONS, *LAST):
        html = section(one)
        assert html is None or isinstance(html, str)


def test_a_page_of_other_sections():
    table = table_html(Table(("name <b>", "n"), [("a & b", "1")], "title <i>"))
    html = page("A <page>", [Section("One", table, "one"), Section("Two", "<p>x</p>", "two")], lead="<p>lead</p>")
    shown = Read(html)
    assert shown.headings == ["One", "Two"]
    for words in ("A <page>", "name <b>", "a & b", "title <i>", "lead"):
        assert words in shown.text
    assert "script-src 'none'" in html
    with pytest.raises(ValueError, match="ends its own element"):
        shell("t", "", script="'</script>'")


def test_intervals_have_a_common_axis_with_round_numbers():
    html = intervals_html([Estimate("a", 5.0, 2.0, 8.0), Estimate("b", -1.0, -3.0, 1.0)], " points", signed=True)
    assert re.findall(r">([+-]?\d+)[^<]*</i>", html) == ["-4", "-2", "0", "+2", "+4", "+6", "+8"]
    assert "left:50.00%;right:calc(100% - 100.00%)" in html  # 2 .. 8 on an axis of -4 .. 8
    Read(html)
    Read(intervals_html([Estimate("nothing", 0.0, 0.0, 0.0)], " %"))


@pytest.mark.slow
def test_the_command(folder, tmp_path):
    done = run("report", folder)
    assert done.returncode == 0, done.stderr
    assert "the report is" in done.stdout
    out = tmp_path / "out.html"
    assert json.loads(run("report", folder, "--out", out, "--json").stdout) == {"report": str(out)}
    refused("report", folder, "--out", out, said=("a new file for --out", "exists"))
    refused("report", tmp_path / "none", said="a run folder")


def test_show_html(folder, tmp_path):
    out = tmp_path / "answers.html"
    done = run("show", folder, "--html", out)
    assert done.returncode == 0, done.stderr
    assert unpacked(out, "answers-0")[0]["bits"] == [[1000]] * 4
    refused("show", folder, "--html", out, said=("a new file for --html", "exists"))
    file = folder / "rollouts" / "step-4.jsonl"
    own = run("show", file, "--html", tmp_path / "b.html", "--model", "models/tiny-base", "--json")
    assert json.loads(own.stdout) == {"html": str(tmp_path / "b.html")}
    assert unpacked(tmp_path / "b.html", "answers-index")["tokens"] is True
    refused("show", file, "--html", tmp_path / "c.html", "--model", tmp_path / "no", said="model folder")
    refused("show", tmp_path / "none", "--html", tmp_path / "c.html", said="no file")
    file.unlink()
    refused("show", folder, "--html", tmp_path / "c.html", said="rollouts")
    assert not (tmp_path / "c.html").exists()
