"""Evaluate a model on several tasks, under one budget or several, into a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.errors import UserError
from parallel_r1.evaluation.folder import EvaluationFolder, Measured, grader_digest, scaled, settings_of
from parallel_r1.evaluation.measure import draw, held_out, summarise
from parallel_r1.generation.generator import Generator, make_generator
from parallel_r1.generation.rollouts import judge_again, reading_rules, requests_of
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.models.policy import Policy, digest
from parallel_r1.tasks.base import Task
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import Find
from parallel_r1.tasks.math import Mathematics
from parallel_r1.tasks.prompts import Prompt

ALL, SOME = 1_000_000, 200
"""Problems of a task where nobody says how many: all of a set of problems, so many of a task that makes them."""


@dataclass(frozen=True)
class Session:
    """What an evaluation asks.

    Attributes:
        name: of the model, in tables.
        tasks: the tasks.
        samples: name of a task -> answers to every problem.
        problems: most problems of a task; None for all of a set, and `SOME` of a task that makes its problems.
        seed: chooses the problems and seeds the answers.
        sampling, prompt: how answers are drawn.
        budgets: critical paths to measure under, smallest first; empty for that of `sampling` alone.
        alone: number of answers to time one at a time, per task and budget.
        split: that the problems are from.
    """

    name: str
    tasks: Sequence[Task]
    samples: Mapping[str, int]
    problems: int | None
    seed: int
    sampling: Sampling
    prompt: Prompt
    budgets: Sequence[int] = ()
    alone: int = 0
    split: Split = "test"

    def settings(self, engine: Engine, find: Find = "strict") -> dict[str, Any]:
        """What decides which answers are drawn, but for the weights, and the grader that judges them."""
        asked = self.samples, self.problems, self.seed, find, self.sampling, self.prompt, engine
        settings = settings_of(self.name, *asked, self.budgets, self.split)
        return settings | {"grader": grader_digest(self.tasks)}

    def run(self, policy: Policy, engine: Engine, folder: EvaluationFolder, settings: dict[str, Any]) -> list[Measured]:
        """Draw what the folder does not have yet, measure all, and save the results.

        Args:
            settings: from `settings`.

        Raises:
            UserError: the folder holds something else, an evaluation with other settings or of other weights, or one
                that another process draws.
        """
        settings = settings | {"weights": digest(policy)}
        folder.open(settings)
        try:
            measured = self.draw(policy, make_generator(policy, engine), folder)
            folder.save(measured, settings)
        finally:
            folder.close()
        return measured

    def parts(self) -> Iterator[tuple[Task, list[Problem], int | None, Sampling]]:
        """Every task and budget, with the problems and the sampling."""
        for task in self.tasks:
            most = self.problems or (ALL if isinstance(task, Mathematics) else SOME)
            problems = held_out(task, most, self.seed, self.split)
            for budget in self.budgets or (None,):
                yield task, problems, budget, self.sampling if budget is None else scaled(self.sampling, budget)

    def draw(
        self,
        policy: Policy,
        generator: Generator,
        folder: EvaluationFolder,
        on_result: Callable[[Measured], None] = lambda measured: None,
    ) -> list[Measured]:
        """Draw the answers that the folder does not have yet, and measure all.

        Args:
            on_result: called with every result as it is there.
        """
        earlier = {(each.result.task, each.budget): each for each in folder.results()} if folder.is_finished else {}
        measured = []
        for task, problems, budget, sampling in self.parts():
            file, samples = folder.answers(task.name, budget), self.samples[task.name]
            missing = samples * len(problems) - len(file.read())
            processes.gather([])  # nobody writes before all have counted
            started = time.perf_counter()
            rollouts = draw(
                policy,
                task,
                problems,
                samples,
                sampling,
                self.seed,
                prompt=self.prompt,
                generator=generator,
                file=file,
            )
            seconds = time.perf_counter() - started
            before = earlier.get((task.name, budget)) or Measured(
                summarise(rollouts, self.name),
                budget,
                seconds / missing if missing else None,
                self._time(policy, generator, problems, sampling),
            )
            measured.append(replace(before, result=summarise(rollouts, self.name)))
            on_result(measured[-1])
        return measured

    def _time(
        self, policy: Policy, generator: Generator, problems: Sequence[Problem], sampling: Sampling
    ) -> tuple[float, ...]:
        """The seconds of single answers, drawn one after the other. A first one, which is not counted, warms up."""
        few = problems[: self.alone]
        requests = requests_of(policy, few, 1, sampling, self.seed, self.prompt)
        seconds = []
        for request in [*requests[:1], *requests]:
            started = time.perf_counter()
            generator.traces([request])
            seconds.append(time.perf_counter() - started)
        return tuple(seconds[1:])

    def judge_again(self, folder: EvaluationFolder, settings: dict[str, Any]) -> list[Measured]:
        """Judge the answers of a finished evaluation again, measure them, and save the results.

        Raises:
            UserError: the evaluation is not finished, or has fewer answers than are asked for.
        """
        folder.check(settings, ("weights", "versions", "grader"))
        before = {(each.result.task, each.budget): each for each in folder.results()}
        measured = []
        for task, problems, budget, sampling in self.parts():
            file = folder.answers(task.name, budget)
            answers = file.read()
            asked = self.samples[task.name] * len(problems)
            if len(answers) < asked:
                raise UserError(
                    f"{asked} stored answers to {task.name}", f"{len(answers)} in {file.path}", "draw the others first"
                )
            again = judge_again(
                _with_references(list(answers.values()), problems),
                task,
                explain=True,
                **reading_rules(self.prompt, sampling),
            )
            seeds = [f"{self.seed}/{index}" for index in range(asked)]
            file.settle(dict(zip(answers, again, strict=True)), seeds)
            measured.append(replace(before[task.name, budget], result=summarise(again, self.name)))
        folder.save(measured, folder.settings() | {"grader": settings["grader"]})
        return measured


def _with_references(rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[Rollout]:
    """The rollouts with the problems as they are now: a reference may have been corrected."""
    by_id = {problem.id: problem for problem in problems}
    return [replace(rollout, problem=by_id.get(rollout.problem.id, rollout.problem)) for rollout in rollouts]
