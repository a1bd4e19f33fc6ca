"""The simulation against a measurement: fit the constants of a decode step, and predict a rollout that was timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from parallel_r1.errors import UserError
from parallel_r1.runs.scale.answers import Outline, outline
from parallel_r1.runs.scale.costs import Costs
from parallel_r1.runs.scale.simulate import Cluster, Routing, simulate
from parallel_r1.settings import Count, Section
from parallel_r1.training.settings import RL

Positive = Annotated[float, Field(gt=0)]


class StepTime(Section):
    """A decode step that was timed.

    Attributes:
        batch: rows of the step, each of which got one token.
        context: tokens that all rows together saw, or the mean of that over several steps; None if unknown.
        seconds: of the step.
    """

    batch: Count
    context: Annotated[float, Field(ge=0)] | None = None
    seconds: Positive


class RolloutTime(Section):
    """A rollout that was timed.

    Attributes:
        answers: the form of every answer: trunk tokens and lists of the tokens of paths in turn, such as
            [32, [48, 40], 24]. None: those of --rollouts.
        prompt: tokens of every prompt.
        servers, rows: number of servers, and calls that each draws at the same time.
        capacity: tokens whose keys and values a server holds; None for no limit.
        routing: "sticky" or "spread".
        seconds: from the first call to the end of the last answer.
    """

    answers: list[list[Any]] | None = None
    prompt: Annotated[int, Field(ge=0)] = 0
    servers: Count = 1
    rows: Count
    capacity: Count | None = None
    routing: Routing = "sticky"
    seconds: Positive


class Measured(Section):
    """The file of `--check`.

    Attributes:
        steps: timed decode steps with at least two sizes of batch. If all of them have a context, the time that a
            step takes for every token that is seen is fitted too.
        read_seconds_per_token: to read a token of a prompt, or of a path after a join; 0 leaves it out.
        rollout: a rollout on the same servers; None if only the steps are fitted.
    """

    steps: Annotated[list[StepTime], Field(min_length=2)]
    read_seconds_per_token: Annotated[float, Field(ge=0)] = 0.0
    rollout: RolloutTime | None = None


@dataclass(frozen=True)
class Comparison:
    """A prediction beside what was measured.

    Attributes:
        case: what was timed.
        predicted, measured: seconds.
    """

    case: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted / measured."""
        return self.predicted / self.measured


@dataclass(frozen=True)
class Check:
    """The fitted constants of a decode step in seconds, and every comparison.

    Attributes:
        fixed, per_row, per_token: a step takes fixed + per_row * batch + per_token * context.
        tokens, read: tokens that the simulated rollout drew and read; 0 without a rollout.
    """

    fixed: float
    per_row: float
    per_token: float
    comparisons: tuple[Comparison, ...]
    tokens: int = 0
    read: int = 0

    def to_json(self) -> dict[str, Any]:
        """Everything, with the ratios."""
        rows = [{**asdict(comparison), "ratio": comparison.ratio} for comparison in self.comparisons]
        return {**asdict(self), "comparisons": rows}


def fit_step(steps: Sequence[StepTime]) -> tuple[float, float, float]:
    """The constants of seconds = fixed + per_row * batch + per_token * context, none below 0, with the least sum of
    squared relative errors. Without contexts `per_token` is 0.

    Raises:
        UserError: all steps have the same batch.
    """
    if len({step.batch for step in steps}) < 2:
        raise UserError("timed steps with at least two sizes of batch", f"only {steps[0].batch}", "time another size")
    contexts = [step.context for step in steps]
    known = (
        [0.0 if context is None else context for context in contexts] if None not in contexts else [0.0] * len(steps)
    )
    rows = [(1.0, step.batch, context) for step, context in zip(steps, known, strict=True)]
    columns = np.array(rows) / np.array([[step.seconds] for step in steps])
    best, least = np.zeros(3), np.inf
    for kept in product((False, True), repeat=3):  # of all ways to leave constants out, the best without one below 0
        if not any(kept):
            continue
        values = np.zeros(3)
        values[list(kept)] = np.linalg.lstsq(columns[:, list(kept)], np.ones(len(steps)), rcond=None)[0]
        error = float(((columns @ values - 1) ** 2).sum())
        if values.min() >= 0 and error < least:
            best, least = values, error
    fixed, per_row, per_token = map(float, best)
    return fixed, per_row, per_token


def read_measured(path: Path) -> Measured:
    """The measurements of a file.

    Raises:
        UserError: no such file, no JSON, or JSON of another form.
    """
    fix = "docs/scale.md shows the file"
    try:
        return Measured.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError("a file of measurements for --check", f"{path}: {error.strerror}", fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"measurements in {path}", f"{place}: {first['msg']}", fix) from error
    except ValueError as error:
        raise UserError(f"JSON in {path}", str(error), fix) from error


def check(measured: Measured, stage: RL, saved: Sequence[Outline] = ()) -> Check:
    """Fit the steps, and predict the rollout with nothing but the fitted constants and the time to read a token.

    Args:
        stage: says what happens after a join and which paths are cut off.
        saved: forms of answers, for a rollout that has none of its own.

    Raises:
        UserError: the rollout has no answers, or some of another form.
    """
    fixed, per_row, per_token = constants = fit_step(measured.steps)
    compared = [
        Comparison(
            f"step of {step.batch}" + (f" that see {step.context:,.0f}" if step.context is not None else ""),
            fixed + per_row * step.batch + per_token * (step.context or 0.0),
            step.seconds,
        )
        for step in measured.steps
    ]
    timed = measured.rollout
    if timed is None:
        return Check(*constants, tuple(compared))
    answers = list(saved)
    if timed.answers is not None:
        answers = [outline(timed.prompt, parts, f"answer {number}") for number, parts in enumerate(timed.answers, 1)]
    if not answers:
        raise UserError("answers of the timed rollout", "none", "give rollout.answers, or --rollouts FILE")
    cluster = Cluster(
        timed.servers,
        timed.rows,
        timed.capacity or 2**62,
        timed.routing,
        rereads=stage.sampling.sampler != "isolated",
        straggler=stage.sampling.branches.straggler,
    )
    reading = measured.read_seconds_per_token
    drawn = simulate(answers, cluster, Costs(held=per_token, fixed=fixed, per_row=per_row, prefill=reading))
    compared.append(Comparison(f"rollout, answers: {len(answers):,}", drawn.seconds, timed.seconds))
    return Check(*constants, tuple(compared), drawn.tokens, drawn.read)
