from dataclasses import replace

import pytest
from hypothesis import example, given
from strategies import anything, well_formed

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout, from_json, group, read_jsonl, to_json, write_jsonl
from parallel_r1.answers.trace import Defect, Span, Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Sampling


def rollout(name="a", reward=None):
    terms = None if reward is None else {"accuracy": 1.0, "parallel": reward - 1.0}
    spans = (Span((1, 2), (), True, (-0.5, -1.25), (-0.75, -2.0)), Span((3,), ((0, 1), (2, 0)), False))
    spans += (Span((4,), (), True, (-1.0,)), Span((5,), (), True, (-1.0,), (-1.0,)))
    trace = Trace((7, 8), spans, "length", "isolated", 3, (Defect("x", 1, "y"),))
    return Rollout(Problem(name, f"p {name}\n", "22", "t"), trace, ("é", "</Path>", "\n", ""), True, 3, 3, terms)


def test_jsonl_loses_nothing(tmp_path):
    written = [rollout("a", 1.2), rollout("b")]
    write_jsonl(tmp_path / "r.jsonl", written)
    assert list(read_jsonl(tmp_path / "r.jsonl")) == written


@pytest.mark.parametrize("reward", [1.5, None])
def test_a_reward_of_version_0_1_is_one_term(reward):
    row = to_json(rollout("a", 1.2))
    del row["terms"], row["key"]
    read = from_json({**row, "reward": reward})
    assert (read.reward, read.terms) == (reward, None if reward is None else {"reward": 1.5})


def test_half_of_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    """Nothing that a run wrote before it is lost; whoever reads the line is told of it."""
    half = replace(rollout(), texts=("\ud83d", "</Path>", "\n", ""))
    write_jsonl(tmp_path / "r.jsonl", [rollout(), half])
    rows = read_jsonl(tmp_path / "r.jsonl")
    assert next(rows) == rollout()
    with pytest.raises(UserError, match=r"r\.jsonl:2: \\ud83d, half of a surrogate pair"):
        next(rows)


def test_a_broken_line_is_named(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", [rollout()])
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"id": 1}\n')
    with pytest.raises(UserError, match=r"r\.jsonl:2"):
        list(read_jsonl(tmp_path / "r.jsonl"))


def test_groups_keep_the_order():
    members = [rollout("b", 1.0), rollout("a", 2.0), rollout("b", 3.0)]
    groups = group(members)
    assert [each.problem.id for each in groups] == ["b", "a"]
    assert [each.reward for each in groups[0].rollouts] == [1.0, 3.0]


def test_a_rollout_has_a_text_for_every_span():
    assert rollout().text == "é</Path>\n"
    with pytest.raises(ValueError, match="expected one text per span, 4, got 1"):
        replace(rollout(), texts=("é",))


def without_texts(judged):
    """A row as runs wrote it before spans had texts."""
    row = to_json(judged)
    return row | {"spans": [{key: span[key] for key in span if key != "text"} for span in row["spans"]]}


@given(well_formed | anything)
@example("<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c<Parallel><Path>")
def test_old_rows_get_the_texts_of_their_spans(tokenizer, tags, text):
    for sampler in ("isolated", "sequential"):
        trace = parse(tokenizer.encode(text, add_special_tokens=False), tags, sampler=sampler)
        judged = Rollout(rollout().problem, trace, trace.texts(tokenizer.decode), True, 3, 3)
        read = from_json(without_texts(judged))
        assert read.text == judged.text
        assert read.trace == judged.trace
        if trace.well_formed or sampler == "sequential":
            assert read.texts == judged.texts


def test_old_rows_of_drawn_answers(tiny):
    """Paths that a budget cut, and a `<Parallel>` beyond the budget: what a sampler writes and a parser does not."""
    stray, close = tiny.tags.ids["<Parallel>"], tiny.tags.ids["</Summary>"]
    trunk = {1: stray, 7: close, 8: stray, 14: close, 15: stray}  # a join is 3 tokens

    def force(address, size):
        return None if address else trunk.get(size)

    budget = Budget(total=200, critical_path=120, path=6, forks=2)
    for sampler in ("isolated", "causal_join"):
        sampling = Sampling(sampler=sampler, paths=3, budget=budget)
        prompt = tiny.encode("Use 3, 5, 7 to make 22.\n")
        drawn = make_generator(tiny).traces([Request(prompt, sampling, f"0/{index}", force) for index in range(8)])
        assert any(trace.forks == 2 and trace.trunk_ids.count(stray) > 2 for trace in drawn)
        assert any(
            not span.sampled and span.token_ids == (tiny.tags.ids["</Path>"],) for t in drawn for span in t.spans
        )
        for trace in drawn:
            trace = unforced(trace, tiny.tags)
            judged = Rollout(rollout().problem, trace, trace.texts(tiny.decode), True, 3, 3)
            assert from_json(without_texts(judged)) == judged


def unforced(trace, tags):
    """The trace as if the policy had drawn the tags that were forced on it."""
    runtime = [(tags.ids["<Path>"],), (tags.ids["</Path>"],), tags.join]
    spans = []
    for span in trace.spans:
        # A forced tag right after a join is in its span.
        parts = [(span.token_ids, span.sampled or span.token_ids not in runtime)]
        if not span.sampled and span.token_ids[:3] == tags.join:
            parts = [(tags.join, False), (span.token_ids[3:], True)]
        for ids, sampled in parts:
            last = spans[-1] if spans else None
            if last and sampled and last.sampled and last.address == span.address:
                spans[-1] = Span(last.token_ids + ids, last.address, True)
            elif ids:
                spans.append(Span(ids, span.address, sampled))
    return replace(trace, spans=tuple(spans))


def test_a_row_whose_text_shows_another_structure_keeps_all_of_it():
    trace = Trace((1,), (Span((2,), (), True), Span((3,), ((0, 0),), True)))
    judged = Rollout(rollout().problem, trace, ("a", "b"), True, 2, 2)
    assert from_json(without_texts(judged)).texts == ("ab", "")
