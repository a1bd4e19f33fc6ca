"""Answers as HTML and as trees in a terminal."""

from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import given
from rich.console import Console
from strategies import anything, well_formed

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.schemas import SCHEMAS
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.models.policy import Policy
from parallel_r1.report.answers import LiveAnswer, answer_tree, print_rollout
from parallel_r1.report.html import answer_html
from parallel_r1.report.outline import Fork, outline

FORKED = "so <Parallel><Path>one</Path><Path>two</Path></Parallel>\n<Summary>both</Summary> Final Answer: 1"
NESTED = FORKED.replace("two", "x<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>y")
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'x' </div><style>* {display: none}</style>"


class Elements(HTMLParser):
    """Reads HTML strictly: every element is closed in order. Keeps text by the classes around it."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.tags, self.depth = [], [], set(), {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append((tag, dict(attrs).get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if "style" not in [tag for tag, _ in self.open]:
            self.texts.append((data, [name for _, names in self.open for name in names.split()]))

    def text(self, name):
        return [data for data, classes in self.texts if name in classes]

    def paths(self):
        """Depth in paths of every piece of text."""
        return {data: classes.count("pr1-path") for data, classes in self.texts}


def read(policy, text, **changes):
    trace = parse(policy.encode(text), policy.tags)
    return trace, trace.texts(policy.decode)


def plain(tree, width=100):
    console = Console(width=width, record=True, file=StringIO())
    console.print(tree)
    return console.export_text()


def test_paths_stand_side_by_side_with_trunk_and_summary(frozen):
    html = Elements(answer_html(*read(frozen, FORKED), prompt="Make <1>."))
    assert html.tags == {"style", "div", "span", "strong"}
    assert html.paths() | {"one": 1, "two": 1, "so ": 0, "both": 0, " Final Answer: 1": 0} == html.paths()
    assert html.text("pr1-summary") == ["<Summary>", "both", "</Summary>"]
    assert html.text("pr1-given") == ["<Path>", "<Path>", "</Parallel>", "\n", "<Summary>"]
    assert "Make <1>." in dict(html.texts)
    assert "forks 1, critical path" in html.text("pr1-head")[0]
    assert html.text("pr1-defect") == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_plans_and_heads_under_every_schema(name):
    """A plan is one line with its items, a path one with its head."""
    schema = SCHEMAS[name]
    text = "so " + schema.write(["one", "two"], "both", ["1: a", "2: b"])
    tokenizer = models.train_tokenizer([text], 300, 1, schema)
    policy = Policy(None, tokenizer, models.tag_ids(tokenizer))
    trace, texts = read(policy, text)
    lines = [line.strip("│├└─ ") for line in plain(answer_tree(trace, texts)).splitlines()[1:]]
    heads = [schema.head_of(number, item).strip() for number, item in ((1, "1: a"), (2, "2: b"))]
    paths = [f"{head} {path}".strip() for head, path in zip(heads, ("one", "two"), strict=True)]
    said = "both" if schema.summary is None else "summary: both"
    plan = ["plan: 1: a; 2: b"] * bool(schema.plan)
    squeezed = [line.replace(":one", ": one").replace(":two", ": two") for line in lines]
    assert squeezed == ["so", *plan, "fork", f"path 1  {paths[0]}", f"path 2  {paths[1]}", said]
    html = Elements(answer_html(trace, texts))
    assert html.text("pr1-plan") == [] if schema.plan is None else "1: a" in html.text("pr1-plan")


def test_nested_forks_are_nested(frozen):
    trace, texts = read(frozen, NESTED)
    html = Elements(answer_html(trace, texts))
    assert html.paths() | {"one": 1, "x": 1, "a": 2, "b": 2, "c": 1, "y": 1, "both": 0} == html.paths()
    tree = plain(answer_tree(trace, texts)).splitlines()
    indent = {line.strip("│├└─ "): len(line) - len(line.lstrip("│├└─ ")) for line in tree}
    assert indent["path 1  a"] == indent["path 2  b"] > indent["x"] == indent["summary: c"] == indent["y"]
    assert indent["y"] > indent["path 1  one"] == indent["path 2"] > indent["summary: both"]


@pytest.mark.parametrize("place", ["text", "path", "summary", "prompt"])
def test_hostile_text_is_escaped(frozen, place):
    text = {"path": FORKED.replace("one", HOSTILE), "summary": FORKED.replace("both", HOSTILE)}.get(place, HOSTILE)
    prompt = HOSTILE if place == "prompt" else ""
    html = Elements(answer_html(*read(frozen, text), prompt=prompt))
    assert html.tags <= {"style", "div", "span", "strong"}
    assert HOSTILE in "".join(data for data, _ in html.texts)


def test_an_answer_without_a_fork(frozen):
    trace, texts = read(frozen, "just text")
    html = Elements(answer_html(trace, texts))
    assert ("just text", ["pr1"]) in html.texts
    assert html.text("pr1-path") == []
    assert "just text" in plain(answer_tree(trace, texts, "Question?"))
    assert "fork" not in plain(answer_tree(trace, texts))
    assert Elements(answer_html(Trace((1,), ()), ())).text("pr1-path") == []
    assert "tokens 0" in plain(answer_tree(Trace((1,), ()), ()))


def test_a_cut_answer_says_so_and_shows_its_defects(frozen):
    trace, texts = read(frozen, FORKED.partition("two")[0])
    trace = Trace(trace.prompt_ids, trace.spans, "length", defects=trace.defects)
    html = Elements(answer_html(trace, texts))
    assert "ended by length" in html.text("pr1-head")[0]
    assert len(html.text("pr1-defect")) == len(trace.defects) > 0
    assert html.text("pr1-defect")[0].startswith(f"{trace.defects[0].kind} at token {trace.defects[0].at}: ")
    tree = plain(answer_tree(trace, texts))
    assert "ended by length" in tree
    assert trace.defects[0].kind in tree


@given(well_formed | anything)
def test_no_text_is_lost(frozen, text):
    trace, texts = read(frozen, text)

    def join(content):
        return "".join("".join(map(join, part.paths)) if isinstance(part, Fork) else part.text for part in content)

    content = outline(trace, texts)
    assert sum(isinstance(part, Fork) for part in content) <= trace.forks
    html = Elements(answer_html(trace, texts))
    body = [data for data, classes in html.texts if "pr1-head" not in classes and "pr1-defect" not in classes]
    shown = "".join(body)
    if trace.well_formed:
        assert join(content) == "".join(texts)
        assert shown == "".join(texts).replace("\r", "\n")
    assert sorted(join(content)) == sorted("".join(texts))
    plain(answer_tree(trace, texts))


def test_a_stray_tag_is_text_in_the_place_where_it_was_written():
    spans = (Span((1,), TRUNK, True), Span((2,), ((0, 0),), True), Span((3,), TRUNK, True))
    content = outline(Trace((), spans), ("a<Path>", "<Summary>b", "c"))
    assert [part.text for part in (*content[:2], content[3])] == ["a", "<Path>", "c"]
    assert [(words.text, words.within) for words in content[2].paths[0]] == [("<Summary>", "summary"), ("b", "summary")]
    assert content[3].within is None


def test_a_judged_answer_is_printed_with_its_reward(frozen):
    trace, texts = read(frozen, FORKED)
    problem = Problem("p", "Make [1].\n", "1", "t")
    console = Console(width=100, record=True, file=StringIO())
    print_rollout(console, Rollout(problem, trace, texts, True, 3, 4, {"accuracy": 1.0, "parallel": 0.2}))
    shown = console.export_text()
    for part in ("Make [1].  correct  reward +1.20", "fork", "path 1", "path 2", "summary: both", "Final Answer: 1"):
        assert part in shown
    assert "<Path>" not in shown


def test_a_live_answer_shows_trunk_and_paths(frozen):
    trace, _ = read(frozen, FORKED)
    console = Console(width=100, record=True, file=StringIO())
    with LiveAnswer(console, frozen.decode) as live:
        for span in trace.spans:
            for token in span.token_ids:
                live(0, span.address, token, span.sampled)
    shown = console.export_text()
    assert "path 1" in shown
    assert "Final Answer: 1" in shown
