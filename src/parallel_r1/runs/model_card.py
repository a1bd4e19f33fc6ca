"""The model card of a checkpoint: a README.md that says how its weights were trained, how good they are, and how to use
them. Model hubs show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parallel_r1.evaluation.measure import Result
from parallel_r1.evaluation.parity import measure
from parallel_r1.evaluation.tables import results_table, tasks
from parallel_r1.generation.training_card import TrainingCard
from parallel_r1.models.policy import Policy
from parallel_r1.runs.checkpoint import card_of
from parallel_r1.runs.recipe import Recipe
from parallel_r1.table import Table
from parallel_r1.tasks.base import problem_stream
from parallel_r1.tasks.load import load_task
from parallel_r1.training.mismatch import Mismatch
from parallel_r1.training.settings import Stage

ANSWERS = 2
"""Answers whose log-probabilities are compared: enough to see a mismatch; `parallel-r1 parity` compares more."""
ABOUT = """\
A language model that thinks in parallel: it may open a fork, follow several paths that cannot see each other, join
them and go on.
"""
USE = """\
```python
import parallel_r1 as pr

policy = pr.load("FOLDER")  # this folder, or the name of the model on a hub
(answer,) = pr.generate(policy, {prompt!r})
print(answer.text, answer.critical_path, answer.total)
```

The settings of its training are in `parallel_r1.json`: `generate` and `parallel-r1 eval` take them unless others are
given. Without parallel-r1 it is an ordinary causal model of Hugging Face; its forks are then plain text.
"""


def model_card(recipe: Recipe, name: str, policy: Policy, results: Sequence[Result]) -> str:
    """The model card of the weights after a stage, as Markdown.

    Args:
        name: the stage.
        policy: the weights; a few answers are drawn and scored with them.
        results: the evaluations of these weights.
    """
    stage, schema = recipe.stages[name], policy.tags.schema
    card = card_of(recipe, name, policy.version)
    base = _portable(recipe.model.path)
    settings = [
        ("recipe, stage", f"{card.recipe}, {card.stage} ({card.kind})"),
        ("started from", recipe.start_of(name) if recipe.start_of(name) != "base" else base or "random weights"),
        ("updates", f"{card.updates:,}"),
        ("learnt from", _learnt_from(card)),
        ("forks are written in", schema.name),
        ("sampler, scorer", f"{card.sampling.sampler}, {card.scorer}"),
        ("paths, budget", f"{_paths(card)}; {_budget(card)}"),
        ("adapter", f"LoRA of rank {recipe.model.lora.rank}" if recipe.model.lora else "none: all weights learn"),
        ("made with", ", ".join(f"{package} {version}" for package, version in card.versions.items())),
    ]
    tables = "\n".join(results_table(results, task).markdown() for task in tasks(results))
    parts = [
        _front(base),
        f"# {recipe.name}: {name}\n",
        ABOUT,
        "## Training\n",
        Table(("", ""), settings, "").markdown(),
        "## Exactness\n",
        _exactness(_measured(recipe, stage, policy)) + "\n",
        *([tables] if tables else []),
        "## How to use it\n",
        USE.format(prompt=_problem(recipe, stage)),
    ]
    return "\n".join(parts)


def _problem(recipe: Recipe, stage: Stage) -> str:
    """The first problem that the recipe evaluates on, as the model reads it."""
    for task in recipe.evaluation.tasks:
        problem = next(problem_stream(load_task(task), "test", recipe.evaluation.seed))
        return stage.prompt.instruction + problem.prompt
    return "a problem"


def _front(base: str | None) -> str:
    """The block that model hubs read."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [parallel-r1, parallel-thinking]"]
    lines += [f"base_model: {base}"] if base and base.count("/") == 1 and not base.startswith((".", "models/")) else []
    return "\n".join(["---", *lines, "---", ""])


def _portable(path: str | None) -> str | None:
    """A path as it is written on a card, which may be read on another machine: of an absolute one only its name."""
    return Path(path).name if path and Path(path).is_absolute() else path


def _learnt_from(card: TrainingCard) -> str:
    if card.kind == "rl":
        return f"{card.task}, rewarded by {card.reward}"
    data = card.data or {}
    return _portable(data.get("file")) or ", ".join(f"{task} ({weight:g})" for task, weight in data["tasks"].items())


def _paths(card: TrainingCard) -> str:
    sampling = card.sampling
    return f"{sampling.most}" if sampling.least == sampling.most else f"{sampling.least} to {sampling.most}"


def _budget(card: TrainingCard) -> str:
    budget = card.sampling.budget
    return f"{budget.total} tokens, {budget.critical_path} on the critical path"


def _measured(recipe: Recipe, stage: Stage, policy: Policy) -> Mismatch:
    """The mismatch of the stage's sampler and scorer, on a few answers."""
    engine = recipe.engine.model_copy(update={"compile": False})
    paths = min(max(2, stage.sampling.most), 8)
    sampler = stage.sampling.sampler
    (mismatch,) = measure(policy, sampler, [stage.scorer], paths, answers=ANSWERS, forks=1, engine=engine)
    return mismatch


def _exactness(mismatch: Mismatch) -> str:
    """How far sampler and scorer are apart, in a sentence."""
    repeats = "repeats what the sampler did, so only rounding differs"
    kind = repeats if mismatch.exact else "is another than the sampler's"
    return (
        f"The scorer `{mismatch.scorer}` {kind}: on {mismatch.tokens} tokens that these weights drew as\n"
        f"`{mismatch.sampler}`, the log-probabilities of both differ by at most {mismatch.max_abs:.1e} nats, "
        f"{mismatch.mean_abs:.1e} on average."
    )
