"""What a result depends on, as text whose digest names it.

The text keeps the layout that recipes had in version 0.1: a key that only moved to another table must not make the
finished results of a study unfindable. What version 0.1 did not have is added where it differs from the default.
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
    """A name for texts: 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def recipe_text(recipe: Recipe) -> str:
    """The recipe of one stage."""
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
    """How answers are drawn and read."""
    values = (each.model_dump(mode="json") for each in (sampling, prompt, engine))
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
