"""The forecast of a recipe on a cluster: time, tokens and memory of every RL stage for several numbers of GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from parallel_r1.errors import UserError
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
    assumed: Assumptions = Assumptions()
    routing: Routing = "sticky"
    mode: Mode = "colocated"
    share: float = 0.5
    config: Path | None = None
    outlines: tuple[Outline, ...] = ()
    lengths: Lengths = Lengths()
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """A stage on a number of GPUs. Seconds are of one step.

    Attributes:
        problem: what does not fit, and what to lower; None if all does. Then there are no times.
        parts: seconds by bottleneck; they sum to `seconds`. `stragglers`: servers have nothing to draw, or a tenth of
            the answers is left. `network`: handing over weights, and gathering them where that outlasts the arithmetic.
        unlimited: seconds of the rollout if memory were no limit.
        read: tokens that servers read in a step: prompts, and paths again.
        simulated: seconds that the simulation took.
    """

    gpus: int
    servers: int
    memory: Memory
    problem: str | None
    seconds: float = 0.0
    rollout: float = 0.0
    score: float = 0.0
    update: float = 0.0
    sync: float = 0.0
    hours: float = 0.0
    gpu_hours: float = 0.0
    tokens_per_second: float = 0.0
    read: int = 0
    unlimited: float = 0.0
    bottleneck: str = "memory"
    parts: dict[str, float] | None = None
    simulated: float = 0.0


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
    shape: Shape
    stages: tuple[StageForecast, ...]

    def assumptions(self) -> list[tuple[str, str, str]]:
        """Every assumption: name, value, source."""
        options = self.options
        rows = [(name, f"{value:g}", REASONS[name]) for name, value in options.assumed.model_dump().items()]
        rows.append(("routing", options.routing, "a choice: --routing"))
        rows.append(("mode", options.mode, "a choice: --mode"))
        if options.mode == "separate":
            rows.append(("draw_share", f"{options.share:g}", "a choice: --draw-share"))
        if not options.outlines:
            values = options.lengths.model_dump().items()
            rows += [(f"lengths.{name}", f"{value:g}", "a guess: --lengths, or --rollouts of a run") for name, value in values]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, with times in seconds and sizes in bytes."""
        stages = [asdict(stage) for stage in self.stages]
        for stage, full in zip(stages, self.stages, strict=True):
            for point, at in zip(stage["points"], full.points, strict=True):
                point["memory"] = room.to_json(at.memory)
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
    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, RL)}
    if not stages:
        raise UserError(
            "a recipe with a stage of kind 'rl'",
            f"stages {', '.join(recipe.stages)}, none of them",
            "give another recipe: what SFT needs is in `train --dry-run`",
        )
    with fake_model(recipe, options.config) as model:
        shape = shape_of(model, recipe)
        activations = cache(partial(activation_bytes, model))
        made = tuple(_stage(recipe, name, stage, shape, activations, options) for name, stage in stages.items())
    return Forecast(recipe.name, options, shape, made)


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
        where = f"it fits on {fits:,} GPUs" if fits else "no number of GPUs is enough"
        most = points[-1]
        raise UserError(
            f"stages.{name} to fit on {most.gpus:,} {options.gpu.name.upper()}", str(most.problem).split(";")[0],
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
        notes.append(f"algorithm.refill is not counted: with it a step draws up to {1 + stage.algorithm.refill} times as much")
    if stage.stop is not None:
        notes.append("validations are not counted")
    if any(point.problem for point in points):
        fits = room.fits_from(needs, partial(layout_of, options))
        notes.append(f"it fits from {fits:,} GPUs on" if fits else "it fits only where stated")
        notes += [f"{point.gpus:,} GPUs: {point.problem}" for point in points if point.problem]
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
        raise UserError(
            f"GPUs that make servers of {assumed.gpus_per_server}" + (" and leave some to learn" if options.mode == "separate" else ""),
            f"{gpus}",
            "change --gpus, --draw-share or --assume gpus_per_server",
        )
    servers = layout.drawing // assumed.gpus_per_server
    memory = room.memory(needs, layout)
    problem = room.shortage(needs, memory)
    if problem is not None:
        return Point(gpus, servers, memory, problem)
    costs, engine = server_costs(options.gpu, needs.shape, assumed), needs.recipe.engine
    sampling = stage.sampling
    cluster = Cluster(servers, engine.rows, memory.tokens, options.routing, straggler=sampling.branches.straggler)
    start = time.perf_counter()
    drawn = simulate(answers, cluster, costs)
    roomy = Cluster(servers, engine.rows, 2**62, options.routing, straggler=sampling.branches.straggler)
    unlimited = simulate(answers, roomy, costs).seconds if drawn.waits else drawn.seconds
    took = time.perf_counter() - start
    seconds = learning.seconds(needs, layout)
    sync = sync_seconds(needs.shape, options.gpu, assumed, layout)
    parts = _parts(drawn, servers, seconds, sync, assumed.step_fixed, layout)
    step = sum(parts.values())
    lost = {**parts, "memory": drawn.seconds - unlimited}
    return Point(
        *(gpus, servers, memory, None, step),
        rollout=drawn.seconds,
        score=seconds["score"],
        update=seconds["update"],
        sync=sync,
        hours=step * stage.steps / 3600,
        gpu_hours=gpus * step * stage.steps / 3600,
        tokens_per_second=drawn.tokens / step,
        read=drawn.read,
        unlimited=unlimited,
        bottleneck=max(lost, key=lambda part: lost[part]),
        parts=parts,
        simulated=took,
    )


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
