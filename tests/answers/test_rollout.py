import pytest

from parallel_r1.answers.rollout import Problem, Rollout, group, read_jsonl, write_jsonl
from parallel_r1.answers.trace import Defect, Span, Trace
from parallel_r1.errors import UserError


def rollout(name="a", reward=None):
    terms = None if reward is None else {"accuracy": 1.0, "parallel": reward - 1.0}
    spans = (Span((1, 2), (), True, (-0.5, -1.25), (-0.75, -2.0)), Span((3,), ((0, 1), (2, 0)), False))
    spans += (Span((4,), (), True, (-1.0,)), Span((5,), (), True, (-1.0,), (-1.0,)))
    trace = Trace((7, 8), spans, "length", "isolated", 3, (Defect("x", 1, "y"),))
    return Rollout(Problem(name, "p\n", "22", "t"), trace, "é</Path>\n", True, 3, 3, terms)


def test_jsonl_loses_nothing(tmp_path):
    written = [rollout("a", 1.2), rollout("b")]
    write_jsonl(tmp_path / "r.jsonl", written)
    assert list(read_jsonl(tmp_path / "r.jsonl")) == written


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
