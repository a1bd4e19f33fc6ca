"""The split advantage: being correct, and all other terms of a reward, normalised apart."""

import pytest

from parallel_r1.answers.rollout import Group, Problem, Rollout
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO

PROBLEM = Problem("p", "p", "1", "tests")


def group(*terms):
    rollouts = (Rollout(PROBLEM, Trace((), ()), (), each.get("accuracy", 0) > 0, 1, 1, each) for each in terms)
    return Group(PROBLEM, tuple(rollouts))


def advantages(algorithm, *terms):
    (samples,) = algorithm.credit([group(*terms)])
    return [sample.advantage for sample in samples]


def right(penalty):
    return {"accuracy": 1.0, "spare_paths": -penalty}


WRONG = {"accuracy": -1.0, "spare_paths": 0.0}


@pytest.mark.parametrize("algorithm", [GRPO, GSPO])
def test_where_all_are_correct_a_penalty_has_the_weight_that_was_asked_for(algorithm):
    """Without the split, a cent of a penalty is all that differs, and is scaled up to 1."""
    tiny = [right(0.0), right(0.01), right(0.0), right(0.01)]
    whole, apart = advantages(algorithm(), *tiny), advantages(algorithm(split=True, auxiliary=0.1), *tiny)
    assert whole == pytest.approx([0.866, -0.866, 0.866, -0.866], abs=1e-3)
    assert apart == pytest.approx([0.0866, -0.0866, 0.0866, -0.0866], abs=1e-3)


def test_a_large_penalty_never_outweighs_being_correct():
    """Two right answers with 10 spare paths each: as one sum they are worse than the wrong ones."""
    answers = [right(3.0), right(3.0), WRONG, WRONG]
    assert advantages(GRPO(), *answers)[0] < 0
    first, _, third, _ = advantages(GRPO(split=True), *answers)
    assert (first, third) == pytest.approx((0.866 - 0.2 * 0.866, -0.866 + 0.2 * 0.866), abs=1e-3)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_without_other_terms_the_split_changes_nothing(std):
    groups = [group({"accuracy": 1.0}, {"accuracy": -1.0}, {"accuracy": -1.0}), group({"accuracy": 1.0})]
    one, two = (GRPO(std=std, split=split).advantages_of(groups) for split in (False, True))
    assert one == two


def test_a_reward_without_the_term_is_one_clear_line():
    with pytest.raises(UserError, match=r"'accuracy'.*found the terms mine.*set split = false"):
        advantages(GRPO(split=True), {"mine": 1.0}, {"mine": 0.0})


def test_a_weight_without_a_split_is_refused():
    with pytest.raises(UserError, match="auxiliary has no effect"):
        GRPO(auxiliary=0.5)
