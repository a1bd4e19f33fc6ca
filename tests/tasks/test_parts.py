"""The task with parts: its problems, its verifier, and its teacher in every schema."""

import random
import re
from itertools import islice

import pytest

from parallel_r1.answers.convert import convert
from parallel_r1.answers.parser import parse_text, trunk
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS
from parallel_r1.coldstart.examples import Teacher
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.parts import EASY, HARD, parts_of

BOTH = pytest.mark.parametrize("task", [EASY, HARD], ids=lambda task: task.name)


@BOTH
def test_problems_are_all_different_and_no_problem_is_in_two_splits(task):
    assert load_task(task.name) is task
    seen = {split: [p.key for p in islice(task.problems(split, 0), 500)] for split in ("train", "validation", "test")}
    assert len({key for keys in seen.values() for key in keys}) == 1500
    again = [problem.key for problem in islice(task.problems("test", 0), 500)]
    assert seen["test"] == again
    assert {len(key.split(", ")) for key in seen["train"]} == set(range(task.least, task.most + 1))


@BOTH
def test_a_part_is_worked_out_step_by_step(task):
    """Every step is what is left of the part, equal to the one before; where parts subtract, no result is negative or
    has more digits than the largest number."""
    assert task.minus
    for problem in islice(task.problems("train", 2), 200):
        stated = problem.prompt.split(" ", 2 if task.largest else 1)[-1]
        for number, part in enumerate(parts_of(problem), 1):
            assert f"{number}: {part}" in stated
        for line in task.sequential_answer(problem, random.Random(0), 1).splitlines()[:-1]:
            steps = line.partition(": ")[2].split("=")
            assert len(steps) == task.terms
            assert len({eval(step) for step in steps}) == 1  # our own digits and signs
            assert all(0 <= int(re.match(r"\d+", step)[0]) <= 99 for step in steps)


def test_verification_is_exact():
    easy, hard = EASY.problem(["12345+54321", "99999+1"]), HARD.problem(["500-100", "20+30"])
    assert (easy.answer, hard.answer) == ("66666, 100000", "400")
    right = ["66666, 100000", " 66666 ,100000.", "+5"]
    assert EASY.verify([easy] * 3, [f"Final Answer: {text}" for text in right]) == [True, True, False]
    wrong = ["100000, 66666", "66666", "66666, 100000, 1", "66666, 1e5", "66,666, 100000", "", "6" * 9999]
    assert not any(EASY.verify([easy] * len(wrong), [f"Final Answer: {text}" for text in wrong]))
    assert HARD.verify([hard] * 2, ["Final Answer: 400", "400"]) == [True, False]


@BOTH
def test_the_teacher_is_right_and_well_formed_in_every_schema(task):
    assert isinstance(task, Teacher)
    rng = random.Random(0)
    for problem in islice(task.problems("train", 1), 20):
        alone = task.sequential_answer(problem, rng, 3)
        assert task.verify([problem], [alone]) == [True]
        assert not parse_text(alone).fork_at
        text = task.parallel_answer(problem, rng, 2, 3, 3)
        for schema in SCHEMAS.values():
            there = convert(text, DEFAULT, schema)
            found = parse_text(there, schema)
            assert (found.defects, found.paths) == ([], [len(parts_of(problem))])
            assert task.verify([problem], [trunk(there, schema)]) == [True]
