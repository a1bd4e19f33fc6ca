"""Which problems are the same."""

import pytest

from parallel_r1.answers.identity import key_of
from parallel_r1.answers.rollout import Problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 3?", "  What is 2+3?\n"),
        ("Solve x=1.", "solve X = 1"),
        ("Let $x = 2$.", "Let x=2"),
        (r"Find $\left( a , b \right)$", "Find (a,b)"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_a_restatement_is_the_same_problem(one, other):
    assert key_of(one) == key_of(other)
    assert Problem("1", one, "5", "t").key == Problem("2", other, "5", "t").key


@pytest.mark.parametrize(
    ("one", "other"),
    [("Use 1 2", "Use 12"), ("5!", "5"), ("x_2", "x^2"), ("f'(x)", "f(x)"), ("a-b", "a+b"), ("1.5", "15")],
)
def test_another_statement_is_another_problem(one, other):
    assert key_of(one) != key_of(other)


def test_a_task_may_say_what_is_the_same():
    one, other = Problem("1", "Use 1, 2.", "3", "t", "[1, 2]/3"), Problem("2", "Use 2, 1.", "3", "t", "[1, 2]/3")
    assert one.key == other.key
    assert len(key_of("any")) == 16
