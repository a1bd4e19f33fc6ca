"""Countdown with four numbers: families of more than 100,000 different problems, which no model memorises.

All problems are tabulated: a search over every chain says which targets can be reached, and how hard a problem is: the
probability that the teacher's first guess is right.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, combinations_with_replacement, permutations, product

import numpy as np
from jaxtyping import Float, Int

from parallel_r1.answers.rollout import Problem
from parallel_r1.tasks.base import TASKS
from parallel_r1.tasks.countdown import Chain, Countdown, key_of, split_of_key
from parallel_r1.tasks.datasets.splits import SPLITS, Split

PLUS, TIMES, MINUS, FROM = range(4)
"""What a step does with the result so far and the next number: add, multiply, subtract it, subtract from it."""
SIGNS = "+*--"


@dataclass(frozen=True)
class Ways:
    """All ways to chain some numbers: combine two of them, then join one after the other to the result.

    Attributes:
        order: ways x numbers; the places, among the sorted numbers, of the numbers that a way uses one after the other.
            The first two are in rising order, since combining a and b covers combining b and a.
        steps: ways x (numbers - 1); what its steps do. The first subtraction is of the lower number from the higher.
    """

    order: Int[np.ndarray, "ways numbers"]
    steps: Int[np.ndarray, "ways steps"]

    @classmethod
    @cache
    def of(cls, count: int) -> Ways:
        """The ways to chain so many numbers."""
        orders = [
            (*pair, *rest)
            for pair in combinations(range(count), 2)
            for rest in permutations(sorted(set(range(count)) - set(pair)))
        ]
        steps = list(product((PLUS, TIMES, FROM), *[(PLUS, TIMES, MINUS, FROM)] * (count - 2)))
        pairs = list(product(orders, steps))
        return cls(np.array([order for order, _ in pairs]), np.array([step for _, step in pairs]))

    def results(self, numbers: Int[np.ndarray, "sets numbers"], limit: int) -> Int[np.ndarray, "sets ways"]:
        """The result of every way for some sets of sorted numbers; 0 where an intermediate value is not in 1..limit, or
        where the way only exchanges equal numbers of another one."""
        used = numbers[:, self.order]
        value = used[:, :, 0]
        possible = np.ones(value.shape, dtype=bool)
        for number in range(1, used.shape[2]):
            step, other = self.steps[:, number - 1], used[:, :, number]
            value = np.choose(step, (value + other, value * other, value - other, other - value))
            possible &= (value >= 1) & (value <= limit)
            value = np.where(possible, value, 0)
        turn = np.argsort(self.order, axis=1)
        for place in range(1, numbers.shape[1]):
            equal = numbers[:, place - 1] == numbers[:, place]
            possible &= ~(equal[:, None] & (turn[:, place - 1] > turn[:, place]))
        return np.where(possible, value, 0)


@dataclass(frozen=True)
class Way(Chain):
    """A written chain, with its index among the ways to chain so many numbers."""

    index: int


def chain(numbers: tuple[int, ...], way: int) -> Way:
    """Write one way to chain sorted numbers."""
    ways = Ways.of(len(numbers))
    first, *rest = (numbers[place] for place in ways.order[way])
    text, value, last, steps = str(first), first, "", []
    for number, kind in zip(rest, ways.steps[way], strict=True):
        sign = SIGNS[kind]
        inner = f"({text})" if last in ("+", "-") and (sign == "*" or kind == FROM) else text
        before, result = value, _NEXT[kind](value, number)
        left, right = (number, before) if kind == FROM else (before, number)
        steps.append(f"{left}{sign}{right}={result}")
        text = f"{number}{sign}{inner}" if kind == FROM else f"{inner}{sign}{number}"
        value, last = result, sign
    return Way(tuple(steps), text, value, way)


_NEXT: tuple[Callable[[int, int], int], ...] = (
    operator.add,
    operator.mul,
    operator.sub,
    lambda value, number: number - value,
)


@lru_cache(maxsize=4096)
def _results(numbers: tuple[int, ...], limit: int) -> Int[np.ndarray, " ways"]:
    """The result of every way to chain sorted numbers."""
    return Ways.of(len(numbers)).results(np.array([numbers]), limit)[0]


@dataclass(frozen=True)
class Tabulated(Countdown):
    """A family of countdown problems by difficulty.

    Attributes:
        hardest: problems are easier than this probability of a right first guess; `chance` is the other end.
    """

    count: int = 4
    low: int = 1
    high: int = 25
    target_low: int = 10
    target_high: int = 99
    distance: float = 5.0
    hardest: float = 0.0

    def problem(self, numbers: tuple[int, ...], target: int) -> Problem:
        """The problem with some numbers, in their order, and a target."""
        plain = super().problem(numbers, target)
        return Problem(plain.id, plain.prompt, plain.answer, plain.source, key_of(numbers, target))

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

    def weights(self, numbers: Sequence[int], target: int) -> Float[np.ndarray, " ways"]:
        """The weights with which the teacher draws the ways to chain some numbers."""
        results = _results(tuple(sorted(numbers)), self.limit)
        return np.where(results, np.exp(-np.abs(results - target) / self.distance), 0.0)

    def first_guess(self, numbers: tuple[int, ...], target: int) -> float:
        """The probability that the teacher's first guess reaches the target."""
        weights = self.weights(numbers, target)
        return float(weights[_results(tuple(sorted(numbers)), self.limit) == target].sum() / weights.sum())

    def tries(
        self, problem: Problem, rng: random.Random, most: int, tried: Sequence[Chain] = ()
    ) -> list[tuple[Chain, bool]]:
        """Up to `most` different chains in the order of the teacher's guesses, with whether they reached the target;
        only the last one may have. Chains in `tried` are not tried again."""
        numbers, target = self.parse(problem)
        weights = self.weights(numbers, target)
        weights[[way.index for way in tried if isinstance(way, Way)]] = 0.0
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
        results = ways.results(part, limit)
        places = np.arange(0, len(part) * (limit + 1), limit + 1)[:, None] + results
        counts = np.bincount(places.ravel(), minlength=len(part) * (limit + 1)).reshape(len(part), limit + 1)
        counts[:, 0] = 0  # ways that are not possible
        found.append(counts / np.maximum(counts @ near, 1e-300))
    return np.concatenate(found)


@cache
def _split(family: Tabulated) -> dict[Split, tuple[Int[np.ndarray, " problems"], Int[np.ndarray, " problems"]]]:
    """Split -> all its problems: the index of their numbers among all sets, and their targets."""
    chances = _chances(family.count, family.low, family.high, family.limit, family.distance)
    chances = chances[:, : family.target_high + 1]
    wanted = (chances > family.hardest) & (chances <= family.chance)
    wanted[:, : family.target_low] = False
    rows, targets = wanted.nonzero()
    sets = [f"{numbers}/" for numbers in _sets(family.count, family.low, family.high).tolist()]
    splits = np.array([split_of_key(f"{sets[row]}{target}") for row, target in zip(rows, targets, strict=True)])
    return {split: (rows[splits == split], targets[splits == split]) for split in SPLITS}


EASY = Tabulated("countdown4-easy", hardest=0.25)
MEDIUM = Tabulated("countdown4-medium", chance=0.25, hardest=0.12)
HARD = Tabulated("countdown4-hard", chance=0.12)
TASKS.add(EASY.name, lambda: EASY, Tabulated)
TASKS.add(MEDIUM.name, lambda: MEDIUM, Tabulated)
TASKS.add(HARD.name, lambda: HARD, Tabulated)
