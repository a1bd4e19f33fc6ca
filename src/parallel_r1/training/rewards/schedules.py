"""Rewards that change with the training step."""

from __future__ import annotations

import math
from collections.abc import Callable

from parallel_r1.training.rewards.outcome import Base, Outcome, Reward, Terms
from parallel_r1.training.rewards.terms import _add, _times, accuracy


def alternate(first: Reward, other: Reward, period: int = 10, second: int = 2) -> Reward:
    """`first` for `period - second` steps, then `other` for `second` steps, and so on: the alternating reward S2."""
    if not 0 <= second <= period or period < 1:
        raise ValueError(f"second must lie in 0..period, found period={period}, second={second}")
    return lambda outcome, step: (first if (step - 1) % period < period - second else other)(outcome, step)


def switch(first: Reward, other: Reward, at: int) -> Reward:
    """`first` up to and including step `at`, then `other`: the mid-training scaffold."""
    return lambda outcome, step: (first if step <= at else other)(outcome, step)


def decay(first: Reward, other: Base = None, steps: float = 50) -> Reward:
    """From `first` to `other`, with exp(-step / steps) as the share of the first."""
    if steps <= 0:
        raise ValueError(f"steps must be larger than 0, found {steps}")
    return _mixed(first, other, lambda step: math.exp(-step / steps))


def anneal(first: Reward, other: Base = None, steps: float = 100) -> Reward:
    """From `first` to `other` in a straight line, which it reaches after so many steps."""
    if steps <= 0:
        raise ValueError(f"steps must be larger than 0, found {steps}")
    return _mixed(first, other, lambda step: max(0.0, 1 - step / steps))


def _mixed(first: Reward, other: Base, share: Callable[[int], float]) -> Reward:
    """A share of `first` and the rest of `other`, term by term."""
    last = other or accuracy()

    def reward(outcome: Outcome, step: int) -> Terms:
        mine = share(step)
        return _add(_times(mine, first(outcome, step)), _times(1 - mine, last(outcome, step)))

    return reward
