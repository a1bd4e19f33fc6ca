"""Teach language models to think in parallel by reinforcement learning.

    import parallel_r1 as pr

    policy = pr.load("models/tiny-base")
    answers = pr.generate(policy, "Use 3, 5, 7 to make 22.\\n", samples=8, paths=4)
    for step in pr.rl(policy, task="countdown-easy", reward="bonus(0.2)", steps=50):
        print(step.metrics["accuracy"])
    print(pr.evaluate(policy, "countdown-easy", problems=200, samples=8))

Importing the package is quick: a name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from parallel_r1.answers.rollout import Group, Problem, Rollout
    from parallel_r1.answers.trace import Span, Trace
    from parallel_r1.api import evaluate, generate, parity, rl, sft, train
    from parallel_r1.coldstart.examples import Example
    from parallel_r1.errors import UserError
    from parallel_r1.evaluation.measure import Result
    from parallel_r1.generation.generator import Generator, make_generator
    from parallel_r1.generation.request import Request
    from parallel_r1.generation.settings import Branches, Budget, Engine, Sampling
    from parallel_r1.models.policy import Policy, load
    from parallel_r1.report.answer import Answer
    from parallel_r1.tasks.base import Task, task
    from parallel_r1.tasks.prompts import Prompt
    from parallel_r1.training.algorithms.base import PolicyGradient, algorithm
    from parallel_r1.training.loops import Step
    from parallel_r1.training.rewards.base import reward
    from parallel_r1.training.rewards.outcome import Outcome, Reward
    from parallel_r1.training.sample import Sample

_MODULES = {
    "answers.rollout": ("Group", "Problem", "Rollout"),
    "answers.trace": ("Span", "Trace"),
    "api": ("evaluate", "generate", "parity", "rl", "sft", "train"),
    "coldstart.examples": ("Example",),
    "errors": ("UserError",),
    "evaluation.measure": ("Result",),
    "generation.generator": ("Generator", "make_generator"),
    "generation.request": ("Request",),
    "generation.settings": ("Branches", "Budget", "Engine", "Sampling"),
    "models.policy": ("Policy", "load"),
    "report.answer": ("Answer",),
    "tasks.base": ("Task", "task"),
    "tasks.prompts": ("Prompt",),
    "training.algorithms.base": ("PolicyGradient", "algorithm"),
    "training.loops": ("Step",),
    "training.rewards.base": ("reward",),
    "training.rewards.outcome": ("Outcome", "Reward"),
    "training.sample": ("Sample",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: RUF022: by what a reader looks for
    "Answer",
    "Branches",
    "Budget",
    "Engine",
    "Example",
    "Generator",
    "Group",
    "Outcome",
    "Policy",
    "PolicyGradient",
    "Problem",
    "Prompt",
    "Request",
    "Result",
    "Reward",
    "Rollout",
    "Sample",
    "Sampling",
    "Span",
    "Step",
    "Task",
    "Trace",
    "UserError",
    "__version__",
    "algorithm",
    "evaluate",
    "generate",
    "load",
    "make_generator",
    "parity",
    "reward",
    "rl",
    "sft",
    "task",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'parallel_r1' has no attribute '{name}'")
    value = getattr(import_module(f"parallel_r1.{_HOME[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
