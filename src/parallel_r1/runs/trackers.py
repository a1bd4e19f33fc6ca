"""The metrics of a run in TensorBoard, Weights & Biases, MLflow or trackio, beside metrics.jsonl."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parallel_r1.distributed import by_first
from parallel_r1.errors import UserError, need
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe import Recipe, Tracker

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "parallel-r1"
"""What W&B and trackio call a project and MLflow an experiment: all runs stand in one, so that they can be compared."""
Row = dict[str, Any]


def check(names: Sequence[Tracker]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        UserError: names the first.
    """
    for name in names:
        need(name, "for tracking", name)


class Tracking:
    """Tells Accelerate's trackers every row of metrics; an observer of a run, and a context that starts and ends them,
    so that one which fails has cost nothing yet.

    A run that goes on is the same run to W&B, MLflow and trackio. TensorBoard's files are written anew from
    metrics.jsonl, which is right when the first row comes: what was logged after the last saved step comes again.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe, self.run = recipe, run
        self.trackers: list[GeneralTracker] = []

    def __call__(self, row: Row) -> None:
        if "tensorboard" in self.recipe.tracking and all(each.name != "tensorboard" for each in self.trackers):
            self.trackers.append(self.start("tensorboard"))
        for tracker in self.trackers:
            with _named(tracker.name):
                tracker.log(values(row), step=row["step"])

    def __enter__(self) -> Tracking:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers:
            tracker.finish()

    @by_first
    def begin(self) -> None:
        """Start all but TensorBoard."""
        self.trackers += [self.start(name) for name in self.recipe.tracking if name != "tensorboard"]

    def start(self, name: Tracker) -> GeneralTracker:
        """A tracker that knows the run's name and its resolved recipe."""
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())  # as the learner's: whoever comes first decides for both
        with _named(name):
            tracker = self.build(name)
            tracker.start()
            tracker.store_init_configuration(flat(self.recipe.model_dump(mode="json", exclude_none=True)))
            for row in self.run.metrics()[:-1] if name == "tensorboard" else ():  # the last is about to be told
                tracker.log(values(row), step=row["step"])
        return tracker

    def build(self, name: Tracker) -> GeneralTracker:
        """The tracker of a name, which goes on with what it knows of the run."""
        from accelerate import tracking

        run, title = self.run, self.run.path.resolve().name
        if name == "tensorboard":
            shutil.rmtree(run.path / name, ignore_errors=True)
            return tracking.TensorBoardTracker(name, run.path)
        if name == "wandb":
            return tracking.WandBTracker(PROJECT, name=title, id=run.id, resume="allow", dir=run.path)
        if name == "trackio":
            return tracking.TrackioTracker(PROJECT, name=f"{title}-{run.id}", resume="allow")
        import mlflow

        known = mlflow.search_runs(
            search_all_experiments=True, filter_string=f"tags.run = '{run.id}'", output_format="list"
        )
        return tracking.MLflowTracker(
            PROJECT, run_id=known[0].info.run_id if known else None, run_name=title, tags={"run": run.id}
        )


def values(row: Row) -> dict[str, float]:
    """The numbers of a row under the names that trackers show: `stage/name` of a step, `stage/kind/task/name` of what
    was measured on a task, `stage/warning/rule` of a warning, which is 1."""
    if row["kind"] == "warning":
        return {f"{row['stage']}/warning/{row['rule']}": 1.0}
    under = f"{row['stage']}/{row['kind']}/{row['task']}" if "task" in row else row["stage"]
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return {f"{under}/{name}": value for name, value in numbers.items()}


def flat(table: dict[str, Any], above: str = "") -> dict[str, str | int | float]:
    """Nested tables as one, its keys joined by dots; lists as JSON."""
    found: dict[str, str | int | float] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
        else:
            found[above + key] = json.dumps(value) if isinstance(value, list) else value
    return found


@contextmanager
def _named(tracker: str) -> Iterator[None]:
    """Say in one line which tracker failed. What it raises may be anything."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{tracker} to take the metrics of the run",
            str(error),
            "mend that, or change --track, and give the same command again: the run goes on",
        ) from error
