"""What trackers are told, read back from what they wrote."""

import json
from importlib.util import find_spec

import pytest
from common import make

from parallel_r1 import errors
from parallel_r1.errors import UserError
from parallel_r1.runs import trackers as tracking
from parallel_r1.runs.curriculum import Curriculum
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.trackers import Tracking, settings_of, values

ROWS = [
    {"step": 1, "kind": "sft", "stage": "sft", "stage_step": 1, "loss": 2.5},
    {"step": 1, "kind": "evaluation", "stage": "sft", "task": "countdown-easy", "mean": 0.5, "well_formed": None},
    {"step": 2, "kind": "rl", "stage": "rl", "stage_step": 1, "loss": -0.25},
    {"step": 2, "kind": "warning", "stage": "rl", "rule": "serial", "warning": "serial collapse"},
    {"step": 3, "kind": "rl", "stage": "rl", "stage_step": 2, "loss": 0.0},
]
TOLD = {
    "sft/stage_step": [(1, 1)],
    "sft/loss": [(1, 2.5)],
    "sft/evaluation/countdown-easy/mean": [(1, 0.5)],
    "rl/stage_step": [(2, 1), (3, 2)],
    "rl/loss": [(2, -0.25), (3, 0.0)],
    "rl/warning/serial": [(2, 1)],
}


def follow(run, recipe, rows):
    """What `train` does: a row is logged, then told."""
    with Tracking(recipe, run) as told:
        for row in rows:
            run.log(row)
            told(row)


@pytest.fixture
def begun(tmp_path):
    """A folder for a run that a tracker of this name follows."""

    def begin(name):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
        recipe = make(tmp_path, f'tracking=["{name}"]')
        return RunFolder.create(tmp_path / "run", recipe), recipe

    return begin


def broken_off(run, recipe):
    """Follow a run that is broken off after a step that was not saved, and goes on."""
    lost = {"step": 3, "kind": "rl", "stage": "rl", "stage_step": 2, "loss": 0.0}
    follow(run, recipe, [*ROWS[:4], lost])
    run.save_evaluation("sft", "countdown-easy", {"mean": 0.5})
    run.rewind(2)
    follow(run, recipe, ROWS[4:])


def test_the_names_that_trackers_show():
    found = {}
    for row in ROWS:
        for name, value in values(row).items():
            found.setdefault(name, []).append((row["step"], value))
    assert found == TOLD


def test_a_recipe_is_flat_for_trackers(tmp_path):
    found = settings_of(make(tmp_path))
    assert found["name"] == "small"
    assert found["stages.rl.algorithm.minibatches"] == 2
    assert found["stages.sft.data.tasks.countdown-easy"] == 1.0
    assert json.loads(found["compare"]) == [["rl", "sft"]]
    assert all(isinstance(value, str | int | float) for value in found.values())


def test_without_trackers_nothing_is_written(tmp_path):
    recipe = make(tmp_path)
    run = RunFolder.create(tmp_path / "run", recipe)
    before = sorted(run.path.iterdir())
    follow(run, recipe, ROWS)
    assert sorted(run.path.iterdir()) == sorted([*before, run.path / "metrics.jsonl"])


def test_a_tracker_that_is_missing_or_misspelt_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "wandb" else name)
    tracking.check(["tensorboard"])
    with pytest.raises(UserError, match=r"wandb, for tracking; .* pip install 'parallel-r1\[wandb\]'"):
        tracking.check(["tensorboard", "wandb"])
    with pytest.raises(UserError, match="'tensorboard', 'wandb', 'mlflow' or 'trackio'"):
        make(tmp_path, 'tracking=["tensorbord"]')


def test_a_tracker_that_fails_is_named(tmp_path, monkeypatch):
    def build(self, name):
        raise RuntimeError("no key\nin two lines")

    monkeypatch.setattr(Tracking, "build", build)
    recipe = make(tmp_path, 'tracking=["mlflow"]')
    run = RunFolder.create(tmp_path / "run", recipe)
    said = r"mlflow to take the metrics of the run; found no key in two lines; .*resumes"
    with pytest.raises(UserError, match=said), Tracking(recipe, run):
        raise AssertionError("something was measured before")


def test_what_was_measured_when_a_tracker_fails_is_not_measured_again(tmp_path, policy):
    recipe = make(tmp_path)
    run = RunFolder.create(tmp_path / "run", recipe)
    stage = recipe.stages["rl"]

    def fail(row):
        raise UserError("a tracker", "none", "mend it")

    with pytest.raises(UserError, match="a tracker"):
        Curriculum(recipe, run, fail).measure("base", stage, policy)
    again = Curriculum(recipe, run, fail)
    again.measure("base", stage, None)
    (row,) = run.metrics()
    (result,) = again.results
    assert (row["kind"], row["stage"], row["mean"]) == ("evaluation", "base", result.mean)


def test_tensorboard_has_every_number_once(begun):
    """Read back from its event files, after a run that was broken off."""
    run, recipe = begun("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    broken_off(run, recipe)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == TOLD
    (config,) = (run.path / "tensorboard").rglob("hparams.yml")
    assert "stages.rl.algorithm.minibatches: 2" in config.read_text()


def test_mlflow_goes_on_in_the_same_run(begun, tmp_path, monkeypatch):
    run, recipe = begun("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    broken_off(run, recipe)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'parallel-r1'")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.run_name == "run"
    assert one.data.params["stages.rl.algorithm.minibatches"] == "2"
    for name, points in TOLD.items():
        history = {(each.step, each.value) for each in client.get_metric_history(one.info.run_id, name)}
        assert history == set(points)


def test_wandb_offline(begun, monkeypatch):
    """Without a network: a run with its folder's id, its config, and every number in what would be sent."""
    run, recipe = begun("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    follow(run, recipe, ROWS)
    (file,) = (run.path / "wandb").glob(f"offline-run-*-{run.id}/*.wandb")
    sent = file.read_bytes()
    for text in (*TOLD, "-0.25", "2.5", "parallel-r1", "stages.rl.algorithm.minibatches"):
        assert text.encode() in sent


def test_trackio_goes_on_in_the_same_run(begun, tmp_path, monkeypatch):
    run, recipe = begun("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    broken_off(run, recipe)
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("parallel-r1")
    assert name == f"run-{run.id}"
    rows = SQLiteStorage.get_logs("parallel-r1", name)
    assert {metric: sorted({(row["step"], row[metric]) for row in rows if metric in row}) for metric in TOLD} == TOLD
    assert SQLiteStorage.get_run_config("parallel-r1", name)["stages.rl.algorithm.minibatches"] == 2
