"""Runs and studies that are killed; in a module of its own, so that a process that runs them loads little else."""

import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from parallel_r1.errors import UserError
from parallel_r1.runs.curriculum import build_policy, train
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.runs.study import jobs as pool
from parallel_r1.runs.study.rows import expand, items, load_study
from parallel_r1.training.learner import Learner

WRITTEN = ("state", "checkpoint", "candidate", "evaluation", "rollouts")
MOMENTS = [
    *((RunFolder, name) for name in ("log", "rewind", "hand_over", *(f"save_{what}" for what in WRITTEN))),
    (Learner, "update"),
    (os, "replace"),
    (shutil, "rmtree"),
    (torch, "save"),
]


def run(recipe: Path, folder: Path, moments: int) -> None:
    """Train, and die without a word at a moment: just before or just after something is learnt or written, or between
    a file's writing and its naming. Never if 0."""
    left = moments

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)

    def counted(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            count()
            result = function(*args, **kwargs)
            count()
            return result

        return call

    loaded = load_recipe(recipe)
    policy = build_policy(loaded)
    for owner, name in MOMENTS:
        setattr(owner, name, counted(getattr(owner, name)))
    run = RunFolder.create(folder, loaded)
    train(loaded, policy, run, lambda row: None)
    run.finish()


@dataclass(frozen=True)
class Piece:
    """Work that is quickly done, never ends, or fails."""

    key: str
    how: Literal["quick", "long", "refused", "crash"] = "quick"
    after: "Piece | None" = None

    def is_done(self, folder: Path) -> bool:
        return (folder / self.key).exists()

    def do(self, folder: Path, on_row: Callable[[dict[str, Any]], None]) -> None:
        on_row({"kind": "begun"})
        if self.how == "long":
            time.sleep(600)
        elif self.how == "refused":
            raise UserError("this", "that", "do it")
        elif self.how == "crash":
            os._exit(3)
        (folder / self.key).write_text(f"{torch.get_num_threads()}")


def pieces(folder: Path) -> None:
    """Do work that never ends."""
    pool.run([Piece("long", "long")], folder, 1, lambda work, row: None)


def study(file: Path, folder: Path, rows: int) -> None:
    """Do a study with its first seed, and die without a word after so many rows of metrics. Never if 0."""
    count = itertools.count(1)

    def observer(work: object, row: dict[str, Any]) -> None:
        if next(count) == rows:
            os.kill(os.getpid(), 9)

    loaded = load_study(file)
    pool.run([item.work for item in items(expand(loaded, file, loaded.seeds[:1]))], folder, 2, observer)
