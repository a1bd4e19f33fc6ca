"""Tasks of the user's own: the registry, what is checked of them, and batches of verdicts."""

import json
import os
import re
import subprocess
import sys
import textwrap
from itertools import islice
from types import SimpleNamespace
from typing import get_args

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.rollout import Problem
from parallel_r1.coldstart.examples import examples
from parallel_r1.coldstart.settings import Data
from parallel_r1.errors import UserError
from parallel_r1.registry import load_plugins
from parallel_r1.tasks.base import epochs, problem_stream, statement_of, task, verdicts
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.datasets.sources import DATA_DIR
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.public_sets import PUBLIC_SETS, open_source


class Sums:
    """The smallest useful task."""

    def problems(self, split, seed):
        start = {"train": 0, "validation": 50, "test": 70}[split]
        items = [Problem(f"{n}", f"What is {n} + {n}?\n", str(2 * n), "sums") for n in range(start, start + 10)]
        return epochs(items, seed) if split == "train" else iter(items)

    def verify(self, problems, answers):
        return [answer == problem.answer for problem, answer in zip(problems, answers, strict=True)]


def problems(count=3):
    return list(islice(Sums().problems("train", 0), count))


def plugin(folder, text, name="mine.py"):
    head = "from parallel_r1.answers.rollout import Problem\nfrom parallel_r1.tasks.base import task\n"
    (folder / name).write_text(head + textwrap.dedent(text))
    return load_plugins([name], folder)


# Registering


def test_a_registered_class_is_constructed_once_and_found_by_its_name():
    made = []

    @task("sums")
    class Counted(Sums):
        def __init__(self):
            made.append(self)

    assert not made
    loaded = load_task("sums")
    assert (loaded.name, type(loaded)) == ("sums", Counted)
    assert load_task("sums") is loaded
    assert made == [loaded]

    # A cell of a notebook that is run again replaces the task.
    @task("sums")
    class Changed(Sums):
        pass

    assert type(load_task("sums")) is Changed


def test_a_function_that_makes_a_task_is_registered_too():
    @task("named")
    def make():
        return SimpleNamespace(name="named", problems=Sums().problems, verify=Sums().verify)

    assert load_task("named").name == "named"


def test_a_file_registers_a_task_that_recipes_and_teachers_name(tmp_path):
    plugin(
        tmp_path,
        """
        @task("echo")
        class Echo:
            def problems(self, split, seed):
                while True:
                    yield Problem(f"{seed}", "Say 1.\\n", "1", "echo")

            def verify(self, problems, answers):
                return [answer == problem.answer for problem, answer in zip(problems, answers)]

            def sequential_answer(self, problem, rng, most):
                return problem.answer

            def parallel_answer(self, problem, rng, paths, most, after):
                return None
        """,
    )
    echo = load_task("echo")
    assert [problem.answer for problem in islice(problem_stream(echo, "train", 3), 2)] == ["1", "1"]
    assert next(examples(Data(tasks={"echo": 1.0}), 0)).text == "1"


def test_the_task_of_the_docs_works(tmp_path):
    (text,) = re.findall(r"```python\n(.*?@task.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    plugin(tmp_path, text)
    sums = load_task("sums")
    streams = {split: list(islice(problem_stream(sums, split, 0), 500)) for split in get_args(Split)}
    ids = [{problem.id for problem in stream} for stream in streams.values()]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]
    batch = streams["test"][:2]
    assert verdicts(sums, batch, [f"Final Answer: {batch[0].answer}", "Final Answer: -1"]) == [True, False]


def test_a_task_object_is_its_own():
    own = Sums()
    own.name = "sums"
    assert load_task(own) is own
    assert load_task(EASY) is EASY


def test_an_unknown_name_suggests_the_users_tasks_too():
    @task("sums")
    class Mine(Sums):
        pass

    with pytest.raises(UserError, match="did you mean 'sums'"):
        load_task("smus")


@pytest.mark.parametrize("name", ["", "gsm8k", "a:b", "sums@plain", "a,b"])
def test_names_with_another_meaning_are_refused(name):
    with pytest.raises(UserError, match=r"a task name that is no public set .*test_base\.py:\d+"):
        task(name)(Sums)


def test_two_files_may_not_register_one_name(tmp_path):
    text = """
    @task("twice")
    class Twice:
        def problems(self, split, seed): ...
        def verify(self, problems, answers): ...
    """
    plugin(tmp_path, text, "one.py")
    with pytest.raises(
        UserError, match=r"one task named 'twice'; found a second one at .*two\.py:4, the first at .*one"
    ):
        plugin(tmp_path, text, "two.py")
    with pytest.raises(UserError, match=r"one task named 'countdown-easy'; found a second one at .*three\.py"):
        plugin(tmp_path, text.replace("twice", "countdown-easy"), "three.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def verify(self, problems, answers): ...", r"problems\(split, seed\); found class Bad without it at .*:\d+"),
        ("def problems(self, split, seed): ...", r"verify\(problems, answers\); found class Bad without it at .*:\d+"),
        ("problems = verify = 3", r"problems\(split, seed\); found class Bad without it"),
    ],
)
def test_a_class_without_a_method_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        plugin(
            tmp_path,
            f"""
        @task("bad")
        class Bad:
            {text}
        """,
        )
    assert "mine.py:4" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def __init__(self, size): ...", "constructed without arguments; found .*mine.py:4: .*'size'"),
        ("name = 'other'", "registered as 'bad' to have that name; found 'other' at .*mine.py:4"),
        ("def verify(self, problem): ...", r"verify\(problems, answers\); found an object of class Bad where too many"),
        ("def problems(self): ...", r"problems\(split, seed\); found an object of class Bad where too many"),
    ],
)
def test_a_class_that_makes_no_task_is_refused_when_it_is_asked_for(tmp_path, text, message):
    plugin(
        tmp_path,
        f"""
    @task("bad")
    class Bad:
        def problems(self, split, seed): ...
        def verify(self, problems, answers): ...
        {text}
    """,
    )
    with pytest.raises(UserError, match=message):
        load_task("bad")


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Sums, "a task object; found the class Sums; pass Sums()"),
        (object(), "an object of class object without it"),
        (type("Nameless", (Sums,), {})(), "a task with a name; found an object of class Nameless without one, .*@task"),
    ],
)
def test_an_object_that_is_no_task_is_refused(candidate, message):
    with pytest.raises(UserError, match=message):
        load_task(candidate)


# Verdicts


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (True, r"a list of bools from verify of task 'sums'; found bool from .*test_base\.py:\d+"),
        (None, r"a list of bools from verify of task 'sums'; found NoneType"),
        ("yes", r"a list of bools from verify of task 'sums'; found str"),
        ([True], r"3 verdicts from verify of task 'sums', one per answer; found 1 from .*test_base\.py:\d+"),
        ([True] * 4, "3 verdicts .*; found 4"),
        ([True, 1.0, False], r"bools from verify of task 'sums'; found 1\.0, a float, from .*test_base\.py:\d+"),
        ([True, None, False], "found None, a NoneType"),
    ],
)
def test_what_verify_returns_is_checked(result, message):
    class Returns(Sums):
        name = "sums"

        def verify(self, problems, answers):
            return result

    with pytest.raises(UserError, match=message) as caught:
        verdicts(Returns(), problems(), ["a"] * 3)
    assert "\n" not in str(caught.value)


def test_an_exception_of_a_verifier_is_the_users_own():
    class Raises(Sums):
        name = "sums"

        def verify(self, problems, answers):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        verdicts(Raises(), problems(), ["a"] * 3)


def test_no_answers_ask_nobody():
    assert verdicts(SimpleNamespace(name="none"), [], []) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=20))
def test_a_batch_of_countdown_gets_the_verdicts_of_one_by_one(picks):
    asked = list(islice(EASY.problems("train", 0), 31))
    texts = ["Final Answer: 3*5+7", "", "Final Answer: {answer}", "no", "Final Answer: 1+1"]
    batch = [asked[number] for number, _ in picks]
    answers = [texts[kind].format(answer=asked[number].answer) for number, kind in picks]
    alone = [EASY.verify([problem], [answer])[0] for problem, answer in zip(batch, answers, strict=True)]
    assert EASY.verify(batch, answers) == alone


# Problems


def test_a_finite_list_of_training_problems_is_named_and_held_out_ones_may_end():
    own = SimpleNamespace(name="sums", problems=lambda split, seed: problems(3), verify=Sums().verify)
    assert list(problem_stream(own, "test", 0)) == problems(3)
    assert list(problem_stream(own, "train", 0, may_end=True)) == problems(3)
    with pytest.raises(UserError, match=r"training problems of task 'sums' without an end; .*epochs"):
        list(problem_stream(own, "train", 0))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("What?", "objects of class Problem from problems of task 'sums'; found 'What\\?'"),
        (Problem("a", "\udcff?", "c", "sums"), "problems of task 'sums' that are text; found .*udcff.* in problem 'a'"),
        (Problem("a", "b", "c", "other"), "the source 'sums', the name of their task; found problem 'a' .*'other'"),
    ],
)
def test_what_problems_yields_is_checked(item, message):
    own = SimpleNamespace(name="sums", problems=lambda split, seed: iter([item]), verify=Sums().verify)
    with pytest.raises(UserError, match=message):
        next(problem_stream(own, "test", 0))


def test_problems_that_returns_nothing_is_named():
    own = SimpleNamespace(name="sums", problems=lambda split, seed: None, verify=Sums().verify)
    with pytest.raises(UserError, match=r"problems of task 'sums'; found NoneType from .*; yield them"):
        next(problem_stream(own, "test", 0))


def test_no_items_have_no_epochs():
    assert list(epochs([], 0)) == []


def test_without_a_statement_a_teacher_gets_the_prompt():
    (problem,) = problems(1)
    assert statement_of(Sums(), problem) == problem.prompt.strip()
    easy = next(EASY.problems("train", 0))
    assert statement_of(EASY, easy) == EASY.statement(easy)


# Where data lie


def test_the_folder_of_the_public_sets_is_passed_or_the_variable_and_nothing_sets_it(tmp_path, monkeypatch):
    for name in ("passed", "variable"):
        (tmp_path / name).mkdir()
        row = {"problem": f"What is {name}?", "answer": 1}
        (tmp_path / name / "aime25.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "variable"))
    before = dict(os.environ)
    for folder, text in ((tmp_path / "passed", "passed"), (None, "variable")):
        (record,) = open_source("aime25", folder).records("test")
        assert record.problem == f"What is {text}?"
        (problem,) = load_task("aime25@plain", data_dir=folder).problems("test", 0)
        assert record.problem in problem.prompt
    assert dict(os.environ) == before
    assert PUBLIC_SETS["aime25"].data_dir is None


def test_two_tasks_of_one_name_from_two_folders_do_not_share_anything(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        row = {"problem": f"What is {number}?", "answer": number}
        (tmp_path / f"{number}" / "amc23.jsonl").write_text(json.dumps(row) + "\n")
    one, two = (next(load_task("amc23", data_dir=tmp_path / f"{number}").problems("test", 0)) for number in (1, 2))
    assert (one.answer, two.answer) == ("1", "2")


def test_tasks_need_no_torch():
    code = "import sys, parallel_r1.tasks.load as load; load.load_task('countdown-easy'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
