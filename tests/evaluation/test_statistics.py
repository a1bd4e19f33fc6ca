import random
import tracemalloc
from itertools import islice, product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.evaluation import statistics
from parallel_r1.evaluation.statistics import holm, interval, problems_needed, sign_flip_test

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
    means.sort()
    low, high = interval(table)
    assert low == pytest.approx(means[150], abs=0.02)
    assert high == pytest.approx(means[-151], abs=0.02)
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


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(100, 8), (300, 2)])
def test_intervals_cover_what_they_should(problems, samples, monkeypatch):
    """95 % of the intervals hold the truth, of means and of paired differences."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rounds = list(islice(tables(problems, samples), 1000))
    for values, truth in (([ours for ours, _ in rounds], 0.5), ([ours - theirs for ours, theirs in rounds], 0.1)):
        covered = [low <= truth <= high for low, high in map(interval, values)]
        assert 0.93 <= fmean(covered) <= 0.97


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
