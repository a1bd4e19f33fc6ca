"""Rewards that users write: the decorator, the registry, and what goes wrong."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from functools import partial
from typing import Optional

import pytest

from parallel_r1.answers.rollout import Group, Problem, Rollout
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.registry import load_plugins, plugin_error
from parallel_r1.training.rewards import base
from parallel_r1.training.rewards.base import apply_reward, as_reward, check_forks, reward
from parallel_r1.training.rewards.language import check_reward, parse_reward
from parallel_r1.training.rewards.outcome import Outcome, Reward, Terms
from parallel_r1.training.rewards.terms import accuracy, additive, bonus

RIGHT, WRONG = Outcome(True, total=100), Outcome(False, total=50)
HEAD = """from __future__ import annotations
from parallel_r1.training.rewards.base import reward
from parallel_r1.training.rewards.outcome import Outcome, Reward, Terms
"""


def plugin(folder, text, name="my_rewards.py"):
    (folder / name).write_text(HEAD + text)
    load_plugins([name], folder)
    return folder / name


def members(*correct):
    problem = Problem("a", "p", "22", "t")
    return Group(problem, tuple(Rollout(problem, Trace((), ()), (), right, 1, 1) for right in correct))


def test_a_decorated_function_builds_rewards_and_has_a_name_in_recipes():
    @reward
    def brief(outcome: Outcome, weight: float = 0.1) -> dict[str, float]:
        """Short answers earn more."""
        return {"brief": -weight * outcome.total}

    assert brief(0.5)(RIGHT) == brief(weight=0.5)(RIGHT) == parse_reward("brief(0.5)")(RIGHT) == {"brief": -50}
    assert parse_reward("alternate(accuracy(), brief(), period=1, second=1)")(RIGHT) == {"brief": -10}
    assert brief.__doc__ == "Short answers earn more."
    assert list(inspect.signature(brief).parameters) == ["weight"]
    assert repr(additive(brief(1), right=2)) == "additive(brief(1.0), right=2.0)"


def test_a_number_becomes_the_term_of_its_function():
    @reward
    def length(outcome):
        return outcome.total

    assert length()(RIGHT) == {"length": 100.0}
    assert additive(length())(RIGHT) == {"length": 100.0, "parallel": 0.0}
    assert as_reward(lambda outcome: Fraction(1, 2))(RIGHT) == {"reward": 0.5}


def test_a_function_with_the_hint_reward_builds_one_from_others():
    @reward
    def later(base: Reward, start: int, *more: Reward, note: str = "", strict: bool = False) -> Reward:
        if start < 1:
            raise ValueError(f"start must be at least 1, got {start}")
        return lambda outcome: {"n": 1.0 + len(more), "strict": strict, "note": len(note)} | base(outcome)

    built = parse_reward("later(accuracy(), 3, accuracy(), bonus(), note='so', strict=True)")
    assert built(RIGHT) == {"n": 3, "strict": 1, "note": 2, "accuracy": 1}
    assert later(lambda outcome: 5, 1)(RIGHT) == {"n": 1, "strict": 0, "note": 0, "reward": 5}
    with pytest.raises(UserError, match=r"'later\(accuracy\(\), 0\)' \(start must be at least 1, got 0\)"):
        parse_reward("later(accuracy(), 0)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("later(1, 1)", "1 is no call of a reward"),
        ("later(accuracy(), 1.5)", "1.5 is no whole number"),
        ("later(accuracy(), True)", "True is no whole number"),
        ("later(accuracy(), 1, note=2)", "2 is no text in quotes"),
        ("later(accuracy(), 1, strict=1)", "1 is no True or False"),
        ("later(accuracy(), 1, limit='x')", "'x' is no number or None"),
        ("later(accuracy(), 1, other=2)", "2 is no call of a reward"),
        ("later(accuracy(), 1, x)", "too many positional arguments"),
        ("later(accuracy(), 1, anything=nonsense)", "nonsense is no literal"),
        ("later(accuracy(), 1, limit=1e999)", "is no number or None"),
    ],
)
def test_arguments_are_read_by_their_type_hints(tmp_path, text, message):
    plugin(
        tmp_path,
        "@reward\n"
        "def later(base: Reward, start: int, *, note: str = '', strict: bool = False, limit: float | None = None,\n"
        "          other: Reward | None = None, anything=None) -> Reward:\n"
        "    result = {'limit': limit or 0, 'type': isinstance(limit, float), 'any': len(anything or ())}\n"
        "    return lambda outcome: result\n",
    )
    valid = "later(accuracy(), 1, limit=2, other=None, anything=[1, 'a'])"
    assert parse_reward(valid)(RIGHT) == {"limit": 2, "type": 1, "any": 2}
    assert parse_reward("later(accuracy(), 1, limit=None, other=bonus())")(RIGHT)["limit"] == 0
    with pytest.raises(UserError) as caught:
        parse_reward(text)
    assert message in str(caught.value)


def test_arguments_are_checked_when_the_reward_is_built():
    with pytest.raises(ValueError, match=r"wrong of accuracy: 'x' is no number"):
        accuracy("x")
    with pytest.raises(TypeError, match=r"accuracy: too many positional arguments"):
        accuracy(1, 2)
    with pytest.raises(TypeError, match=r"accuracy: got an unexpected keyword argument 'wron'"):
        accuracy(wron=1)
    with pytest.raises(ValueError, match=r"base of additive: 3 is no reward"):
        additive(3)
    with pytest.raises(TypeError, match=r"accuracy builds a reward .*: accuracy\(\.\.\)\(outcome\)"):
        accuracy(RIGHT)


def test_a_union_may_be_written_in_the_old_way():
    @reward
    def old(outcome, base: Optional[Reward] = None) -> Terms:  # noqa: UP045
        return base(outcome) if base else {}

    assert parse_reward("old(accuracy())")(RIGHT) == {"accuracy": 1}
    assert old()(RIGHT) == {}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("'yes'", "str 'yes'"),
        ("None", "NoneType None"),
        ("math.nan", "float nan"),
        ("{'a': math.inf}", "dict {'a': inf}"),
        ("{'a': 'b'}", "dict {'a': 'b'}"),
        ("{'a': None}", "dict {'a': None}"),
        ("{1: 2.0}", "dict {1: 2.0}"),
        ("[1.0]", "list [1.0]"),
        ("1j", "complex 1j"),
    ],
)
def test_a_wrong_return_value_names_the_reward_and_its_line(tmp_path, result, shown):
    path = plugin(tmp_path, f"import math\n@reward\ndef odd(outcome):\n    return {result}\n")
    for text in ("odd()", "additive(odd())", "anneal(accuracy(), odd())"):
        with pytest.raises(UserError) as caught:
            parse_reward(text)(RIGHT)
        assert f"the reward odd ({path}:5) to return finite numbers by name" in str(caught.value)
        assert f"found {shown}; " in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the reward nothing"):
        apply_reward(members(True), nothing, 1)


def nothing(outcome):
    return None


def test_a_builder_that_builds_no_reward_is_named(tmp_path):
    path = plugin(tmp_path, "@reward\ndef empty() -> Reward:\n    return 1\n")
    with pytest.raises(UserError, match=rf"empty \({path}:4\) to return a reward.*found int 1"):
        parse_reward("empty()")


def test_an_exception_in_a_reward_is_not_wrapped_and_names_its_line(tmp_path):
    path = plugin(
        tmp_path, "@reward\ndef broken(outcome):\n    if outcome.step == 2:\n        return {}['x']\n    return 1\n"
    )
    broken = parse_reward("additive(broken())")
    assert apply_reward(members(True), broken, 1).rollouts[0].terms == {"broken": 1, "parallel": 0}
    with pytest.raises(KeyError) as caught:
        apply_reward(members(True), broken, 2)
    assert f"{path}:7: KeyError: 'x'" in str(plugin_error(caught.value))


def test_an_exception_in_a_builder_is_not_wrapped(tmp_path):
    path = plugin(tmp_path, "@reward\ndef broken() -> Reward:\n    return None + 1\n")
    with pytest.raises(TypeError) as caught:
        parse_reward("broken()")
    assert f"{path}:6: TypeError" in str(plugin_error(caught.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@reward\ndef brief(outcome:\n", r"my_rewards.py:5: SyntaxError"),
        ("import no_such_package\n", r"my_rewards.py:4: ModuleNotFoundError"),
        ("@reward\ndef brief(rollout):\n    return 1\n", r"`outcome`.*brief\(rollout\) at .*my_rewards.py:4"),
        ("@reward\ndef brief():\n    return 1\n", r"first parameter.*brief\(\) at .*my_rewards.py:4"),
        ("@reward\ndef brief(outcome, x: Flaot = 1): ...\n", r"hints of the reward brief.*my_rewards.py:4: x: Flaot"),
        ("@reward\ndef brief(outcome, **options): ...\n", r"all have names; found brief\(.*my_rewards.py:4"),
        ("brief = reward(lambda outcome: 1)\n", r"a reward with a name"),
        ("@reward\ndef accuracy(outcome):\n    return 1\n", r"one reward named 'accuracy'; found .*my_rewards.py:4"),
    ],
)
def test_a_file_that_registers_no_reward_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        plugin(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert accuracy()(RIGHT) == parse_reward("accuracy()")(RIGHT) == {"accuracy": 1.0}


def test_two_files_may_not_share_a_name(tmp_path):
    text = "@reward\ndef brief(outcome):\n    return 1\n"
    plugin(tmp_path, text, "one.py")
    with pytest.raises(UserError, match=r"one reward named 'brief'; found .* at .*two.py:4, the first at .*one.py:4"):
        plugin(tmp_path, text, "two.py")


def test_rewards_that_need_forks(tmp_path):
    plugin(
        tmp_path,
        "from parallel_r1.training.rewards.terms import bonus\n"
        "@reward(needs_forks=True)\ndef paid(outcome, weight: float = 1.0):\n    return outcome.forks\n"
        "@reward\ndef free(outcome):\n    return 1\n"
        "@reward\ndef hidden() -> Reward:\n    return bonus()\n"
        "@reward\ndef default(outcome, other: Reward = bonus()):\n    return 1\n",
    )
    for text, name in (("paid()", "paid"), ("switch(free(), paid(2), 3)", "paid"), ("hidden()", "bonus")):
        check_reward(text, forks=True)
        with pytest.raises(UserError, match=rf"sequential.*found {name} in .*use one of accuracy, gate, .*free"):
            check_reward(text, forks=False)
    with pytest.raises(UserError, match="found bonus in"):
        check_reward("default()", forks=False)
    check_reward("free()", forks=False)
    check_forks(lambda outcome: 1.0, opens_forks=False)
    with pytest.raises(UserError, match="found bonus"):
        check_forks(bonus(0.1), opens_forks=False)


class Longest:
    def __call__(self, outcome):
        return outcome.total == max(member.total for member in outcome.group)


def scaled(factor, outcome):
    return factor * outcome.total


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        (lambda outcome: {"a": 2}, {"a": 2.0}),
        (lambda outcome: outcome.correct, {"reward": 1.0}),
        (Longest(), {"Longest": 1.0}),
        (partial(scaled, 2), {"scaled": 2.0}),
        (accuracy, {"accuracy": 1.0}),
        (accuracy(-2), {"accuracy": 1.0}),
    ],
)
def test_any_callable_is_a_reward(given, terms):
    assert [rollout.terms for rollout in apply_reward(members(True), given, 1).rollouts] == [terms]


@pytest.mark.parametrize("given", ["accuracy()", 1, None, lambda outcome, step: 1.0, lambda: 1.0])
def test_what_cannot_be_called_with_an_outcome_is_no_reward(given):
    with pytest.raises(UserError, match=r"a function of an outcome"):
        apply_reward(members(True), given, 1)


def test_a_run_cell_may_be_run_again():
    for weight in (1.0, 2.0):

        @reward
        def cell(outcome, weight: float = weight):
            return weight

    assert parse_reward("cell()")(RIGHT) == {"cell": 2.0}


def test_a_built_reward_is_shown_as_a_recipe_writes_it():
    for text in ("alternate(accuracy(), bonus(0.2), period=10, second=2)", "overlong(cache=4.0, total=20.0)"):
        assert repr(parse_reward(text)) == text
        assert repr(parse_reward(repr(parse_reward(text)))) == text


def test_the_two_ways_to_write_a_reward_are_documented_with_code_that_runs():
    code = inspect.cleandoc(base.__doc__).split("\n\n")
    blocks = [inspect.cleandoc(block) for block in code if block.strip().startswith("@reward")]
    assert len(blocks) == 2
    names: dict[str, object] = {"reward": reward, "Reward": Reward, "__name__": "documented"}
    for block in blocks:
        exec(block, names)
    assert names["brief"](0.5)(RIGHT) == {"brief": -0.5}
    after = parse_reward("after(2, accuracy())")
    assert after(RIGHT) == {}
    assert after(Outcome(True, step=2)) == {"accuracy": 1}
    assert math.isclose(sum(accuracy(-3)(WRONG).values()), -3)
