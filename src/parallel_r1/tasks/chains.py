"""Chains of steps over a few numbers: combine two of them, then join one after the other to the result.

All ways to chain so many numbers are a table, so that the results of every chain over thousands of sets of numbers are
a few operations on arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations, product

import numpy as np
from jaxtyping import Int

PLUS, TIMES, MINUS, FROM = range(4)
"""What a step does with the result so far and the next number: add, multiply, subtract it, subtract from it."""
SIGNS = "+*--"


@dataclass(frozen=True)
class Chain:
    """A way to combine all numbers: steps like `3*5=15, 15+7=22`, the expression `3*5+7`, and its value.

    Attributes:
        index: its place among the ways to chain so many numbers.
    """

    steps: tuple[str, ...]
    expression: str
    value: int
    index: int

    @property
    def line(self) -> str:
        """The steps as a try spells them."""
        return ", ".join(self.steps)


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


def chain(numbers: tuple[int, ...], way: int) -> Chain:
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
    return Chain(tuple(steps), text, value, way)


_NEXT: tuple[Callable[[int, int], int], ...] = (
    operator.add,
    operator.mul,
    operator.sub,
    lambda value, number: number - value,
)


@lru_cache(maxsize=4096)
def results(numbers: tuple[int, ...], limit: int) -> Int[np.ndarray, " ways"]:
    """The result of every way to chain sorted numbers; 0 where one is not possible, as in `Ways.results`."""
    return Ways.of(len(numbers)).results(np.array([numbers]), limit)[0]
