import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.training.rewards import language
from parallel_r1.training.rewards.base import REWARDS
from parallel_r1.training.rewards.language import check_reward
from parallel_r1.training.rewards.outcome import Outcome
from parallel_r1.training.rewards.terms import accuracy

RIGHT = Outcome(correct=True, forks=0, well_formed=True, critical_path=10, total=10)
RIGHT_FORKED = Outcome(True, 1, True, critical_path=6, total=10, paths=(("a b c d", "e f g h"),))
RIGHT_BROKEN = Outcome(True, 1, False, critical_path=6, total=10)
WRONG = Outcome(False, 0, True, critical_path=10, total=10)
WRONG_FORKED = Outcome(False, 2, True, critical_path=5, total=20, paths=(("a b c d", "a b c d"),))
ALL = (RIGHT, RIGHT_FORKED, RIGHT_BROKEN, WRONG, WRONG_FORKED)
HALF = math.exp(-1 / 50)


def parse_reward(text):
    """The reward at a training step, as a number."""
    reward = language.parse_reward(text)
    return lambda outcome, step: sum(reward(replace(outcome, step=step)).values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy()", (1, 1, 1, -1, -1)),
        ("accuracy(wrong=0)", (1, 1, 1, 0, 0)),
        ("parallel_and_accuracy()", (-1, 1, -1, -1, -1)),
        ("bonus(0.2)", (1, 1.2, -1, -1, -1)),
        ("bonus(1.0)", (1, 2.0, -1, -1, -1)),
        ("gate()", (1, 1, -1, -1, -1)),
        ("additive()", (1, 1.5, 1, -1, -1)),
        ("additive(wrong=0.5)", (1, 1.5, 1, -1, -0.5)),
        ("count()", (1, 2, 2, -1, -1)),
        ("count(gate(), right=0.5, wrong=1)", (1, 1.5, -0.5, -1, -1 + math.sqrt(2))),
        ("efficiency()", (1, 1.16, 1.16, -1, -1)),
        ("efficiency(wrong=0.1)", (1, 1.16, 1.16, -1, -1 + 0.075)),
        ("acceleration(accuracy(wrong=0))", (1, 1.1, 1.1, 0, 0)),
        ("acceleration(accuracy(0), 0.5, 0, most=1)", (1, 1.2, 1.2, 0, 0)),
        ("diversity()", (1, 1, 1, -1, -1)),
        ("diversity(wrong=0.3)", (1, 1, 1, -1, -1.3)),
        ("diversity(bonus(0.2), right=0.2)", (1, 1.2, -1, -1, -1)),
        ("decay(efficiency(), steps=50)", (1, 1 + 0.16 * HALF, 1 + 0.16 * HALF, -1, -1)),
        ("anneal(bonus(1.0), accuracy(), steps=4)", (1, 1 + 0.75, 1 - 2 * 0.75, -1, -1)),
        ("paths_used()", (1, 0.96, 1, -1, -1)),
        ("paths_used(gate(), right=0.5, wrong=-0.1)", (1, 2, -1, -1, -1.2)),
        ("spare_paths()", (1, 1, 1, -1, -1)),
        ("overlong(total=12, cache=4)", (0.5, 0.5, 0.5, -1.5, -2)),
        ("overlong(critical_path=12, cache=4)", (0.5, 1, 1, -1.5, -1)),
        ("overlong(bonus(0.2), total=20, critical_path=8, cache=4)", (0, 0.7, -1.5, -2, -2)),
    ],
)
def test_the_table_of_the_method(text, expected):
    assert [parse_reward(text)(outcome, 1) for outcome in ALL] == pytest.approx(expected)


def test_a_reward_is_the_sum_of_named_terms():
    reward = language.parse_reward("diversity(additive(bonus(0.2)), right=1)")
    same = Outcome(True, 1, True, 6, 10, paths=(("a b c d", "a b c d"),))
    assert reward(same) == pytest.approx({"accuracy": 1, "parallel": 0.7, "diversity": -1})
    assert set(reward(WRONG)) == set(reward(same))


def test_paths_are_spare_if_another_correct_answer_needed_fewer():
    """Of five answers to a problem: the fewest paths of a correct one are 2, so a fork with 4 has 2 to spare."""
    two, four, one = (Outcome(True, 1, paths=(("a",) * n,)) for n in (2, 4, 1))
    group = (two, four, replace(one, correct=False), replace(four, correct=False))
    reward = language.parse_reward("spare_paths(right=0.05, wrong=0.01)")
    found = [reward(replace(outcome, group=group))["spare_paths"] for outcome in group]
    assert found == pytest.approx([0, -0.1, 0, -0.02])
    assert reward(replace(four, group=(replace(four, correct=False),)))["spare_paths"] == 0


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (15, 0), (16, -0.2), (18, -0.6), (19, -0.8), (20, -1), (21, -1), (1000, -1)]
)
def test_the_soft_edge_of_a_budget_by_hand(tokens, expected):
    """DAPO's, with a longest answer of 20 tokens and a cache of 5. The other length is not looked at."""
    for length, outcome in (
        ("total", Outcome(False, 0, True, critical_path=1000, total=tokens)),
        ("critical_path", Outcome(False, 0, True, critical_path=tokens, total=1000)),
    ):
        found = language.parse_reward(f"overlong({length}=20, cache=5)")(outcome)
        assert found == pytest.approx({"accuracy": -1, "overlong": expected})


@given(*[st.integers(1, 60)] * 5)
def test_the_soft_edge_falls_once_and_takes_at_most_1(total, critical, most, cache, more):
    """It never rises with either length, is 0 well within both and -1 beyond one of them, and nests as a sum."""
    text = f"overlong(accuracy(), total={most}, critical_path={most + 3}, cache={cache})"
    reward = language.parse_reward(text)

    def term(total, critical):
        return reward(Outcome(True, 1, True, critical, total))["overlong"]

    found = term(total, critical)
    assert -1 <= term(total + more, critical) <= found <= 0
    assert -1 <= term(total, critical + more) <= found
    assert (found == 0) == (total <= most - cache and critical <= most + 3 - cache)
    assert (found == -1) == (total >= most or critical >= most + 3)
    twice = language.parse_reward(f"overlong({text}, total={most}, cache={cache})")
    alone = language.parse_reward(f"overlong(total={most}, cache={cache})")
    outcome = Outcome(True, 1, True, critical, total)
    assert twice(outcome)["overlong"] == pytest.approx(found + alone(outcome)["overlong"])


def test_what_is_annealed_ends_as_the_other():
    reward = parse_reward("anneal(bonus(1.0), steps=4)")
    assert [reward(RIGHT_FORKED, step) for step in (2, 4, 100)] == [1.5, 1, 1]
    assert parse_reward("decay(bonus(1.0), steps=2)")(RIGHT_FORKED, 100) == pytest.approx(1)


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


leaves = st.sampled_from(["accuracy()", "gate()", "parallel_and_accuracy()", "bonus()"])
shaped = ["additive({0})", "count({0})", "diversity({0})", "efficiency({0})", "acceleration({0})"]
shaped += ["overlong({0}, total=40, cache=9)"]
mixed = ["alternate({0}, {1})", "switch({0}, {1}, at=7)", "decay({0}, {1})", "anneal({0}, {1}, steps=9)"]
expressions = st.recursive(
    leaves,
    lambda inner: st.builds(lambda form, *parts: form.format(*parts), st.sampled_from(shaped + mixed), inner, inner),
    max_leaves=6,
)


@given(expressions, st.integers(1, 30))
def test_unless_a_recipe_says_otherwise_a_wrong_answer_earns_nothing_for_its_structure(text, step):
    reward = parse_reward(text)
    assert reward(WRONG, step) == pytest.approx(-1)
    assert reward(WRONG_FORKED, step) == pytest.approx(-1)


@given(expressions)
def test_a_reward_that_pays_for_forks_needs_a_sampler_that_forks(text):
    check_reward(text, forks=True)
    needs = any(name in text for name in ("bonus", "parallel", "additive", "count", "div", "effi", "accel"))
    if needs:
        with pytest.raises(UserError, match="sequential"):
            check_reward(text, forks=False)
    else:
        check_reward(text, forks=False)


def test_every_known_reward_has_an_explanation():
    assert all(REWARDS[name].__doc__ for name in REWARDS)
    assert accuracy()(RIGHT) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acuracy()", "did you mean 'accuracy'"),
        ("accuracy", "reward such as"),
        ("accuracy(wrongg=1)", "did you mean 'wrong'"),
        ("accuracy(1, 2)", "too many"),
        ("accuracy(bonus())", "no number"),
        ("accuracy(wrong=True)", "no number"),
        ("accuracy(wrong=1e999)", "no number"),
        ("accuracy(wrong=0, wrong=-1)", "reward such as"),
        ("switch(accuracy(), bonus(), at=0.5)", "no whole number"),
        ("alternate(1, 2)", "no call of a reward"),
        ("alternate(accuracy(), bonus(), *[1])", "reward such as"),
        ("accuracy(**{})", "argument of accuracy"),
        ("decay(bonus(), steps=0)", "larger than 0"),
        ("alternate(accuracy())", "reward such as"),
        ("alternate(accuracy(), bonus(), period=2, second=3)", "second must lie"),
        ("bonus('x')", "no number"),
        ("__import__('os').system('true')", "reward such as"),
        ("accuracy() if 1 else 2", "reward such as"),
        ("overlong(cache=4)", "needs a length"),
        ("overlong(total=4)", "missing a required argument: 'cache'"),
        ("overlong(total=4, cache=0)", "larger than 0"),
        ("overlong(totl=4, cache=1)", "did you mean 'total'"),
        ("", "reward such as"),
        ("(" * 500, "reward such as"),
    ],
)
def test_a_bad_reward_is_one_clear_error(text, said):
    with pytest.raises(UserError, match="expected") as caught:
        language.parse_reward(text)
    assert said in str(caught.value)
