"""Rewards that change with the training step. Source: Kimi K2.5 for `anneal`."""

from __future__ import annotations

import math

from parallel_r1.training.rewards.base import reward
from parallel_r1.training.rewards.outcome import Outcome, Reward, Terms
from parallel_r1.training.rewards.terms import ACCURACY, add, scale


@reward
def alternate(first: Reward, other: Reward, period: int = 10, second: int = 2) -> Reward:
    """`first` for `period - second` steps, then `other` for `second` steps, and again: the alternating reward S2."""
    if not 0 <= second <= period or period < 1:
        raise ValueError(f"second must lie in 0..period, got period={period}, second={second}")
    return lambda outcome: (first if (outcome.step - 1) % period < period - second else other)(outcome)


@reward
def switch(outcome: Outcome, first: Reward, other: Reward, at: int) -> Terms:
    """`first` up to and including step `at`, then `other`: the mid-training scaffold."""
    return (first if outcome.step <= at else other)(outcome)


@reward
def decay(first: Reward, other: Reward = ACCURACY, steps: float = 50) -> Reward:
    """From `first` to `other`: the share of `first` is exp(-step / steps)."""
    if steps <= 0:
        raise ValueError(f"steps must be larger than 0, got {steps}")
    return lambda outcome: mix(outcome, first, other, math.exp(-outcome.step / steps))


@reward
def anneal(first: Reward, other: Reward = ACCURACY, steps: float = 100) -> Reward:
    """From `first` to `other` in a straight line, which reaches `other` at step `steps`."""
    if steps <= 0:
        raise ValueError(f"steps must be larger than 0, got {steps}")
    return lambda outcome: mix(outcome, first, other, max(0.0, 1 - outcome.step / steps))


def mix(outcome: Outcome, first: Reward, other: Reward, share: float) -> Terms:
    """`share` of `first` and the rest of `other`, term by term."""
    return add(scale(share, first(outcome)), scale(1 - share, other(outcome)))
