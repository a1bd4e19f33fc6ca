"""Send the metrics of a run to TensorBoard, Weights & Biases, MLflow or trackio, in addition to metrics.jsonl."""

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
from parallel_r1.settings import flat

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "parallel-r1"
"""The project (W&B, trackio) or experiment (MLflow) of all runs, so that they can be compared."""
Row = dict[str, Any]


def check(names: Sequence[Tracker]) -> None:
    """Check that the packages of all trackers are installed.

    Raises:
        UserError: names the first missing package.
    """
    for name in names:
        need(name, "for tracking", name)


class Tracking:
    """Passes every row of metrics to Accelerate's trackers. An observer of a run, and a context manager that starts and
    finishes the trackers, so that one that cannot start fails before any training.

    W&B, MLflow and trackio continue a resumed run. TensorBoard's files are rewritten from metrics.jsonl at the first
    row: by then the rows after the last saved step, which are logged again, have been dropped.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe, self.run = recipe, run
        self.trackers: list[GeneralTracker] = []

    def __call__(self, row: Row) -> None:
        if "tensorboard" in self.recipe.tracking and all(tracker.name != "tensorboard" for tracker in self.trackers):
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
        """Start all trackers but TensorBoard, which starts at the first row."""
        self.trackers += [self.start(name) for name in self.recipe.tracking if name != "tensorboard"]

    def start(self, name: Tracker) -> GeneralTracker:
        """Start a tracker, and pass it the recipe with all defaults filled in."""
        import torch
        from accelerate import PartialState

        # As in the learner: the first call decides the device.
        PartialState(cpu=self.recipe.engine.device == "cpu" or not torch.cuda.is_available())
        with _named(name):
            tracker = self.build(name)
            tracker.start()
            tracker.store_init_configuration(settings_of(self.recipe))
            for row in self.run.metrics()[:-1] if name == "tensorboard" else ():  # the last is logged by the caller
                tracker.log(values(row), step=row["step"])
        return tracker

    def build(self, name: Tracker) -> GeneralTracker:
        """Build a tracker. If it has this run already, it continues that run."""
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

        runs = mlflow.search_runs(
            search_all_experiments=True, filter_string=f"tags.run = '{run.id}'", output_format="list"
        )
        return tracking.MLflowTracker(
            PROJECT, run_id=runs[0].info.run_id if runs else None, run_name=title, tags={"run": run.id}
        )


def values(row: Row) -> dict[str, float]:
    """The numbers of a row, under the names that trackers show: `stage/name` for a step, `stage/kind/task/name` for an
    evaluation or validation on a task, and `stage/warning/rule`, which is 1, for a warning."""
    if row["kind"] == "warning":
        return {f"{row['stage']}/warning/{row['rule']}": 1.0}
    under = f"{row['stage']}/{row['kind']}/{row['task']}" if "task" in row else row["stage"]
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return {f"{under}/{name}": value for name, value in numbers.items()}


def settings_of(recipe: Recipe) -> dict[str, str | int | float]:
    """The recipe as trackers take it: one table, with lists as JSON."""
    values = flat(recipe.model_dump(mode="json", exclude_none=True))
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}


@contextmanager
def _named(tracker: str) -> Iterator[None]:
    """Turn any exception of a tracker into a `UserError` that names the tracker."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{tracker} to take the metrics of the run",
            str(error),
            "correct that, or change --track, and give the same command again: the run resumes",
        ) from error
