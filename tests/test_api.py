"""The public API: exactly these names, usable by a stranger in a notebook."""

import ast
import inspect
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch
from common import RECIPE
from conftest import ROOT, TINY
from rich.console import Console

import parallel_r1 as pr
from parallel_r1.errors import UserError
from parallel_r1.generation.training_card import read_card
from parallel_r1.runs.recipe_file import load_recipe

FUNCTIONS = ["load", "generate", "evaluate", "sft", "rl", "train", "parity", "reward", "task", "algorithm"]
CLASSES = ["Answer", "Branches", "Budget", "Engine", "Example", "Generator", "Group", "Outcome", "Policy"]
CLASSES += ["PolicyGradient", "Problem", "Prompt", "Request", "Result", "Reward", "Rollout", "Sample", "Sampling"]
CLASSES += ["Span", "Step", "Task"]
PUBLIC = {*FUNCTIONS, *CLASSES, "Trace", "UserError", "make_generator", "__version__"}
PROMPT = "Use 3, 5, 7 to make 22.\n"
SHORT = pr.Sampling(sampler="sequential", budget=pr.Budget(critical_path=30))


@pytest.fixture
def tiny():
    return pr.load(str(TINY), device="cpu")


def test_these_names_are_public():
    assert set(pr.__all__) == PUBLIC
    assert len(pr.__all__) == len(PUBLIC)
    for name in pr.__all__:
        assert getattr(pr, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        pr.laod  # noqa: B018


def test_the_names_for_type_checkers_are_those_that_are_loaded():
    tree = ast.parse((ROOT / "src/parallel_r1/__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {(node.module, alias.name) for node in checked.body for alias in node.names}
    assert imported == {(f"parallel_r1.{module}", name) for name, module in pr._HOME.items()}


def test_every_public_name_explains_itself():
    for name in PUBLIC - {"__version__"}:
        text = inspect.getdoc(getattr(pr, name)) or ""
        assert len(text) > 40, name
        if name in FUNCTIONS[:7]:
            for parameter in inspect.signature(getattr(pr, name)).parameters:
                assert parameter == "policy" or re.search(rf"\b{parameter}\b.*:", text), (name, parameter)


def test_every_public_name_is_in_the_docs():
    text = (ROOT / "docs" / "api.md").read_text()
    for name in PUBLIC:
        assert re.search(rf"`@?(pr\.)?{name}\b", text), name


def test_the_package_is_typed():
    assert (ROOT / "src/parallel_r1/py.typed").is_file()


def test_the_ten_lines_of_the_readme_run(tmp_path):
    text = (ROOT / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "pr.rl(" in block)
    short = re.sub(
        r"steps=\d+",
        "steps=1, problems=2, group=2",
        re.sub(r"problems=\d+, samples=\d+", "problems=2, samples=2", code),
    )
    assert short != code
    done = subprocess.run([sys.executable, "-c", short], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_answers(tiny):
    seen = []
    one, two = pr.generate(tiny, PROMPT, samples=2, critical_path=12, on_token=lambda *token: seen.append(token))
    assert one.prompt == PROMPT
    assert one.total == one.critical_path == len(one.trace.token_ids) <= 12
    assert one.text == one.trunk == tiny.decode(one.trace.token_ids)
    assert (one.forks, two.forks) == (0, 0)
    assert sum(index == 0 for index, *_ in seen) == one.total
    again = pr.generate(tiny, [PROMPT], samples=2, sampling=pr.Sampling(budget=pr.Budget(critical_path=12)))
    assert [answer.text for answer in again] == [one.text, two.text]
    assert pr.generate(tiny, PROMPT, seed=1, critical_path=12)[0].text != one.text


def forked(policy):
    """An answer with a fork, as `generate` gives it."""
    from parallel_r1.answers.parser import parse
    from parallel_r1.answers.schemas import DEFAULT

    text = "so " + DEFAULT.write(["3*5=15", "<b>7</b>"], "15 is near.") + " Final Answer: 3*5+7"
    trace = parse(policy.encode(text), policy.tags)
    return pr.Answer(PROMPT, trace, trace.texts(policy.decode))


def test_an_answer_shows_its_paths_side_by_side(tiny):
    answer = forked(tiny)
    page = answer._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;7&lt;/b&gt;" in page
    assert page.count('class="pr1-path"') == 2
    HTMLParser().feed(page)
    shown = StringIO()
    Console(file=shown, width=80).print(answer)
    assert "path 1" in shown.getvalue()
    assert "path 2" in shown.getvalue()
    assert answer.forks == 1
    assert answer.critical_path < answer.total
    assert "3*5=15" not in answer.trunk


def test_evaluation_and_comparison(tiny):
    result = pr.evaluate(tiny, "countdown-easy", problems=4, samples=2, critical_path=30)
    assert result.problems == 4
    assert result.compare(result).mean == 0


def test_an_evaluation_keeps_its_answers_in_a_folder(tiny, tmp_path):
    settings = {"problems": 4, "samples": 2, "critical_path": 30}
    result = pr.evaluate(tiny, "countdown-easy", out=tmp_path / "e", **settings)
    assert result.by_problem == pr.evaluate(tiny, "countdown-easy", **settings).by_problem
    assert len((tmp_path / "e" / "countdown-easy.jsonl").read_text().splitlines()) == 8
    assert pr.evaluate(tiny, "countdown-easy", out=tmp_path / "e", **settings) == result
    with pytest.raises(pr.UserError, match="critical_path"):
        pr.evaluate(tiny, "countdown-easy", out=tmp_path / "e", **{**settings, "critical_path": 20})


def test_reinforcement_learning_with_a_function_of_ones_own(tiny):
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}

    def near(outcome):
        assert outcome.problem.answer in outcome.problem.prompt
        assert outcome in outcome.group or len(outcome.group) == 2
        return 1.0 if outcome.correct else -len(set(outcome.trace.token_ids)) / 100

    settings = {"sampling": SHORT, "optimizer": {"lr": 1e-3}}
    steps = list(pr.rl(tiny, "countdown-easy", near, steps=2, problems=2, group=2, **settings))
    assert [step.metrics["stage_step"] for step in steps] == [1, 2]
    assert all(rollout.terms.keys() == {"near"} for step in steps for rollout in step.rollouts)
    assert steps[0].metrics["reward"] == pytest.approx(steps[0].metrics["reward_near"])
    after = tiny.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_exception_of_ones_own_keeps_its_traceback(tiny):
    def broken(outcome):
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        next(pr.rl(tiny, "countdown-easy", broken, steps=1, problems=1, group=2, sampling=SHORT))
    assert caught.traceback[-1].name == "broken"


def test_a_task_of_ones_own(tiny):
    class Sums:
        name = "sums"

        def problems(self, split, seed):
            while True:
                yield pr.Problem("1+1", "1+1=", "2", "sums")

        def verify(self, problems, answers):
            return [
                answer.strip().startswith(problem.answer) for problem, answer in zip(problems, answers, strict=True)
            ]

    (step,) = pr.rl(tiny, Sums(), steps=1, problems=1, group=2, sampling=SHORT, algorithm="rloo")
    assert {rollout.problem.source for rollout in step.rollouts} == {"sums"}
    with pytest.raises(pr.UserError, match="a task"):
        pr.evaluate(tiny, Sums)


def test_imitation_of_pairs_and_of_files(tiny, tmp_path):
    text = "3*5=15, 15+7=22 yes: 3*5+7\nFinal Answer: 3*5+7"
    losses = [step.metrics["loss"] for step in pr.sft(tiny, [(PROMPT, text)], steps=3, batch=1)]
    assert losses[-1] < losses[0]
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"prompt": {PROMPT!r}, "text": {text!r}}}'.replace("'", '"'))
    assert len(list(pr.sft(tiny, path, steps=2, batch=1))) == 2


def test_a_recipe_trains_and_its_weights_say_how(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    rows = []
    results = pr.train(tmp_path / "small.toml", out=tmp_path / "run", on_row=rows.append)
    stages = list(load_recipe(tmp_path / "small.toml").stages)
    assert {result.stage for result in results} >= set(stages)
    assert {row["kind"] for row in rows} >= {"sft", "rl"}
    last = tmp_path / "run" / "checkpoints" / stages[-1]
    card = read_card(last)
    policy = pr.load(str(last), device="cpu")
    (answer,) = pr.generate(policy, PROMPT)
    assert answer.trace.sampler == card.sampling.sampler
    assert answer.total <= card.sampling.budget.total
    other = "sequential" if card.sampling.sampler != "sequential" else "isolated"
    with pytest.warns(UserWarning, match="were trained with sampler"):
        pr.generate(policy, PROMPT, sampler=other, critical_path=8)
    next(pr.rl(policy, "countdown-easy", steps=1, problems=1, group=2, sampling=SHORT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the weights have changed since
        pr.generate(policy, PROMPT, sampler=other, critical_path=8)


def test_parity(tiny):
    assert pr.parity(tiny, answers=2, forks=1).max_abs <= 1e-4
    assert pr.parity(tiny, "causal_join", "isolated", answers=2, forks=1).max_abs > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda policy: pr.generate(policy, PROMPT, pahts=3), "did you mean 'paths'"),
        (lambda policy: pr.generate(policy, PROMPT, temperature=-1), "temperature .*-1"),
        (lambda policy: pr.generate(policy, ""), "at least one token"),
        (lambda policy: pr.evaluate(policy, "contdown-easy"), "did you mean 'countdown-easy'"),
        (lambda policy: pr.rl(policy, "countdown-easy", steps=1, probems=3), "did you mean 'problems'"),
        (lambda policy: pr.rl(policy, "countdown-easy", "acuracy()", steps=1), "did you mean 'accuracy'"),
        (lambda policy: pr.rl(policy, "countdown-easy", steps=1, algorithm="grop"), "did you mean 'grpo'"),
        (lambda policy: pr.rl(policy, "countdown-easy", "bonus()", steps=1, sampling=SHORT), "does not pay for forks"),
        (lambda policy: pr.rl(policy, "countdown-easy", 3, steps=1), "a reward"),
        (lambda policy: pr.sft(policy, [(PROMPT, "<Path>x")], steps=1), "answer 0: "),
        (lambda policy: pr.sft(policy, [], steps=1), "at least one"),
        (lambda policy: pr.sft(policy, ["ab"], steps=1), "'ab' as item 0"),
        (lambda policy: pr.sft(policy, [(PROMPT, "x"), {"prompt": "a", "text": "b"}], steps=1), "as item 1"),
        (lambda policy: pr.sft(policy, [("", "x")], steps=1), "not empty"),
        (lambda policy: pr.evaluate(policy, "countdown-easy", split="tset"), "did you mean 'test'"),
        (lambda policy: pr.evaluate(policy, "countdown-easy", samples=0), "above 0 for samples"),
        (lambda policy: pr.generate(policy, PROMPT, samples=-1), "above 0 for samples"),
        (lambda policy: pr.generate(policy, PROMPT, sampling={"paths": 2}), "a Sampling object"),
        (lambda policy: pr.parity(policy, scorer="foo"), "scorer one of"),
        (lambda policy: pr.parity(policy, answers=0), "above 0 for answers"),
        (lambda policy: pr.rl(policy, "countdown-easy", steps=1, stop={"every": 1}), "found stop"),
        (lambda policy: pr.task(type("Foo", (), {})), "with a name"),
        (lambda policy: pr.sft(policy, "nowhere.jsonl", steps=1), "no file nowhere.jsonl"),
        (lambda policy: pr.load("nowhere/at/all"), "no folder"),
        (lambda policy: pr.load("models/tiny-bsae"), "no folder models/tiny-bsae; did you mean 'models/tiny-base'"),
        (lambda policy: pr.load(str(TINY), device="cuda:9"), "a device of this machine"),
    ],
)
def test_a_mistake_is_one_clear_line(tiny, call, message):
    with pytest.raises(pr.UserError, match=message) as caught:
        call(tiny)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda policy: pr.generate(policy, 3), "expected a prompt, or a list of prompts, as text; found 3"),
        (lambda policy: pr.generate(policy, {"role": "user"}), "expected a prompt, or a list of prompts, as text"),
        (lambda policy: pr.generate(policy, ["Use 1", 2]), "expected a prompt, or a list of prompts, as text"),
        (
            lambda policy: pr.generate(policy, [{"role": "user"}]),
            "expected messages with a role and a content, the last",
        ),
        (
            lambda policy: pr.generate(policy, "Use 1", engine={"rows": 4}),
            "expected an Engine object; found {'rows': 4}",
        ),
        (lambda policy: pr.parity(policy, engine=4), "expected an Engine object; found 4"),
        (lambda policy: pr.evaluate(policy, "countdown-hard", prompt={}), "expected a Prompt object; found {}"),
    ],
)
def test_settings_of_another_kind_are_one_line(tiny, call, line):
    with pytest.raises(UserError) as error:
        call(tiny)
    assert str(error.value).startswith(line)
