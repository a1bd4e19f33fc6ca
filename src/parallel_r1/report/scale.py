"""Tables of a forecast on a cluster, and of the check of its simulation."""

from __future__ import annotations

from rich.console import Console

from parallel_r1.report.grid import rich_table
from parallel_r1.runs.scale.calibrate import Check
from parallel_r1.runs.scale.forecast import BOTTLENECKS, OFF, Forecast, Point, StageForecast, gpu_count
from parallel_r1.table import Table

COLUMNS = (
    "GPUs",
    "bottleneck",
    "step\ns",
    "draw\ns",
    "learn\ns",
    "sync\ns",
    "all\nhours",
    "GPU-\nhours",
    "tokens\n/s",
    "GB a\nGPU",
)
MEMORY = ("weights", "gradients", "moments", "reference", "gathered", "activations", "logits", "server", "cache")
"""Parts of `Memory` that a table lists."""


def print_forecast(console: Console, forecast: Forecast) -> None:
    """Print time and memory of every stage, then every assumption with its source."""
    shape, gpu = forecast.shape, forecast.options.gpu
    learns = "" if shape.learning == shape.parameters else f", {shape.learning:,} learn"
    line = f"{forecast.recipe} on {gpu.name.upper()}: {shape.parameters:,} parameters{learns}, {shape.layers} layers, "
    line += f"{shape.kv_heads} key-value heads of {shape.head}, {shape.vocabulary:,} tokens"
    console.print(line, highlight=False)
    for stage in forecast.stages:
        _print_stage(console, stage)
    console.print()
    for source in gpu.sources:
        console.print(f"published: {source}", highlight=False)
    rows = [(name, value, source) for name, value, source in forecast.assumptions()]
    console.print(rich_table(Table(("assumption", "value", "source"), rows, names=3)))
    console.print("a simulation, not a measurement; --assume NAME=VALUE changes an assumption", highlight=False)


def _print_stage(console: Console, stage: StageForecast) -> None:
    """Print one stage: its answers, its times, its memory, its notes."""
    half, most, nearly = stage.quantiles
    console.print()
    line = f"{stage.name}: {stage.steps:,} steps of {stage.answers:,} answers, {stage.step_tokens:,} tokens a step, "
    console.print(f"{line}{stage.tokens:,} in all", highlight=False)
    line = f"an answer ({stage.source}): {stage.mean:,.0f} tokens, critical path {stage.critical:,.0f} "
    line += f"(50 %: {half:,}, 90 %: {most:,}, 99 %: {nearly:,}), {stage.forking:.0%} fork"
    console.print(line, highlight=False)
    console.print(rich_table(Table(COLUMNS, [_row(point) for point in stage.points], names=2)))
    ranges = [f"{gpu_count(one.gpus)} {one.fast:,.1f} .. {one.slow:,.1f}" for one in stage.points if one.times]
    console.print(f"hours if all efficiencies are off by {OFF:.0%}: {'; '.join(ranges)}", highlight=False)
    rows = [(part, *(f"{getattr(point.memory, part) / 1e9:.2f}" for point in stage.points)) for part in MEMORY]
    for part in ("drawing", "learning", "limit"):
        rows.append((part, *(f"{getattr(point.memory, part) / 1e9:.2f}" for point in stage.points)))
    header = ("GB a GPU", *(gpu_count(point.gpus) for point in stage.points))
    console.print(rich_table(Table(header, rows), [""] * len(MEMORY) + ["bold", "bold", ""]))
    for note in stage.notes:
        console.print(note, style="yellow", soft_wrap=True, highlight=False, markup=False)


def _row(point: Point) -> tuple[str, ...]:
    """The cells of a number of GPUs; without times if the stage does not fit."""
    peak, times = f"{point.memory.peak / 1e9:.0f}", point.times
    if times is None:
        return (f"{point.gpus:,}", "does not fit", *["-"] * 7, peak)
    seconds = (times.step, times.rollout, times.score + times.update, times.sync)
    hours = (f"{point.hours:,.1f}", f"{point.gpus * point.hours:,.0f}")
    speed = f"{times.tokens / times.step:,.0f}"
    return (f"{point.gpus:,}", BOTTLENECKS[times.bottleneck], *(f"{one:,.1f}" for one in seconds), *hours, speed, peak)


def print_check(console: Console, check: Check) -> None:
    """Print the fitted constants, and predicted / measured of every case."""
    constants = f"{1000 * check.fixed:.3f} ms + {1000 * check.per_row:.4f} ms a row"
    constants += f" + {1e6 * check.per_token:.4f} us a token seen" if check.per_token else ""
    console.print(f"a decode step takes {constants} (fitted)", highlight=False)
    rows = [(one.case, f"{one.predicted:.4g}", f"{one.measured:.4g}", f"{one.ratio:.3f}") for one in check.comparisons]
    console.print(rich_table(Table(("case", "predicted s", "measured s", "predicted / measured"), rows)))
    if check.tokens:
        console.print(f"the rollout draws {check.tokens:,} tokens and reads {check.read:,}", highlight=False)
