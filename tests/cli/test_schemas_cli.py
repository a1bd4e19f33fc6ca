"""Schemas as a user meets them: prepare, check, generate, parity, supervised fine-tuning, inspect."""

import json

import pytest
from common import run
from conftest import TINY

from parallel_r1 import models
from parallel_r1.answers.schemas import SCHEMAS
from parallel_r1.runs.folder import DATA

RECIPE = """
name = "weave"

[model]
path = "{model}"

[evaluation]
tasks = ["parts-easy"]
problems = 4

[stages.sft]
kind = "sft"
steps = 2
batch = 4
sampling = {{ paths = 4, budget = {{ total = 300, critical_path = 200 }} }}
data = {{ tasks = {{ parts-easy = 1.0 }}, parallel = 1.0, paths = 4 }}
optimizer = {{ lr = 1e-3 }}
"""


def ok(*words):
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def woven(tmp_path_factory):
    out = tmp_path_factory.mktemp("schema") / "model"
    ok("prepare", TINY, "--out", out, "--schema", "threadweaver")
    return out


def test_prepare_keeps_the_schema_in_the_tokenizer(woven):
    policy = models.load(str(woven), device="cpu")
    assert policy.tags.schema == SCHEMAS["threadweaver"]
    again = ok("prepare", woven, "--out", f"{woven}-2", "--schema", "threadweaver")
    assert "nothing to do" in again.stdout
    other = ok("prepare", TINY, "--out", f"{woven}-numbered", "--schema", "parallel-r1-numbered", "--json")
    assert json.loads(other.stdout)["tokens"] == {}
    assert (
        models.load_tokenizer(f"{woven}-numbered").init_kwargs["parallel_r1_schema"]["name"] == "parallel-r1-numbered"
    )


def test_parity_under_another_schema(woven):
    done = ok("parity", woven, "--paths", "3", "--answers", "2", "--json")
    pairs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [pair["max_abs"] <= 1e-4 for pair in pairs] == [True]


@pytest.mark.slow
def test_a_run_under_another_schema(woven, tmp_path):
    recipe = tmp_path / "weave.toml"
    recipe.write_text(RECIPE.format(model=woven))
    ok("train", recipe, "--out", tmp_path / "run")
    saved = list((tmp_path / "run").rglob("tokenizer_config.json"))
    assert saved
    assert {models.load(str(path.parent), device="cpu").tags.schema.name for path in saved} == {"threadweaver"}


def test_check_and_convert_read_any_schema(tmp_path):
    schema = SCHEMAS["npr"]
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"text": schema.write(["a", "b"], "c", ["x", "y"])}) + "\n")
    assert ok("check", answers, "--schema", "npr").stdout.startswith("1 of 1")
    ok("data", "convert", answers, "--from", "npr", "--to", "parallel-r1-numbered", "--out", tmp_path / "ours.jsonl")
    assert "<Path>1: a</Path>" in (tmp_path / "ours.jsonl").read_text()


NOTHING = """
name = "nothing"

[model]
format = "{schema}"

[model.architecture]
hidden = 32
layers = 1
heads = 2
kv_heads = 1
intermediate = 64
digits = 1

[evaluation]
tasks = ["parts-hard"]
problems = 4

[stages.sft]
kind = "sft"
steps = 2
batch = 4
sampling = {{ paths = [2, 6], budget = {{ total = 400, critical_path = 200 }} }}
data = {{ tasks = {{ parts-hard = 1.0 }}, parallel = 1.0 }}
"""
MINE = """
name = "mine"
fork = ["<Split>", "</Split>"]
path = ["<Branch>", "</Branch>"]
head = "{number}) "
"""


@pytest.mark.slow
def test_a_model_from_nothing_in_a_schema_of_ones_own(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "nothing.toml").write_text(NOTHING.format(schema=tmp_path / "mine.toml"))
    ok("train", tmp_path / "nothing.toml", "--out", tmp_path / "run")
    (model,) = (path.parent for path in (tmp_path / "run" / "checkpoints" / "sft").rglob("tokenizer_config.json"))
    assert models.load(str(model), device="cpu").tags.schema.name == "mine"
    assert list(json.loads((tmp_path / "run" / DATA).read_text())) == [str(tmp_path / "mine.toml")]


def test_a_checkpoint_of_another_schema_than_asked(woven, tmp_path):
    recipe = tmp_path / "weave.toml"
    recipe.write_text(RECIPE.format(model=woven).replace("[model]", '[model]\nformat = "npr"'))
    for words in (["--out", tmp_path / "run"], ["--dry-run"]):
        done = run("train", recipe, *words)
        assert done.returncode == 2
        assert f"the schema 'npr', as model.format says; found 'threadweaver' in {woven}" in done.stderr


def test_check_names_a_tag_of_another_schema(tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"text": "So: <guideline>"}) + "\n")
    done = run("check", answers)
    assert done.returncode == 1
    assert "character 4: foreign-tag: <guideline> is a tag of npr, and this is read in parallel-r1" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prepare", TINY, "--out", "x", "--schema", "threadwever"), "did you mean 'threadweaver'"),
        (("prepare", TINY, "--out", "x", "--schema", "none.toml"), "no file none.toml; check the path"),
        (("generate", TINY, "--prompt", "x", "--paths", "5-2"), "the smallest and the largest"),
        (("generate", TINY, "--prompt", "x", "--paths", "two"), "a number from 1 to 64"),
    ],
)
def test_mistakes_are_one_line(words, said):
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
