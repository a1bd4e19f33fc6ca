import pytest
from analysed import answer, write_run

from parallel_r1.evaluation.habits import Habits, habits_of_run

SAME = "3*5=15, 15+7=22 yes: 3*5+7"


def test_habits_by_hand(tmp_path):
    late = answer(["a b c d e", "1 2 3 4 5"])
    late = answer(["a b c d e", "1 2 3 4 5"], before="x" * (late.total - 2))  # the fork opens in the middle
    answers = [answer([SAME, SAME]), late, answer([], "none"), answer([], "none")]
    assert late.trace.fork_at == [late.total // 2 - 1]
    run = write_run(tmp_path / "run", {7: answers, 8: [answer([], "none")]})
    first, second = habits_of_run(run)
    position = (late.total // 2 - 1) / late.total / 2
    assert first == Habits(7, 0.5, pytest.approx(position), pytest.approx(0.5, abs=0.05))
    assert second == Habits(8, 0.0, None, None)
    assert second.to_json() == {"step": 8, "parallel_ratio": 0.0, "position": None, "self_bleu": None}


def test_the_steps_of_a_run_in_order(tmp_path):
    plain, forked = answer([], "none"), answer(["a", "b"])
    run = write_run(tmp_path / "run", {2: [plain], 10: [plain, forked], 1: [forked]})
    assert [(each.step, each.parallel_ratio) for each in habits_of_run(run)] == [(1, 1.0), (2, 0.0), (10, 0.5)]
