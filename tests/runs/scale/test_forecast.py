"""The forecast of a recipe: against the figures by hand, against the estimate of a run, and its errors."""

import json
import math
from dataclasses import replace

import pytest
from common import folder_of, make
from conftest import ROOT

from parallel_r1.errors import UserError
from parallel_r1.runs import estimate
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.runs.scale.answers import Outline
from parallel_r1.runs.scale.forecast import Options, forecast, layout_of
from parallel_r1.runs.scale.hardware import GPUS, Assumptions, assume, find_gpu
from parallel_r1.runs.scale.learning import gather_seconds
from parallel_r1.runs.scale.memory import Layout

H100 = GPUS["h100"]
PLAIN = tuple(Outline(100, (900,)) for _ in range(64))
"""Answers without forks, all alike: what they take can be worked out by hand."""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A recipe for a model of four billion parameters, as a configuration without weights."""
    change = folder_of("qwen3-4b", tmp_path_factory.mktemp("model"))
    return load_recipe(ROOT / "recipes" / "qwen3-4b" / "unseen_s2.toml", [change, "stages.general.problems=8"])


def test_the_model_is_the_published_one(real):
    made = forecast(real, Options((8,), H100))
    shape = made.shape
    assert shape.parameters == shape.learning == 4_022_468_096
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head) == (36, 2560, 32, 8, 128)
    assert shape.token_bytes == 2 * 2 * 36 * 8 * 128
    assert shape.token_flops == 2 * shape.parameters  # tied: the table is the head too


def test_a_step_by_hand(real):
    """Eight servers draw 8 equal answers each; every decode step waits for the memory."""
    assumed = Assumptions()
    made = forecast(real, Options((8,), H100, outlines=PLAIN))
    (point,), shape, times = made.stages[0].points, made.shape, made.stages[0].points[0].times
    bandwidth = 0.7 * 3.35e12
    steps = sum((2 * shape.parameters + shape.token_bytes * 8 * (100 + index)) / bandwidth for index in range(900))
    read = 8 * (100 * shape.token_flops + shape.attention_flops * 100 * 99 / 2) / (0.5 * 989e12)
    assert times.rollout == pytest.approx(steps + 900 * (0.004 + 8 * 1e-5) + read)
    work = 8 * (1000 * shape.token_flops + shape.attention_flops * 1000**2 / 2)
    assert times.score == pytest.approx(work / (0.4 * 989e12))
    assert times.update == pytest.approx(4 * work / (0.35 * 989e12))  # activations are computed again
    assert times.sync == pytest.approx(2 + 2 * shape.parameters * 7 / 8 / (0.7 * 450e9))
    total = times.rollout + times.score + times.update + times.sync + assumed.step_fixed
    assert times.step == pytest.approx(total)
    assert point.hours == pytest.approx(300 * total / 3600)
    assert (times.tokens, times.read) == (64 * 900, 64 * 100)


def test_the_parts_are_the_step(real):
    for mode in ("colocated", "separate"):
        made = forecast(real, Options((8, 64), H100, mode=mode))
        for point in made.stages[0].points:
            times = point.times
            assert all(value >= 0 for value in times.parts.values())
            learnt = times.score + times.update
            both = times.rollout + learnt if mode == "colocated" else max(times.rollout, learnt)
            assert times.step == pytest.approx(both + times.sync + 5)
            assert point.fast < point.hours < point.slow


def test_memory_is_that_of_the_estimate(real, tmp_path):
    """One GPU that learns alone: the parts are those of a run in one process."""
    recipe = make(tmp_path, "stages.rl.algorithm.kl=0.1", "stages.plain.sampling.budget.total=90")
    ours = forecast(recipe, Options((1, 4), H100))
    plan = {stage.name: stage.memory for stage in estimate.make(recipe, {}).stages}
    for stage in ours.stages:
        run, (one, four) = plan[stage.name], [point.memory for point in stage.points]
        assert (one.gradients, one.moments, one.reference) == (run.gradients, run.moments, run.reference)
        assert one.weights == 4 * ours.shape.parameters == 4 * four.weights
        assert one.moments == 4 * four.moments
        assert four.activations == one.activations
    assert ours.stages[0].points[0].memory.reference > 0


def test_what_draws_leaves_room_for_what_learns(real):
    made = forecast(replace_engine(real, None), Options((4, 16), H100))
    for point in made.stages[0].points:
        memory = point.memory
        assert memory.drawing == memory.limit == int(0.9 * 80e9)
        assert memory.cache == memory.limit - memory.server - memory.weights - memory.moments
        assert memory.tokens == memory.cache // made.shape.token_bytes
    for asked, tokens in ((100_000, 100_000), ("20GB", int(20e9) // made.shape.token_bytes)):
        limited = forecast(replace_engine(real, asked), Options((8,), H100)).stages[0].points[0].memory
        assert limited.tokens == tokens
    share = forecast(replace_engine(real, "50%"), Options((8,), H100)).stages[0].points[0].memory
    assert share.drawing == pytest.approx(40e9, abs=2)


def replace_engine(recipe, memory):
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"memory": memory})})


def test_little_memory_is_a_bottleneck(real):
    made = forecast(replace_engine(real, 3300), Options((1,), H100))
    times = made.stages[0].points[0].times
    assert times.bottleneck == "memory"
    assert times.unlimited < times.rollout / 2


def test_more_gpus_take_less_time_and_more_gpu_hours(real):
    many = [real.stages["general"].model_copy(update={"problems": 128})]
    made = forecast(real.model_copy(update={"stages": {"general": many[0]}}), Options((8, 64, 512), H100))
    hours = [point.hours for point in made.stages[0].points]
    assert hours == sorted(hours, reverse=True)
    costs = [point.gpus * point.hours for point in made.stages[0].points]
    assert costs == sorted(costs)
    faster = forecast(real, Options((8,), GPUS["h200"])).stages[0].points[0]
    assert faster.hours < forecast(real, Options((8,), H100)).stages[0].points[0].hours


def test_spread_calls_read_more(real):
    sticky, spread = (
        forecast(real, Options((8,), H100, routing=routing)).stages[0].points[0].times
        for routing in ("sticky", "spread")
    )
    assert spread.read > sticky.read
    assert spread.tokens == sticky.tokens


def test_an_adapter_learns_with_less(tmp_path):
    recipe = load_recipe(
        ROOT / "recipes" / "qwen3-0.6b-lora" / "unseen_s2.toml", [folder_of("qwen3-0.6b-lora", tmp_path, layers=2)]
    )
    made = forecast(recipe, Options((1,), H100))
    assert made.shape.learning < made.shape.parameters / 10
    memory = made.stages[0].points[0].memory
    assert memory.moments == 2 * memory.gradients == 8 * made.shape.learning
    whole = recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": None})})
    assert forecast(whole, Options((1,), H100)).stages[0].points[0].times.update > made.stages[0].points[0].times.update


def test_what_does_not_fit_is_said(real):
    large = real.stages["general"].model_copy(update={"micro_tokens": 60_000})
    recipe = real.model_copy(update={"stages": {"general": large}})
    made = forecast(recipe, Options((1, 8), H100))
    one, eight = made.stages[0].points
    assert "learning needs" in one.problem
    assert one.times is None
    assert eight.problem is None
    assert any("it fits from 2 GPUs on" in note for note in made.stages[0].notes)
    with pytest.raises(UserError, match="it fits on 2 GPUs; lower micro_tokens"):
        forecast(recipe, Options((1,), H100))
    huge = real.stages["general"].model_copy(update={"micro_tokens": 600_000})
    with pytest.raises(UserError, match="no number of GPUs is enough"):
        forecast(real.model_copy(update={"stages": {"general": huge}}), Options((8,), H100))
    small = replace(H100, memory=9.3e9)
    with pytest.raises(UserError, match=r"a server holds .* tokens of keys and values, an answer has up to 3,200"):
        forecast(real, Options((4096,), small))


def test_gpus_are_divided_as_asked():
    assert layout_of(Options((), H100), 12) == Layout(12, 12, 12, False)
    pairs = Options((), H100, Assumptions(gpus_per_server=4), mode="separate", share=0.3)
    assert layout_of(pairs, 24) == Layout(24, 8, 16, True)
    assert layout_of(pairs, 4) is None
    assert layout_of(replace(pairs, mode="colocated"), 6) is None


def test_what_is_planned_otherwise_is_said(real):
    stage = real.stages["general"]
    notes = forecast(real, Options((8,), H100)).stages[0].notes
    assert notes == (
        "general: the sampler is isolated, which vLLM does not draw: planned as causal_join, scored as replay",
    )
    branches = stage.sampling.branches.model_copy(update={"spare": 1})
    changed = stage.model_copy(
        update={
            "sampling": stage.sampling.model_copy(update={"sampler": "causal_join", "branches": branches}),
            "algorithm": stage.algorithm.model_copy(update={"refill": 2}),
        }
    )
    notes = forecast(real.model_copy(update={"stages": {"general": changed}}), Options((8,), H100)).stages[0].notes
    assert ["branches.spare" in notes[0], "up to 3 times" in notes[1], len(notes)] == [True, True, 2]


def test_everything_is_in_the_json(real):
    made = forecast(real, Options((8,), H100))
    written = json.loads(json.dumps(made.to_json()))
    point = written["stages"][0]["points"][0]
    assert point["gpu_hours"] == pytest.approx(8 * point["hours"])
    assert sum(point["times"]["parts"].values()) == pytest.approx(point["times"]["step"])
    assert point["memory"]["peak"] > 0
    assert {row["name"] for row in written["assumptions"]} >= {
        *Assumptions.model_fields,
        "routing",
        "rows",
        "lengths.path",
    }
    assert all(row["source"] for row in written["assumptions"])
    assert written["gpu"]["sources"]


def test_assumptions_are_changed_by_name():
    assert assume(["train_arithmetic=0.5,step_fixed=1", "weight_bytes=2"]) == Assumptions(
        train_arithmetic=0.5, step_fixed=1, weight_bytes=2
    )
    for wrong, said in (
        ("x=1", "did you mean|use one of"),
        ("step_fixed", "NAME=VALUE"),
        ("link_share=0", "link_share"),
    ):
        with pytest.raises(UserError, match=said):
            assume([wrong])
    assert find_gpu("H200").name == "h200"
    scaled = Assumptions(decode_bandwidth=0.9).scaled(1.3)
    assert (scaled.decode_bandwidth, scaled.train_arithmetic) == (1.0, pytest.approx(0.455))
    assert scaled.step_fixed == pytest.approx(5 / 1.3)
    assert scaled.memory_share == 0.9


def test_gathering_by_hand():
    """Within a node NVLink in one direction; across nodes the eight ports of a node."""
    assert gather_seconds(10**9, H100, Assumptions(), 1) == 0
    assert gather_seconds(10**9, H100, Assumptions(), 8) == pytest.approx(7 / 8 / (0.7 * 450))
    assert gather_seconds(10**9, H100, Assumptions(), 64) == pytest.approx(63 / 64 / (0.7 * 400))
    assert math.isclose(H100.network * 8, 400e9)
