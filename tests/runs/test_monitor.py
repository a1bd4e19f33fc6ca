"""Each collapse, made by hand, is named when it comes and not before; a healthy run is left in peace."""

import re

import pytest
from common import make
from conftest import ROOT

from parallel_r1.runs.curriculum import train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.monitor import RULES, WINDOW, Monitor

GOOD = {
    "kind": "rl",
    "stage": "hard",
    "parallel_ratio": 0.8,
    "well_formed": 0.95,
    "surprise": 0.5,
    "dead_groups": 0.3,
    "accuracy": 0.6,
    "mismatch_mean": 0.01,
    "skipped": 0.0,
}


def steps(name, values, stage="hard"):
    return [{**GOOD, "stage": stage, "step": step, name: value} for step, value in enumerate(values, 1)]


def warnings(rows, monitor=None):
    monitor = monitor or Monitor()
    return [warning for row in rows for warning in monitor(row)]


@pytest.mark.parametrize(
    ("rule", "name", "bad", "said"),
    [
        ("serial", "parallel_ratio", 0.02, "2% of the answers fork, it was 80%"),
        ("form", "well_formed", 0.1, "10% of the answers that fork are well-formed"),
        ("entropy", "surprise", 0.01, "0.010 nats a token, it began with 0.500"),
        ("dead", "dead_groups", 0.95, "in 95% of the groups"),
        ("mismatch", "mismatch_mean", 0.4, "0.400 nats a token, it began with 0.010"),
        ("skipped", "skipped", 0.5, "50% of the updates of the last 5 steps"),
    ],
)
def test_each_collapse_is_named_once(rule, name, bad, said):
    healthy = [GOOD[name]] * 12
    found = warnings(steps(name, healthy + [bad] * 20))
    assert [warning["rule"] for warning in found] == [rule]
    assert 12 < found[0]["step"] <= 12 + WINDOW
    late = warnings(steps(name, healthy + [bad] * WINDOW), Monitor().remember([]))
    assert late[0]["kind"] == "warning"
    assert late[0]["stage"] == "hard"
    text = RULES[rule](steps(name, healthy + [bad] * WINDOW))
    assert said in text


def test_each_collapse_is_in_the_docs():
    text = (ROOT / "docs" / "recipes.md").read_text().split("## Warnings")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(RULES)


def test_a_healthy_run_is_left_in_peace():
    assert not warnings(steps("accuracy", [0.4 + 0.005 * step for step in range(100)]))


def test_a_run_that_never_forked_has_not_collapsed():
    rows = [{**GOOD, "step": step, "parallel_ratio": 0.0, "well_formed": 1.0} for step in range(1, 40)]
    assert not warnings(rows)


def test_a_stage_begins_anew():
    rows = steps("surprise", [0.5] * 10) + steps("surprise", [0.05] * 10, stage="next")
    assert not warnings(rows)


def test_a_run_that_goes_on_does_not_warn_again():
    rows = steps("dead_groups", [0.9] * 20)
    assert warnings(rows)
    assert not warnings(rows[10:], Monitor().remember(rows[:10]))


def test_other_rows_are_passed_over():
    assert not warnings([{"kind": "sft", "step": 1, "stage": "a"}, {"kind": "evaluation", "step": 1, "stage": "a"}])


CANCELLING = """import parallel_r1 as pr

@pr.reward
def cancelling(outcome):
    return {"long": len(outcome.text) / 7, "short": -len(outcome.text) / 7}
"""


def test_terms_that_cancel_are_named(tmp_path, policy):
    """Instead of problems that are too easy or too hard."""
    (tmp_path / "my_rewards.py").write_text(CANCELLING)
    changes = ("imports=['my_rewards.py']", "evaluation.tasks=[]", "stages.rl.steps=5", "stages.rl.reward=cancelling()")
    recipe = make(tmp_path, *changes).only("rl")
    recipe = recipe.model_copy(update={"stages": {"rl": recipe.stages["rl"]}, "compare": ()})
    rows = []
    train(recipe, policy, RunFolder.create(tmp_path / "run", recipe), rows.append)
    told = [row for row in rows if row["kind"] == "warning"]
    assert [row["rule"] for row in told] == ["cancelled"]
    assert "although long and short differ" in told[0]["warning"]
    assert all(row["spread_long"] == row["spread_short"] > 0 for row in rows if row["kind"] == "rl")
    for row in rows:
        row.pop("cancelled_groups", None)
    warned = [row["rule"] for row in warnings([row for row in rows if row["kind"] == "rl"])]
    assert warned == ["dead"]  # as in the metrics of an earlier version


def test_few_groups_that_cancel_are_not_the_reason():
    rows = [{**row, "cancelled_groups": 0.1, "spread_a": 0.1} for row in steps("dead_groups", [0.95] * WINDOW)]
    assert [row["rule"] for row in warnings(rows)] == ["dead"]
