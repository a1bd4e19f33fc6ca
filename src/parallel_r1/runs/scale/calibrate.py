"""The simulation against a measurement: fit the constants of a decode step, and predict a rollout that was timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
        seconds: of the step.
    """

    batch: Count
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
        steps: timed decode steps with at least two sizes of batch.
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
        tokens, read: tokens that the simulated rollout drew and read; 0 without a rollout.
    """

    fixed: float
    per_row: float
    comparisons: tuple[Comparison, ...]
    tokens: int = 0
    read: int = 0

    def to_json(self) -> dict[str, Any]:
        """Everything, with the ratios."""
        rows = [{**asdict(comparison), "ratio": comparison.ratio} for comparison in self.comparisons]
        return {**asdict(self), "comparisons": rows}


def fit_step(steps: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The constants `fixed` and `per_row` of seconds = fixed + per_row * batch, both at least 0, with the least sum of
    squared relative errors.

    Args:
        steps: (batch, seconds) of timed steps.

    Raises:
        UserError: all have the same batch.
    """
    batch, seconds = np.array(steps, dtype=float).T
    if len(set(batch)) < 2:
        raise UserError("timed steps with at least two sizes of batch", f"only {batch[0]:.0f}", "time another size")
    columns = np.stack([1 / seconds, batch / seconds], axis=1)
    ones = np.ones(len(seconds))
    fixed, per_row = np.linalg.lstsq(columns, ones, rcond=None)[0]
    if fixed < 0 or per_row < 0:  # the best of the two edges
        edges = []
        for column in (0, 1):
            value = columns[:, column] @ ones / (columns[:, column] @ columns[:, column])
            edges.append((float(((columns[:, column] * value - 1) ** 2).sum()), column, float(value)))
        _, column, value = min(edges)
        fixed, per_row = (value, 0.0) if column == 0 else (0.0, value)
    return float(fixed), float(per_row)


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
    steps = [(step.batch, step.seconds) for step in measured.steps]
    fixed, per_row = fit_step(steps)
    compared = [Comparison(f"step of {batch}", fixed + per_row * batch, seconds) for batch, seconds in steps]
    timed = measured.rollout
    if timed is None:
        return Check(fixed, per_row, tuple(compared))
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
    drawn = simulate(answers, cluster, Costs(fixed=fixed, per_row=per_row, prefill=measured.read_seconds_per_token))
    compared.append(Comparison(f"rollout of {len(answers):,} answers", drawn.seconds, timed.seconds))
    return Check(fixed, per_row, tuple(compared), drawn.tokens, drawn.read)
