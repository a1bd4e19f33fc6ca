from dataclasses import replace
from itertools import combinations, cycle
from math import comb
from types import SimpleNamespace

import pytest
from common import judged
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Reading
from parallel_r1.answers.trace import Span, Trace
from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import evaluate, held_out, majority_vote, pass_at, summarise
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.generation.rollouts import answer, judge
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.prompts import Prompt


@given(st.integers(1, 8), st.data())
def test_pass_at_k_equals_counting_subsets(drawn, data):
    k, correct = data.draw(st.integers(1, drawn)), data.draw(st.integers(0, drawn))
    marks = [True] * correct + [False] * (drawn - correct)
    hits = sum(any(subset) for subset in combinations(marks, k))
    assert pass_at(k, correct, drawn) == pytest.approx(hits / comb(drawn, k))


def rollouts(policy, answers, samples):
    """Judged answers: problem i solved as often as answers[i] says."""
    found = []
    for index, correct in enumerate(answers):
        problem = EASY.problem((3, 5, 7 + index % 2), 22 + index % 2)
        problem = Problem(problem.id, problem.prompt, problem.answer, problem.source)
        for sample in range(samples):
            text = f"Final Answer: 3*5+{7 + index % 2}" if sample < correct else "Final Answer: 1"
            found.append((problem, parse(policy.encode(text), policy.tags)))
    return judge(found, EASY, policy)


def test_a_summary_by_hand(frozen):
    result = summarise(rollouts(frozen, [4, 1], 4), "x")
    assert result.mean == (1.0 + 0.25) / 2
    assert result.passed == 1.0
    assert result.parallel_ratio == 0
    assert result.well_formed is None
    assert (result.problems, result.samples) == (2, 4)


def test_problems_with_more_answers_weigh_no_more():
    easy = [judged("easy", True, total=10, forked=True)] * 6
    hard = [judged("hard", index == 0, total=30) for index in range(2)]
    result = summarise(easy + hard)
    assert (result.mean, result.parallel_ratio, result.total, result.samples) == (0.75, 0.5, 20, 2)
    assert result.passed == 1.0
    assert summarise(easy + hard, samples=1).passed == 0.75


def test_every_figure_by_hand():
    """Two problems with four answers each: votes, unread answers, copies, and what the intervals count."""
    readings = (
        [("1", True), ("1", True), ("2", False), (None, False)],
        [("3", False), ("3", False), (None, False), ("4", True)],
    )
    rollouts = [
        replace(
            judged(f"p{number}", right, forked=number == 0 and sample == 0),
            reading=Reading(final, missed=final == "3", out_of_time=final == "2"),
        )
        for number, row in enumerate(readings)
        for sample, (final, right) in enumerate(row)
    ]
    result = summarise(rollouts)
    assert (result.mean, result.majority) == (0.375, 0.5)
    assert (result.silent, result.missed, result.out_of_time) == (0.25, 0.25, 0.125)
    assert result.passes == pytest.approx((0.375, (5 / 6 + 1 / 2) / 2, (1 + 3 / 4) / 2, 1.0))
    assert result.copies == (2 / 4 + 3 / 4) / 2  # `judged` has two kinds of tokens
    assert (result.paths, result.forks) == (0.25, 0.125)
    assert result.well_formed == 1.0
    assert result.intervals["well_formed"] == pytest.approx((0.025, 1.0))  # one problem alone has a fork
    assert result.intervals["pass@4"] == pytest.approx((0.025**0.5, 1.0))
    assert set(result.intervals) >= {"mean", "majority", "silent", "cut", "paths", "total", "pass@1"}
    with pytest.raises(UserError, match="from 1 to 4"):
        result.pass_at(5)
    assert summarise([replace(rollout, reading=None) for rollout in rollouts]).majority is None


@pytest.mark.parametrize(
    ("votes", "share"),
    [
        ([("22", False), ("11*2", True), ("7", False)], 0.5),  # equal by value, right once
        ([("1", True), ("2", False)], 0.5),  # a tie
        ([(None, False), (None, False), ("5", True)], 1.0),
        ([(None, False)], 0.0),
    ],
)
def test_votes(votes, share):
    answers = [replace(judged("p", right), reading=Reading(final)) for final, right in votes]
    assert majority_vote(answers) == share


def test_a_comparison_is_paired(frozen):
    better, worse = summarise(rollouts(frozen, [4, 2], 4)), summarise(rollouts(frozen, [2, 0], 4))
    difference = better.compare(worse)
    assert difference.mean == difference.low == difference.high == 0.5
    assert difference.relative == 2.0


def test_a_comparison_with_nothing_right_has_no_relative_difference(frozen):
    none, some = summarise(rollouts(frozen, [0, 0], 4)), summarise(rollouts(frozen, [4, 0], 4))
    assert none.compare(none).relative is None
    assert some.compare(none).relative is None
    assert none.compare(some).relative == -1.0


def test_results_on_different_problems_are_not_compared(frozen):
    ours = summarise(rollouts(frozen, [4, 0], 4))
    theirs = replace(ours, task="other", by_problem={"x": 1.0})
    with pytest.raises(UserError, match="countdown-easy and other without a problem in common"):
        ours.compare(theirs)


def test_answers_inside_a_path_do_not_count(frozen):
    problem = EASY.problem((3, 5, 7), 22)
    forked = "<Parallel><Path>{}</Path><Path>x</Path></Parallel>\n<Summary>y</Summary>\n{}"
    right, wrong = "Final Answer: 3*5+7", "Final Answer: 1"
    texts = forked.format(right, wrong), forked.format(wrong, right)
    answers = [(problem, parse(frozen.encode(text), frozen.tags)) for text in texts]
    inside, outside = judge(answers, EASY, frozen)
    assert not inside.correct
    assert outside.correct
    assert outside.critical_path < outside.total


def test_answers_inside_a_path_count_if_the_trunk_gives_none_and_the_recipe_says_so(frozen):
    problem = EASY.problem((3, 5, 7), 22)
    forked = "<Parallel><Path>x\n{}</Path><Path>{}</Path></Parallel>\n<Summary>y</Summary>\n{}"
    right, wrong = "Final Answer: 3*5+7", "Final Answer: 1"

    def correct(first, second, trunk):
        ids = frozen.encode(forked.format(first, second, trunk))
        return judge([(problem, parse(ids, frozen.tags))], EASY, frozen, anywhere=True)[0].correct

    assert correct("x", right, "no")
    assert correct(right, "x", "no")  # and the tag behind it is no part of it
    assert not correct(right, wrong, "no")  # the last one counts
    assert not correct(right, right, wrong)
    assert correct(wrong, wrong, right)


def test_a_recipe_says_where_the_answer_may_stand(frozen):
    problem = EASY.problem((3, 5, 7), 22)
    text = "<Parallel><Path>Final Answer: 3*5+7</Path><Path>x</Path></Parallel>\n<Summary>y</Summary>"
    drawn = [parse(frozen.encode(text), frozen.tags)]
    generator = SimpleNamespace(traces=lambda requests: drawn)
    for final in ("trunk", "anywhere"):
        (found,) = answer(
            frozen, EASY, [problem], 1, Sampling(), 0, prompt=Prompt(final_answer=final), generator=generator
        )
        assert found.correct == (final == "anywhere")


@pytest.mark.parametrize(
    ("text", "finish", "stop", "right"),
    [
        ("Final Answer: 3*5+7", "stop", (), True),
        ("Final Answer: 3*5+7", "length", (), False),  # perhaps the beginning of 3*5+71
        ("Final Answer: 3*5+7\nso", "length", (), True),
        ("Final Answer: 3*5+7\n<Parallel><Path>7", "length", (), True),  # the budget ended in a path
        ("Final Answer: 3*5+7 END", "stop", ("END",), True),
        ("Final Answer: 3*5+7 END", "stop", (), False),
        (r"\boxed{3*5+7}", "stop", ("}",), True),  # the stop text belongs to the answer
    ],
)
def test_an_answer_that_was_cut_is_none_and_a_stop_text_is_no_part_of_it(frozen, text, finish, stop, right):
    trace = replace(parse(frozen.encode(text), frozen.tags), finish=finish)
    assert judge([(EASY.problem((3, 5, 7), 22), trace)], EASY, frozen, stop=stop)[0].correct == right


def test_a_batch_is_verified_by_one_call_and_judged_as_one_by_one(frozen):
    calls = []

    def verify(problems, answers):
        calls.append(len(answers))
        return EASY.verify(problems, answers)

    texts = ["Final Answer: 3*5+7", "Final Answer: 1", "no", "<Parallel><Path>Final Answer: 3*5+7"]
    answers = [(EASY.problem((3, 5, 7), 22), parse(frozen.encode(text), frozen.tags)) for text in texts]
    for anywhere in (False, True):
        alone = [judge([pair], EASY, frozen, anywhere=anywhere)[0] for pair in answers]
        task = SimpleNamespace(name=EASY.name, verify=verify)
        assert judge(answers, task, frozen, anywhere=anywhere) == alone
        assert [rollout.correct for rollout in alone] == [True, False, False, anywhere]
    assert calls == [4, 4]
    assert judge([], task, frozen) == []


def test_latency_is_that_of_the_sampler(frozen):
    """An answer with a fork that was drawn from left to right took as long as it has tokens."""
    ids = frozen.encode("<Parallel><Path>abc</Path><Path>d</Path></Parallel>\n<Summary>y</Summary>")
    problem = EASY.problem((3, 5, 7), 22)
    traces = parse(ids, frozen.tags, sampler="sequential"), parse(ids, frozen.tags)
    sequential, isolated = judge([(problem, trace) for trace in traces], EASY, frozen)
    assert sequential.critical_path == sequential.total == isolated.total == len(ids)
    assert isolated.critical_path < len(ids)


def test_an_instruction_is_read_before_every_prompt(frozen):
    problem = EASY.problem((3, 5, 7), 22)
    sampling, prompt = Sampling(budget=Budget(critical_path=4)), Prompt(instruction="Think <Path>.\n")
    (found,) = answer(frozen, EASY, [problem], 1, sampling, 0, prompt=prompt)
    assert frozen.decode(found.trace.prompt_ids) == "Think <Path>.\n" + problem.prompt
    assert found.problem == problem


def test_held_out_problems_differ():
    found = held_out(EASY, 50, 0)
    assert len({problem.id for problem in found}) == 50
    few = SimpleNamespace(name=EASY.name, problems=lambda split, seed: cycle(found))
    assert held_out(few, 50, 0) == found
    with pytest.raises(UserError, match="ask for fewer"):
        held_out(few, 51, 0)
    assert not {problem.id for problem in found} & {problem.id for problem in held_out(EASY, 50, 0, "validation")}
    exam = SimpleNamespace(name="exam", problems=lambda split, seed: iter(found if split == "test" else ()))
    with pytest.raises(UserError, match="a task with validation problems; found exam without"):
        held_out(exam, 5, 0, "validation")


def test_the_shipped_model_solves_easy_problems(tiny):
    settings = Evaluation(problems=16, samples=2)
    sampling = Sampling(sampler="sequential", budget=Budget(critical_path=60))
    easy = evaluate(tiny, "countdown-easy", settings, sampling)
    assert easy.mean > 0.35
    assert easy == evaluate(tiny, "countdown-easy", settings, sampling)


def test_a_malformed_answer_is_judged(frozen):
    everything = tuple(range(len(frozen.tokenizer)))
    trace = Trace((1,), (Span(everything, (), True),))
    assert not judge([(EASY.problem((3, 5, 7), 22), trace)], EASY, frozen)[0].correct
