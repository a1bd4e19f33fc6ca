from statistics import fmean

import numpy as np
import pytest
from common import judged

from parallel_r1.errors import UserError
from parallel_r1.evaluation import statistics
from parallel_r1.evaluation.compare import compare
from parallel_r1.evaluation.measure import summarise
from parallel_r1.evaluation.statistics import holm
from parallel_r1.evaluation.tables import comparison_markdown, comparison_report, comparison_tables, remarks


def answers(counts, samples=2, **more):
    """Answers to one problem per number, so many of them correct; `counts` is a list, or id of a problem -> number."""
    counts = counts if isinstance(counts, dict) else dict(enumerate(counts))
    return [judged(f"p{index}", at < count, **more) for index, count in counts.items() for at in range(samples)]


def test_a_comparison_by_hand():
    ours, theirs = answers([2, 1, 0, 0], forked=True, total=40), answers([1, 0, 0, 0])
    (found,) = compare({"theirs": theirs, "ours": ours})
    assert (found.task, found.problems, found.left_out) == ("countdown-easy", 4, {"theirs": 0, "ours": 0})
    best, second = found.entries
    assert best.result == summarise(ours, "ours")  # as `eval` says
    assert (best.result.stage, best.result.mean, best.result.passed) == ("ours", 3 / 8, 2 / 4)
    assert (best.result.parallel_ratio, best.result.critical_path, best.result.total) == (1, 20, 40)
    assert (best.answers, best.fewest, best.most, best.drawn) == (8, 2, 2, ("isolated, parallel-r1",))
    assert (second.result.stage, second.result.mean, second.result.passed) == ("theirs", 1 / 8, 1 / 4)
    (pair,) = found.pairs  # differences -0.5, -0.5, 0, 0
    assert (pair.first, pair.second, pair.difference.mean) == ("theirs", "ours", -0.25)
    assert (pair.difference.low, pair.difference.high) == (-0.5, 0.0)
    assert pair.p_value == pair.corrected == pytest.approx(0.5, abs=0.02)  # 2 of 4 ways to choose two signs
    assert pair.needed == 11
    assert remarks(found) == []
    board, pairs = (table.rows for table in comparison_tables(found))
    assert [row[0] for row in board] == ["ours", "theirs"]
    assert board[0][1] == "37.5"
    assert board[0][3:] == ("50.0", "100.0", "20.0", "40.0", "8")
    assert pairs[0][:4] == ("theirs", "ours", "-25.0", "-50.0 .. +0.0")
    assert pairs[0][-2] == "11"


def test_every_pair_is_compared_and_corrected_for_all_pairs_of_its_task():
    by_name = {"a": [2] * 12, "b": [1] * 12, "c": [0] * 8 + [1] * 4, "d": [0, 1] * 6}
    tasks = {name: answers(counts) + answers(counts[:8], task="other") for name, counts in by_name.items()}
    easy, other = compare(tasks)
    assert (easy.problems, other.problems) == (12, 8)
    for found in (easy, other):
        names = [(pair.first, pair.second) for pair in found.pairs]
        assert names == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
        assert [pair.corrected for pair in found.pairs] == holm([pair.p_value for pair in found.pairs])
    assert easy.pairs[0].corrected < 0.05 < easy.pairs[-1].corrected


def test_an_order_of_the_same_problem_is_the_same_problem():
    """Three orders of two problems are two problems, paired by key."""
    ours = [judged(f"order {index}", index % 2 == 0, key=f"k{index % 2}") for index in range(6)]
    theirs = [judged(f"again {index}", False, key=f"k{index}") for index in range(2)]
    (found,) = compare({"ours": ours, "theirs": theirs})
    assert found.problems == 2
    assert found.entries[0].result.by_problem == {"k0": 1.0, "k1": 0.0}
    assert found.pairs[0].difference.mean == 0.5


def test_problems_and_tasks_that_not_all_have_are_left_out():
    ours = answers({0: 2, 1: 1, 2: 0}) + answers([2], task="other")
    theirs = answers({1: 1, 2: 0, 3: 2, 4: 2})
    easy, other = compare({"ours": ours, "theirs": theirs})
    assert (easy.problems, easy.left_out) == (2, {"ours": 1, "theirs": 2})
    assert {entry.result.mean for entry in easy.entries} == {0.25}
    assert (other.problems, other.entries, other.pairs) == (0, (), ())
    text = comparison_markdown(*comparison_report([easy, other]))
    assert "* countdown-easy: problems left out, because not every file has them: 1 of ours, 2 of theirs\n" in text
    assert "* other: problems left out, because not every file has them: 1 of ours, 0 of theirs\n" in text


def test_different_numbers_of_answers_are_said_and_weigh_the_same():
    ours = answers({0: 4}, samples=4) + answers({1: 1}, samples=3)
    (found,) = compare({"ours": ours, "theirs": answers([1, 1])})
    assert found.entries[0].result.mean == pytest.approx((1 + 1 / 3) / 2)
    assert found.entries[0].result.passed == pytest.approx((1 + 2 / 3) / 2)  # for k = 2, as theirs
    assert remarks(found) == ["countdown-easy: ours has 3 to 4 answers to a problem; means are over problems"]


def test_different_ways_to_draw_are_said():
    (found,) = compare({"ours": answers([1]), "theirs": answers([1], sampler="sequential")})
    (line,) = remarks(found)
    assert line.endswith("which a difference includes: ours isolated, parallel-r1; theirs sequential, parallel-r1")
    mixed = answers([1]) + answers({1: 1}, sampler="sequential")
    (found,) = compare({"ours": mixed, "theirs": mixed})
    assert "ours isolated, parallel-r1 and sequential, parallel-r1" in remarks(found)[0]


def test_one_problem_and_no_difference_decide_nothing():
    (found,) = compare({"ours": answers([2]), "theirs": answers([1])})
    assert (found.pairs[0].p_value, found.pairs[0].needed) == (1.0, None)
    (found,) = compare({"ours": answers([2, 1, 0]), "theirs": answers([2, 1, 0])})
    assert (found.pairs[0].p_value, found.pairs[0].needed) == (1.0, None)
    assert comparison_tables(found)[1].rows[0][2:] == ("+0.0", "+0.0 .. +0.0", "1.0000", "1.0000", "-", "-")


def test_what_cannot_be_compared_is_refused():
    ours, other = answers([1, 1]), answers([1], task="other")
    with pytest.raises(UserError, match="two or more; found ours"):
        compare({"ours": ours})
    with pytest.raises(UserError, match="found none of theirs"):
        compare({"ours": ours, "theirs": []})
    with pytest.raises(
        UserError, match="countdown-easy with 2 of ours, 0 of theirs; other with 0 of ours, 1 of theirs"
    ):
        compare({"ours": ours, "theirs": other})
    with pytest.raises(UserError, match="countdown-easy with 2 of ours, 1 of theirs; measure all on one task"):
        compare({"ours": ours, "theirs": answers({7: 1})})


def rounds(gain, number, problems=100, samples=2):
    """Numbers of correct answers to problems of different difficulty, by two policies whose means over all problems
    that there could be differ by `gain`, so many times."""
    rng = np.random.default_rng(5)
    for _ in range(number):
        easy = (1 - gain) * rng.random(problems)
        yield rng.binomial(samples, easy + gain), rng.binomial(samples, easy)


def test_without_a_difference_one_p_value_in_twenty_is_below_five_percent(monkeypatch):
    """A little fewer, because sums of shares of 8 answers are often equal, which makes p-values larger."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    tables = rounds(0.0, 1000, problems=60, samples=8)
    p_values = [statistics.sign_flip_test((ours - theirs) / 8) for ours, theirs in tables]
    assert 0.03 <= fmean(value < 0.05 for value in p_values) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_intervals_of_a_comparison_cover_what_they_should(gain, monkeypatch):
    """95 % of them hold the difference in the mean of all problems that there could be."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    covered = []
    for ours, theirs in rounds(gain, 2000):
        (found,) = compare({"ours": answers(ours.tolist()), "theirs": answers(theirs.tolist())})
        difference = found.pairs[0].difference
        covered.append(difference.low <= gain <= difference.high)
    assert 0.93 <= fmean(covered) <= 0.97
