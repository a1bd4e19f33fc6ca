"""The forecast of a recipe on a cluster: time, tokens and memory of every RL stage for several numbers of GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Engine
from parallel_r1.runs.activations import activation_bytes
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.scale import memory as room
from parallel_r1.runs.scale.answers import Lengths, Outline, quantile, spread_over
from parallel_r1.runs.scale.costs import server_costs
from parallel_r1.runs.scale.hardware import GPU, REASONS, Assumptions
from parallel_r1.runs.scale.learning import Learning, learning_of, sync_seconds
from parallel_r1.runs.scale.memory import Layout, Memory, Needs
from parallel_r1.runs.scale.model import Shape, fake_model, shape_of
from parallel_r1.runs.scale.simulate import Cluster, Drawn, Routing, simulate
from parallel_r1.training.settings import RL

Mode = Literal["colocated", "separate"]
"""`colocated`: all GPUs draw, then all GPUs learn. `separate`: some GPUs draw the answers of the next step while the
others learn from those of the last."""
MOST = 0.9
"""What comes after this share of the answers has ended is waiting for stragglers."""
OFF = 0.3
"""How far all efficiencies may be off in the range of hours."""
BOTTLENECKS = {
    "bandwidth": "decode bandwidth",
    "arithmetic": "arithmetic",
    "overhead": "overhead of decode steps",
    "stragglers": "stragglers",
    "network": "weight sync and network",
    "fixed": "work outside the GPUs",
    "memory": "memory",
}
"""Name of a bottleneck -> how it is printed."""


@dataclass(frozen=True)
class Options:
    """What is asked, beside the recipe.

    Attributes:
        gpus: numbers of GPUs.
        routing: see `simulate.Routing`.
        share: share of the GPUs that draw in the mode `separate`.
        config: a config.json or its folder, in place of the recipe's model.
        outlines: forms of answers of saved rollouts; drawn from `lengths` if there are none.
        seed: of the answers that are drawn.
    """

    gpus: tuple[int, ...]
    gpu: GPU
    assumed: Assumptions = field(default_factory=Assumptions)
    routing: Routing = "sticky"
    mode: Mode = "colocated"
    share: float = 0.5
    config: Path | None = None
    outlines: tuple[Outline, ...] = ()
    lengths: Lengths = field(default_factory=Lengths)
    seed: int = 0


@dataclass(frozen=True)
class Times:
    """Seconds of one step.

    Attributes:
        rollout, score, update, sync: of its phases; what else there is takes `Assumptions.step_fixed`.
        parts: seconds by bottleneck; they sum to `step`. `stragglers`: servers have nothing to draw, or a tenth of the
            answers is left. `network`: handing over weights, and gathering them where that outlasts the arithmetic.
        unlimited: seconds of the rollout if memory were no limit.
        tokens, read: tokens that servers draw and read; what they read are prompts, and paths after joins.
    """

    rollout: float
    score: float
    update: float
    sync: float
    parts: dict[str, float]
    unlimited: float
    tokens: int
    read: int

    @property
    def step(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """What most of the step waits for, or memory if the lack of it costs more than that."""
        seconds = {**self.parts, "memory": self.rollout - self.unlimited}
        return max(seconds, key=lambda part: seconds[part])


@dataclass(frozen=True)
class Point:
    """A stage on a number of GPUs.

    Attributes:
        problem: what does not fit, and what to lower; None if all does.
        times: None if it does not fit.
        hours: of all steps.
        fast, slow: the same if all efficiencies were higher or lower by `OFF`, and all overheads lower or higher.
        simulated: seconds that the simulations of this point took.
    """

    gpus: int
    servers: int
    memory: Memory
    problem: str | None
    times: Times | None = None
    hours: float = 0.0
    fast: float = 0.0
    slow: float = 0.0
    simulated: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, with the sums."""
        row = {**asdict(self), "memory": room.to_json(self.memory), "gpu_hours": self.gpus * self.hours}
        if self.times is not None:
            more = {"step": self.times.step, "bottleneck": self.times.bottleneck}
            row["times"] = {**row["times"], **more, "tokens_per_second": self.times.tokens / self.times.step}
        return row


@dataclass(frozen=True)
class StageForecast:
    """An RL stage on every number of GPUs.

    Attributes:
        answers: answers of a step.
        step_tokens, tokens: tokens of a step, and of the stage.
        mean, critical: mean tokens and mean critical path of an answer.
        quantiles: 50, 90 and 99 % quantiles of the critical path.
        forking: share of the answers that fork.
        source: where the lengths come from.
        notes: what is planned otherwise than the recipe says, or not counted.
    """

    name: str
    steps: int
    answers: int
    step_tokens: int
    tokens: int
    mean: float
    critical: float
    quantiles: tuple[int, int, int]
    forking: float
    source: str
    notes: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Forecast:
    """The forecast of a recipe."""

    recipe: str
    options: Options
    engine: Engine
    shape: Shape
    stages: tuple[StageForecast, ...]

    def assumptions(self) -> list[tuple[str, str, str]]:
        """Every assumption: name, value, source."""
        options = self.options
        rows = [(name, f"{value:g}", REASONS[name]) for name, value in options.assumed.model_dump().items()]
        rows.append(("rows", f"{self.engine.rows:,}", "the recipe's engine.rows: calls that a server draws at once"))
        rows.append(
            ("memory", str(self.engine.memory or "-"), "the recipe's engine.memory: keys and values of a server")
        )
        rows.append(("routing", options.routing, "a choice: --routing"))
        rows.append(("mode", options.mode, "a choice: --mode"))
        if options.mode == "separate":
            rows.append(("draw_share", f"{options.share:g}", "a choice: --draw-share"))
        if not options.outlines:
            values = options.lengths.model_dump().items()
            rows += [
                (f"lengths.{name}", f"{value:g}", "a guess: --lengths, or --rollouts of a run")
                for name, value in values
            ]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, with times in seconds and sizes in bytes."""
        stages = [{**asdict(stage), "points": [point.to_json() for point in stage.points]} for stage in self.stages]
        return {
            "recipe": self.recipe,
            "gpu": asdict(self.options.gpu),
            "model": asdict(self.shape),
            "stages": stages,
            "assumptions": [
                {"name": name, "value": value, "source": source} for name, value, source in self.assumptions()
            ],
        }


def forecast(recipe: Recipe, options: Options) -> Forecast:
    """The forecast of the RL stages of a recipe.

    Raises:
        UserError: no RL stage, no configuration of the model, or a stage that fits on none of the numbers of GPUs.
    """
    stages = rl_stages(recipe)
    with fake_model(recipe, options.config) as model:
        shape = shape_of(model, recipe)
        activations = cache(partial(activation_bytes, model))
        made = tuple(_stage(recipe, name, stage, shape, activations, options) for name, stage in stages.items())
    return Forecast(recipe.name, options, recipe.engine, shape, made)


def rl_stages(recipe: Recipe) -> dict[str, RL]:
    """The RL stages of a recipe.

    Raises:
        UserError: it has none.
    """
    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, RL)}
    if not stages:
        raise UserError(
            "a recipe with a stage of kind 'rl'",
            f"stages {', '.join(recipe.stages)}, none of them",
            "give another recipe: what SFT needs is in `train --dry-run`",
        )
    return stages


def gpu_count(gpus: int) -> str:
    """A number of GPUs in words."""
    return "1 GPU" if gpus == 1 else f"{gpus:,} GPUs"


def layout_of(options: Options, gpus: int) -> Layout | None:
    """How so many GPUs are divided; None if there are too few."""
    size = options.assumed.gpus_per_server
    if options.mode == "colocated":
        return Layout(gpus, gpus, gpus, False) if gpus % size == 0 else None
    drawing = round(gpus * options.share / size) * size
    return Layout(gpus, drawing, gpus - drawing, True) if 0 < drawing < gpus else None


def _stage(
    recipe: Recipe, name: str, stage: RL, shape: Shape, activations: room.Activations, options: Options
) -> StageForecast:
    """The forecast of one stage."""
    count = stage.problems * stage.group
    if options.outlines:
        answers = spread_over(options.outlines, count, options.seed)
        source = f"{len(options.outlines):,} saved answers"
    else:
        answers, source = options.lengths.draw(stage.sampling, count, options.seed), "declared, --lengths"
    prompt = max(answer.prompt for answer in answers)
    needs = room.needs_of(recipe, stage, shape, options.gpu, options.assumed, prompt, activations)
    learning = learning_of(stage, answers, shape)
    points = tuple(_point(gpus, stage, answers, needs, learning, options) for gpus in options.gpus)
    if all(point.problem for point in points):
        fits = room.fits_from(needs, partial(layout_of, options))
        where = f"it fits on {gpu_count(fits)}" if fits else "no number of GPUs is enough"
        most = points[-1]
        raise UserError(
            f"stages.{name} to fit on {most.gpus:,} {options.gpu.name.upper()}",
            str(most.problem).split(";")[0],
            f"{where};{str(most.problem).partition(';')[2]}",
        )
    chains = [answer.critical_path for answer in answers]
    total = sum(answer.total for answer in answers)
    return StageForecast(
        name=name,
        steps=stage.steps,
        answers=count,
        step_tokens=total,
        tokens=total * stage.steps,
        mean=total / count,
        critical=sum(chains) / count,
        quantiles=(quantile(chains, 0.5), quantile(chains, 0.9), quantile(chains, 0.99)),
        forking=sum(answer.forks > 0 for answer in answers) / count,
        source=source,
        notes=tuple(_notes(name, stage, needs, points, options)),
        points=points,
    )


def _notes(name: str, stage: RL, needs: Needs, points: Sequence[Point], options: Options) -> list[str]:
    """What is planned otherwise than the recipe says, or not counted."""
    notes = []
    sampling = stage.sampling
    if sampling.sampler == "isolated":
        notes.append("the sampler is isolated, which vLLM does not draw: planned as causal_join, scored as replay")
    if sampling.branches.spare or sampling.branches.agree:
        notes.append("branches.spare and branches.agree are not modelled: all paths are drawn to their end")
    if stage.algorithm.refill:
        notes.append(
            f"algorithm.refill is not counted: with it a step draws up to {1 + stage.algorithm.refill} times as much"
        )
    if stage.stop is not None:
        notes.append("validations are not counted")
    if any(point.problem for point in points):
        fits = room.fits_from(needs, partial(layout_of, options))
        notes.append(f"it fits from {gpu_count(fits)} on" if fits else "it fits only where stated")
        notes += [f"on {gpu_count(point.gpus)}: {point.problem}" for point in points if point.problem]
    return [f"{name}: {note}" for note in notes]


def _point(
    gpus: int, stage: RL, answers: Sequence[Outline], needs: Needs, learning: Learning, options: Options
) -> Point:
    """A stage on so many GPUs.

    Raises:
        UserError: the GPUs cannot be divided as asked.
    """
    assumed, layout = options.assumed, layout_of(options, gpus)
    if layout is None:
        rest = " and leave some to learn" if options.mode == "separate" else ""
        raise UserError(
            f"GPUs that make servers of {assumed.gpus_per_server}{rest}",
            f"{gpus}",
            "change --gpus, --draw-share or --assume gpus_per_server",
        )
    at = room.memory(needs, layout)
    problem, servers = room.shortage(needs, at), layout.drawing // assumed.gpus_per_server
    if problem is not None:
        return Point(gpus, servers, at, problem)
    straggler = stage.sampling.branches.straggler
    cluster = Cluster(servers, needs.recipe.engine.rows, at.tokens, options.routing, straggler=straggler)
    start = time.perf_counter()
    times, fast, slow = (
        _times(answers, cluster, replace(needs, assumed=assumed.scaled(factor)), learning, layout)
        for factor in (1.0, 1 + OFF, 1 - OFF)
    )
    took = time.perf_counter() - start
    hours, least, most = (one.step * stage.steps / 3600 for one in (times, fast, slow))
    return Point(gpus, servers, at, None, times, hours, least, most, took)


def _times(answers: Sequence[Outline], cluster: Cluster, needs: Needs, learning: Learning, layout: Layout) -> Times:
    """The times of a step."""
    costs = server_costs(needs.gpu, needs.shape, needs.assumed)
    drawn = simulate(answers, cluster, costs)
    roomy = replace(cluster, capacity=2**62)
    unlimited = simulate(answers, roomy, costs).seconds if drawn.waits else drawn.seconds
    learnt = learning.seconds(needs, layout)
    sync = sync_seconds(needs.shape, needs.gpu, needs.assumed, layout)
    parts = _parts(drawn, cluster.servers, learnt, sync, needs.assumed.step_fixed, layout)
    return Times(drawn.seconds, learnt["score"], learnt["update"], sync, parts, unlimited, drawn.tokens, drawn.read)


def _parts(
    drawn: Drawn, servers: int, learnt: dict[str, float], sync: float, fixed: float, layout: Layout
) -> dict[str, float]:
    """Seconds of a step by bottleneck. Where drawing and learning go on at the same time, the longer one counts."""
    ends = sorted(drawn.ends)
    late = float(ends[max(0, int(MOST * len(ends)) - 1)])
    busy = {name: value / servers for name, value in drawn.busy(late).items()}
    drawing = {
        "bandwidth": busy["bandwidth"],
        "arithmetic": busy["arithmetic"] + busy["prefill"],
        "overhead": busy["overhead"],
        "stragglers": drawn.seconds - sum(busy.values()),
        "network": 0.0,
    }
    learning = {**dict.fromkeys(drawing, 0.0), "arithmetic": learnt["arithmetic"], "network": learnt["network"]}
    if layout.separate:
        parts = max(drawing, learning, key=lambda side: sum(side.values()))
    else:
        parts = {name: drawing[name] + learning[name] for name in drawing}
    return {**parts, "network": parts["network"] + sync, "fixed": fixed}
