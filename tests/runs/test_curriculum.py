"""When a stage stops, which weights it hands over, and what it may learn from."""

import copy
import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from common import make
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1 import models
from parallel_r1.answers.rollout import read_jsonl
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.errors import UserError
from parallel_r1.evaluation import tables as report
from parallel_r1.evaluation.measure import Result, held_out
from parallel_r1.runs import curriculum, recipe_check
from parallel_r1.runs.curriculum import Watch, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_check import check
from parallel_r1.tasks.countdown import EASY, key_of, split_of
from parallel_r1.training.settings import SFT, Stop

RULE = "stages.rl.stop={every=2,patience=2,problems=5,samples=1}"
NO_TASKS = "evaluation.tasks=[]"


def watch(values, patience=3, min_gain=0.0):
    stage = SFT(
        kind="sft",
        steps=100,
        data={"tasks": {"countdown-easy": 1}},
        stop=Stop(task="countdown-easy", every=10, patience=patience, min_gain=min_gain),
    )
    return Watch(stage, {10 * index: value for index, value in enumerate(values, 1)})


@pytest.mark.parametrize(
    ("values", "min_gain", "best", "waited"),
    [
        ([], 0, None, 0),
        ([0.2], 0, 10, 0),
        ([0.2, 0.3], 0, 20, 0),
        ([0.3, 0.3, 0.3], 0, 10, 2),
        ([0.3, 0.2, 0.31, 0.1], 0, 30, 1),
        ([0.3, 0.35, 0.38], 0.1, 30, 2),  # the best, though it was no gain
        ([0.3, 0.35, 0.45, 0.5], 0.1, 40, 1),
    ],
)
def test_what_a_rule_makes_of_validations(values, min_gain, best, waited):
    found = watch(values, min_gain=min_gain)
    assert (found.best, found.waited) == (best, waited)


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 4), st.integers(0, 2))
def test_a_rule_equals_one_that_is_followed_step_by_step(values, patience, min_gain):
    """One number for the last gain, one for how long ago it was; the stage ends where patience does."""
    last, waited, ended = None, 0, False
    for number, value in enumerate(values, 1):
        if last is None or value - last > min_gain:
            last, waited = value, 0
        else:
            waited += 1
        ended = waited == patience
        found = watch(values[:number], patience, min_gain)
        assert found.over == ended
        assert found.seen[found.best] == max(values[:number])
        assert all(found.seen[step] < found.seen[found.best] for step in found.seen if step < found.best)
        if ended:
            break


def test_when_a_validation_is_due():
    found = watch([])
    found.stage = found.stage.model_copy(update={"steps": 25})
    assert [step for step in range(1, 26) if found.due(step)] == [10, 20, 25]
    found.stage = found.stage.model_copy(update={"stop": None})
    assert not any(found.due(step) for step in range(1, 26))


def scripted(values, weights):
    """Validations with these figures, one after the other; `weights` is told what was validated and measured."""
    left = iter(values)

    def evaluate(policy, task, settings, sampling, stage="", split="test", **_):
        state = {name: value.clone() for name, value in policy.model.state_dict().items()}
        weights.append((stage, split, state))
        mean = next(left) if split == "validation" else 0.5
        return Result(stage, task, settings.problems, settings.samples, mean, 0, 1, 1, 0, None, 0, 9, 9, {"x": mean})

    return evaluate


@pytest.mark.parametrize(
    ("values", "best", "steps"),
    [([0.1, 0.3, 0.2, 0.3], 4, 8), ([0.1, 0.2, 0.3], 5, 5)],
)
def test_a_stage_ends_when_a_figure_stops_rising_and_hands_its_best_weights_over(
    tmp_path, policy, monkeypatch, values, best, steps
):
    most = 9 if steps == 8 else steps
    seen = []
    monkeypatch.setattr(curriculum, "evaluate", scripted(values, seen))
    learns = ("stages.rl.algorithm={entropy=0.1}", "stages.rl.optimizer.lr=1e-2")  # whatever the answers earn
    quick = ("stages.rl.problems=1", "stages.rl.group=2")
    recipe = make(tmp_path, RULE, f"stages.rl.steps={most}", "stages.plain.start=rl", *learns, *quick)
    run = RunFolder.create(tmp_path / "run", recipe)
    results = train(recipe, policy, run, lambda row: None)
    assert [result.stage for result in results] == ["sft", "rl", "plain"]
    taken = [row["stage_step"] for row in run.metrics() if row["kind"] == "rl" and row["stage"] == "rl"]
    assert taken == list(range(1, steps + 1))
    rows = [row for row in run.metrics() if row["kind"] == "validation"]
    assert [row["mean"] for row in rows] == values
    assert [row["step"] for row in rows] == [2 + row["stage_step"] for row in rows]  # after two steps of sft
    assert rows[-1]["best_step"] == best
    validated = [state for _, split, state in seen if split == "validation"]
    (measured,) = [state for stage, split, state in seen if (stage, split) == ("rl", "test")]
    handed = models.load(str(run.checkpoint("rl"))).model.state_dict()
    for row, state in zip(rows, validated, strict=True):
        same = all(torch.equal(value, handed[name]) for name, value in state.items())
        assert same == (row["stage_step"] == best)
    assert all(torch.equal(value, handed[name]) for name, value in measured.items())
    (line,) = report.chosen(run.metrics())
    assert f"rl: the weights are those of step {best}" in line
    assert f"after step {steps} of {most}" in line
    assert f"* {line}" in report.markdown(results, (), [line])
    assert not list((run.path / "state").glob("weights-*"))


def test_a_rule_changes_nothing_but_the_end_and_the_problems(tmp_path, policy):
    """With validations that draw answers, the steps are those of a run without."""

    def rows(name, *changes):
        recipe = make(tmp_path, NO_TASKS, *changes)
        run = RunFolder.create(tmp_path / name, recipe)
        train(recipe, copy.deepcopy(policy), run, lambda row: None)
        timed = ("seconds", "sampling_seconds", "tokens_per_second")
        return [
            {key: value for key, value in row.items() if key not in timed}
            for row in run.metrics()
            if row["kind"] in ("sft", "rl") and row["stage"] != "plain"
        ]

    assert rows("plain") == rows("ruled", "stages.rl.stop={every=1,problems=3,samples=2}")


def test_nothing_is_learnt_from_what_chooses(tmp_path, policy, monkeypatch):
    """Neither in the stage that stops nor before it; and what is measured is a third set."""
    many = ("stages.rl.problems=60", "stages.rl.group=2", "stages.sft.batch=60", "stages.rl.steps=2")
    recipe = make(tmp_path, RULE, NO_TASKS, "stages.rl.save_rollouts_every=1", *many)
    learnt = []
    to_trace = coldstart.to_trace

    def noted(example, *rest, **more):
        learnt.append(example.prompt)
        return to_trace(example, *rest, **more)

    monkeypatch.setattr(coldstart, "to_trace", noted)
    run = RunFolder.create(tmp_path / "run", recipe)
    train(recipe, policy, run, lambda row: None)
    found = {each.problem.prompt for file in (run.path / "rollouts").iterdir() for each in read_jsonl(file)}
    assert len(found) > 100
    assert len(learnt) == 120

    def split(prompt):
        *numbers, target = map(int, re.findall(r"\d+", prompt))
        return split_of(key_of(numbers, target))

    assert {split(prompt) for prompt in found | set(learnt)} == {"train"}
    for name in ("validation", "test"):
        assert {split(problem.prompt) for problem in held_out(EASY, 50, recipe.evaluation.seed, name)} == {name}


def test_what_a_stop_rule_asks_of_a_recipe(tmp_path):
    recipe = make(tmp_path, RULE)
    assert recipe.stages["rl"].stop.task == "countdown-easy"
    for change, said in (
        ("stages.sft.hold_back=true", "no key any more: no stage trains on validation problems"),
        ("stages.sft.stop={every=2}", "stages.sft.stop.task"),
        ("stages.rl.stop.metric=loss", "'mean', 'passed' or 'parallel_ratio'"),
        ("stages.rl.stop.patence=1", "did you mean 'patience'"),
        ("stages.rl.stop.every=0", "greater than or equal to 1"),
    ):
        with pytest.raises(UserError, match="expected") as caught:
            make(tmp_path, RULE, change)
        assert said in str(caught.value)


def test_a_task_without_validation_problems_is_refused(tmp_path, monkeypatch):
    test_only = SimpleNamespace(name="exam", problems=lambda split, seed: iter(()))
    monkeypatch.setattr(recipe_check, "load_task", lambda name: test_only if name == "exam" else EASY)
    check(make(tmp_path, RULE))
    with pytest.raises(UserError, match="a task with validation problems; found exam without; name another task"):
        check(make(tmp_path, RULE, "stages.rl.stop.task=exam"))


def test_moments_are_handed_over_where_a_recipe_says_so(tmp_path, policy, monkeypatch):
    recipe = make(tmp_path, NO_TASKS, "stages.rl.optimizer.carry=true")
    run = RunFolder.create(tmp_path / "run", recipe)
    begun = []
    original = curriculum.run_rl
    monkeypatch.setattr(curriculum, "run_rl", lambda *args, **named: begun.append(args[-1]) or original(*args, **named))
    train(recipe, policy, run, lambda row: None)
    assert [name for name in recipe.stages if (run.checkpoint(name) / "optimizer.pt").exists()] == ["sft"]
    assert {str(moment["step"].item()) for moment in begun[0].values()} == {"2.0"}
    assert set(begun[0]) == {name for name, _ in models.load(str(run.checkpoint("sft"))).model.named_parameters()}
    assert begun[1] is None
    with pytest.raises(UserError, match=r"'base', which has none"):
        check(make(tmp_path, "stages.plain.optimizer.carry=true"))
    with pytest.raises(UserError, match=r"'base', which has none"):
        check(recipe.only("rl"))


KINDS = {"sft", "rl", "evaluation", "validation", "warning"}


def documented():
    """The lines of metrics.jsonl that each metric of the docs' table belongs to."""
    text = (ROOT / "docs" / "recipes.md").read_text().split("## Metrics")[1].split("\n## ")[0]
    found = {}
    for names, lines in re.findall(r"^\| (`.*?`) \| ([a-z, ]+) \|", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = KINDS if lines == "all" else set(lines.split(", "))
    assert set().union(*found.values()) == KINDS
    return found


def undocumented(rows):
    """Metrics of some lines that the docs' table does not name, or not for such lines."""
    table = documented()
    named = {(row["kind"], re.sub(r"^(reward|spread)_.+", r"\1_TERM", name)) for row in rows for name in row}
    return {(kind, name) for kind, name in named if kind not in table.get(name, ())}


def test_every_metric_is_in_the_docs(tmp_path, policy):
    recipe = make(
        tmp_path,
        RULE,
        "stages.rl.steps=2",
        "stages.rl.algorithm={kl=0.1,entropy=0.01,refill=1}",
        "stages.plain.scorer=isolated",
    )
    run = RunFolder.create(tmp_path / "run", recipe)
    train(recipe, policy, run, lambda row: None)
    rows = run.metrics()
    assert {row["kind"] for row in rows} >= {"sft", "rl", "evaluation", "validation"}
    assert not undocumented(rows)
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for name in documented().keys() - {"reward_TERM", "spread_TERM"} - {name for row in rows for name in row}:
        assert f'"{name.removeprefix("mismatch_")}"' in source, name
    assert undocumented([{"kind": "rl", "mystery": 1, "task": "x"}]) == {("rl", "mystery"), ("rl", "task")}


def test_stages_on_one_task_draw_problems_of_their_own(tmp_path, policy):
    """And the same ones again in a run with the same seed; those of another run are others."""
    changes = [NO_TASKS, *(f"stages.{name}.steps=1" for name in ("rl", "plain"))]
    changes += [f"stages.{name}.save_rollouts_every=1" for name in ("rl", "plain")]
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        recipe = make(tmp_path, *changes, "stages.rl.problems=8", "stages.plain.problems=8", f"seed={seed}").only("rl")
        run = RunFolder.create(tmp_path / str(number), recipe)
        train(recipe, policy, run, lambda row: None)
        files = (run.path / "rollouts" / f"step-{step}.jsonl" for step in (1, 2))
        drawn.append([list(dict.fromkeys(one.problem.id for one in read_jsonl(file))) for file in files])
    assert drawn[0] == drawn[1]
    orders = [drawn[0][0], drawn[0][1], drawn[2][0], drawn[2][1]]
    assert all(len(set(one) & set(other)) < 4 for one, other in itertools.combinations(orders, 2))
    assert recipe.seed_of("rl") == recipe.seed_of("rl") != recipe.seed_of("plain")
    assert 0 <= recipe.seed_of("rl") < 2**31
