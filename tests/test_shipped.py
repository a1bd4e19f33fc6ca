"""The recipes and the tiny model that ship: from any folder, and in a wheel that stands alone."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from parallel_r1 import models
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.runs.study.work import fingerprint
from parallel_r1.shipped import resolve, root


def test_what_exists_from_the_current_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert root() == ROOT
    assert resolve("models/tiny-base") == str(ROOT / "models" / "tiny-base")
    assert resolve(Path("recipes/tiny/demo.toml")) == ROOT / "recipes" / "tiny" / "demo.toml"
    (tmp_path / "models" / "tiny-base").mkdir(parents=True)
    assert resolve("models/tiny-base") == "models/tiny-base"


@pytest.mark.parametrize("path", ["README.md", "models/none", "./models/none", "recipes/../README.md", "Qwen/Qwen3-4B"])
def test_other_paths_stay_as_they_are(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(path) == path


def test_recipes_and_models_are_loaded_from_any_folder(tmp_path, monkeypatch):
    here = load_recipe(Path("recipes/tiny/demo.toml"))
    key = fingerprint("models/tiny-base")
    monkeypatch.chdir(tmp_path)
    there = load_recipe(Path("recipes/tiny/demo.toml"))
    assert there.stages == here.stages
    assert there.model.path == str(ROOT / "models" / "tiny-base")
    assert fingerprint(there.model.path) == key
    for name in ("tiny-base", "tiny-parallel"):
        assert len(models.load(f"models/{name}").tags.ids) == 6
    (tmp_path / "mine.toml").write_text('extends = "recipes/tiny/demo.toml"\nname = "mine"')
    assert load_recipe(Path("mine.toml")).stages == here.stages


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    isolated = ["--no-build-isolation"] if find_spec("hatchling") else []
    words = ["wheel", str(ROOT), "--no-deps", *isolated, "--wheel-dir", str(folder)]
    call(folder, sys.executable, "-m", "pip", "--quiet", *words)
    (file,) = folder.glob("parallel_r1-*.whl")
    return file


def call(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_holds_what_a_run_needs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        extras = next(name for name in names if name.endswith(".dist-info/METADATA"))
        assert "Provides-Extra: demo" in archive.read(extras).decode()
    for name in ("py.typed", "coldstart/instruction.txt", "shipped/models/tiny-base/model.safetensors"):
        assert f"parallel_r1/{name}" in names
    shipped = {name.removeprefix("parallel_r1/shipped/") for name in names if name.endswith(".toml")}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.toml")}
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"parallel_r1"}
    assert not [name for name in names if "test" in name or "benchmark" in name or name.endswith(".pyc")]


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_an_empty_folder(wheel, tmp_path):
    call(tmp_path, sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    words = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    call(tmp_path, sys.executable, "-m", "pip", "--python", python, *words)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The dependencies of this interpreter; path files in there, such as that of an editable install, are not read.
    dependencies = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (site / "dependencies.pth").write_text(str(dependencies))
    (empty := tmp_path / "empty").mkdir()
    command = tmp_path / "venv" / "bin" / "parallel-r1"
    assert (
        Path(call(empty, python, "-c", "import parallel_r1; print(parallel_r1.__file__)").strip()).parent.parent == site
    )
    assert "tiny/demo" in call(empty, command, "recipes")
    stages = ("cold-start", "easy", "hard", "grpo-easy", "grpo-hard")
    settings = [f"stages.{stage}.steps=1" for stage in stages]
    settings += [f"stages.{stage}.problems=2" for stage in stages[1:]]
    settings += ["stages.cold-start.batch=4", "evaluation.problems=2", "evaluation.samples=1"]
    done = call(empty, command, "demo", "--json", *(word for value in settings for word in ("--set", value)))
    assert json.loads(done)["run"] == "runs/demo"
    assert "## countdown-hard" in (empty / "runs" / "demo" / "table.md").read_text()
    assert [path.name for path in empty.iterdir()] == ["runs"]
