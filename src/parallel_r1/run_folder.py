"""The folder that a run writes: recipe, environment, metrics, rollouts, checkpoints, evaluations."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parallel_r1.config import Recipe, dump_recipe
from parallel_r1.errors import UserError
from parallel_r1.models import Policy, save
from parallel_r1.rollout import Rollout, write_jsonl

PACKAGES = ("parallel-r1", "torch", "transformers", "accelerate", "numpy", "tokenizers")


class RunFolder:
    """One run's files. Nothing in it is ever overwritten by another run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Start a folder for a run.

        Raises:
            UserError: the folder holds something already, or cannot be written.
        """
        cls.check_vacant(path)
        try:
            for name in ("rollouts", "checkpoints", "eval"):
                (path / name).mkdir(parents=True, exist_ok=True)
            (path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
            _write_json(path / "environment.json", environment())
        except OSError as error:
            raise UserError("a folder that can be written", f"{path}: {error}", "give another --out") from error
        return cls(path)

    @staticmethod
    def check_vacant(path: Path) -> None:
        """Refuse a folder that holds anything, before time is spent on a run that could not be written."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                "a folder for a new run", f"{path} holds something already", "give another --out, or move it away"
            )

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def save_rollouts(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Write the answers of a step."""
        write_jsonl(self.path / "rollouts" / f"step-{step}.jsonl", rollouts)

    def save_checkpoint(self, name: str, policy: Policy) -> None:
        """Write the weights after a stage as an ordinary Hugging Face model folder."""
        save(policy, self.checkpoint(name))

    def checkpoint(self, name: str) -> Path:
        """Where the weights after a stage lie."""
        return self.path / "checkpoints" / name

    def save_evaluation(self, name: str, result: dict[str, Any]) -> None:
        """Write one evaluation."""
        _write_json(self.path / "eval" / f"{name}.json", result)


def environment() -> dict[str, Any]:
    """What a reader needs to know to repeat a run: versions, machine, command."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
