"""A run's folder: what is written is whole, what cannot be written is said in one line."""

import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from common import make, refused

from parallel_r1 import models
from parallel_r1.errors import UserError
from parallel_r1.files import whole, write_json, write_text
from parallel_r1.report.curves import picture
from parallel_r1.runs import folder as run_folder
from parallel_r1.runs.folder import RunFolder


@contextmanager
def full_disk(size):
    """No file of this process can be larger than so many bytes."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_what_cannot_be_written_destroys_nothing(tmp_path, policy):
    """Whichever library writes it, and whatever error it makes of that."""
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    run.save_state(1, {"version": 1})
    rows = [{"kind": "rl", "stage": "rl", "step": 1, "reward": 0.1, "accuracy": 0.5, "parallel_ratio": 1.0}]

    def tokenizer():
        with whole(run.path / "tokenizer") as folder:
            policy.tokenizer.save_pretrained(folder)

    writes = [
        lambda: run.save_state(2, {"version": torch.zeros(10_000)}),
        lambda: run.save_checkpoint("sft", policy),
        lambda: run.save_evaluation("sft", "countdown-easy", {"text": "x" * 10_000}),
        lambda: picture(rows, run.path / "curves.png"),
        tokenizer,
    ]
    before = sorted(run.path.rglob("*"))
    for write in writes:
        with full_disk(3000), pytest.raises(UserError, match=r"to write .*File too large.*; free some space"):
            write()
        assert sorted(run.path.rglob("*")) == before
    assert run.load_state() == {"version": 1}
    with pytest.raises(ZeroDivisionError), whole(run.path / "mistake"):
        1 / 0  # noqa: B018


def test_room_is_asked_for_what_is_still_to_be_written(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 10**6))
    with pytest.raises(UserError, match=r"expected 10\.0 MB free for checkpoints; found 3\.0 MB at"):
        run.check_space(10**7)
    for file, size in (("checkpoints/base/model.safetensors", 5 * 10**6), ("state/step-1.pt", 10**6)):
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).touch()
        os.truncate(run.path / file, size)
    with pytest.raises(UserError, match=r"expected 4\.0 MB free"):
        run.check_space(10**7)
    run.check_space(9 * 10**6)


def test_what_has_its_name_is_on_the_disk(tmp_path, monkeypatch):
    """A file or every file of a folder before it is named, and then the name."""
    told = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda at: told.append(Path(os.readlink(f"/proc/self/fd/{at}")).name) or sync(at))
    monkeypatch.setattr(os, "replace", lambda part, path: told.append("named") or replace(part, path))
    write_text(tmp_path / "file", "x")
    assert told == [".file.part", "named", tmp_path.name]
    told.clear()
    with whole(tmp_path / "folder") as part:
        (part / "in").mkdir(parents=True)
        (part / "in" / "one").touch()
        (part / "two").touch()
    assert sorted(told[:4]) == [".folder.part", "in", "one", "two"]
    assert told[4:] == ["named", tmp_path.name]
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    told.clear()
    run.log({"step": 1})
    assert told == ["metrics.jsonl"]
    told.clear()
    run.candidate(1).mkdir()
    run.hand_over(1, "rl")
    assert told == ["weights-1", "named", "checkpoints"]


@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_damaged_state_is_one_line(tmp_path, size):
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    run.save_state(1, {"version": 1, "values": torch.zeros(1000)})
    file = run.path / "state" / "step-1.pt"
    os.truncate(file, file.stat().st_size // 2 if size < 0 else size)
    with pytest.raises(UserError, match=r"a whole file .*step-1\.pt; found \w+Error: .*; remove it"):
        run.load_state()


def test_one_process_at_a_run(tmp_path, policy):
    """Another is refused while it lives. Afterwards it goes on, with other trackers too, and what it cannot write at
    the end is one line."""
    models.save(policy, tmp_path / "model")
    measured = "evaluation={tasks=['countdown-easy'],problems=1,samples=1}"
    changes = (f"model={{path='{tmp_path / 'model'}'}}", "stages.sft.steps=1", measured)
    run = RunFolder.create(tmp_path / "run", make(tmp_path, *changes).only("sft"))
    words = ["sft", tmp_path / "small.toml", "--out", run.path, *(word for each in changes for word in ("--set", each))]
    refused(*words, said=("a run that no other process works on", "wait, or give another --out"))
    del run
    (tmp_path / "run" / "table.md").mkdir()
    done = refused(*words, "--track", "tensorboard", said=("table.md", "Is a directory"))
    assert "going on in" in done.stdout
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
    recipe = make(tmp_path)
    for words in (("train", tmp_path / "small.toml"), ("study", "recipes/tiny/study.toml", "--dry-run")):
        refused(*words, "--out", tmp_path / ("x" * 300), said=("to write", "File name too long"))
    with pytest.raises(UserError, match="File name too long"):
        RunFolder.create(tmp_path / ("x" * 300), recipe)


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
    for change in ("processes={count=3, shard=true}", "tracking=['wandb']"):
        assert RunFolder(tmp_path / "run").is_unfinished(make(tmp_path, change))
    recipe = make(tmp_path, "seed=1")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=r"was begun with; found seed = 1 instead of 0; give the earlier value"):
        RunFolder.create(tmp_path / "run", recipe)
    deeper = "stages.rl.sampling.budget.path"
    with pytest.raises(UserError, match=rf"{re.escape(deeper)} = 9 instead of 10"):
        RunFolder.create(tmp_path / "run", make(tmp_path, f"{deeper}=9"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        RunFolder.create(tmp_path / "other", recipe)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_a_finished_run_says_that_it_is_finished(tmp_path):
    recipe = make(tmp_path)
    RunFolder.create(tmp_path / "run", recipe).finish()
    for change in ((), ("seed=1",)):
        with pytest.raises(UserError, match=r"found a finished run in .*run; give another --out; `parallel-r1 show"):
            RunFolder.create(tmp_path / "run", make(tmp_path, *change))


def test_data_that_changed_stop_a_run_from_going_on(tmp_path, monkeypatch):
    """Sets of problems, answers to imitate, and public sets in a folder; runs without a record of them go on."""
    monkeypatch.setenv("PARALLEL_R1_DATA", str(tmp_path))
    problem = '{"problem": "What is 1?", "answer": 1, "split": "test"}\n'
    answer = '{"prompt": "What is 1?", "text": "Final Answer: 1"}\n'
    files = {"p.jsonl": problem, "amc23.jsonl": problem, "a.jsonl": answer}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tasks = f"evaluation.tasks=['jsonl:{tmp_path}/p.jsonl@plain','amc23','countdown-easy']"
    recipe = make(tmp_path, tasks, f"stages.sft.data={{file='{tmp_path}/a.jsonl'}}")
    run = RunFolder.create(tmp_path / "run", recipe)
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("1", "2"))
        with pytest.raises(UserError, match=rf"another content of {tmp_path}/{name}; put the earlier file back"):
            run.is_begun(recipe)
        (tmp_path / name).write_text(text)
        assert run.is_begun(recipe)
    (tmp_path / "a.jsonl").write_text(answer * 2)
    (tmp_path / "run" / "data.json").unlink()
    assert run.is_begun(recipe)


def test_evaluations_have_files_of_their_own_in_the_run_folder(tmp_path):
    """Whatever a task is called; and no stage reads that of another."""
    run = RunFolder.create(tmp_path / "deep" / "run", make(tmp_path))
    tasks = ["countdown-easy", "jsonl:../../x/data/x.jsonl", "jsonl:/x/data/x.jsonl", "hub:a/b:c@d@plain", "x" * 300]
    before = {path for path in tmp_path.rglob("*") if "eval" not in path.parts}
    for stage in ("sft", "rl", "rl.2"):
        for task in tasks:
            assert run.evaluation(stage, task) is None
            run.save_evaluation(stage, task, {"stage": stage, "task": task})
    assert {path for path in tmp_path.rglob("*") if "eval" not in path.parts} == before
    assert len(list((run.path / "eval").iterdir())) == 15
    assert (run.path / "eval" / "sft.countdown-easy.json").is_file()
    assert [run.evaluation("rl", task)["task"] for task in tasks] == tasks
    assert {(row["stage"], row["task"]) for row in run.evaluations} == {
        (stage, task) for stage in ("sft", "rl", "rl.2") for task in tasks
    }


def test_evaluations_of_earlier_versions_are_read(tmp_path):
    """Where a task with folders in its name was written into folders; what lies elsewhere may be of another stage."""
    run = RunFolder.create(tmp_path / "run", make(tmp_path))
    for name in ("eval/sft.jsonl:data/x.jsonl.json", "eval/rl.jsonl:../../../x.jsonl.json"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(run.path / name, {"stage": "sft", "task": name.removeprefix("eval/").partition(".")[2][:-5]})
    assert run.evaluation("sft", "jsonl:data/x.jsonl") == {"stage": "sft", "task": "jsonl:data/x.jsonl"}
    assert run.evaluation("rl", "jsonl:../../../x.jsonl") is None
    assert [row["task"] for row in run.evaluations] == ["jsonl:data/x.jsonl"]


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
