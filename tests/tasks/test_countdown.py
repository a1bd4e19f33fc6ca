"""Countdown: tabulated families, checked against a recursive search and reasoning-gym."""

import random
from dataclasses import replace
from fractions import Fraction
from itertools import islice, permutations
from math import exp
from typing import get_args

import numpy as np
import pytest
import reasoning_gym
import slow_chains
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.parser import parse_text
from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import held_out
from parallel_r1.tasks.chains import Ways, chain
from parallel_r1.tasks.countdown import EASY, HARD, MEDIUM, evaluate_expression, key_of, split_of
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.load import load_task

TASKS = pytest.mark.parametrize("task", [EASY, MEDIUM, HARD], ids=lambda task: task.name)


def numbers_and_target(task, problem):
    numbers, target = task.parse(problem)
    return tuple(sorted(numbers)), target


@TASKS
def test_validation_problems_are_apart_from_both(task):
    kept = {split: {p.key for p in islice(task.problems(split, 0), 3000)} for split in get_args(Split)}
    assert all(kept.values())
    assert not kept["validation"] & kept["train"]
    assert not kept["validation"] & kept["test"]


@TASKS
def test_a_family_cannot_be_memorised(task):
    """At least 100,000 different problems, of which one in eight is for testing: exactly as many as it says."""
    sizes = {split: task.size(split) for split in get_args(Split)}
    assert sum(sizes.values()) >= 100_000
    assert sizes["test"] >= 10_000
    assert 0.11 < sizes["test"] / sum(sizes.values()) < 0.14
    small = replace(task, name="small", high=5)
    assert 0 < small.size("test") < 200
    assert len(held_out(small, small.size("test"), 0)) == small.size("test")
    with pytest.raises(UserError, match=f"different test problems of small; found {small.size('test')}"):
        held_out(small, small.size("test") + 1, 0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_chains_are_those_of_the_slow_way(count):
    """Their steps, expressions and values, for numbers that differ and that are equal, up to a limit."""
    rng = random.Random(count)
    for high in (2, 6, 25):
        for _ in range(15):
            numbers = tuple(sorted(rng.randint(1, high) for _ in range(count)))
            results = Ways.of(count).results(np.array([numbers]), 148)[0]
            written = [chain(numbers, int(way)) for way in results.nonzero()[0]]
            assert [one.value for one in written] == results[results.nonzero()].tolist()
            ours = {(one.line, one.expression): one.value for one in written}
            assert len(ours) == len(written)
            assert ours == slow_chains.chains(numbers, 148)


@TASKS
def test_difficulty_is_how_often_a_first_guess_is_right(task):
    for problem in islice(task.problems("train", 3), 20):
        numbers, target = numbers_and_target(task, problem)
        pool = slow_chains.chains(numbers, task.limit).values()
        weight = sum(exp(-abs(value - target) / task.distance) for value in pool)
        chance = sum(value == target for value in pool) / weight
        assert task.first_guess(numbers, target) == pytest.approx(chance)
        assert task.hardest < chance <= task.chance
        rng = random.Random(0)
        hits = sum(task.tries(problem, rng, 1)[0][1] for _ in range(400))
        assert abs(hits / 400 - chance) < 0.1


@TASKS
def test_a_problem_is_the_same_in_every_order(task):
    assert load_task(task.name) == task
    for problem in islice(task.problems("train", 0), 20):
        numbers, target = task.parse(problem)
        assert {task.problem(order, target).key for order in permutations(numbers)} == {problem.key}
        assert problem.key == key_of(numbers, target)


@pytest.mark.parametrize("split", get_args(Split))
def test_a_problem_has_one_split_in_every_task_and_order(split):
    for task in (EASY, MEDIUM, HARD):
        for problem in islice(task.problems(split, 0), 50):
            numbers, target = task.parse(problem)
            assert {split_of(key_of(order, target)) for order in permutations(numbers)} == {split}


@TASKS
def test_answers_agree_with_reasoning_gym(task):
    judge = reasoning_gym.create_dataset("countdown", size=1, seed=0)
    rng, verdicts = random.Random(0), []
    for problem in islice(task.problems("test", 7), 30):
        numbers, target = task.parse(problem)
        pool = slow_chains.chains(tuple(sorted(numbers)), task.limit)
        _, any_one = rng.choice(list(pool))
        right = next(expression for (_, expression), value in pool.items() if value == target)
        for expression in (any_one, right, str(target), f"{right}+0"):
            (ours,) = task.verify([problem], [f"Final Answer: {expression}"])
            entry = {"metadata": {"numbers": list(numbers), "target": target}}
            assert ours == (judge.score_answer(expression, entry) == 1.0), expression
            verdicts.append(ours)
    assert 0.2 < sum(verdicts) / len(verdicts) < 0.8


@TASKS
def test_the_teacher_is_honest(task):
    """Answers are right and well-formed; some paths fail; a chain that a path tried is not tried again."""
    rng, written, failed = random.Random(0), 0, 0
    for problem in islice(task.problems("train", 2), 200):
        for text in (task.sequential_answer(problem, rng, 4), task.parallel_answer(problem, rng, 4, 1, 3)):
            if text is not None:
                written, failed = written + 1, failed + text.count(" no")
                assert parse_text(text).defects == []
                assert task.verify([problem], [text]) == [True]
        first = task.tries(problem, rng, 3)
        again = task.tries(problem, rng, 200, [one for one, _ in first])
        assert not {one.line for one, _ in first} & {one.line for one, _ in again}
    assert written > 100
    assert failed > 100


@TASKS
def test_every_chain_is_what_it_says(task):
    """Its expression and each of its steps have the value that they name, and it uses every number once."""
    for problem in islice(task.problems("train", 5), 5):
        numbers, target = numbers_and_target(task, problem)
        ways = task.weights(numbers, target).nonzero()[0]
        for written in (chain(numbers, int(way)) for way in ways):
            value, used = evaluate_expression(written.expression)
            assert (value, sorted(used)) == (written.value, sorted(numbers))
            for step in written.steps:
                left, right = step.split("=")
                assert evaluate_expression(left)[0] == int(right)


@TASKS
def test_every_try_says_truly_whether_it_reached_the_target(task):
    rng, tries = random.Random(0), []
    for problem in islice(task.problems("train", 2), 100):
        for text in (task.sequential_answer(problem, rng, 4), task.parallel_answer(problem, rng, 4, 2, 3)):
            body = (text or "").split("</Parallel>")[0].split("\nFinal")[0].replace("<Path>", "\n")
            for line in body.replace("</Path>", "\n").replace("<Parallel>", "").split("\n"):
                if line:
                    value = int(line.split(" ")[-2 if line.endswith("no") else -3].split("=")[1])
                    assert (value == int(problem.answer)) == (" yes" in line)
                    tries.append(line.endswith("no"))
    assert 50 < sum(tries) < len(tries) - 50


@TASKS
def test_problems_repeat_for_a_seed_and_differ_between_seeds(task):
    first, again, other = (list(islice(task.problems("train", seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_paths_of_a_fork_are_independent_draws():
    """The second path's first try does not depend on the first path's: the joint frequency is near the product."""
    problem = next(EASY.problems("train", 0))
    rng = random.Random(0)
    pairs = [[EASY.tries(problem, rng, 1)[0][0].line for _ in range(2)] for _ in range(4000)]
    common = max({line for line, _ in pairs}, key=[first for first, _ in pairs].count)
    first = sum(a == common for a, _ in pairs) / len(pairs)
    second = sum(b == common for _, b in pairs) / len(pairs)
    both = sum(a == common and b == common for a, b in pairs) / len(pairs)
    assert abs(both - first * second) < 0.03


def test_verification_is_exact_arithmetic():
    def verify(answer):
        (verdict,) = EASY.verify([EASY.problem((3, 5, 7), 22)], [answer])
        return verdict

    for right in ("3*5+7", "7 + 5*3", "(5*3)+7"):
        assert verify(f"so\nFinal Answer: {right}")
    for wrong in ("22", "3*5+6", "3*5+7+0", "3*5", "3**5", "", "(3*5+7", "3*5+7 = 22", "7+15", "3*5+7.0", "3*5+7j"):
        assert not verify(f"Final Answer: {wrong}")
    assert not verify("3*5+7")
    assert verify("Final Answer: 1\nFinal Answer: 3*5+7")
    assert not verify("Final Answer: 3*5+7\nFinal Answer: 1")


@given(
    st.recursive(
        st.integers(0, 50).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
            lambda parts: f"({parts[0]}{parts[1]}{parts[2]})"
        ),
        max_leaves=8,
    )
)
def test_expressions_equal_fractions(text):
    found = evaluate_expression(text)
    if len(text) <= 120:
        assert Fraction(found[0]) == Fraction(eval(text))  # our own digits and operators only


@given(st.text(max_size=200) | st.text(alphabet="0123456789+-*() ", max_size=300))
def test_no_expression_breaks_the_verifier(text):
    evaluate_expression(text)
    final_answer(text)


@pytest.mark.parametrize("hostile", ["9" * 10_000, "9**9**9**9", "(" * 1000, "1+" * 5000 + "1", "()" * 50, "\x00"])
def test_hostile_expressions_are_wrong_and_cheap(hostile):
    assert EASY.verify([EASY.problem((3, 5, 7), 22)], [f"Final Answer: {hostile}"]) == [False]
