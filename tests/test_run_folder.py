"""A run's folder: what is written is whole, what cannot be written is said in one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_train import make

from parallel_r1 import models, run_folder
from parallel_r1.errors import UserError
from parallel_r1.run_folder import RunFolder


def test_what_cannot_be_written_destroys_nothing(tmp_path, policy, monkeypatch):
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    run.save_state(1, {"version": 1})

    def full(value, file):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        run.save_state(2, {"version": 2})
    assert run.load_state() == {"version": 1}
    assert [path.name for path in (run.path / "state").iterdir()] == ["step-1.pt"]
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match="GB free"):
        run.check_space(10**9)


def test_states_are_pruned(tmp_path):
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    for step in (8, 9, 10, 11):
        run.save_state(step, {"version": step})
    assert sorted(path.name for path in (run.path / "state").iterdir()) == ["step-11.pt"]
    assert run.load_state() == {"version": 11}


def test_weights_that_may_be_handed_over(tmp_path, policy):
    """They are written again where a run went back; what is not the best is pruned when the state is whole."""
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    weights = policy.model.get_input_embeddings().weight
    for step in (2, 4, 4):
        with torch.no_grad():
            weights += 1
        run.save_candidate(step, policy, {"a": {"step": torch.tensor(step)}})
        assert run.candidate(2).is_dir()
    run.save_state(4, {"best": 4})
    assert not run.candidate(2).exists()
    run.save_state(5, {"best": 4})
    run.hand_over(4, "rl")
    assert not run.candidate(4).exists()
    assert torch.equal(models.load(str(run.checkpoint("rl"))).model.get_input_embeddings().weight, weights)
    assert run.moments("rl") == {"a": {"step": torch.tensor(4)}}


def test_a_line_that_was_broken_off_is_forgotten(tmp_path):
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    for step in (1, 2, 3):
        run.log({"step": step, "kind": "sft"})
    run.log({"step": 2, "kind": "evaluation", "stage": "sft", "task": "countdown-easy"})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ki')
    run.rewind(2)
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    recipe = make(tmp_path)
    RunFolder.create(tmp_path / "run", recipe)
    assert RunFolder.create(tmp_path / "run", recipe).is_unfinished(recipe)
    assert RunFolder(tmp_path / "run").is_unfinished(make(tmp_path, "processes={count=3, shard=true}"))
    recipe = make(tmp_path, "seed=1")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="holds something already"):
        RunFolder.create(tmp_path / "run", recipe)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_a_folder_whose_making_was_broken_off_is_taken_up(tmp_path, monkeypatch):
    """Whatever it is that was written last, a file or the name of a file."""
    replace, recipe = run_folder.os.replace, make(tmp_path)

    def broken_off(name):
        def act(part, path):
            if path.name == name:
                raise KeyboardInterrupt
            replace(part, path)

        return act

    for name in ("environment.json", "recipe.toml"):
        monkeypatch.setattr(run_folder.os, "replace", broken_off(name))
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(tmp_path / "run", recipe)
        assert not RunFolder(tmp_path / "run").is_unfinished(recipe)
    monkeypatch.undo()
    assert RunFolder.create(tmp_path / "run", recipe).is_unfinished(recipe)


def test_metrics_that_cannot_be_written_are_one_line(tmp_path):
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl.*No space left"):
        run.log({"step": 1, "text": "x" * 100_000})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", make(tmp_path))
