"""Files of the user through the real command: names that lead elsewhere, rows that are no text, data that change."""

import json

import pytest
from common import RECIPE, make, refused, run
from conftest import TINY

from parallel_r1.runs.folder import RunFolder

QUICK = (f"model={{path='{TINY}'}}", "stages.sft.steps=1", "evaluation.samples=1")
PROBLEMS = "".join(f'{{"problem": "What is {n} + {n}?", "answer": {2 * n}, "split": "test"}}\n' for n in range(2))


def with_changes(*changes):
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.slow
def test_evaluations_on_files_stay_in_the_run_folder(tmp_path):
    """A result, which `show` prints, and a file of answers for every stage and task."""
    folder = tmp_path / "deep"
    (folder / "data").mkdir(parents=True)
    for place in (tmp_path, folder / "data"):
        (place / "x.jsonl").write_text(PROBLEMS + "\n")
    (folder / "small.toml").write_text(RECIPE)
    tasks = ["jsonl:data/x.jsonl", "jsonl:../x.jsonl", "countdown-easy"]
    words = with_changes(*QUICK, f"evaluation.tasks={tasks}", "evaluation.problems=2")
    done = run("sft", "small.toml", "--out", "run", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    expected = [(stage, task) for stage in ("base", "sft") for task in tasks]
    rows = json.loads(run("show", "run", "--json", cwd=folder).stdout)
    assert [(row["stage"], row["task"]) for row in rows] == expected
    files = [path.suffix for path in (folder / "run" / "eval").iterdir()]
    assert sorted(files) == sorted([".json", ".jsonl"] * len(expected))
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "x.jsonl"}
    assert {path.name for path in folder.iterdir()} == {"data", "run", "small.toml"}
    refused("sft", "small.toml", "--out", "run", *words, cwd=folder, said=("a finished run in run", "show run"))


def test_names_that_lead_out_of_their_folder(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    refused("train", tmp_path / "small.toml", "--set", "name=../x", said=("name (found '../x')", "it names a folder"))
    text = RECIPE.replace("[stages.sft]", '[stages."../sft"]').replace('"sft"]]', '"../sft"]]')
    (tmp_path / "small.toml").write_text(text)
    refused("train", tmp_path / "small.toml", said=("stages.../sft", "it names a folder"))


@pytest.mark.slow
def test_an_interrupted_run_refuses_other_data_and_another_recipe(tmp_path):
    (tmp_path / "x.jsonl").write_text(PROBLEMS)
    changes = (*QUICK, f"evaluation.tasks=['jsonl:{tmp_path}/x.jsonl']", "evaluation.problems=2")
    words = ["sft", tmp_path / "small.toml", "--out", tmp_path / "run", *with_changes(*changes)]
    run_folder = RunFolder.create(tmp_path / "run", make(tmp_path, *changes).only("sft"))
    run_folder.lock.release(force=True)
    refused(*words, "--set", "stages.sft.batch=2", said=("stages.sft.batch = 2 instead of 4", "give the earlier value"))
    (tmp_path / "x.jsonl").write_text(PROBLEMS.replace("What", "what"))
    refused(*words, said=(f"another content of {tmp_path}/x.jsonl", "put the earlier file back"))
    (tmp_path / "x.jsonl").write_text(PROBLEMS)
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "going on in" in done.stdout


def test_half_of_a_surrogate_pair_is_one_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"problem": "What is \ud83d?", "text": "\ud83d Final Answer: 1", "answer": "1"}) + "\n")
    said = ("x.jsonl:1: \\ud83d, half of a surrogate pair",)
    refused("data", "check", f"jsonl:{path}", said=said)
    refused("data", "clean", f"jsonl:{path}", "--out", tmp_path / "y.jsonl", said=said)
    refused("data", "repair", path, "--out", tmp_path / "y.jsonl", said=said)
    refused("show", path, said=said)
    for command in ("check", "grade"):
        done = run(command, path, "--json")
        assert not done.stderr
        assert "half of a surrogate pair" in done.stdout
    assert json.loads(run("grade", path, "--json").stdout)["correct"] is False
    refused("generate", TINY, "--prompt", "x \udcff", said=("a text in UTF-8 for --prompt", "\\udcff"))
    (tmp_path / "prompt.txt").write_bytes(b"x \xff")
    refused("generate", TINY, "--prompt-file", tmp_path / "prompt.txt", said="a text file in UTF-8")


def test_a_prompt_keeps_its_latex(tmp_path):
    """Escapes are read where that is asked for; what looks like one is warned of."""
    words, latex = ("generate", TINY, "--critical-path", 8, "--seed", 1, "--json"), r"Is $a \neq b$ or \nu?"
    (tmp_path / "prompt.txt").write_text(latex)
    done = run(*words, "--prompt", latex)
    assert not done.stderr
    assert done.stdout == run(*words, "--prompt-file", tmp_path / "prompt.txt").stdout
    assert "Is $a \\neq b$" in run(*words[:-1], "--prompt", latex).stdout
    done = run(*words, "--prompt", r"Use 3, 5, 7 to make 22.\n")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "--prompt has a backslash and an n" in done.stderr
    assert not run(*words, "-e", "--prompt", r"Use 3, 5, 7 to make 22.\n").stderr


def test_problems_that_are_repeated_are_counted(tmp_path):
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2 * n, "id": n} for n in range(3)]
    rows.append({"problem": "What is 100 + 104? Answer: 204.", "answer": 204, "id": 4})
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 32))
    found = json.loads(run("data", "check", f"jsonl:{path}", "--json").stdout)
    assert (found["problems"], found["different"]) == (128, 4)
    assert found["counts"] == {"given-away": 32, "duplicate": 124}
    text = run("data", "check", f"jsonl:{path}").stdout
    assert "4 different statements: 124 problems repeat another" in text
    assert "given-away        the statement says the answer" in text


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \t\r\n\n"])
def test_a_blank_line_at_the_end_is_no_error(tmp_path, end):
    path = tmp_path / "x.jsonl"
    row = {"problem": "What is 1 + 1?", "answer": "2", "text": "Final Answer: 2", "prompt": "What is 1 + 1?\n"}
    path.write_text(json.dumps(row) + end)
    for words in (("data", "check", f"jsonl:{path}"), ("check", path), ("grade", path)):
        done = run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 " in done.stdout
    (tmp_path / "small.toml").write_text(RECIPE)
    words = ["train", tmp_path / "small.toml", "--dry-run", "--set", f"stages.sft.data={{file='{path}'}}"]
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
