"""Every checkpoint says how it was trained and how it is used."""

import json
import re

import pytest
from common import run

from parallel_r1.generation.training_card import read_card

RECIPE = """
name = "card"
seed = 3

[model]
path = "models/tiny-parallel"

[evaluation]
tasks = ["countdown-easy"]
problems = 3
samples = 2

[defaults.sampling]
paths = 2
budget = { total = 60, critical_path = 40, path = 16, forks = 1 }

[stages.sft]
kind = "sft"
steps = 1
batch = 2
data = { tasks = { countdown-easy = 1.0 }, parallel = 0.5 }

[stages.rl]
kind = "rl"
task = "countdown-hard"
reward = "bonus(0.3)"
steps = 1
problems = 1
group = 2
sampling = { sampler = "causal_join" }
scorer = "causal"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    (folder / "card.toml").write_text(RECIPE)
    done = run("train", folder / "card.toml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_card_says_what_the_run_did(folder):
    text = (folder / "checkpoints/rl/README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    for part in (
        "# card: rl",
        "| started from | sft |",
        "| learnt from | countdown-hard, rewarded by bonus(0.3) |",
        "| sampler, scorer | causal_join, causal |",
        "The scorer `causal` is another than the sampler's",
    ):
        assert part in text
    result = json.loads((folder / "eval/rl.countdown-easy.json").read_text())
    assert f"| rl | {100 * result['mean']:.1f} |" in text
    assert "countdown-easy: 3 held-out problems, k = 2 answers to each" in text
    card = read_card(folder / "checkpoints/sft")
    text = (folder / "checkpoints/sft/README.md").read_text()
    assert f"| updates | {card.updates:,} |" in text
    assert "| learnt from | countdown-easy (1) |" in text
    exact = float(re.search(r"differ by at most (\S+) nats", text)[1])
    assert 0 < exact < 1e-4


def test_its_example_runs(folder, capsys):
    checkpoint = folder / "checkpoints/sft"
    (code,) = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    exec(code.replace("FOLDER", str(checkpoint)), {})
    *_, counts = capsys.readouterr().out.split()
    assert 0 < int(counts) <= 60


@pytest.mark.slow
def test_a_card_that_an_interruption_left_out_is_written_later(folder):
    """The same command, after the process was ended between an evaluation and the card. A run that has not finished has
    a folder for its state."""
    card = folder / "checkpoints/rl/README.md"
    before = card.read_text()
    card.unlink()
    (folder / "state").mkdir()
    done = run("train", folder.parent / "card.toml", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert card.read_text() == before
