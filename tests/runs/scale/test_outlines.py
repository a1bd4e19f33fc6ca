"""The form of answers: read from rollouts, and drawn within a budget."""

import pytest
from common import judged
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.rollout import write_jsonl
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.answers.visibility import layout
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.runs.scale.answers import Lengths, Outline, outline, outline_of, quantile, read_outlines, spread_over


def span(size, *address):
    return Span((1,) * size, address or TRUNK, True)


TRACE = Trace(
    (1, 2, 3),
    (
        *(span(4), span(2, (0, 0)), span(1, (0, 0), (1, 0)), span(2, (0, 0), (1, 1)), span(1, (0, 0))),
        *(span(7, (0, 1)), span(3), span(5), span(1, (2, 0)), span(2, (2, 1))),
    ),
)


def test_an_outline_has_the_tokens_of_its_answer():
    """A fork inside a path counts as tokens of the path."""
    form = outline_of(TRACE)
    assert form == Outline(3, (4, (6, 7), 8, (1, 2), 0))
    assert (form.total, form.forks, form.copies) == (len(TRACE.token_ids), 2, 9)
    assert form.critical_path == 4 + 7 + 8 + 2 >= layout(TRACE.runs).critical_path
    assert outline_of(Trace((), (span(1, (0, 0)), span(2, (1, 0)), span(3)))).parts == (0, (1,), 0, (2,), 3)


def test_outlines_are_read_from_saved_answers(tmp_path):
    write_jsonl(tmp_path / "step-1.jsonl", [judged("a", True), judged("b", False, forked=True)])
    assert read_outlines([tmp_path / "step-1.jsonl"]) == [Outline(1, (1,)), Outline(1, (1, (1, 1), 1))]
    (tmp_path / "empty.jsonl").write_text("")
    for name, said in (("no.jsonl", "no file"), ("empty.jsonl", "found none")):
        with pytest.raises(UserError, match=said):
            read_outlines([tmp_path / name])


@pytest.mark.parametrize(
    ("parts", "form"),
    [
        ([32, [48, 40], 24], (32, (48, 40), 24)),
        ([[1, 2]], (0, (1, 2), 0)),
        ([1, 2, [3], [4], 5, 6], (3, (3,), 0, (4,), 11)),
        ([], (0,)),
    ],
)
def test_an_answer_is_written_as_numbers(parts, form):
    assert outline(9, parts, "here") == Outline(9, form)


@pytest.mark.parametrize("wrong", [-1, 1.5, "8", None, True, [], [1, 0], [[2]]])
def test_another_form_is_refused(wrong):
    with pytest.raises(UserError, match=r"such as \[32, \[48, 40\], 24\]; found here: "):
        outline(0, [3, wrong], "here")


@given(
    st.builds(
        Budget,
        total=st.integers(20, 900),
        critical_path=st.integers(20, 900),
        path=st.integers(1, 300),
        forks=st.integers(0, 5),
    ),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_drawn_answers_stay_within_the_budget(budget, paths, seed):
    sampling = Sampling(paths=paths, budget=budget)
    for form in Lengths(parallel=1.0, forks=2.0, median=0.8, spread=1.0).draw(sampling, 20, seed):
        assert 0 < form.total <= budget.total
        assert form.critical_path <= budget.critical_path
        assert form.forks <= (budget.forks if sampling.opens_forks else 0)
        assert all(isinstance(part, int) == (at % 2 == 0) for at, part in enumerate(form.parts))
        assert all(1 <= size <= budget.path for part in form.parts[1::2] for size in part)
        assert all(len(part) == paths for part in form.parts[1::2])


def test_drawn_answers_are_as_declared():
    sampling = Sampling(paths=3, budget=Budget(total=10**6, critical_path=10_000, path=10_000, forks=9))
    forms = Lengths(parallel=0.5, median=0.3).draw(sampling, 2000)
    assert forms == Lengths(parallel=0.5, median=0.3).draw(sampling, 2000)
    assert quantile([form.critical_path for form in forms], 0.5) == pytest.approx(3000, rel=0.05)
    assert sum(form.forks > 0 for form in forms) / 2000 == pytest.approx(0.5, abs=0.04)
    sequential = Lengths().draw(sampling.model_copy(update={"sampler": "sequential"}), 50)
    assert all(form.forks == 0 for form in sequential)


def test_outlines_are_repeated_at_random_where_more_are_needed():
    forms = [Outline(1, (size,)) for size in range(5)]
    assert spread_over(forms, 5) == forms
    assert set(spread_over(forms, 200)) == set(forms)
    assert len(spread_over(forms, 3)) == 3


def test_a_quantile_is_one_of_the_values():
    assert [quantile([5, 1, 3, 2, 4], share) for share in (0, 0.2, 0.5, 0.9, 1)] == [1, 1, 3, 5, 5]
