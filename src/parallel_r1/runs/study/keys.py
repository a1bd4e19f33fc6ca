"""The keys of a study's results: digests of all settings that a result depends on.

The digested text keeps the layout of recipes in version 0.1, so that a setting that only moved to another table does
not change the keys of finished results. A setting that version 0.1 lacks is added if it differs from its default.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.prompts import Prompt

GRPO = ("clip_low", "clip_high", "std", "average", "minibatches", "refill", "truncated", "kl", "entropy", "correction")


def digest(*parts: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def recipe_text(recipe: Recipe) -> str:
    """The text of a recipe with one stage, to be digested."""
    import tomli_w

    tree = recipe.model_dump(mode="json", exclude_none=True)
    engine, imports = tree.pop("engine"), tree.pop("imports")
    model = {"attention": "sdpa", **tree["model"]}
    if "lora" in model:
        model["lora"] = {**model["lora"], "dropout": 0.0}
    stages = {name: _stage(stage, engine, recipe.stages[name].is_exact) for name, stage in tree["stages"].items()}
    old = {**tree, "model": _ordered(model, ("path", "architecture", "attention", "lora")), "stages": stages}
    return tomli_w.dumps(old | ({"imports": imports} if imports else {}))


def sampling_text(sampling: Sampling, prompt: Prompt, engine: Engine) -> str:
    """The text of the settings that answers are sampled and judged with, to be digested."""
    values = (section.model_dump(mode="json") for section in (sampling, prompt, engine))
    return json.dumps(_sampling(*values), separators=(",", ":"), ensure_ascii=False)


def _stage(stage: dict[str, Any], engine: dict[str, Any], exact: bool) -> dict[str, Any]:
    old: dict[str, Any] = {}
    for key, value in stage.items():
        if key == "sampling":
            old["allow_mismatch"] = not exact
            old["sampling"] = _sampling(value, stage["prompt"], engine)
        elif key == "algorithm" and value["name"] == "grpo":
            old["grpo"] = _ordered(value, GRPO)
        elif key != "prompt":
            old[key] = value
    return old


def _sampling(sampling: dict[str, Any], prompt: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    budget = sampling["budget"]
    memory = {"memory": engine["memory"]} if "memory" in engine else {}
    return {
        **{key: value for key, value in sampling.items() if key != "budget"},
        "rows": engine["rows"],
        **memory,
        "compile": engine["compile"],
        "instruction": prompt["instruction"],
        "final": prompt["final_answer"],
        "budget": budget,
    }


def _ordered(values: dict[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in order if key in values}
