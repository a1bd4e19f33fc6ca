"""`push`, against a stub of a hub, in processes of their own as a user starts them."""

import json
import os
import subprocess
import sys

import pytest
from common import refused, run
from conftest import ROOT, TINY
from hub import TOKEN, Hub

from parallel_r1 import models
from parallel_r1.generation.training_card import read_card
from parallel_r1.runs.push import LEFT_OUT, pack

REPO = "somebody/tiny"
TRAINED = ROOT / "models" / "tiny-parallel"
COMMIT = f"POST /api/models/{REPO}/commit/main"


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint as a run writes it, with what an interrupted run leaves beside it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in TINY.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_text("---\ntags: [parallel-r1]\n---\n# A model\n", encoding="utf-8")
    for name in ("optimizer.pt", "model.safetensors.part", ".lock", ".model.part/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no part of the model")
    return folder


def push(hub, *words, said=None, **environment):
    """What `push` does; with `said`, it fails with one line that holds these words and nowhere the token."""
    return command(hub, "push", *words, said=said, **environment)


def command(hub, *words, said=None, **environment):
    variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    variables["HF_HOME"] = str(hub.folder / "no-login")
    variables |= environment
    for name in [name for name, value in variables.items() if value is None]:
        del variables[name]
    command = [sys.executable, "-m", "parallel_r1", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=100)
    assert TOKEN not in done.stdout + done.stderr
    if said is None:
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    else:
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        for words in (said,) if isinstance(said, str) else said:
            assert words in done.stderr
    return done


def content(folder):
    """Path -> content of the files of a checkpoint that belong to the model."""
    return {name: (folder / name).read_bytes() for name in pack(folder).files}


def test_a_checkpoint_arrives_whole_and_loads(hub, checkpoint, tmp_path):
    done = push(hub, checkpoint, REPO, "--message", "the first")
    assert hub.files(REPO) == content(checkpoint)
    assert set(hub.files(REPO)) == {file.name for file in TINY.iterdir()} | {"README.md"}
    assert "left out, no part of the model: .lock, .model.part/x, model.safetensors.part, optimizer.pt" in done.stdout
    assert f"sent to {hub.url}/{REPO}, commit 000000" in done.stdout
    assert (hub.messages, hub.repos[REPO]["visibility"]) == (["the first"], "public")
    assert any(call.startswith("PUT /storage/") for call in hub.calls)  # the weights came as a large file
    there, here = (models.load(str(folder)) for folder in (hub.checkout(REPO, tmp_path / "back"), TINY))
    assert there.tags == here.tags
    for (name, weight), (other, expected) in zip(
        there.model.named_parameters(), here.model.named_parameters(), strict=True
    ):
        assert name == other
        assert weight.equal(expected)


@pytest.mark.slow
def test_a_model_on_the_hub_is_used_as_it_was_trained(hub, checkpoint):
    """Its training card comes along: the same command draws the same answer from the folder and from the hub."""
    for file in TRAINED.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    push(hub, checkpoint, REPO)
    words = ("--prompt", "Use 3, 5, 7 to make 22.\n", "--json")
    here, there = (json.loads(command(hub, "generate", model, *words).stdout) for model in (checkpoint, REPO))
    assert here == there
    paths = {address[-1][1] for span in there["spans"] if (address := span["address"])}
    assert len(paths) == read_card(checkpoint).sampling.most == 8  # 4 without a card
    assert f"GET /{REPO}/resolve/main/parallel_r1.json" in [call.replace("1" * 40, "main") for call in hub.calls]


def test_the_same_command_again_sends_what_has_changed_only(hub, checkpoint):
    push(hub, checkpoint, REPO)
    push(hub, checkpoint, REPO)
    assert hub.repos[REPO]["commits"] == 1
    (checkpoint / "README.md").write_text("---\ntags: []\n---\nanother\n", encoding="utf-8")
    push(hub, checkpoint, REPO)
    assert hub.repos[REPO]["commits"] == 2
    assert hub.files(REPO) == content(checkpoint)
    assert sum(call.startswith("PUT ") for call in hub.calls) == 1


@pytest.mark.parametrize("broken", ["PUT /storage/", COMMIT, "POST /api/repos/create"])
def test_after_a_failure_the_same_command_goes_on(hub, checkpoint, broken):
    hub.fails[broken] = [507]
    push(hub, checkpoint, REPO, said=("507", "nothing is lost: give the same command again"))
    assert not hub.repos.get(REPO, {"files": {}})["files"]  # the whole model, or nothing
    before = sum(call.startswith("PUT ") for call in hub.calls)
    push(hub, checkpoint, REPO)
    assert hub.files(REPO) == content(checkpoint)
    assert sum(call.startswith("PUT ") for call in hub.calls) - before == (0 if broken == COMMIT else 1)


def test_a_short_failure_is_not_even_seen(hub, checkpoint):
    hub.fails["PUT /storage/"] = [503]
    push(hub, checkpoint, REPO)
    assert hub.files(REPO) == content(checkpoint)


def test_a_hub_with_xet_storage_is_sent_to_through_it(hub, checkpoint):
    hub.xet = True
    push(hub, checkpoint, REPO, said=f"{hub.url}/xet/")
    assert any("/xet/v1/" in call for call in hub.calls)
    assert not any("/info/lfs/" in call for call in hub.calls)
    assert hub.files(REPO) == {}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"HF_TOKEN": "hf_another"},
            ("a token that http://127.0.0.1", "401 Invalid username or password.", "HF_TOKEN"),
        ),
        ({"HF_TOKEN": None}, ("a token of the hub; found none", "hf auth login")),
        ({"HF_HUB_OFFLINE": "1"}, "unset HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, ("a connection to http://127.0.0.1:9", "refused")),
        ({"HF_ENDPOINT": "nonsense"}, "a connection to nonsense"),
    ],
)
def test_without_a_hub_or_a_token_there_is_one_line(hub, checkpoint, environment, said):
    push(hub, checkpoint, REPO, said=said, **environment)
    assert hub.repos == {}


def test_a_foreign_namespace(hub, checkpoint):
    push(hub, checkpoint, "other/tiny", said=("may write to other/tiny", 'under the namespace "other"'))


def test_a_hub_without_the_interface(hub, checkpoint):
    push(hub, checkpoint, REPO, HF_ENDPOINT=f"{hub.url}/elsewhere", said=("404", "HF_ENDPOINT"))


@pytest.mark.slow
def test_private_means_private(hub, checkpoint):
    push(hub, checkpoint, "their-lab/secret", "--private")
    assert hub.repos["their-lab/secret"]["visibility"] == "private"
    push(hub, checkpoint, "their-lab/secret", "--private")
    push(hub, checkpoint, REPO)
    push(hub, checkpoint, REPO, "--private", said="one that everybody sees")


def test_a_dry_run_needs_no_hub(hub, checkpoint):
    done = push(hub, checkpoint, REPO, "--dry-run", HF_TOKEN=None, HF_HUB_OFFLINE="1")
    assert "model.safetensors" in done.stdout
    assert "a dry run" in done.stdout
    done = push(hub, checkpoint, REPO, "--dry-run", "--json", HF_HUB_OFFLINE="1")
    listed = json.loads(done.stdout)
    assert listed["files"] == {name: len(text) for name, text in content(checkpoint).items()}
    assert listed["bytes"] == sum(listed["files"].values())
    assert (listed["url"], len(listed["left_out"])) == (None, len(LEFT_OUT))
    assert hub.calls == []


def test_json_says_where_it_is(hub, checkpoint):
    sent = json.loads(push(hub, checkpoint, REPO, "--json").stdout)
    assert (sent["url"], sent["commit"]) == (f"{hub.url}/{REPO}", f"{1:040x}")


def test_a_damaged_card_is_refused_before_anything_is_sent(hub, checkpoint):
    hub.fails["POST /api/validate-yaml"] = [400]
    push(hub, checkpoint, REPO, said="README.md")
    assert not any(call.startswith("PUT ") for call in hub.calls)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "a b/c", "", "https://hub/a/b", "a/-b", "a/" + 100 * "b"])
def test_a_name_that_is_none(checkpoint, repo):
    refused("push", checkpoint, repo, "--dry-run", said="a repository as OWNER/NAME")


def test_folders_that_are_no_checkpoint(checkpoint, tmp_path):
    refused("push", tmp_path / "nowhere", REPO, said="no folder")
    refused("push", checkpoint / "config.json", REPO, said="no folder")
    refused("push", tmp_path, REPO, "--dry-run", said="with config.json")
    (checkpoint / "README.md").unlink()
    refused("push", checkpoint, REPO, "--dry-run", said=("README.md", "parallel-r1 train", "--without-card"))
    assert run("push", checkpoint, REPO, "--dry-run", "--without-card").returncode == 0
    (checkpoint / "model.safetensors").unlink()
    refused("push", checkpoint, REPO, "--dry-run", said="weights, such as model.safetensors")
    (tmp_path / "checkpoints").mkdir()
    checkpoint.rename(tmp_path / "checkpoints" / "hard")
    refused("push", tmp_path, REPO, said=("a run folder", f"{tmp_path}/checkpoints/hard"))
