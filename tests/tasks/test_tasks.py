import json
import random
from fractions import Fraction
from itertools import islice, permutations

import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.parser import parse_text
from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import held_out
from parallel_r1.tasks.countdown import EASY, HARD, MEDIUM, chains, evaluate_expression, split_of
from parallel_r1.tasks.datasets.sources import DATA_DIR
from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader
from parallel_r1.tasks.load import load_task

TASKS = pytest.mark.parametrize("task", [EASY, MEDIUM, HARD], ids=lambda task: task.name)


def numbers_and_target(task, problem):
    numbers, target = task.parse(problem)
    return tuple(sorted(numbers)), target


@TASKS
def test_train_and_held_out_problems_never_overlap(task):
    train = {numbers_and_target(task, problem) for problem in islice(task.problems("train", 0), 5000)}
    test = {numbers_and_target(task, problem) for problem in islice(task.problems("test", 1), 1000)}
    assert train
    assert test
    assert not train & test


@TASKS
def test_validation_problems_are_apart_from_both_where_they_are_held_back(task):
    held = load_task(task.name, hold_back=True)
    validation = {numbers_and_target(task, problem) for problem in islice(task.problems("validation", 0), 500)}
    train = {numbers_and_target(task, problem) for problem in islice(held.problems("train", 0), 5000)}
    test = {numbers_and_target(task, problem) for problem in islice(task.problems("test", 0), 1000)}
    assert not validation & train
    assert not validation & test
    # Without, training is on them too, and on the same problems in the same order otherwise.
    every = list(islice(task.problems("train", 0), 2000))
    kept = [problem for problem in every if split_of(*task.parse(problem)) == "train"]
    assert 0.83 < len(kept) / len(every) < 0.92
    assert kept == list(islice(held.problems("train", 0), len(kept)))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_problem_has_one_split_in_every_task_and_order(split):
    for task in (EASY, MEDIUM, HARD):
        for problem in islice(load_task(task.name, hold_back=True).problems(split, 0), 50):
            numbers, target = task.parse(problem)
            assert {split_of(order, target) for order in permutations(numbers)} == {split}


@TASKS
def test_problems_repeat_for_a_seed_and_differ_between_seeds(task):
    first, again, other = (list(islice(task.problems("train", seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@TASKS
def test_answers_agree_with_reasoning_gym(task):
    """Right and wrong expressions alike get the verdict of reasoning-gym's own verifier."""
    judge = reasoning_gym.create_dataset("countdown", size=1, seed=0)
    rng = random.Random(0)
    verdicts = []
    for problem in islice(task.problems("test", 7), 60):
        numbers, target = task.parse(problem)
        chain = rng.choice(chains(tuple(sorted(numbers)), task.limit))
        right = next(each for each in chains(tuple(sorted(numbers)), task.limit) if each.value == target)
        for expression in (chain.expression, right.expression, str(target), f"{right.expression}+0"):
            (ours,) = task.verify([problem], [f"Final Answer: {expression}"])
            entry = {"metadata": {"numbers": list(numbers), "target": target}}
            assert ours == (judge.score_answer(expression, entry) == 1.0), expression
            verdicts.append(ours)
    assert 0.2 < sum(verdicts) / len(verdicts) < 0.8


@TASKS
def test_every_chain_is_what_it_says(task):
    for problem in islice(task.problems("train", 5), 20):
        numbers, _ = task.parse(problem)
        for chain in chains(tuple(sorted(numbers)), task.limit):
            assert evaluate_expression(chain.expression) is not None
            value, used = evaluate_expression(chain.expression)
            assert (value, sorted(used)) == (chain.value, sorted(numbers))
            for step in chain.steps:
                left, right = step.split("=")
                assert evaluate_expression(left)[0] == int(right)


@TASKS
def test_the_teacher_is_honest(task):
    """Answers are right and well-formed; every try says truly whether it reached the target; some paths fail."""
    rng = random.Random(0)
    written, failed = 0, 0
    for problem in islice(task.problems("train", 2), 200):
        target = int(problem.answer)
        for text in (task.sequential_answer(problem, rng, 4), task.parallel_answer(problem, rng, 4, 2, 3)):
            if text is None:
                continue
            written += 1
            assert parse_text(text).defects == []
            assert task.verify([problem], [text]) == [True]
            body = text.split("</Parallel>")[0].split("\nFinal")[0].replace("<Path>", "\n").replace("</Path>", "\n")
            for line in body.replace("<Parallel>", "").split("\n"):
                if line:
                    value = int(line.split(" ")[-2 if line.endswith("no") else -3].split("=")[1])
                    assert (value == target) == (" yes" in line)
                    failed += line.endswith("no")
    assert written > 150
    assert failed > 50


def test_paths_of_a_fork_are_independent_draws():
    """The second path's first try does not depend on the first path's: the joint frequency is near the product."""
    problem = next(EASY.problems("train", 0))
    rng = random.Random(0)
    pairs = [[EASY.tries(problem, rng, 1)[0][0].line for _ in range(2)] for _ in range(4000)]
    common = max({line for line, _ in pairs}, key=[first for first, _ in pairs].count)
    first = sum(a == common for a, _ in pairs) / len(pairs)
    second = sum(b == common for _, b in pairs) / len(pairs)
    both = sum(a == common and b == common for a, b in pairs) / len(pairs)
    assert abs(both - first * second) < 0.03


def test_verification_is_exact_arithmetic():
    def verify(answer):
        (verdict,) = EASY.verify([EASY.problem((3, 5, 7), 22)], [answer])
        return verdict

    for right in ("3*5+7", "7 + 5*3", "(5*3)+7"):
        assert verify(f"so\nFinal Answer: {right}")
    for wrong in ("22", "3*5+6", "3*5+7+0", "3*5", "3**5", "", "(3*5+7", "3*5+7 = 22", "7+15", "3*5+7.0", "3*5+7j"):
        assert not verify(f"Final Answer: {wrong}")
    assert not verify("3*5+7")
    assert verify("Final Answer: 1\nFinal Answer: 3*5+7")
    assert not verify("Final Answer: 3*5+7\nFinal Answer: 1")


@given(
    st.recursive(
        st.integers(0, 50).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
            lambda parts: f"({parts[0]}{parts[1]}{parts[2]})"
        ),
        max_leaves=8,
    )
)
def test_expressions_equal_fractions(text):
    found = evaluate_expression(text)
    if len(text) <= 120:
        assert Fraction(found[0]) == Fraction(eval(text))  # our own digits and operators only


@given(st.text(max_size=200) | st.text(alphabet="0123456789+-*() ", max_size=300))
def test_no_expression_breaks_the_verifier(text):
    evaluate_expression(text)
    final_answer(text)


@pytest.mark.parametrize("hostile", ["9" * 10_000, "9**9**9**9", "(" * 1000, "1+" * 5000 + "1", "()" * 50, "\x00"])
def test_hostile_expressions_are_wrong_and_cheap(hostile):
    assert EASY.verify([EASY.problem((3, 5, 7), 22)], [f"Final Answer: {hostile}"]) == [False]


def test_an_unknown_task_names_the_nearest():
    for wrong, right in (("countdown-esy", "countdown-easy"), ("gsm8", "gsm8k"), ("dapo2@plain", "dapo")):
        with pytest.raises(UserError, match=f"did you mean '{right}'"):
            load_task(wrong)


@pytest.fixture
def gsm8k(tmp_path, monkeypatch):
    """A folder in which GSM8K has 200 and 20 problems."""
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    for part, count in (("train", 200), ("test", 20)):
        texts = [f"Ann has {n} pears.\n\nHow many for {part}?" for n in range(count)]
        rows = [{"question": text, "answer": f"#### {n}"} for n, text in enumerate(texts)]
        (tmp_path / f"gsm8k_{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_task("gsm8k")


def test_a_data_set_is_not_read_before_it_is_needed(monkeypatch):
    monkeypatch.setenv(DATA_DIR, "nowhere")
    task = load_task("dapo")
    assert task.name == "dapo"
    with pytest.raises(UserError, match="dapo_train"):
        task.problems("train", 0)


def test_splits_of_a_data_set_never_mix(gsm8k):
    train = list(islice(gsm8k.problems("train", 0), 400))
    held = {split: list(gsm8k.problems(split, 0)) for split in ("validation", "test")}
    ids = {"train": {problem.id for problem in train}}
    ids |= {split: {problem.id for problem in problems} for split, problems in held.items()}
    assert [len(ids[split]) for split in ("validation", "test")] == [len(held["validation"]), 20]
    assert len(ids["train"]) == 200 - len(ids["validation"])
    assert not ids["train"] & ids["validation"] | ids["train"] & ids["test"] | ids["validation"] & ids["test"]
    epoch = len(ids["train"])
    assert train[:epoch] != train[epoch : 2 * epoch]  # without end, shuffled anew
    assert train == list(islice(gsm8k.problems("train", 0), 400)) != list(islice(gsm8k.problems("train", 1), 400))
    assert [problem.id for problem in held["test"]] != [problem.id for problem in gsm8k.problems("test", 1)]


def test_a_prompt_holds_the_whole_statement(gsm8k):
    problem = next(gsm8k.problems("test", 0))
    assert "pears.\n\nHow many for test?" in problem.prompt
    assert "<Parallel>" in problem.prompt
    plain = next(load_task("gsm8k@plain").problems("test", 0))
    assert "<Parallel>" not in plain.prompt
    assert (plain.source, problem.source) == ("gsm8k@plain", "gsm8k")


def test_an_answer_to_a_data_set_is_graded_by_its_final_answer(gsm8k):
    problem = next(problem for problem in gsm8k.problems("test", 0) if problem.answer == "12")
    for right in ("Final Answer: 12", r"so \boxed{12}", "Final Answer: 3\nFinal Answer: 12 pears.", r"\boxed{24/2}"):
        assert gsm8k.verify([problem], [right]) == [True]
    for wrong in ("12", "Final Answer: 13", r"Final Answer: 12, no, \boxed{13}", "Final Answer: 9^9^9^9", ""):
        assert gsm8k.verify([problem], [wrong]) == [False]


def test_answers_to_200_problems_are_graded_by_one_call_with_the_verdicts_of_one_by_one(gsm8k, monkeypatch):
    problems = list(islice(gsm8k.problems("train", 0), 200))
    forms = (
        "Final Answer: {}",
        r"so \boxed{{{}}}",
        "Final Answer: {} + 1",
        "{}",
        r"\boxed{{2*{}/2}}",
        "Final Answer: x{}",
    )
    answers = [forms[number % 6].format(problem.answer) for number, problem in enumerate(problems)]
    alone = [gsm8k.verify([problem], [answer])[0] for problem, answer in zip(problems, answers, strict=True)]
    calls, grade = [], Grader.grade

    def counted(self, pairs):
        calls.append(len(pairs))
        return grade(self, pairs)

    monkeypatch.setattr(Grader, "grade", counted)
    assert gsm8k.verify(problems, answers) == alone
    assert calls == [200]
    assert alone[:6] == [True, True, False, False, True, False]


def test_a_benchmark_is_held_out_as_a_whole(gsm8k):
    assert len(held_out(gsm8k, 5, 0)) == 5
    assert len(held_out(gsm8k, 500, 0)) == 20
