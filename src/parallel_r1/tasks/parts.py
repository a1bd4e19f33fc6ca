"""Parts: several computations that do not depend on each other, and an answer made of their results.

Real decomposition needs a path to know which part is its own: where paths do not know their number, several of them do
the same part. Problems are drawn at random, far more than training can meet; verification is in exact integers. The
teacher works out one part after the other, or each in a path of its own, in the order of the problem.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.tasks.base import TASKS
from parallel_r1.tasks.countdown import split_of
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import final_answer


@dataclass(frozen=True)
class Parts:
    """A family of problems.

    Attributes:
        least, most: how many parts a problem has.
        terms: how many numbers a part adds up.
        low, high: the smallest and the largest of these numbers.
        minus: whether it may also subtract them; then no result on the way is negative, or has more digits than `high`.
        largest: whether the answer is the largest result; all results in order otherwise.
    """

    name: str
    least: int = 4
    most: int = 4
    terms: int = 3
    low: int = 100
    high: int = 999
    minus: bool = False
    largest: bool = False

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Problems of a split without end, the same for the same seed. No problem is in two splits."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        while True:
            problem = self.problem([self._part(rng) for _ in range(rng.randint(self.least, self.most))])
            if split_of(problem.key) == split:
                yield problem

    def _part(self, rng: random.Random) -> str:
        most = 10 ** len(str(self.high)) - 1
        result = rng.randint(self.low, self.high)
        text = str(result)
        for _ in range(self.terms - 1):
            number, minus = rng.randint(self.low, self.high), self.minus and rng.random() < 0.5
            while self.minus and not 0 <= result + (-number if minus else number) <= most:
                number, minus = rng.randint(self.low, self.high), not minus
            text += f"{'-' if minus else '+'}{number}"
            result += -number if minus else number
        return text

    def problem(self, parts: Sequence[str]) -> Problem:
        """The problem with these parts, such as `347+528-119`."""
        listed, results = ", ".join(parts), [_result(part) for part in parts]
        task = "Find the largest" if self.largest else "Compute"
        answer = f"{max(results)}" if self.largest else ", ".join(map(str, results))
        numbered = ", ".join(f"{number}: {part}" for number, part in enumerate(parts, 1))
        return Problem(f"{self.name}/{listed}", f"{task} {numbered}.\n", answer, self.name, listed)

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
        """Whether the final answer of every trunk has the right numbers, in order."""
        return [_numbers(final_answer(trunk)) == _numbers(p.answer) for p, trunk in zip(problems, answers, strict=True)]

    def sequential_answer(self, problem: Problem, rng: random.Random, most: int) -> str:
        """One part after the other, each on a line with its number."""
        lines = [f"{number}: {_worked_out(part)}" for number, part in enumerate(parts_of(problem), 1)]
        return "\n".join([*lines, f"Final Answer: {problem.answer}"])

    def parallel_answer(self, problem: Problem, rng: random.Random, paths: int, most: int, after: int) -> str:
        """A fork with a path for every part, whatever `paths` is, and the final answer as its summary."""
        return DEFAULT.write([*map(_worked_out, parts_of(problem))], f"Final Answer: {problem.answer}")


def parts_of(problem: Problem) -> list[str]:
    """The parts of a problem, in order."""
    return problem.key.split(", ")


def _steps(part: str) -> list[str]:
    """A part, and what is left of it after every operation: 3+4-5, 7-5, 2."""
    first, *rest = re.findall(r"[+-]?\d+", part)
    steps, result = [part], int(first)
    while rest:
        result += int(rest.pop(0))
        steps.append("".join([str(result), *rest]))
    return steps


def _result(part: str) -> int:
    return int(_steps(part)[-1])


def _worked_out(part: str) -> str:
    return "=".join(_steps(part))


def _numbers(answer: str | None) -> list[int] | None:
    """The integers of an answer; None if it holds anything else."""
    if answer is None or len(answer) > 200 or not re.fullmatch(r"\s*-?\d+(\s*,\s*-?\d+)*\s*\.?\s*", answer, re.ASCII):
        return None
    return [int(number) for number in re.findall(r"-?\d+", answer)]


EASY = Parts("parts-easy", terms=5, low=2, high=20, minus=True)
HARD = Parts("parts-hard", least=2, most=6, terms=6, low=2, high=50, minus=True, largest=True)
TASKS.add(EASY.name, lambda: EASY, Parts)
TASKS.add(HARD.name, lambda: HARD, Parts)
