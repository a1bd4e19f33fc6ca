"""Answers as packed columns, and the page that shows them; what a browser makes of it is in tests/browser."""

import base64
import gzip
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from common import byte_level, judged
from hypothesis import given
from hypothesis import strategies as st
from strategies import anything, well_formed

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.schemas import SCHEMAS
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.answers.visibility import critical_runs, latency, layout
from parallel_r1.models.policy import Policy
from parallel_r1.report.pages.pack import BLOCK, COLUMNS, Shown, encode, pack, surprise, units
from parallel_r1.report.pages.token_texts import cutter
from parallel_r1.report.pages.viewer import SCRIPTS, data_blocks, viewer_page, viewer_script

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 \0 & \ud800 <!-- 😀"


def rollout_of(policy, text, **changes):
    trace = replace(parse(policy.encode(text), policy.tags), prompt_ids=(1,), sampler="isolated")
    spans = tuple(
        replace(span, logprobs=tuple(-0.1 * index for index in range(len(span.token_ids)))) if span.sampled else span
        for span in trace.spans
    )
    trace = replace(trace, spans=spans, **changes)
    problem = Problem("p", "Make 1.\n", "1", "countdown-easy")
    return Rollout(problem, trace, trace.texts(policy.decode), True, latency(trace), len(trace.token_ids))


def read(packed):
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def own_texts(policy):
    return cutter(lambda token_ids: policy.tokenizer.decode(token_ids, skip_special_tokens=False))


def written(texts, sampler="isolated"):
    """An answer with these texts as spans of one token, without a tokenizer."""
    trace = Trace((1,), tuple(Span((index,), TRUNK, True) for index, _ in enumerate(texts)), sampler=sampler)
    return Rollout(Problem("p", texts[0], "1", "t"), trace, tuple(texts), False, len(texts), len(texts))


@given(well_formed | anything, st.sampled_from(["isolated", "causal_join", "sequential"]))
def test_an_answer_comes_back_from_its_columns(frozen, text, sampler):
    """Texts, tokens, positions, who sees whom and the critical path are those of the trace."""
    rollout = rollout_of(frozen, text, sampler=sampler) if text else written([""])
    trace, row = rollout.trace, json.loads(json.dumps(encode(Shown(rollout), own_texts(frozen))))
    addresses = [tuple(map(tuple, address)) for address in row["addresses"]]
    assert [addresses[index] for index in row["address"]] == [span.address for span in trace.spans]
    assert row["count"] == [len(span.token_ids) for span in trace.spans]
    assert row["text"] == list(rollout.texts)
    assert [flag & 1 for flag in row["flags"]] == [span.sampled for span in trace.spans]
    laid = layout(trace.runs, "causal" if sampler == "sequential" else "isolated")
    starts = [at + index for at, count in zip(row["at"], row["count"], strict=True) for index in range(count)]
    assert starts == laid.positions.tolist()
    owner = np.repeat(row["address"], row["count"])
    sees = np.array(list(map(int, row["sees"])), dtype=bool).reshape(len(addresses), -1)
    assert (sees[owner][:, owner] & np.tri(len(owner), dtype=bool) == laid.mask()).all()
    assert sum(row["count"][index] for index in row["critical"]) == latency(trace)
    for text, lengths, pieces in zip(row["text"], row["lengths"], row["pieces"], strict=True):
        assert sum(lengths) == sum(pieces[::2]) == units(text)


@given(st.lists(st.tuples(well_formed, st.booleans()), min_size=1, max_size=3))
def test_the_critical_path_is_one_line(frozen, parts):
    """Its runs follow each other without a gap, and none is blind to the one before it."""
    trace = rollout_of(frozen, "".join(text for text, _ in parts)).trace
    laid, runs = layout(trace.runs), trace.runs
    first = np.append(0, np.cumsum([length for _, length in runs]))
    chain = critical_runs(runs)
    reached = 0
    for before, run in zip([None, *chain], chain, strict=False):
        assert laid.positions[first[run]] == reached
        assert before is None or laid.sees[laid.address_ids[first[before]], laid.address_ids[first[run]]]
        reached += runs[run][1]
    assert reached == laid.critical_path
    assert critical_runs([]) == []


def test_index_and_blocks():
    rollouts = [judged(f"p{index % 7}", index % 2 == 0, forked=index % 3 == 0) for index in range(2 * BLOCK + 5)]
    index, blocks, count = pack(Shown(rollout, step=index, stage="rl") for index, rollout in enumerate(rollouts))
    index = read(index)
    assert count == len(rollouts) == sum(len(read(block)) for block in blocks)
    assert [len(read(block)) for block in blocks] == [BLOCK, BLOCK, 5]
    assert list(index["columns"]) == list(COLUMNS)
    assert len(index["problems"]) == 7
    assert index["columns"]["correct"] == [int(rollout.correct) for rollout in rollouts]
    assert index["columns"]["paths"][:3] == [2, 0, 0]
    assert index["columns"]["step"] == list(range(count))
    assert index["tokens"] is False
    assert pack([])[1:] == ([], 0)


def test_one_problem_in_other_words_is_one_problem_with_its_own_words():
    """The slider follows a problem by its key; every answer shows the prompt that it answers."""
    one, other = judged("Use 1, 2", True, key="k"), judged("Use 2, 1", True, key="k")
    asked = replace(one.problem, before=(("system", "Think."),))
    index = read(pack([Shown(one), Shown(other), Shown(one), Shown(replace(one, problem=asked))])[0])
    assert [index["problems"][number][0] for number in index["columns"]["problem"]] == [
        "Use 1, 2\n",
        "Use 2, 1\n",
        "Use 1, 2\n",
        "system: Think.\n\nUse 1, 2\n",
    ]
    assert [row[4] for row in index["problems"]] == [0, 0, 0]


def test_an_answer_that_shows_the_method_is_opened_first():
    wrong, plain, forked = judged("a", False), judged("b", True), judged("c", True, forked=True)
    mixed = Shown(forked, verdicts={((0, 0),): "right", ((0, 1),): "failed"})
    assert read(pack([Shown(wrong), Shown(plain), Shown(forked), mixed])[0])["open"] == 3
    assert read(pack([Shown(wrong), Shown(plain)])[0])["open"] == 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_plans_summaries_and_heads_of_every_schema_have_their_roles(name):
    schema = SCHEMAS[name]
    text = "so " + schema.write(["one", "two"], "both", ["1: a", "2: b"])
    tokenizer = models.train_tokenizer([text], 300, 1, schema)
    row = encode(Shown(rollout_of(Policy(None, tokenizer, models.tag_ids(tokenizer)), text)))
    roles = {}
    for text, pieces in zip(row["text"], row["pieces"], strict=True):
        for length, role in zip(pieces[::2], pieces[1::2], strict=True):
            roles.setdefault(role, []).append(text[:length])
            text = text[length:]
    assert ("both" in roles.get(2, [])) == (schema.summary is not None)
    assert ("1: a" in roles.get(4, [])) == (schema.plan is not None)
    assert set(schema.path) <= set(roles[1])
    assert row.get("schema") == (None if name == "parallel-r1" else name)


def test_surprise_in_thousandths_of_a_bit():
    values = (0.0, -math.log(2), -math.log(1024), math.nan, -math.inf)
    assert surprise(Span((1,) * 5, TRUNK, True, values)) == [0, 1000, 10000, -1, -1]
    assert surprise(Span((1,), TRUNK, False)) is None


@given(st.text(max_size=30) | st.sampled_from(["naïve 😀 text", "a\0b", "\ufffd", " x  y\n"]))
def test_every_token_of_any_tokenizer_has_its_text(text):
    """Characters of several tokens belong to the last of them; an end of text has none; no text is lost."""
    if text:
        ids = BYTES.encode(text, add_special_tokens=False)
        shown = BYTES.decode(ids, skip_special_tokens=False)
        end = BYTES.convert_tokens_to_ids("</s>")
        lengths = cutter(lambda token_ids: BYTES.decode(token_ids))(Span((*ids, end), TRUNK, True), shown)
        assert len(lengths) == len(ids) + 1
        assert sum(lengths) == units(shown)


BYTES = byte_level()


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    ids = BYTES.encode("a😀b", add_special_tokens=False)
    lengths = cutter(lambda token_ids: BYTES.decode(token_ids))(Span(tuple(ids), TRUNK, True), "a😀b")
    assert lengths == [1, *[0] * (len(ids) - 3), 2, 1]


def test_a_space_that_a_token_alone_does_not_show():
    words = {1: "Hello", 2: "world"}
    span = Span((1, 2, 9), TRUNK, True)
    assert cutter(lambda ids: "".join(words.get(token, "") for token in ids))(span, "Hello world") == [5, 6, 0]


def test_hostile_text_cannot_leave_its_block():
    html = viewer_page(HOSTILE, [Shown(written([HOSTILE, "x"]))])
    assert html.encode("utf-8", "backslashreplace")
    scripts = re.findall(r"<script[^>]*>", html)
    assert len(scripts) == 3  # the index, a block, and the viewer
    assert "<img" not in html
    answers = read(re.search(r'id="answers-0">([^<]*)<', html)[1])
    assert answers[0]["text"] == [HOSTILE, "x"]


def test_the_policy_lets_only_the_viewer_run_and_nothing_be_loaded():
    from hashlib import sha256

    html = viewer_page("t", [])
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in html
    assert script == viewer_script()
    addresses = set(re.findall(r"https?://[^\s\"')]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|innerHTML|insertAdjacentHTML|document\.write", script)


def test_scripts_are_short_files():
    from parallel_r1.report.pages.page import static

    for name in SCRIPTS:
        assert static(name).count("\n") <= 400, name


def test_a_token_takes_few_bytes(frozen):
    """Of 100 answers with 200 tokens each and random surprise; texts repeat as those of a run do."""
    rng = np.random.default_rng(0)
    rollout = rollout_of(frozen, "12+30=42, 7+8=15 no " * 20)
    tokens = len(rollout.trace.token_ids)

    def drawn():
        (span,) = rollout.trace.spans
        logprobs = tuple(-rng.exponential(0.3, tokens))
        return replace(rollout, trace=replace(rollout.trace, spans=(replace(span, logprobs=logprobs),)))

    html, count = data_blocks("x", [Shown(drawn()) for _ in range(100)], own_texts(frozen))
    assert count == 100
    assert len(html) / (100 * tokens) < 3.5
