"""A run that is killed; in a module of its own, so that a process that runs it loads little else."""

import functools
import os
import shutil
from pathlib import Path

import torch

from parallel_r1.curriculum import build_policy, train
from parallel_r1.learner import Learner
from parallel_r1.recipe_file import load_recipe
from parallel_r1.run_folder import RunFolder

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
