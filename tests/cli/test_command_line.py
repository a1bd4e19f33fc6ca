"""Through the real command, in a process of its own, as a user meets it; the first runs are freshly started."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from common import MICRO, REAL, RECIPE, byte_level, folder_of, refused, run, tagless
from conftest import ROOT, TINY

from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.datasets.rows import read_file

GOOD = "so <Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary> Final Answer: 1"


def fresh(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "parallel_r1", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small curriculum, run by the command."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(RECIPE)
    changes = ("--set", "stages.sft.steps=1", "--set", "stages.rl.stop={every=2,problems=2,samples=1}")
    done = fresh("train", folder / "small.toml", "--out", folder / "run", *changes)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_for_real_models_have_a_plan(path, tmp_path):
    """Where nothing is there but a model's configuration and tokenizer: what is missing is named."""
    done = run("train", path, "--dry-run", "--set", folder_of(path.parent.name, tmp_path, layers=2))
    assert done.returncode == 0, done.stderr
    stages = load_recipe(path).stages
    peak = next(line for line in done.stdout.splitlines() if line.startswith("peak"))
    assert len(peak.split()) == 1 + len(stages)
    assert all(float(figure) > 1 for figure in peak.split()[1:])
    for name, stage in stages.items():
        assert re.search(rf"^{name} .*{stage.steps}", done.stdout, re.MULTILINE)
    assert "not known" not in done.stdout
    assert "missing: expected a folder with math300_test.parquet" in done.stdout
    assert ("missing: expected a file of answers" in done.stdout) == any(
        stage.kind == "sft" for stage in stages.values()
    )


def test_a_plan_says_what_is_wrong_with_a_model(tmp_path):
    words = ("train", REAL[-1], "--dry-run", "--set")
    folder = folder_of("qwen3-4b", tmp_path, layers=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 5}))
    refused(*words, folder, said="an embedding for every tag")
    (tmp_path / "tokenizer_config.json").unlink()
    refused(*words, folder, said="tokenizer_config.json")
    done = run(*words, "model.path=models/tiny-bsae")
    assert done.returncode == 0
    assert "not known: memory, positions and tags: models/tiny-bsae, no folder" in done.stdout


def test_help_names_every_command():
    text = fresh("--help").stdout
    words = (
        "demo sft rl train study watch recipes eval compare generate show rewards parity check grade inspect data "
        "prepare push coldstart plan"
    )
    for command in words.split(" "):
        assert command in text
        done = run(command, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout


def test_train_writes_a_run_folder_and_plain_lines(finished):
    folder, done = finished
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "rollouts",
        "checkpoints",
        "eval",
        "table.md",
        "curves.png",
        "report.html",
    }
    assert "\x1b" not in done.stdout
    assert "the report is " in done.stdout.splitlines()[-1]
    for part in ("step 1/1", "reward", "parallel", "tokens/s", "left", "mean@k", "rl - sft", "best at step 2"):
        assert part in done.stdout
    table = (folder / "run" / "table.md").read_text()
    assert "## countdown-easy" in table
    assert "* rl: the weights are those of step" in table
    assert "rl: the weights are those of step" in done.stdout


def test_a_second_run_overwrites_nothing(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    refused("train", folder / "small.toml", "--out", folder / "run", said=("a finished run in", "--out"))
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}


@pytest.mark.slow
def test_without_out_a_free_folder_is_taken(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    for name in ("small", "small-2"):
        done = run("sft", "small.toml", "--set", "evaluation.tasks=[]", "--track", "tensorboard", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / "runs" / name / "tensorboard").glob("events.*"))
        assert (tmp_path / "runs" / name / "checkpoints" / "sft" / "model.safetensors").is_file()


@pytest.mark.slow
def test_sft_then_rl_on_its_checkpoint(finished):
    folder, _ = finished
    done = run(
        "rl",
        folder / "small.toml",
        "--out",
        folder / "rl",
        "--set",
        "model.architecture={}",
        "--set",
        "evaluation.tasks=[]",
        "--set",
        "stages.rl.steps=1",
    )
    assert done.returncode == 2  # an rl run needs a model to start from
    assert "model.path" in done.stderr
    text = (folder / "small.toml").read_text()
    model = folder / "run" / "checkpoints" / "sft"
    head, tail = text.split("[model.architecture]")
    (folder / "rl.toml").write_text(f'{head}[model]\npath = "{model}"\n[evaluation]{tail.split("[evaluation]")[1]}')
    done = run("rl", folder / "rl.toml", "--out", folder / "rl", "--set", "stages.rl.steps=1")
    assert done.returncode == 0, done.stderr
    stages = [json.loads(line)["stage"] for line in (folder / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert set(stages) == {"base", "rl", "plain"}


def test_show(finished):
    folder, _ = finished
    done = run("show", folder / "run")
    assert "countdown-easy" in done.stdout
    assert {row["stage"] for row in json.loads(run("show", folder / "run", "--json").stdout)} == {"sft", "rl", "plain"}
    rollouts = next((folder / "run" / "rollouts").iterdir())
    done = run("show", rollouts, "--count", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("critical path") == 2
    rows = [json.loads(line) for line in run("show", rollouts, "--count", "3", "--json").stdout.splitlines()]
    assert len(rows) == 3
    assert {"prompt", "text", "correct", "spans", "defects"} <= set(rows[0])


def test_generate(tmp_path):
    prompt = r"Use 3, 5, 7 to make 22.\n"
    done = run("generate", TINY, "-e", "--prompt", prompt, "--paths", 3)
    assert "critical path" in done.stdout
    words = ("generate", TINY, "--json", "--seed", 4)
    row = json.loads(run(*words, "-e", "--prompt", prompt).stdout)
    assert "".join(span["text"] for span in row["spans"]) == row["text"]
    (tmp_path / "prompt.txt").write_text("Use 3, 5, 7 to make 22.\n")
    assert row == json.loads(run(*words, "--prompt-file", tmp_path / "prompt.txt").stdout)
    assert row != json.loads(run(*words, "--prompt", prompt).stdout)  # without -e a backslash is a backslash
    limited = json.loads(run(*words, "-e", "--prompt", prompt, "--stop", r"\n", "--device", "cpu").stdout)
    assert limited["text"].endswith("\n")
    assert limited["text"].count("\n") == 1
    assert row["text"].startswith(limited["text"])


@pytest.mark.parametrize("paths", [1, 3, 5])
def test_parity(paths):
    row = json.loads(
        run("parity", TINY, "--sampler", "isolated", "--scorer", "isolated", "--paths", paths, "--json").stdout
    )
    assert list(row) == ["max_abs", "mean_abs", "after_fork", "after_join", "tokens"]
    assert row["max_abs"] <= 1e-4
    assert row["tokens"] > 100


def test_parity_of_all_pairs():
    rows = json.loads(run("parity", TINY, "--all", "--paths", 2, "--json").stdout)
    keys = ["sampler", "scorer", "exact", "max_abs", "mean_abs", "after_fork", "after_join", "tokens"]
    assert all(list(row) == keys for row in rows)
    assert len({(row["sampler"], row["scorer"]) for row in rows}) == 9
    assert [(row["sampler"], row["scorer"]) for row in rows if row["exact"]] == list(EXACT_SCORER.items())
    assert all((row["max_abs"] <= 1e-4) == row["exact"] for row in rows)
    assert len(run("parity", TINY, "--all", "--answers", 2).stdout.splitlines()) == 10


def test_check_reads_files_and_standard_input(tmp_path):
    lines = [json.dumps({"text": GOOD}), '{"text": "<Path>"}', "{broken", '{"other": 1}', '{"text": 3}', "[]", "\udcff"]
    path = tmp_path / "t.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    done = run("check", path, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [row["valid"] for row in rows] == [True] + [False] * 6
    assert rows[0] == {
        "valid": True,
        "defects": [],
        "forks": 1,
        "paths": [2],
        "relative_positions": [round(3 / len(GOOD), 4)],
    }
    assert set(rows[1]["defects"][0]) == {"kind", "at", "message"}
    text = run("check", path)
    assert text.returncode == 1
    assert text.stdout.startswith("answer 2, character 0: ")
    assert "answer 3, character 1: broken-line: " in text.stdout
    assert text.stdout.splitlines()[-1] == "1 of 7 answers are valid"
    good = run("check", "-", "--json", stdin=lines[0] + "\n\n" + lines[0])
    assert good.returncode == 0
    assert len(good.stdout.splitlines()) == 2
    assert run("check", "-", stdin=lines[0]).stdout == "1 of 1 answers are valid\n"
    refused("check", tmp_path / "none", said="no file")


def test_inspect():
    row = json.loads(run("inspect", TINY, "--text", GOOD, "--scorer", "isolated", "--json").stdout)
    assert set(row) == {"tokens", "token_ids", "addresses", "positions", "mask", "critical_path", "total"}
    assert "".join(row["tokens"]) == GOOD
    assert row["critical_path"] < row["total"] == len(row["mask"]) == len(row["mask"][0])
    a, b = row["tokens"].index("a"), row["tokens"].index("b")
    assert row["addresses"][a] == [[0, 0]]
    assert row["mask"][b][a] == 0
    assert row["positions"][a] == row["positions"][b]
    causal = json.loads(run("inspect", TINY, "--text", GOOD, "--scorer", "causal", "--json").stdout)
    assert causal["critical_path"] == causal["total"]
    assert causal["mask"][b][a] == 1
    assert "critical path" in run("inspect", TINY, "--text", GOOD).stdout
    replay = json.loads(run("inspect", TINY, "--text", GOOD, "--scorer", "replay", "--json").stdout)
    assert len(replay["tokens"]) == len(replay["addresses"]) == len(replay["mask"]) > replay["total"] == row["total"]
    assert run("inspect", TINY, "--text", GOOD, "--scorer", "replay").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "none.toml"), "no file none.toml"),
        (("train", "recipes/tiny/demo.toml", "--set", "sede=1"), "did you mean 'seed'"),
        (("train", "recipes/tiny/demo.toml", "--set", "evaluation.samples=0"), "evaluation.samples"),
        (("train", "recipes/tiny/demo.toml", "--track", "tensorbord"), "'tensorboard', 'wandb', 'mlflow' or 'trackio'"),
        (("demo", "--set", "stages.hard.stop.evry=1"), "did you mean 'every'"),
        (("train", "recipes/tiny/demo.toml", "--set", "model.attention=eager"), "leave it out of [model]"),
        (("train", "recipes/tiny/demo.toml", "--set", "model.path=nowhere"), "nowhere"),
        (("sft", "recipes/tiny/demo.toml", "--set", "stages.cold-start.data.tasks={nothing=1}"), "nothing"),
        (("train", "recipes/tiny/demo.toml", "--set", "processes.count=2"), "torchrun --nproc_per_node 2"),
        (("eval", "models/tiny-base", "--task", "countdown-easy", "--processes", "2"), "torchrun --nproc_per_node 2"),
        (("eval", "models/none", "--task", "countdown-easy"), "models/none"),
        (("eval", "models/tiny-base", "--task", "countdown-esy"), "did you mean 'countdown-easy'"),
        (("generate", "models/tiny-base", "--prompt", "x" * 2000), "shorten the prompt"),
        (("generate", "models/tiny-base", "--prompt", ""), "empty"),
        (("generate", "models/tiny-base"), "found neither; give one of them"),
        (("generate", "models/tiny-base", "--prompt", "x", "--prompt-file", "x"), "found both"),
        (("generate", "models/tiny-base", "--prompt-file", "none.txt"), "no file none.txt"),
        (("generate", "models/tiny-base", "--prompt", "x", "--device", "gpu"), "a valid --device"),
        (("eval", "models/tiny-base", "--task", "countdown-easy", "--final-answer", "path"), "a valid --final-answer"),
        (("recipes", "tiny/dmeo"), "did you mean 'tiny/demo'"),
        (("recipes", "--copy", "x"), "parallel-r1 recipes NAME --copy FOLDER"),
        (("generate", "models/tiny-base", "--prompt", "x", "--sampler", "isolate"), "did you mean 'isolated'"),
        (("generate", "models/tiny-base", "--prompt", "x", "--stop", "a</Path>"), "a tag of a fork"),
        (("generate", "models/tiny-base", "--prompt", "x", "--top-p", "0"), "greater than 0"),
        (("inspect", "models/tiny-base", "--text", "x", "--picture", "x.txt"), ".png, .svg or .pdf"),
        (("parity", "models/tiny-base", "--scorer", "cause"), "did you mean 'causal'"),
        (("inspect", "recipes", "--text", "x"), "recipes"),
        (("show", "none"), "no file none"),
        (("study", "none.toml"), "no file none.toml"),
        (("study", "recipes/tiny/study.toml", "--rows", "unsen-s2"), "did you mean 'unseen-s2'"),
        (("study", "recipes/tiny/study.toml", "--budgets", "tokens"), "did you mean 'total-tokens'"),
        (("study", "recipes/tiny/study.toml", "--seeds", "1,b"), "write them like 0,1,2"),
        (("study", "recipes/tiny/study.toml", "--set", "stages.hard.stpes=2"), "did you mean 'steps'"),
        (("show", "recipes"), "table.md"),
    ],
)
def test_bad_input_is_one_clear_line(words, said, tmp_path):
    before = sorted(ROOT.glob("runs/*"))
    refused(*words, said=said)
    assert sorted(ROOT.glob("runs/*")) == before


def test_the_tiny_model_path_exists():
    assert Path(TINY).is_dir()


def test_rewards(finished):
    """Of a run's answers, under another reward than theirs: the terms add up, and are those of the step."""
    folder, _ = finished
    file = sorted((folder / "run" / "rollouts").iterdir())[0]
    reward = "alternate(accuracy(), additive(bonus(0.5), 0.25), period=2, second=1)"
    for step, terms in ((1, {"accuracy"}), (2, {"accuracy", "parallel"})):
        lines = run("rewards", file, "--reward", reward, "--step", step, "--json").stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        assert rows
        for row in rows:
            assert set(row["terms"]) == terms
            assert row["reward"] == pytest.approx(sum(row["terms"].values()))
    assert "accuracy" in run("rewards", file, "--reward", reward).stdout
    refused("rewards", file, "--reward", "acuracy()", said="did you mean 'accuracy'")
    refused("rewards", folder / "none.jsonl", "--reward", "accuracy()", said="no file")
    refused("score", file, "--reward", "accuracy()", said=("score, its name before version 0.2", "parallel-r1 rewards"))


def test_rewards_and_tasks_of_ones_own_are_imported(finished, tmp_path):
    """Where no recipe names them: the same --import for all commands."""
    file = tmp_path / "own.py"
    file.write_text(
        """import parallel_r1 as pr

@pr.reward
def own_half(outcome: pr.Outcome) -> float:
    "Half of everything."
    return 0.5

@pr.task("own-sums")
class Sums:
    def problems(self, split, seed):
        yield pr.Problem("1+1", "1+1=", "2", "own-sums")

    def verify(self, problems, answers):
        return [False for _ in problems]
"""
    )
    folder, _ = finished
    rollouts = next((folder / "run" / "rollouts").iterdir())
    done = run("rewards", rollouts, "--reward", "own_half()", "--import", file, "--json")
    assert {json.loads(line)["reward"] for line in done.stdout.splitlines()} == {0.5}
    done = run(
        "eval", folder / "run/checkpoints/rl", "--task", "own-sums", "--import", file, "--samples", "2", "--json"
    )
    assert [(row["task"], row["mean"]) for row in json.loads(done.stdout)] == [("own-sums", 0.0)]
    refused("rewards", rollouts, "--reward", "accuracy()", "--import", tmp_path / "no.py", said="no file")


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_when_the_command_is_given_again(finished, tmp_path):
    """As left behind by a cut after the first stage; a finished run in the default folder is not touched."""
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "runs" / "small")
    broken = tmp_path / "runs" / "small"
    (broken / "state").mkdir()
    for stage in ("rl", "plain"):
        shutil.rmtree(broken / "checkpoints" / stage)
        (broken / "eval" / f"{stage}.countdown-easy.json").unlink()
    changes = ("--set", "stages.sft.steps=1", "--set", "stages.rl.stop={every=2,problems=2,samples=1}")
    words = ("train", folder / "small.toml", *changes)
    done = run(*words, cwd=tmp_path)
    assert "going on in runs/small" in done.stdout
    assert (broken / "table.md").read_bytes() == (folder / "run" / "table.md").read_bytes()
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] in ("sft", "rl")] == [1, 2, 3, 4, 5]
    assert "writing to runs/small-2" in run(*words, cwd=tmp_path).stdout


@pytest.mark.slow
def test_study(tmp_path):
    """What there is to do, then a part of it, then nothing more; the tables hold what is there."""
    (tmp_path / "micro.toml").write_text(MICRO.replace("MODEL", str(TINY)))
    words = ("study", "micro.toml", "--rows", "forked", "--seeds", "0,0", "--budgets", "short", "--jobs", "2")
    plan = json.loads(run(*words, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["to_do"] == {"stages": 3, "steps": 6, "measurements": 2}
    assert [stage["rows"] for stage in plan["stages"] if stage["stage"] == "cold"] == [["forked"]]
    plan = run(*words, "--dry-run", cwd=tmp_path)
    assert "cold: 2 steps, seeds 0; for forked under short" in plan.stdout
    assert "to do: 3 stages of 6 steps, 2 measurements" in plan.stdout
    assert not (tmp_path / "runs").exists()
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "forked, short, seed 0: cold: done",
        "done, 5 of 5",
        "countdown-easy: cost, and difference from plain",
    ):
        assert part in done.stdout
    assert "| forked | 1 | 2 |" in (tmp_path / "runs" / "micro" / "study.md").read_text()
    written = json.loads((tmp_path / "runs" / "micro" / "study.json").read_text())
    told = json.loads(run(*words, "--json", cwd=tmp_path).stdout)
    assert told == {"folder": str(tmp_path / "runs" / "micro"), **written}
    again = run(*words, cwd=tmp_path).stdout
    assert "done," not in again
    assert again.splitlines()[1:] == [line for line in done.stdout.splitlines()[1:] if "seed 0" not in line]
    said = ("short, seed 0: hard", "memory for")  # whichever row comes to it first
    refused(*words, "--set", "engine.memory=41", cwd=tmp_path, said=said)


def test_grade_reads_files_and_standard_input(tmp_path):
    fork = "<Parallel><Path>Final Answer: 1</Path><Path>Final Answer: 2</Path></Parallel>\n<Summary>s</Summary>"
    lines = [
        json.dumps({"text": GOOD, "answer": "1", "id": "first"}),
        json.dumps({"text": fork, "answer": "1"}),
        json.dumps({"text": rf"{fork} \boxed{{x+1}}", "answer": "1+x"}),
        json.dumps({"text": "Final Answer: 9^9^9", "answer": "1"}),
        '{"text": 3, "answer": "3"}',
        "{broken",
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    done = run("grade", path, "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["correct"] for row in rows] == [True, False, True, False, False, False]
    assert rows[0] == {"id": "first", "correct": True, "found": "1", "answer": "1"}
    assert rows[1]["found"] is None  # what a path says is not the answer
    assert "Error" in rows[5]["error"]
    assert run("grade", "-", stdin=lines[0]).stdout.startswith("1 of 1 right; 0 without a final answer")
    refused("grade", tmp_path / "none", said="no file")


def test_data_commands(tmp_path):
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2 * n} for n in range(20)]
    rows += [rows[3], {"problem": "Let the following hold:", "answer": 1}]
    (tmp_path / "dapo_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "amc23.jsonl").write_text(json.dumps({"problem": "What is 5 + 5?", "answer": 10}))
    where = ("--data-dir", tmp_path)
    found = json.loads(run("data", "check", "dapo", *where, "--json").stdout)
    assert found["counts"] == {"duplicate": 1, "truncated": 1}
    assert found["ids"] == {"duplicate": ["dapo-train-21"], "truncated": ["dapo-train-22"]}
    assert "2 of 22 problems" in run("data", "check", "dapo", *where).stdout
    cleaned = json.loads(run("data", "clean", "dapo", "--out", tmp_path / "c.jsonl", *where, "--json").stdout)
    assert (cleaned["read"], cleaned["kept"]) == (22, 20)
    assert cleaned["dropped"] == {"duplicate": 1, "truncated": 1}
    found = json.loads(run("data", "decontaminate", "dapo", "--against", "amc23", *where, "--json").stdout)
    assert found["ids"] == {"exact": ["dapo-train-6"]}
    out = tmp_path / "clean.parquet"
    done = run("data", "clean", "dapo", "--out", out, "--against", "amc23", *where)
    assert done.returncode == 0, done.stderr
    assert "19 of 22 problems" in done.stdout
    assert "problems" in out.with_suffix(".md").read_text()
    refused("data", "clean", "dapo", "--out", out, *where, said="exists")
    refused("data", "check", "dapoo", said="did you mean 'dapo'")
    refused("data", "check", "gsm8k", *where, said="gsm8k_train.parquet")
    out = tmp_path / "other.parquet"
    refused("data", "clean", "dapo", "--out", out, "--keep", "langage", said="did you mean 'language'")


def test_answers_are_repaired_and_converted(tmp_path):
    good = "<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>\n\nFinal Answer: 1"
    rows = [{"text": good.replace("\n<S", "<S"), "id": 1}, {"text": good, "more": "kept"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(run("data", "repair", tmp_path / "a.jsonl", "--out", tmp_path / "b.parquet", "--json").stdout)
    expected = {"answers": 2, "changed": {"break-before-summary": 1}, "valid_before": 1, "valid_after": 2}
    assert told == expected
    assert read_file(tmp_path / "b.parquet") == [
        {"text": good, "id": 1, "more": None},
        {"text": good, "id": None, "more": "kept"},
    ]
    there = ["data", "convert", tmp_path / "b.parquet", "--from", "parallel-r1", "--to", "npr"]
    assert "wrote 2 of 2 answers" in run(*there, "--out", tmp_path / "c.jsonl").stdout
    assert "<takeaway>c</takeaway>" in read_file(tmp_path / "c.jsonl")[0]["text"]
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(json.dumps({"text": "<step>open"}) + "\n")
    back = run("data", "convert", tmp_path / "c.jsonl", "--from", "npr", "--out", tmp_path / "d.jsonl")
    assert back.returncode == 1
    assert "row 3: expected </step> at character 10, not the end" in back.stdout
    assert [row["text"] for row in read_file(tmp_path / "d.jsonl")] == [good, good]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["repair", "a.jsonl", "--out", "a.jsonl"], "a.jsonl exists"),
        (["repair", "a.jsonl", "--out", "b.txt"], "ends with .parquet or .jsonl"),
        (["repair", "none.jsonl", "--out", "b.jsonl"], "no file none.jsonl"),
        (["repair", "a.jsonl", "--out", "b.jsonl", "--column", "trace"], "found columns text, n in row 1 of a.jsonl"),
        (["convert", "a.jsonl", "--out", "b.jsonl", "--from", "multivers"], "did you mean 'multiverse'?"),
        (["repair", "a.jsonl", "--out", "b.parquet"], "write a .jsonl file instead"),
    ],
)
def test_files_of_answers_that_cannot_be_read_or_written(tmp_path, words, said):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "one"}\n')
    refused("data", *words, said=said, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_prepare(tmp_path):
    tagless(tmp_path / "plain", byte_level())
    refused("parity", tmp_path / "plain", said="parallel-r1 prepare")
    words = ("prepare", tmp_path / "plain", "--out", tmp_path / "tagged")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    for said in ("<Parallel> 300", "</Summary> 305", "rows: mean", "grown by 6", "wrote"):
        assert said in done.stdout
    assert run("parity", tmp_path / "tagged", "--answers", 2).returncode == 0
    refused(*words, said="exists")
    refused(*words[:-1], tmp_path / "b", "--init", "mena", said="mean")
    one = json.loads(run("prepare", tmp_path / "plain", "--out", tmp_path / "one", "--json").stdout)
    assert one["out"] == str(tmp_path / "one")
    assert (one["tokens"]["<Parallel>"], one["added"]) == (300, 6)
    none = run("prepare", tmp_path / "tagged", "--out", tmp_path / "again", "--json").stdout
    assert json.loads(none) == {"out": None, "tokens": {}, "added": 0}
    done = run("prepare", tmp_path / "tagged", "--out", tmp_path / "again")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert "has these tags already" in done.stdout
    assert not (tmp_path / "again").exists()
