import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.rewards import Outcome, accuracy, alternate, bonus, parallel_and_accuracy, parse_reward, switch

RIGHT = Outcome(correct=True, forks=0, well_formed=True)
RIGHT_FORKED = Outcome(correct=True, forks=1, well_formed=True)
RIGHT_BROKEN = Outcome(correct=True, forks=1, well_formed=False)
WRONG = Outcome(correct=False, forks=0, well_formed=True)
WRONG_FORKED = Outcome(correct=False, forks=2, well_formed=True)
ALL = (RIGHT, RIGHT_FORKED, RIGHT_BROKEN, WRONG, WRONG_FORKED)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (accuracy(), (1, 1, 1, -1, -1)),
        (accuracy(wrong=0), (1, 1, 1, 0, 0)),
        (parallel_and_accuracy(), (-1, 1, -1, -1, -1)),
        (bonus(0.2), (1, 1.2, -1, -1, -1)),
        (bonus(1.0), (1, 2.0, -1, -1, -1)),
    ],
)
def test_the_table_of_the_method(reward, expected):
    for step in (1, 9, 100):
        assert [reward(outcome, step) for outcome in ALL] == list(expected)


# Steps 1 to 20 by hand. S1 rewards accuracy throughout; S2 rewards accuracy for 8 steps, then the bonus for 2.
S1_FORKED = [1.0] * 20
S2_FORKED = [1.0] * 8 + [1.2] * 2 + [1.0] * 8 + [1.2] * 2
S2_BROKEN = [1.0] * 8 + [-1.0] * 2 + [1.0] * 8 + [-1.0] * 2


def test_schedules_s1_and_s2_by_step():
    s1 = parse_reward("accuracy()")
    s2 = parse_reward("alternate(accuracy(), bonus(0.2), period=10, second=2)")
    steps = range(1, 21)
    assert [s1(RIGHT_FORKED, step) for step in steps] == S1_FORKED
    assert [s2(RIGHT_FORKED, step) for step in steps] == S2_FORKED
    assert [s2(RIGHT_BROKEN, step) for step in steps] == S2_BROKEN
    assert [s2(RIGHT, step) for step in steps] == [1.0] * 20
    assert [s2(WRONG_FORKED, step) for step in steps] == [-1.0] * 20


def test_the_scaffold_switches_after_its_step():
    reward = parse_reward("switch(alternate(accuracy(), bonus(0.2)), accuracy(), at=9)")
    assert [reward(RIGHT_FORKED, step) for step in (8, 9, 10, 19)] == [1.0, 1.2, 1.0, 1.0]
    assert switch(accuracy(), bonus(), at=1)(RIGHT_FORKED, 2) == 1.2


@given(st.sampled_from([accuracy(), parallel_and_accuracy(), bonus(), alternate(accuracy(), bonus())]), st.integers(1))
def test_only_correct_answers_earn(reward, step):
    assert reward(WRONG, step) == reward(WRONG_FORKED, step) == -1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acuracy()", "did you mean 'accuracy'"),
        ("accuracy", "reward such as"),
        ("accuracy(oops=1)", "oops"),
        ("alternate(accuracy())", "reward such as"),
        ("alternate(accuracy(), bonus(), period=2, second=3)", "second must lie"),
        ("bonus('x')", "no number"),
        ("__import__('os').system('true')", "reward such as"),
        ("accuracy() if 1 else 2", "reward such as"),
        ("", "reward such as"),
        ("(" * 500, "reward such as"),
    ],
)
def test_a_bad_reward_is_one_clear_error(text, said):
    with pytest.raises(UserError, match="expected") as caught:
        parse_reward(text)
    assert said in str(caught.value)
