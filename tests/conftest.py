"""Shapes are checked in the modules that hold tensors; models are small and random, or the one that ships.

The local engine calls its functions for every layer of every token, and checking them takes as long as the calls: with
`SHAPES=all`, as `make test-slow` sets it, they are checked too.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook(
    [
        f"parallel_r1.{module}"
        for module in (
            "answers.visibility",
            "models.attention",
            "models.flex",
            *(["generation.local"] if os.environ.get("SHAPES") == "all" else []),
            "training.batch",
            "training.algorithms",
        )
    ],
    "beartype.beartype",
)

from pathlib import Path

import pytest
import torch
from chromium import browser, shots  # noqa: F401 - fixtures of tests/browser
from hypothesis import HealthCheck, settings
from transformers.utils import logging

from parallel_r1 import models, registry
from parallel_r1.answers.schemas import Schema
from parallel_r1.models.policy import Policy
from parallel_r1.models.tags import add_tags
from parallel_r1.tasks.load import TASKS
from parallel_r1.training.algorithms.base import ALGORITHMS
from parallel_r1.training.rewards.base import REWARDS

# No test is about time: a busy machine must not fail one.
settings.register_profile("house", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
logging.disable_progress_bar()
ROOT = Path(__file__).parent.parent
TINY = ROOT / "models" / "tiny-base"
SHARED = ROOT.parent / "shared" / "data"
"""Public problem sets as parquet files, beside the repository; they are never part of it."""
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no problem sets in {SHARED}")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, by a decorator or a plug-in file, is gone after it."""
    monkeypatch.setattr(registry, "_plugins", {})
    for entries in (REWARDS, TASKS, ALGORITHMS):
        for column in ("_entries", "_places"):
            monkeypatch.setattr(entries, column, dict(getattr(entries, column)))


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer(str(TINY))


@pytest.fixture(scope="session")
def tags(tokenizer):
    return models.tag_ids(tokenizer)


@pytest.fixture(scope="session")
def tagged():
    """Schema -> a policy of random weights with its tags."""
    from architectures import random_model

    made: dict[str, Policy] = {}

    def make(schema: Schema) -> Policy:
        if schema.name not in made:
            tokenizer = models.load_tokenizer(str(TINY))
            tags = add_tags(tokenizer, schema)
            made[schema.name] = Policy(random_model("qwen3", len(tokenizer)), tokenizer, tags)
        return made[schema.name]

    return make


@pytest.fixture(scope="session")
def tiny() -> Policy:
    """The model that ships with the project."""
    return models.load(str(TINY), device="cpu")


def small_model(tokenizer, seed: int = 0):
    """A random model whose distributions are far from uniform, so that a wrong mask or position shows."""
    model = models.random_model(
        tokenizer, hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, positions=1024, seed=seed
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


@pytest.fixture
def policy(tokenizer, tags) -> Policy:
    """A small random policy of the test's own, free to be trained."""
    return Policy(small_model(tokenizer), tokenizer, tags)


@pytest.fixture(scope="session")
def frozen(tokenizer, tags) -> Policy:
    """A small random policy that no test changes."""
    return Policy(small_model(tokenizer), tokenizer, tags)
