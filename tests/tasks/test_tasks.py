import json
from itertools import islice

import pytest

from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import held_out
from parallel_r1.tasks.datasets.sources import DATA_DIR
from parallel_r1.tasks.grading.grader import Grader
from parallel_r1.tasks.load import load_task


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
