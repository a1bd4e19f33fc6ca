"""How long one server takes for a decode step and for reading tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallel_r1.runs.scale.hardware import GPU, Assumptions
from parallel_r1.runs.scale.model import Shape


@dataclass(frozen=True)
class Spent:
    """Seconds of decode steps by what bounds them.

    Attributes:
        bandwidth: in steps that wait for weights, keys and values from memory.
        arithmetic: in steps that wait for the arithmetic.
        overhead: the rest of every step.
    """

    bandwidth: float
    arithmetic: float
    overhead: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.bandwidth + self.arithmetic + self.overhead


@dataclass(frozen=True)
class Costs:
    """Seconds that a server needs. A decode step with `rows` rows that together see `context` tokens takes
    max(weights + held * context, row * rows + seen * context) + fixed + per_row * rows.

    Attributes:
        weights: to read the weights once.
        held: to read the keys and values of one token.
        row: arithmetic of one new token, without attention.
        seen: arithmetic of one new token's attention to one token.
        fixed, per_row: overhead of a step, and of every row in it.
        prefill: to read a token that has no keys and values yet.
        prefill_seen: to attend from such a token to one token.
    """

    weights: float = 0.0
    held: float = 0.0
    row: float = 0.0
    seen: float = 0.0
    fixed: float = 0.0
    per_row: float = 0.0
    prefill: float = 0.0
    prefill_seen: float = 0.0

    def steps(self, rows: int, context: int, count: int) -> Spent:
        """Seconds of `count` decode steps in a row, each of which gives every row one token.

        Args:
            rows: number of rows, the same in all steps.
            context: tokens that all rows together see in the first step; every step adds `rows`.
        """
        memory, more_memory = self.weights + self.held * context, self.held * rows
        work, more_work = self.row * rows + self.seen * context, self.seen * rows
        gap, slope = memory - work, more_work - more_memory  # arithmetic is the longer where gap < slope * step
        overhead = count * (self.fixed + self.per_row * rows)
        if slope == 0:
            first, last = (0, count) if gap < 0 else (0, 0)
        elif slope > 0:
            first, last = min(count, max(0, math.floor(gap / slope) + 1)), count
        else:
            first, last = 0, min(count, max(0, math.ceil(gap / slope)))
        arithmetic = _sum(work, more_work, first, last)
        bandwidth = _sum(memory, more_memory, 0, first) + _sum(memory, more_memory, last, count)
        return Spent(bandwidth, arithmetic, overhead)

    def steps_until(self, rows: int, context: int, seconds: float, most: int) -> int:
        """The smallest number of steps that take at least `seconds`, or `most`."""
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            if self.steps(rows, context, middle).seconds >= seconds:
                high = middle
            else:
                low = middle + 1
        return low

    def read(self, tokens: int, before: int) -> float:
        """Seconds to read `tokens` tokens after `before` ones that are held already."""
        return tokens * self.prefill + self.prefill_seen * (tokens * before + tokens * (tokens - 1) / 2)

    @property
    def least_step(self) -> float:
        """A lower bound of the seconds of any decode step."""
        return max(self.weights, self.row) + self.fixed + self.per_row


def _sum(start: float, slope: float, first: int, last: int) -> float:
    """The sum of start + slope * i over first <= i < last."""
    return (last - first) * (start + slope * (first + last - 1) / 2) if last > first else 0.0


def server_costs(gpu: GPU, shape: Shape, assumed: Assumptions) -> Costs:
    """The costs of a server that holds bf16 weights, keys and values.

    Source: a matrix product with P weights costs 2 P operations a token; attention 4 x layers x heads x head size for
    every token seen (arXiv 2203.15556, appendix F).
    """
    count = assumed.gpus_per_server
    speed = count * (assumed.parallel_share if count > 1 else 1.0)
    bandwidth = speed * gpu.bandwidth * assumed.decode_bandwidth
    arithmetic, reading = (
        speed * gpu.flops * share for share in (assumed.decode_arithmetic, assumed.prefill_arithmetic)
    )
    return Costs(
        weights=2 * shape.parameters / bandwidth,
        held=shape.token_bytes / bandwidth,
        row=shape.token_flops / arithmetic,
        seen=shape.attention_flops / arithmetic,
        fixed=assumed.step_overhead,
        per_row=assumed.row_overhead,
        prefill=shape.token_flops / reading,
        prefill_seen=shape.attention_flops / reading,
    )
