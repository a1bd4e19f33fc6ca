import random
import tracemalloc
from itertools import islice, product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.evaluation import statistics
from parallel_r1.evaluation.statistics import (
    bounds,
    holm,
    interval,
    problems_needed,
    ratio_intervals,
    samples_needed,
    sign_flip_test,
)

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def test_an_interval_covers_and_shrinks():
    low, high = interval([0.0, 1.0] * 50)
    assert low == pytest.approx(0.4, abs=0.02)
    assert high == pytest.approx(0.6, abs=0.02)
    assert interval([0.3] * 9) == (pytest.approx(0.3), pytest.approx(0.3))


def test_an_interval_over_seeds_and_problems_equals_drawing_them_one_by_one():
    drawing = random.Random(0)
    table = [[drawing.random() + seed for _ in range(12)] for seed in (0.0, 0.3, 0.1)]
    means = []
    for _ in range(6000):
        seeds, problems = (drawing.choices(range(size), k=size) for size in (3, 12))
        means.append(fmean(table[seed][problem] for seed in seeds for problem in problems))
    low, high = interval(table)
    by_problem = np.mean(table, axis=0)
    assert (low, high) == pytest.approx(
        bounds(np.array(means), by_problem.mean(), by_problem - by_problem.mean()), abs=0.02
    )
    alone = interval(table[0])
    assert high - low > 1.3 * (alone[1] - alone[0])  # seeds that differ widen it


def test_seeds_that_agree_add_nothing_to_an_interval():
    values = [random.Random(0).random() for _ in range(30)]
    assert interval([values] * 3) == pytest.approx(interval(values), abs=0.01)


def tables(problems, samples):
    """Shares of correct answers to problems of different difficulty, by two policies, without end; they differ by 0.1
    in the mean of all problems that there could be."""
    rng = np.random.default_rng(1)
    while True:
        easy = rng.beta(1.0, 1.0, problems)
        yield [rng.binomial(samples, share) / samples for share in (0.1 + 0.8 * easy, 0.8 * easy)]


def evaluations(problems, samples, kinds, a, b, rounds):
    """Simulated evaluations: for every one the numbers of right answers, of forked answers, and of well-formed ones
    among these, by kind of problem, and the number of answers.

    Problems of one kind are permutations of one another: equally hard, and one cluster. Difficulties are drawn from a
    beta distribution; hard problems are forked more often and worse, so that the ratio is no mean.
    """
    rng = np.random.default_rng(problems + samples)
    for _ in range(rounds):
        easy = rng.beta(a, b, kinds)
        kind = np.concatenate([np.arange(kinds), rng.integers(0, kinds, problems - kinds)])
        right = rng.binomial(samples, easy[kind])
        forked = rng.binomial(samples, 0.8 - 0.6 * easy[kind])
        formed = rng.binomial(forked, 0.9 - 0.5 * easy[kind])
        size = samples * np.bincount(kind, minlength=kinds)
        yield size, *(np.bincount(kind, counts, kinds) for counts in (right, forked, formed))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problems", "samples", "kinds", "a", "b"),
    [
        (30, 16, 30, 1, 1),
        (30, 16, 30, 0.5, 2),  # as hard as AIME: a mean of 20 %, and most problems near 0
        (30, 16, 30, 0.2, 1.8),  # 10 %
        (200, 8, 60, 1, 1),
        (200, 8, 60, 0.3, 1),
    ],
)
def test_95_of_100_intervals_hold_the_truth(problems, samples, kinds, a, b, monkeypatch):
    """2,000 simulated evaluations: of mean@k, of the parallel ratio, and of the share of forked answers that are
    well-formed 93 to 97 % of the intervals hold the true value."""
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)
    mean, square = a / (a + b), a * (a + 1) / ((a + b) * (a + b + 1))
    forked = 0.8 - 0.6 * mean
    truth = (mean, forked, (0.72 - 0.94 * mean + 0.3 * square) / forked)
    covered = np.zeros(3)
    for size, right, forks, formed in evaluations(problems, samples, kinds, a, b, 2000):
        ones = np.ones(kinds)
        over, under = np.stack([right / size, forks / size, formed], 1), np.stack([ones, ones, forks], 1)
        intervals = ratio_intervals(over, under)
        covered += [low <= value <= high for (low, high), value in zip(intervals, truth, strict=True)]
    assert (covered / 2000 >= 0.93).all(), covered
    assert (covered / 2000 <= 0.97).all(), covered


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(100, 8), (300, 2)])
def test_intervals_of_paired_differences_hold_the_truth(problems, samples, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    differences = [ours - theirs for ours, theirs in islice(tables(problems, samples), 1000)]
    covered = [low <= 0.1 <= high for low, high in map(interval, differences)]
    assert 0.93 <= fmean(covered) <= 0.97


def test_a_ratio_of_ones_is_a_mean():
    values = np.random.default_rng(0).random((40, 2))
    both = ratio_intervals(values, np.ones((40, 2)))
    assert both == [pytest.approx(interval(values[:, column]), abs=0.004) for column in (0, 1)]


def test_a_ratio_counts_answers_and_skips_resamples_without_any():
    ((low, high),) = ratio_intervals([[3.0], [0.0]], [[4.0], [0.0]])
    assert low == high == 0.75
    ((low, high),) = ratio_intervals([[0.0], [0.0]], [[0.0], [0.0]])
    assert np.isnan(low)


def test_a_skewed_interval_is_longer_on_its_long_side():
    values = [0.0] * 25 + [1.0] * 5
    low, high = interval(values)
    mean = fmean(values)
    assert high - mean > 1.15 * (mean - low)
    flat = interval([0.0, 1.0] * 15)
    assert flat[1] - 0.5 == pytest.approx(0.5 - flat[0], abs=0.04)  # means are multiples of 1/30


def test_copies_counted_as_problems_make_intervals_too_narrow(monkeypatch):
    """What a key prevents: 32 copies of 30 problems are 30 problems."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    covered = []
    for ours, _ in islice(tables(30, 4), 40):
        low, high = interval(np.repeat(ours, 32))
        covered.append(low <= 0.5 <= high)
    assert fmean(covered) < 0.5


def test_100_000_problems_need_little_memory(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    values = np.random.default_rng(0).random(100_000)
    tracemalloc.start()
    low, high = interval(values)
    assert sign_flip_test(values - values.mean()) == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < values.mean() < high
    assert peak < 200e6


@given(st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.125, 0.25, 1.0]), min_size=1, max_size=8))
def test_the_paired_test_equals_tossing_every_coin(differences):
    ways = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    p_value = fmean(abs(way) >= abs(sum(differences)) - 1e-9 for way in ways)
    assert sign_flip_test(differences) == pytest.approx(p_value, abs=0.02)


def test_equal_values_are_no_evidence_and_a_constant_difference_is():
    assert sign_flip_test([0.0] * 20) == 1.0
    assert sign_flip_test([0.1] * 40) < 2e-4


def test_problems_needed_by_hand():
    # mean 1/4, variance 1/12, (1.96 + 0.84)^2 = 7.85: 7.85 * 16 / 12 = 10.5
    assert problems_needed([0.5, 0.5, 0.0, 0.0]) == problems_needed([-0.5, -0.5, 0.0, 0.0]) == 11
    assert problems_needed([0.5, -0.5]) is None
    assert problems_needed([0.1, 0.2, -0.3]) is None  # 0 but for rounding
    assert problems_needed([0.5]) is None
    assert problems_needed([0.5] * 3) == 6  # five signs alike have a two-sided p-value of 6 %


def test_samples_needed_by_hand():
    # Eight problems, mean 1/4, variance 1/14; 7.849 of it per squared standard error.
    values = [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    # All of it is noise of 4 answers: 1/14 * 4 / (8 / 16 / 7.849) = 4.485
    assert samples_needed(values, 1 / 14, 4) == 5
    # A half is between problems: 1/28 * 4 / (8 / 16 / 7.849 - 1/28) = 5.1
    assert samples_needed(values, 1 / 28, 4) == 6
    assert samples_needed(values, 0.0, 4) is None  # 8 problems are too few, whatever is drawn
    assert samples_needed([0.5, -0.5] * 4, 0.1, 4) is None
    assert samples_needed([0.5] * 5, 0.1, 4) is None  # five signs alike have a two-sided p-value of 6 %


@pytest.mark.slow
def test_with_as_many_answers_as_needed_the_test_finds_four_differences_of_five(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    problems, k = 60, 4
    easy = rng.beta(2, 2, problems)
    better = np.clip(easy + rng.normal(0.06, 0.05, problems), 0, 1)
    gain = float((better - easy).mean())
    truth = (better * (1 - better) + easy * (1 - easy)).mean() / k
    spread = (better - easy).var(ddof=1)
    values = (better - easy) + np.sqrt(truth) * np.linspace(-1.7, 1.7, problems)[rng.permutation(problems)]
    values = (values - values.mean()) / values.std(ddof=1) * np.sqrt(spread + truth) + gain
    needed = samples_needed(values.tolist(), float(truth), k)
    found = [
        sign_flip_test((rng.binomial(needed, better) - rng.binomial(needed, easy)) / needed) < 0.05 for _ in range(400)
    ]
    # The problems are the same every time, so only the noise of the answers is left: at least the power asked for.
    assert 0.75 <= fmean(found) <= 0.95


def test_with_as_many_problems_as_needed_the_test_finds_four_differences_of_five(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    values, shares = [-0.5, 0.0, 0.5, 1.0], [0.15, 0.5, 0.3, 0.05]  # mean 0.125
    count = problems_needed(rng.choice(values, 100_000, p=shares).tolist())
    found = [sign_flip_test(rng.choice(values, count, p=shares)) < 0.05 for _ in range(600)]
    assert 0.75 <= fmean(found) <= 0.85


@given(P_VALUES, st.floats(0, 1))
def test_the_correction_rejects_what_stepping_down_rejects(p_values, level):
    """The definition: the smallest p-value against level / m, the next against level / (m - 1), until one is larger."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - rank) * p_values[index] > level:
            break
        rejected.add(index)
    corrected = holm(p_values)
    assert {index for index, value in enumerate(corrected) if value <= level} == (
        rejected if level < 1 else set(range(len(p_values)))
    )
    assert all(value >= p_value for value, p_value in zip(corrected, p_values, strict=True))
