"""An algorithm in a file outside the package: registered, named by a recipe, and trained with."""

import math
from itertools import cycle

import pytest
import torch
from common import RECIPE
from conftest import ROOT

from parallel_r1 import registry
from parallel_r1.answers.rollout import Group, Problem, Rollout
from parallel_r1.answers.trace import Span, Trace
from parallel_r1.errors import UserError
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.countdown import EASY
from parallel_r1.training import loops
from parallel_r1.training.algorithms import base
from parallel_r1.training.algorithms.base import algorithm
from parallel_r1.training.batch import collate
from parallel_r1.training.sample import Sample


class Coin:
    """Countdown whose every third answer is right."""

    name = "countdown-easy"

    def __init__(self):
        self.verdicts = cycle((True, False, False))

    def problems(self, split, seed):
        return EASY.problems(split, seed)

    def verify(self, problems, answers):
        return [next(self.verdicts) for _ in problems]


def write(tmp_path, table):
    text = RECIPE.replace("algorithm = { minibatches = 2 }", f"algorithm = {table}")
    (tmp_path / "small.toml").write_text(text)
    return tmp_path / "small.toml"


@pytest.mark.slow
def test_the_example_trains_by_its_name_in_a_recipe(tmp_path, monkeypatch):
    registry.load_plugins(["examples/my_algorithm.py"], ROOT)
    monkeypatch.setattr(loops, "load_task", lambda *_: Coin())
    path = write(tmp_path, "{ name = 'batch-baseline', ceiling = 1.5, minibatches = 2, kl = 0.1 }")
    recipe = load_recipe(path, ["stages.rl.steps=2", "stages.rl.start=base", "evaluation.tasks=[]"]).only("rl")
    RunFolder.create(tmp_path / "run", recipe)
    assert load_recipe(tmp_path / "run" / "recipe.toml") == recipe
    chosen = recipe.stages["rl"].algorithm
    assert (type(chosen).__name__, chosen.name, chosen.ceiling) == ("BatchBaseline", "batch-baseline", 1.5)
    with_tokenizer = build_policy(load_recipe(path))
    before = with_tokenizer.model.get_input_embeddings().weight.detach().clone()
    steps = list(loops.run_rl(with_tokenizer, recipe.stages["rl"], 0))
    assert len(steps) == 2
    for step in steps:
        assert {"loss", "gradient_norm", "reference_kl"} <= step.metrics.keys()
        assert all(math.isfinite(value) for value in step.metrics.values())
    assert not torch.equal(before, with_tokenizer.model.get_input_embeddings().weight)


def test_a_whole_recipe_runs_with_the_example(tmp_path):
    registry.load_plugins(["examples/my_algorithm.py"], ROOT)
    recipe = load_recipe(write(tmp_path, "{ name = 'batch-baseline' }"), ["stages.rl.steps=1"]).only("sft")
    whole = load_recipe(write(tmp_path, "{ name = 'batch-baseline' }"), ["stages.rl.steps=1"])
    run = RunFolder.create(tmp_path / "run", whole)
    rows = []
    train(whole, build_policy(recipe), run, rows.append)
    assert [row["stage"] for row in rows if row["kind"] == "rl"] == ["rl", "plain"]


def test_the_loss_of_the_example_by_hand():
    """Advantages over the step; a ratio above the ceiling counts as the ceiling."""
    registry.load_plugins(["examples/my_algorithm.py"], ROOT)
    mine = base.ALGORITHMS["batch-baseline"](ceiling=1.5)
    assert mine.advantages([[1.0, 1.0], [0.0, 0.0]]) == [[0.5, 0.5], [-0.5, -0.5]]
    trace = Trace((1,), (Span((2, 3), (), True, (-1.0, -2.0)),))
    batch = collate([Sample(trace, 0.5)], "causal")
    logprobs = (batch.old + torch.tensor([0.0, math.log(1.2), math.log(3.0)])).requires_grad_()
    loss, metrics = mine.loss(logprobs, batch, 2)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * (1.2 * math.log(1.2) + 1.5 * math.log(3)) / 2)
    assert logprobs.grad[0].tolist() == pytest.approx([0, -0.5 * 1.2 / 2, -0.5 * 1.5 / 2])
    assert metrics["clip_fraction"] == 0.5


@pytest.mark.parametrize("table", ["{ name = 'batch-baselin' }", "{ name = 'batch-baseline', celing = 2.0 }"])
def test_a_misspelt_name_or_setting_of_ones_own_is_one_line(tmp_path, table):
    registry.load_plugins(["examples/my_algorithm.py"], ROOT)
    with pytest.raises(UserError, match=r"stages\.rl\.algorithm.*did you mean '(batch-baseline|ceiling)'") as caught:
        load_recipe(write(tmp_path, table))
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_algorithm_is_refused():
    with pytest.raises(UserError, match="a subclass of PolicyGradient"):

        @algorithm("nothing")
        class Nothing: ...


def test_a_class_without_advantages_names_what_is_missing():
    @algorithm("empty")
    class Empty(base.PolicyGradient): ...

    with pytest.raises(UserError, match=r"a method advantages in Empty; found none at .*test_own_algorithm.py:\d+"):
        Empty().advantages([[1.0]])


def group(*rewards):
    trace = Trace((1,), (Span((2,), (), True, (-1.0,)),))
    problem = Problem("p", "1\n", "1", "sums")
    terms = [{"accuracy": reward} for reward in rewards]
    return Group(problem, tuple(Rollout(problem, trace, ("2",), True, 1, 1, earned) for earned in terms))


@pytest.mark.parametrize(
    "returned",
    [[0.5, 0.5], [[0.5]], [[0.5], [0.5]], [[0.5, 0.5, 0.5]], [[0.5, math.nan]], [["a", 0.5]], None, [[[0.5], [0.5]]]],
)
def test_advantages_of_another_shape_are_one_line(returned):
    class Odd(base.PolicyGradient):
        def advantages(self, groups):
            return returned

    message = r"one finite number for every reward from advantages of Odd, in groups of \[2\]; found .*test_own_algo"
    with pytest.raises(UserError, match=message):
        Odd().credit([group(1.0, 0.0)])


def test_advantages_may_be_tensors():
    class Tensors(base.PolicyGradient):
        def advantages(self, groups):
            return [torch.tensor(members) - 0.5 for members in groups]

    ((one, two),) = Tensors().credit([group(1.0, 0.0)])
    assert (one.advantage, two.advantage) == (0.5, -0.5)


@pytest.mark.parametrize("wrong", ["ratio", "gain", "clipped"])
def test_a_gain_of_another_shape_is_one_line(wrong):
    """Else it is spread over all tokens in silence."""

    class Odd(base.PolicyGradient):
        def ratio(self, log_ratio, counted, batch):
            return log_ratio.exp().sum(-1, keepdim=True) if wrong == "ratio" else log_ratio.exp()

        def gain(self, ratio, batch):
            gain, clipped = ratio * batch.advantages, torch.zeros_like(batch.sampled)
            return gain.mean() if wrong == "gain" else gain, clipped[:, :1] if wrong == "clipped" else clipped

    batch = collate([Sample(group(1.0).rollouts[0].trace, 0.5)], "causal")
    with pytest.raises(UserError, match=r"of the shape \(1, 2\), one for every token; found .*test_own_algorithm"):
        Odd().loss(batch.old, batch, 2)
