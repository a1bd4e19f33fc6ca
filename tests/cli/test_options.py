"""Options that several commands share, and those before the command."""

import json

import pytest
import typer
from common import RECIPE, refused, run
from conftest import ROOT, TINY
from typer.testing import CliRunner

from parallel_r1.cli import options
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.generation.training_card import TrainingCard
from parallel_r1.runs.checkpoint import card_of
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.prompts import Prompt

CARD = TrainingCard(
    recipe="small",
    recipe_digest="0" * 16,
    stage="hard",
    kind="rl",
    task="countdown-hard",
    scorer="isolated",
    sampling=Sampling(paths=3, temperature=0.7, budget=Budget(critical_path=30, total=90)),
    prompt=Prompt(instruction="Think.\n"),
    versions={},
)


def settings(words, **shared):
    """What a command with these options is handed, and what it prints."""
    app, handed = typer.Typer(), {}

    @app.command()
    @options.shared(**shared)
    def command(
        model: options.ModelPath, sampling: "Sampling", engine: "Engine", prompt: "Prompt", seed: options.Seed = 0
    ) -> None:
        handed.update(sampling=sampling, engine=engine, prompt=prompt, seed=seed)

    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return handed, done.stderr


def test_without_a_card_options_have_the_defaults_of_the_command(tmp_path):
    handed, printed = settings([tmp_path], paths=4, rows=9)
    assert handed["sampling"] == Sampling(paths=4)
    assert handed["engine"] == Engine(rows=9)
    assert handed["prompt"] == Prompt()
    assert not printed


def test_an_option_that_is_given_counts_more_than_the_card_and_the_card_more_than_the_default(tmp_path):
    CARD.write(tmp_path)
    handed, printed = settings([tmp_path, "--temperature", "0", "--total", "80", "--seed", 3], paths=4)
    budget = Budget(critical_path=30, total=80)
    assert handed["sampling"] == Sampling(paths=3, temperature=0, budget=budget)
    assert handed["prompt"] == Prompt(instruction="Think.\n")
    assert type(handed["prompt"]) is Prompt
    assert handed["seed"] == 3
    assert not printed


def test_every_option_reaches_its_setting(tmp_path):
    words = "--sampler causal_join --paths 5 --temperature 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --stop a --stop b"
    budget = "--total 50 --critical-path 40 --path-tokens 30 --forks 2"
    engine = "--rows 3 --memory 99 --compile --device cpu"
    prompt = "--instruction x --final-answer anywhere"
    handed, _ = settings([tmp_path, *f"{words} {budget} {engine} {prompt}".split()])
    assert handed["sampling"] == Sampling(
        sampler="causal_join",
        paths=5,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        stop=("a", "b"),
        budget=Budget(total=50, critical_path=40, path=30, forks=2),
    )
    assert handed["engine"] == Engine(rows=3, memory=99, compile=True, device="cpu")
    assert handed["prompt"] == Prompt(instruction="x", final_answer="anywhere")


def test_escapes_are_read_on_request(tmp_path):
    words = [tmp_path, "--stop", r"\n", "--instruction", r"a\tb"]
    handed, _ = settings(words)
    assert (handed["sampling"].stop, handed["prompt"].instruction) == ((r"\n",), r"a\tb")
    handed, _ = settings([*words, "-e"])
    assert (handed["sampling"].stop, handed["prompt"].instruction) == (("\n",), "a\tb")
    assert options.unescape(r"\frac \\neq \n \\\\") == "\\frac \\neq \n \\\\"
    assert options.unescape("a\\") == "a\\"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--sampler", "sequential"], ["sampler isolated, not sequential", "lose their second path"]),
        (["--sampler", "causal_join"], ["sampler isolated, not causal_join", "summaries suffer"]),
        (["--paths", "5"], ["3 paths, not 5"]),
        (["--instruction", "No."], ["instruction 'Think.\\n', not 'No.'"]),
        (["--sampler", "sequential", "--instruction", "No."], ["not sequential", "; instruction"]),
    ],
)
def test_what_the_weights_have_not_learnt_is_named_in_one_line(tmp_path, words, parts):
    CARD.write(tmp_path)
    _, printed = settings([tmp_path, *words])
    assert printed.startswith("warning: these weights were trained with ")
    assert printed.count("\n") == 1
    for part in parts:
        assert part in printed


def test_a_scorer_is_asked_for_or_trained_or_the_partner_of_the_sampler(tmp_path):
    assert options.scorer_of(str(tmp_path), None, "causal_join") == "replay"
    CARD.model_copy(update={"scorer": "causal"}).write(tmp_path)
    assert options.scorer_of(str(tmp_path), None, "isolated") == "causal"
    assert options.scorer_of(str(tmp_path), None) == "causal"
    assert options.scorer_of(str(tmp_path), None, "causal_join") == "replay"
    assert options.scorer_of(str(tmp_path), "isolated", "isolated") == "isolated"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "parallel_r1.json: Input should be a valid dictionary"),
        ('{"recipe": "x"}', "recipe_digest: Field required"),
    ],
)
def test_a_damaged_card_is_one_clear_line(tmp_path, text, reason):
    (tmp_path / "parallel_r1.json").write_text(text)
    said = ("a training card", str(tmp_path / "parallel_r1.json"), reason, "or remove it")
    for words in (("generate", tmp_path, "--prompt", "x"), ("eval", tmp_path, "--task", "countdown-easy")):
        refused(*words, said=said)


def test_a_card_of_a_later_version_may_say_more(tmp_path):
    CARD.write(tmp_path)
    path = tmp_path / "parallel_r1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "optimizer": "new"}))
    assert settings([tmp_path])[0]["sampling"] == CARD.sampling


@pytest.mark.slow
def test_a_run_writes_a_card_with_every_checkpoint_and_the_next_run_keeps_it(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    changes = ("--set", "stages.rl.stop={every=2,problems=2,samples=1}", "--set", "evaluation.tasks=[]")
    done = run("train", tmp_path / "small.toml", *changes, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    report = str(tmp_path / "run" / "report.html")
    assert json.loads(done.stdout) == {"run": str(tmp_path / "run"), "results": [], "report": report}
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    checkpoints = tmp_path / "run" / "checkpoints"
    cards = {name: json.loads((checkpoints / name / "parallel_r1.json").read_text()) for name in recipe.stages}
    for name, stage in recipe.stages.items():  # rl hands over weights of its best step
        card = TrainingCard.model_validate(cards[name])
        assert card == card_of(recipe, name, card.updates)
        assert (card.recipe, card.stage, card.kind) == ("small", name, stage.kind)
        assert (card.sampling, card.scorer) == (stage.sampling, stage.scorer)
        assert card.versions["parallel-r1"].startswith("0.2")
    assert cards["sft"]["data"]["tasks"] == {"countdown-easy": 1.0}
    assert cards["rl"]["task"] == "countdown-easy"
    assert cards["rl"]["prompt"]["form"] == "plain"
    assert not (checkpoints / "base" / "parallel_r1.json").exists()
    text = RECIPE.partition("[model.architecture]")
    tail = text[2].partition("[evaluation]")
    again = f'{text[0]}[model]\npath = "{checkpoints / "rl"}"\n[evaluation]{tail[2]}'
    (tmp_path / "again.toml").write_text(again)
    words = ("--set", "stages.rl.steps=1", "--set", "evaluation.tasks=[]", "--out", tmp_path / "again")
    assert run("rl", tmp_path / "again.toml", *words).returncode == 0
    assert json.loads((tmp_path / "again" / "checkpoints" / "base" / "parallel_r1.json").read_text()) == cards["rl"]
    words = ("eval", checkpoints / "rl", "--task", "countdown-easy", "--problems", 2, "--samples", 1)
    done = run(*words, "--json")
    assert not done.stderr
    assert json.loads(done.stdout)[0]["total"] <= 60  # the budget of the stage
    done = run(*words, "--sampler", "sequential", "--json")
    assert json.loads(done.stdout)
    assert done.stderr.startswith("warning: these weights were trained with sampler isolated, not sequential")
    assert done.stderr.count("\n") == 1


# Options before the command


def test_traceback_and_log():
    words = ("eval", "models/none", "--task", "countdown-easy")
    done = run("--traceback", *words)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: expected ")
    assert "Traceback" not in run(*words).stderr
    done = run("-v", "parity", TINY, "--answers", 1, "--json")
    assert f"loaded {TINY}: 944,128 parameters in torch.float32 on cpu" in done.stderr
    assert json.loads(done.stdout)
    assert run("--version").stdout == "0.2.0.dev0\n"


def test_an_exception_in_a_plug_in_is_one_line_with_its_place(tmp_path):
    (tmp_path / "mine.py").write_text("from parallel_r1 import errors\n\n\ndef raises():\n    return 1 / 0\n")
    (tmp_path / "small.toml").write_text(RECIPE.replace('name = "small"', 'name = "small"\nimports = ["bad.py"]'))
    (tmp_path / "bad.py").write_text("x = 1\ny = x / 0\n")
    refused("train", tmp_path / "small.toml", said=("bad.py to run", "bad.py:2: ZeroDivisionError"))
    done = run("--traceback", "train", tmp_path / "small.toml")
    assert "y = x / 0" in done.stderr


@pytest.mark.slow
def test_a_reward_that_ends_the_process_is_one_line_with_its_place(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\nimport parallel_r1 as pr\n\n\n@pr.reward\ndef leaves(outcome):\n    sys.exit(0)\n"
    )
    recipe = RECIPE.replace('name = "small"', 'name = "small"\nimports = ["mine.py"]')
    (tmp_path / "small.toml").write_text(recipe)
    words = ("--set", "stages.rl.reward=leaves()", "--set", "evaluation.tasks=[]", "--out", tmp_path / "run")
    done = run("train", tmp_path / "small.toml", *words)
    assert done.returncode == 2
    assert "mine.py:7: SystemExit: 0; correct it and give the same command again" in done.stderr


def test_a_dry_run_names_an_inexact_pair(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    words = ("train", tmp_path / "small.toml", "--dry-run", "--set", "stages.rl.scorer=causal")
    line = "rl: sampler isolated, scorer causal are no exact pair: what is scored is not what was sampled"
    printed = run(*words).stdout
    assert line in printed
    assert printed.count("no exact pair") == 1


def test_recipes_are_listed_printed_and_copied(tmp_path):
    rows = json.loads(run("recipes", "--json", cwd=tmp_path).stdout)
    kinds = {row["name"]: row["kind"] for row in rows}
    assert kinds["tiny/demo"] == "recipe"
    assert kinds["tiny/study"] == "study"
    assert "qwen3-4b/common" not in kinds
    assert all(row["description"].endswith(".") and len(row["description"]) < 90 for row in rows)
    listed = run("recipes", cwd=tmp_path).stdout
    assert all(f"{row['name']} " in listed and row["description"] in listed for row in rows)
    assert run("recipes", "tiny/demo").stdout == (ROOT / "recipes" / "tiny" / "demo.toml").read_text()
    words = ("recipes", "qwen3-4b/unseen_s1", "--copy", tmp_path / "mine")
    assert run(*words).stdout.count("wrote ") == 4
    assert load_recipe(tmp_path / "mine" / "unseen_s1.toml") == load_recipe(ROOT / "recipes/qwen3-4b/unseen_s1.toml")
    refused(*words, said="unseen_s1.toml exists")


def test_a_plan_as_json(tmp_path):
    plan = json.loads(run("train", "recipes/tiny/demo.toml", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert [stage["name"] for stage in plan["stages"]][:2] == ["cold-start", "easy"]
    assert plan["parameters"] == 944_128  # the model that ships, from any folder
    assert plan["stages"][0]["memory"]["peak"] > 0
    assert plan["missing"] == []
    assert not (tmp_path / "runs").exists()
