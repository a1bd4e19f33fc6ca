"""Countdown: reach a target from a few numbers with + - *, using every number once.

Problems of more than 100,000 different kinds in every family, which no model memorises; their verification in exact
integers; and a procedural teacher. The teacher guesses: it draws chains of steps with weight
exp(-|result - target| / distance), so it has a noisy sense of which chains come near, and it notes after every try
whether the try reached the target. `sequential_answer` tries one chain after the other; `parallel_answer` opens a fork
whose paths are independent draws. Both are honest: an answer in which no try reached the target is thrown away, and no
try is rigged to succeed.

All problems are tabulated: a search over every chain says which targets can be reached, and how hard a problem is: the
probability that the teacher's first guess is right.
"""

from __future__ import annotations

import ast
import hashlib
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
from jaxtyping import Float, Int

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.tasks.base import TASKS
from parallel_r1.tasks.chains import Chain, Ways, chain, results
from parallel_r1.tasks.datasets.splits import SPLITS, Split
from parallel_r1.tasks.grading.extract import final_answer

_NODES: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_YES, _NO = " yes: ", " no"
"""How the teacher notes whether a try reached the target: before the expression, or at the end of the line."""
HELD_OUT = 8
"""One problem in this many is for testing, and one in this many of the others for validation."""


def evaluate_expression(text: str) -> tuple[int, list[int]] | None:
    """The exact value of an expression of integers, + - * and parentheses, and the numbers that it uses; None for any
    other text. Hostile text costs no more than honest text: its length is bounded before parsing."""
    if len(text) > 120 or any(character not in "0123456789+-*() " for character in text) or "**" in text:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    numbers: list[int] = []

    def value(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            numbers.append(node.value)
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _NODES:
            left, right = value(node.left), value(node.right)
            return None if left is None or right is None else _NODES[type(node.op)](left, right)
        return None

    result = value(tree)
    return None if result is None else (result, numbers)


def key_of(numbers: Sequence[int], target: int) -> str:
    """The identity of a problem: the same for every order of its numbers."""
    return f"{sorted(numbers)}/{target}"


def split_of(key: str) -> Split:
    """The split of the problem with a key, the same in every task. A digest decides."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    if digest[0] % HELD_OUT == 0:
        return "test"
    return "validation" if digest[1] % HELD_OUT == 0 else "train"


@dataclass(frozen=True)
class Countdown:
    """A family of countdown problems by difficulty: the probability that the teacher's first guess is right.

    Attributes:
        hardest, chance: the difficulty lies above `hardest` and is at most `chance`.
        count: how many numbers a problem has.
        low, high: their range, both ends included.
        target_low, target_high: the range of targets.
        distance: the teacher's sense of distance in units of the target; small means sharp.
    """

    name: str
    hardest: float = 0.0
    chance: float = 1.0
    count: int = 4
    low: int = 1
    high: int = 25
    target_low: int = 10
    target_high: int = 99
    distance: float = 5.0

    def problem(self, numbers: tuple[int, ...], target: int) -> Problem:
        """The problem with some numbers, in their order, and a target."""
        listed = ", ".join(map(str, numbers))
        prompt = f"Use {listed} to make {target}.\n"
        return Problem(f"{self.name}/{listed}/{target}", prompt, str(target), self.name, key_of(numbers, target))

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Problems of a split without end, the same for the same seed: drawn with replacement, their numbers in random
        order. No problem is in two splits."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        sets, (rows, targets) = _sets(self.count, self.low, self.high), _split(self)[split]
        while True:
            drawn = rng.randrange(len(rows))
            numbers = sets[rows[drawn]].tolist()
            rng.shuffle(numbers)
            yield self.problem(tuple(numbers), int(targets[drawn]))

    def size(self, split: Split) -> int:
        """How many different problems a split has."""
        return len(_split(self)[split][0])

    @property
    def limit(self) -> int:
        """The largest intermediate value that the teacher writes."""
        return 3 * self.target_high // 2

    def statement(self, problem: Problem) -> str:
        """The problem with the form of its answer, which a teacher cannot guess."""
        return f"{problem.prompt.strip()} The answer is an expression with each number once, such as 3*5+7."

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
        """Whether the final answer of every trunk uses all numbers of its problem once and equals the target."""
        return [self._is_correct(problem, answer) for problem, answer in zip(problems, answers, strict=True)]

    def _is_correct(self, problem: Problem, trunk: str) -> bool:
        expression = final_answer(trunk)
        result = None if expression is None else evaluate_expression(expression)
        if result is None:
            return False
        value, used = result
        numbers, target = self.parse(problem)
        return value == target and sorted(used) == sorted(numbers)

    def parse(self, problem: Problem) -> tuple[tuple[int, ...], int]:
        """The numbers and the target of a problem."""
        _, listed, target = problem.id.split("/")
        return tuple(map(int, listed.split(", "))), int(target)

    def conclusion(self, path: str) -> str | None:
        """What a path in the words of the teacher arrives at: the expression behind the `yes` of its last line, "" if
        that line ends with `no`."""
        line = path.rstrip().rpartition("\n")[2]
        if line.endswith(_NO):
            return ""
        return line.rpartition(_YES)[2].strip() or None if _YES in line else None

    def weights(self, numbers: Sequence[int], target: int) -> Float[np.ndarray, " ways"]:
        """The weights with which the teacher draws the ways to chain some numbers."""
        reached = results(tuple(sorted(numbers)), self.limit)
        return np.where(reached, np.exp(-np.abs(reached - target) / self.distance), 0.0)

    def first_guess(self, numbers: tuple[int, ...], target: int) -> float:
        """The probability that the teacher's first guess reaches the target."""
        weights = self.weights(numbers, target)
        return float(weights[results(tuple(sorted(numbers)), self.limit) == target].sum() / weights.sum())

    def tries(
        self, problem: Problem, rng: random.Random, most: int, tried: Sequence[Chain] = ()
    ) -> list[tuple[Chain, bool]]:
        """Up to `most` different chains in the order of the teacher's guesses, with whether they reached the target;
        only the last one may have. Chains in `tried` are not tried again."""
        numbers, target = self.parse(problem)
        weights = self.weights(numbers, target)
        weights[[way.index for way in tried]] = 0.0
        tries: list[tuple[Chain, bool]] = []
        while len(tries) < most and weights.any():
            # Of two ways with the border between them at the draw, the one above counts, whose weight is not 0.
            sums = weights.cumsum()
            index = int(sums.searchsorted(rng.random() * sums[-1], side="right"))
            weights[index] = 0.0
            guess = chain(tuple(sorted(numbers)), index)
            tries.append((guess, guess.value == target))
            if tries[-1][1]:
                break
        return tries

    def sequential_answer(self, problem: Problem, rng: random.Random, most: int) -> str | None:
        """An answer that tries one chain after the other; None if none of `most` tries reached the target."""
        return _conclude(self.tries(problem, rng, most))

    def parallel_answer(self, problem: Problem, rng: random.Random, paths: int, most: int, after: int) -> str | None:
        """An answer with a fork whose paths try up to `most` chains, independently of one another. If none of them
        reaches the target, the summary says so and the trunk tries up to `after` other chains; None if none of these
        reached it either.

        The summary names the successful path by its expression: paths at shared positions have no number.
        """
        drawn = [self.tries(problem, rng, most) for _ in range(paths)]
        solutions = [tries[-1][0].expression for tries in drawn if tries[-1][1]]
        if solutions:
            best = rng.choice(solutions)
            rest: str | None = f"Final Answer: {best}"
        else:
            best = "None"
            rest = _conclude(self.tries(problem, rng, after, [one for tries in drawn for one, _ in tries]))
        fork = DEFAULT.write([_write(tries) for tries in drawn], f"{best} reached {problem.answer}.")
        return None if rest is None else f"{fork}\n{rest}"


def _conclude(tries: list[tuple[Chain, bool]]) -> str | None:
    """Tries and the final answer; None if no try reached the target."""
    if not tries or not tries[-1][1]:
        return None
    return f"{_write(tries)}\nFinal Answer: {tries[-1][0].expression}"


def _write(tries: list[tuple[Chain, bool]]) -> str:
    return "\n".join(f"{chain.line}{_YES}{chain.expression}" if hit else f"{chain.line}{_NO}" for chain, hit in tries)


@cache
def _sets(count: int, low: int, high: int) -> Int[np.ndarray, "sets numbers"]:
    """All sets of so many numbers, a number as often as it likes; sorted."""
    return np.array(list(combinations_with_replacement(range(low, high + 1), count)), dtype=np.int16)


@cache
def _chances(count: int, low: int, high: int, limit: int, distance: float) -> Float[np.ndarray, "sets targets"]:
    """The probability that the teacher's first guess reaches a target, 0 .. limit, for every set of numbers."""
    sets, ways = _sets(count, low, high), Ways.of(count)
    values = np.arange(limit + 1)
    near = np.exp(-np.abs(values[:, None] - values) / distance)
    found = []
    for part in np.array_split(sets, max(1, len(sets) // 500)):  # at once, all results would take gigabytes
        places = np.arange(0, len(part) * (limit + 1), limit + 1)[:, None] + ways.results(part, limit)
        counts = np.bincount(places.ravel(), minlength=len(part) * (limit + 1)).reshape(len(part), limit + 1)
        counts[:, 0] = 0  # ways that are not possible
        found.append(counts / np.maximum(counts @ near, 1e-300))
    return np.concatenate(found)


@cache
def _split(family: Countdown) -> dict[Split, tuple[Int[np.ndarray, " problems"], Int[np.ndarray, " problems"]]]:
    """Split -> all its problems: the index of their numbers among all sets, and their targets."""
    chances = _chances(family.count, family.low, family.high, family.limit, family.distance)
    chances = chances[:, : family.target_high + 1]
    wanted = (chances > family.hardest) & (chances <= family.chance)
    wanted[:, : family.target_low] = False
    rows, targets = wanted.nonzero()
    sets = [f"{numbers}/" for numbers in _sets(family.count, family.low, family.high).tolist()]
    splits = np.array([split_of(f"{sets[row]}{target}") for row, target in zip(rows, targets, strict=True)])
    return {split: (rows[splits == split], targets[splits == split]) for split in SPLITS}


EASY = Countdown("countdown-easy", hardest=0.25)
MEDIUM = Countdown("countdown-medium", hardest=0.12, chance=0.25)
HARD = Countdown("countdown-hard", hardest=0.08, chance=0.18)
TASKS.add(EASY.name, lambda: EASY, Countdown)
TASKS.add(MEDIUM.name, lambda: MEDIUM, Countdown)
TASKS.add(HARD.name, lambda: HARD, Countdown)
