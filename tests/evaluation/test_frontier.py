"""Frontiers and speed numbers, on answers whose figures are known."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from common import judged

from parallel_r1.evaluation import statistics
from parallel_r1.evaluation.frontier import Drawn, frontier, speed


def answers(shares, cost, *, forked, factor=1):
    """Four answers to each of some problems, of which such a share is right, all with the same costs."""
    return [
        replace(judged(f"p{number}", sample < 4 * share, forked=forked, total=factor * cost), critical_path=cost)
        for number, share in enumerate(shares)
        for sample in range(4)
    ]


def line(name, points, *, forked, factor=1, alone=(), loaded=None):
    """A frontier through (budget, shares of right answers) with costs as large as the budgets."""
    return frontier(
        name,
        [
            Drawn(answers(shares, budget, forked=forked, factor=factor), budget, alone, loaded)
            for budget, shares in points
        ],
    )


def test_points_by_hand():
    one = line(
        "x", [(20, [0.5, 1.0, 0.0]), (10, [0.25, 0.25, 0.0])], forked=True, factor=3, alone=(0.1, 0.3), loaded=2.0
    )
    assert [point.budget for point in one.points] == [10, 20]
    assert [point.accuracy for point in one.points] == pytest.approx([1 / 6, 0.5])
    assert one.costs("critical_path") == [10, 20]
    assert one.costs("total") == [30, 60]
    assert one.costs("alone") == pytest.approx([0.2, 0.2])
    assert one.points[0].low <= 1 / 6 <= one.points[0].high


def test_speed_at_equal_accuracy_by_hand():
    """The sequential model reaches 50 % with 80 tokens. The parallel one has 25 % at 20 and 75 % at 40: 50 % at 30."""
    sequential = line("s", [(40, [0.25] * 8), (80, [0.5] * 8)], forked=False, alone=(1.0,), loaded=0.1)
    parallel = line("p", [(20, [0.25] * 8), (40, [0.75] * 8)], forked=True, factor=4, alone=(0.5,), loaded=0.2)
    numbers = speed(parallel, sequential)
    assert numbers.accuracy == 0.5
    assert numbers.compression.value == 4
    assert numbers.latency.value == pytest.approx(80 / 30)
    assert (numbers.latency.low, numbers.latency.high) == pytest.approx((80 / 30, 80 / 30))  # all problems are alike
    assert numbers.tokens.value == pytest.approx(120 / 80)
    assert numbers.alone.value == 2
    assert numbers.loaded.value == 0.5


def test_a_larger_budget_counts_as_no_worse():
    falling = line("p", [(20, [0.5] * 4), (40, [0.25] * 4), (60, [0.25] * 4)], forked=True)
    assert speed(falling, line("s", [(50, [0.5] * 4)], forked=False)).latency.value == 2.5


def test_what_cannot_be_compared():
    nothing = line("s", [(50, [0.0] * 4)], forked=False)
    numbers = speed(line("p", [(20, [0.5] * 4)], forked=True), nothing)
    assert (numbers.accuracy, numbers.latency.value, numbers.alone.value) == (0.0, None, None)


@pytest.mark.slow
def test_an_interval_holds_the_speed_that_was_simulated(monkeypatch):
    """Accuracy rises by as much from 10 to 30 tokens as for the other from 20 to 60: twice as fast at any accuracy.
    Of 60 simulated pairs of evaluations at least 54 intervals hold it (95 % would be 57)."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    held = []
    for _ in range(60):
        hard = rng.beta(1, 1, 60)

        def shares(level, hard=hard):
            return rng.binomial(4, level * hard) / 4

        parallel = line("p", [(10, shares(0.3)), (20, shares(0.6)), (30, shares(0.9))], forked=True)
        sequential = line("s", [(20, shares(0.3)), (40, shares(0.6)), (60, shares(0.9))], forked=False)
        ratio = speed(parallel, sequential).latency
        held.append(ratio.low <= 2 <= ratio.high)
    assert fmean(held) >= 0.9
