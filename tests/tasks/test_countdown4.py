"""Countdown with four numbers: tabulated families, checked against a recursive search and reasoning-gym."""

import random
from dataclasses import replace
from itertools import islice, permutations
from math import exp
from typing import get_args

import numpy as np
import pytest
import reasoning_gym
import slow_chains

from parallel_r1.answers.parser import parse_text
from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import held_out
from parallel_r1.tasks.countdown import key_of
from parallel_r1.tasks.countdown4 import EASY, HARD, MEDIUM, Ways, chain
from parallel_r1.tasks.datasets.splits import Split
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
