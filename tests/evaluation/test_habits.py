from dataclasses import replace

import pytest

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import write_jsonl
from parallel_r1.evaluation.habits import Habits, habits, habits_of_run
from parallel_r1.generation.rollouts import judge
from parallel_r1.tasks.countdown import EASY

FORK = "<Parallel><Path>{}</Path><Path>{}</Path></Parallel>\n<Summary>s</Summary>"


def judged(policy, text):
    (rollout,) = judge([(EASY.problem((3, 5, 7), 22), parse(policy.encode(text), policy.tags))], EASY, policy)
    return rollout


def test_habits_by_hand(frozen):
    same = "3*5=15, 15+7=22 yes: 3*5+7"
    alike, late = FORK.format(same, same), FORK.format("a b c d e", "1 2 3 4 5")
    late = "x" * len(frozen.encode(late)) + late  # the tokenizer has no longer piece than x
    answers = [judged(frozen, text) for text in (alike, late, "none", "none")]
    assert answers[1].trace.spans[0].token_ids[-1] == frozen.tags.ids["<Parallel>"]
    assert answers[1].trace.fork_at == [len(answers[1].trace.spans[0].token_ids) - 1] == [answers[1].total // 2]
    found = habits(answers, 7)
    assert found == Habits(7, 0.5, pytest.approx(0.25), pytest.approx(0.5, abs=0.05))
    assert habits([judged(frozen, "none")], 1) == Habits(1, 0.0, None, None)


def test_the_steps_of_a_run_in_order(frozen, tmp_path):
    (tmp_path / "rollouts").mkdir()
    plain, forked = judged(frozen, "none"), judged(frozen, FORK.format("a", "b"))
    for step, answers in ((2, [plain]), (10, [plain, forked]), (1, [forked])):
        write_jsonl(tmp_path / "rollouts" / f"step-{step}.jsonl", [replace(each, terms={}) for each in answers])
    assert [(each.step, each.parallel_ratio) for each in habits_of_run(tmp_path)] == [(1, 1.0), (2, 0.0), (10, 0.5)]
