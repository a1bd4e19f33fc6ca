"""Countdown: reach a target from a few numbers with + - *, using every number once.

Problems, their verification in exact integers, and a procedural teacher. The teacher guesses: it draws chains of steps
with weight exp(-|result - target| / distance), so it has a noisy sense of which chains come near, and it notes after
every try whether the try reached the target. `sequential_answer` tries one chain after the other; `parallel_answer`
opens a fork whose paths are independent draws. Both are honest: an answer in which no try reached the target is thrown
away, and no try is rigged to succeed.
"""

from __future__ import annotations

import ast
import hashlib
import math
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.syntax import fork_text
from parallel_r1.tasks.base import TASKS
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import final_answer

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_NODES: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
HELD_OUT = 8
"""One problem in this many is for testing, and one in this many of the others for validation."""


@dataclass(frozen=True)
class Chain:
    """A way to combine all numbers: steps like `3*5=15, 15+7=22`, the expression `3*5+7`, and its value."""

    steps: tuple[str, ...]
    expression: str
    value: int

    @property
    def line(self) -> str:
        """The steps as a try spells them."""
        return ", ".join(self.steps)


@lru_cache(maxsize=4096)
def chains(numbers: tuple[int, ...], limit: int) -> tuple[Chain, ...]:
    """All chains over sorted numbers whose intermediate values lie in 1..limit. A chain combines two numbers, then
    joins one number after the other to the result, on either side."""
    by_steps: dict[tuple[str, ...], Chain] = {}

    def grow(steps: tuple[str, ...], text: str, last: str, value: int, rest: tuple[int, ...]) -> None:
        if not rest:
            by_steps[steps] = Chain(steps, text, value)
        for index, number in enumerate(rest):
            if index and number in rest[:index]:
                continue
            remaining = rest[:index] + rest[index + 1 :]
            for sign, result, flipped in (
                ("+", value + number, False),
                ("*", value * number, False),
                ("-", value - number, False),
                ("-", number - value, True),
            ):
                if not 1 <= result <= limit:
                    continue
                wrap = (sign == "*" and last in "+-") or (flipped and last in "+-")
                inner = f"({text})" if wrap else text
                step = f"{number}{sign}{value}={result}" if flipped else f"{value}{sign}{number}={result}"
                whole = f"{number}{sign}{inner}" if flipped else f"{inner}{sign}{number}"
                grow((*steps, step), whole, sign, result, remaining)

    for index, number in enumerate(numbers):
        # Combining a and b from a first step covers both orders, so the start never comes after its partner.
        rest = numbers[:index] + numbers[index + 1 :]
        for partner_index, partner in enumerate(numbers):
            if partner_index <= index:
                continue
            remaining = rest[: partner_index - 1] + rest[partner_index:]
            high, low = max(number, partner), min(number, partner)
            for sign, first, second in (("+", number, partner), ("*", number, partner), ("-", high, low)):
                result = OPERATORS[sign](first, second)
                if 1 <= result <= limit:
                    text = f"{first}{sign}{second}"
                    grow((f"{text}={result}",), text, sign, result, remaining)
    return tuple(by_steps.values())


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


def split_of(numbers: Sequence[int], target: int) -> Split:
    """The split of a problem, the same for every order of the numbers and in every task."""
    return split_of_key(key_of(numbers, target))


def split_of_key(key: str) -> Split:
    """The split of the problem with a key. A digest decides."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    if digest[0] % HELD_OUT == 0:
        return "test"
    return "validation" if digest[1] % HELD_OUT == 0 else "train"


@dataclass(frozen=True)
class Countdown:
    """A family of countdown problems.

    Attributes:
        count: how many numbers a problem has.
        low, high: their range, both ends included.
        target_low, target_high: the range of targets.
        distance: the teacher's sense of distance in units of the target; small means sharp.
        chance: the largest probability that the teacher's first guess reaches the target, 0 .. 1; problems that are
            easier are left out.
        hold_back: whether validation problems are kept out of training. Countdown has few problems, so runs that
            validate nothing train on them too.
    """

    name: str
    count: int
    low: int
    high: int
    target_low: int
    target_high: int
    distance: float
    chance: float = 1.0
    hold_back: bool = False

    def problem(self, numbers: tuple[int, ...], target: int) -> Problem:
        """The problem with some numbers, in their order, and a target."""
        listed = ", ".join(map(str, numbers))
        return Problem(f"{self.name}/{listed}/{target}", f"Use {listed} to make {target}.\n", str(target), self.name)

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Solvable problems of a split without end, the same for the same seed. No problem is in two splits, except
        that training has the validation problems too unless `hold_back`."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        while True:
            numbers = tuple(rng.randint(self.low, self.high) for _ in range(self.count))
            values = {chain.value for chain in chains(tuple(sorted(numbers)), self.limit)}
            targets = sorted(v for v in values if self.target_low <= v <= self.target_high)
            if not targets:
                continue
            target = rng.choice(targets)
            if self.chance < 1.0 and self.first_guess(numbers, target) > self.chance:
                continue
            own = split_of(numbers, target)
            if own == split or (own == "validation" and split == "train" and not self.hold_back):
                yield self.problem(numbers, target)

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

    def weight(self, chain: Chain, target: int) -> float:
        """The weight with which the teacher draws a chain."""
        return math.exp(-abs(chain.value - target) / self.distance)

    def first_guess(self, numbers: tuple[int, ...], target: int) -> float:
        """The probability that the teacher's first guess reaches the target."""
        pool = chains(tuple(sorted(numbers)), self.limit)
        hits = sum(self.weight(chain, target) for chain in pool if chain.value == target)
        return hits / sum(self.weight(chain, target) for chain in pool)

    def tries(
        self, problem: Problem, rng: random.Random, most: int, tried: Sequence[Chain] = ()
    ) -> list[tuple[Chain, bool]]:
        """Up to `most` different chains in the order of the teacher's guesses, with whether they reached the target;
        only the last one may have. Chains in `tried` are not tried again."""
        numbers, target = self.parse(problem)
        pool = [chain for chain in chains(tuple(sorted(numbers)), self.limit) if chain not in tried]
        weights = [self.weight(chain, target) for chain in pool]
        tries: list[tuple[Chain, bool]] = []
        while any(weights) and len(tries) < most:
            (index,) = rng.choices(range(len(pool)), weights)
            chain = pool.pop(index)
            weights.pop(index)
            tries.append((chain, chain.value == target))
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
            rest = _conclude(self.tries(problem, rng, after, [chain for tries in drawn for chain, _ in tries]))
        fork = fork_text(map(_write, drawn), f"{best} reached {problem.answer}.")
        return None if rest is None else f"{fork}\n{rest}"


def _conclude(tries: list[tuple[Chain, bool]]) -> str | None:
    """Tries and the final answer; None if no try reached the target."""
    if not tries or not tries[-1][1]:
        return None
    return f"{_write(tries)}\nFinal Answer: {tries[-1][0].expression}"


def _write(tries: list[tuple[Chain, bool]]) -> str:
    return "\n".join(f"{chain.line} yes: {chain.expression}" if hit else f"{chain.line} no" for chain, hit in tries)


EASY = Countdown("countdown-easy", count=3, low=1, high=9, target_low=10, target_high=99, distance=10.0)
MEDIUM = Countdown("countdown-medium", count=3, low=2, high=12, target_low=20, target_high=149, distance=20.0)
HARD = Countdown("countdown-hard", count=3, low=2, high=12, target_low=20, target_high=149, distance=20.0, chance=0.12)
TASKS.add(EASY.name, lambda: EASY, Countdown)
TASKS.add(MEDIUM.name, lambda: MEDIUM, Countdown)
TASKS.add(HARD.name, lambda: HARD, Countdown)
