from dataclasses import replace
from types import SimpleNamespace

import pytest

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import from_json, to_json
from parallel_r1.errors import UserError
from parallel_r1.generation.rollouts import judge, judge_again
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.grading.grader import Grader
from parallel_r1.tasks.load import load_task

PROBLEM = EASY.problem((3, 5, 7), 22)
FORK = "<Parallel><Path>{}</Path><Path>3*5=15 no</Path></Parallel>\n<Summary>{}</Summary>\n{}"
RIGHT, WRONG = "Final Answer: 3*5+7", "Final Answer: 3+5+7"


def read(policy, text, **rules):
    (rollout,) = judge([(PROBLEM, parse(policy.encode(text), policy.tags))], EASY, policy, explain=True, **rules)
    return rollout


@pytest.mark.parametrize(
    ("text", "final", "missed"),
    [
        (RIGHT, "3*5+7", False),
        (WRONG, "3+5+7", False),
        ("no", None, False),
        (f"{WRONG}\nbut \\boxed{{3*5+7}} it is\n{WRONG}", "3+5+7", True),  # a box before the final answer
        ("The answer is 3*5+7", None, True),  # a mark that this task does not read
        (FORK.format(RIGHT, "none", "stop"), None, True),
        (FORK.format("3*5=15, 15+7=22 yes: 3*5+7", "none", WRONG), "3+5+7", True),  # what a path arrives at
        (FORK.format("3+5=8, 8+7=15 yes: 3+5+7", "none", "stop"), None, False),
        (FORK.format(WRONG, "none", RIGHT), "3*5+7", False),  # a right answer misses nothing
    ],
)
def test_what_was_read_and_what_was_not(frozen, text, final, missed):
    reading = read(frozen, text).reading
    assert (reading.final, reading.missed, reading.out_of_time) == (final, missed, False)


def test_readings_are_kept_in_files_and_only_asked_for(frozen):
    rollout = read(frozen, FORK.format(RIGHT, "none", "stop"))
    assert from_json(to_json(rollout)) == rollout
    (plain,) = judge([(PROBLEM, rollout.trace)], EASY, frozen)
    assert plain.reading is None
    assert "reading" not in to_json(plain)
    assert from_json(to_json(plain)) == plain


def test_judging_again_needs_no_tokenizer_and_gives_the_same(frozen):
    texts = [RIGHT, WRONG, FORK.format("x", "y", RIGHT), f"{RIGHT} END"]
    for rules in ({}, {"anywhere": True}, {"stop": ("END",)}):
        first = [read(frozen, text, **rules) for text in texts]
        assert judge_again(first, EASY, explain=True, **rules) == first


def test_a_comparison_that_takes_too_long_is_told_from_a_wrong_answer(tmp_path, frozen):
    file = tmp_path / "x.jsonl"
    file.write_text('{"problem": "Which?", "answer": "x! + 3", "split": "test"}\n')
    strict = Grader(limit=0.3, size=1)
    task = replace(load_task(f"jsonl:{file}"), grader=strict)
    (problem,) = task.problems("test", 0)
    finals = (r"x! + (10^{10})!", "x! + 4", "3 + x!")  # the rules of our own decide none of them
    answers = [(problem, parse(frozen.encode(f"Final Answer: {final}"), frozen.tags)) for final in finals]
    rollouts = judge(answers, task, frozen, explain=True)
    strict.close()
    assert [rollout.reading.out_of_time for rollout in rollouts] == [True, False, False]
    assert [rollout.correct for rollout in rollouts] == [False, False, True]


def test_a_task_may_say_which_comparisons_it_gave_up(frozen):
    own = SimpleNamespace(
        name=EASY.name,
        verify=lambda problems, answers: [False] * len(answers),
        out_of_time=lambda problems, answers: ["slow" in answer for answer in answers],
    )
    traces = [parse(frozen.encode(text), frozen.tags) for text in ("slow", "fast")]
    rollouts = judge([(PROBLEM, trace) for trace in traces], own, frozen, explain=True)
    assert [rollout.reading.out_of_time for rollout in rollouts] == [True, False]
    own.out_of_time = lambda problems, answers: [1]
    with pytest.raises(UserError, match="a list of 2 bools from out_of_time"):
        judge([(PROBLEM, trace) for trace in traces], own, frozen, explain=True)
