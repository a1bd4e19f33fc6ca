"""A task of your own in one file: knights and knaves, logic puzzles of the package reasoning-gym.

    pip install reasoning-gym==0.1.25

In a recipe, import this file and use the name that it registers:

    imports = ["examples/my_task.py"]

    [stages.rl]
    kind = "rl"
    task = "knights-knaves"

In Python, import this file and use the name, or pass the object:

    import parallel_r1 as pr
    from my_task import KnightsKnaves

    for step in pr.rl(policy, KnightsKnaves(), "accuracy()", steps=50):
        print(step.metrics["accuracy"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import reasoning_gym

import parallel_r1 as pr
from parallel_r1.tasks.datasets.splits import Split, split_of
from parallel_r1.tasks.grading.extract import final_answer

PEOPLE = 2
PUZZLES = 10**6
"""Puzzles of a seed. Puzzle i of seed s is made from the number s * PUZZLES + i alone."""
PROMPT = """{puzzle}
Think step by step. Write the answer on the last line, after "Final Answer: ".
"""


def puzzles(seed: int) -> reasoning_gym.dataset.ProceduralDataset:
    """The puzzles of a seed. A puzzle is made when it is read."""
    return reasoning_gym.create_dataset("knights_knaves", n_people=PEOPLE, seed=seed * PUZZLES, size=PUZZLES)


@pr.task("knights-knaves")
class KnightsKnaves:
    """On an island, knights always tell the truth and knaves always lie. Who is which?"""

    def problems(self, split: Split, seed: int) -> Iterator[pr.Problem]:
        """Puzzles without end. The text of a puzzle decides its split, so no puzzle is in two splits."""
        source = puzzles(seed)
        for number in count():
            puzzle = source[number]
            if split_of(puzzle["question"], None) == split:
                prompt = PROMPT.format(puzzle=puzzle["question"])
                yield pr.Problem(f"{seed}/{number}", prompt, puzzle["answer"], "knights-knaves")

    def verify(self, problems: Sequence[pr.Problem], answers: Sequence[str]) -> list[bool]:
        """Whether the final answer names the kind of every person correctly, in any order."""
        score = puzzles(0).score_answer
        return [
            score(final_answer(answer), {"answer": problem.answer}) == 1.0
            for problem, answer in zip(problems, answers, strict=True)
        ]
