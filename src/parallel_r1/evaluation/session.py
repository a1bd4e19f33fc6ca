"""Evaluate a model on several tasks, under one budget or several, into a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from parallel_r1 import distributed as processes
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.errors import UserError
from parallel_r1.evaluation.answer_file import AnswerFile
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
OnProgress = Callable[[str, int, int, int], None]
"""Called as `on_progress(name, kept, asked, number)` when so many answers were written: `name` says the task and the
budget, `kept` is how many were there before, `asked` how many there will be."""


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

    def __post_init__(self) -> None:
        self.parts  # noqa: B018  problems that cannot be read are refused at once, before a model is loaded

    def settings(self, engine: Engine, find: Find = "strict") -> dict[str, Any]:
        """What decides which answers are drawn, but for the weights, and the grader that judges them."""
        asked = self.samples, self.problems, self.seed, find, self.sampling, self.prompt, engine
        settings = settings_of(self.name, *asked, self.budgets, self.split)
        return settings | {"grader": grader_digest(self.tasks)}

    def run(
        self,
        policy: Policy,
        engine: Engine,
        folder: EvaluationFolder,
        settings: dict[str, Any],
        on_progress: OnProgress = lambda *_: None,
    ) -> list[Measured]:
        """Draw what the folder does not have yet, measure all, and save the results.

        Args:
            settings: from `settings`.
            on_progress: see `OnProgress`.

        Raises:
            UserError: a prompt is too long for the model; the folder holds something else, an evaluation with other
                settings or of other weights, or one that another process draws.
        """
        settings = settings | {"weights": digest(policy)}
        for _, problems, _, sampling in self.parts:  # prompts that are too long are refused before a folder is made
            requests_of(policy, problems, 1, sampling, self.seed, self.prompt)
        folder.open(settings)
        try:
            measured = self.draw(policy, make_generator(policy, engine), folder, on_progress)
            folder.save(measured, settings)
        finally:
            folder.close()
        return measured

    @cached_property
    def parts(self) -> list[tuple[Task, list[Problem], int | None, Sampling]]:
        """Every task and budget, with the problems and the sampling.

        Raises:
            UserError: the problems of a task cannot be read.
        """
        parts = []
        for task in self.tasks:
            most = self.problems or (ALL if isinstance(task, Mathematics) else SOME)
            problems = held_out(task, most, self.seed, self.split)
            for budget in self.budgets or (None,):
                sampling = self.sampling if budget is None else scaled(self.sampling, budget)
                parts.append((task, problems, budget, sampling))
        return parts

    def draw(
        self,
        policy: Policy,
        generator: Generator,
        folder: EvaluationFolder,
        on_progress: OnProgress = lambda *_: None,
    ) -> list[Measured]:
        """Draw the answers that the folder does not have yet, and measure all."""
        earlier = {(one.result.task, one.budget): one for one in folder.results()} if folder.is_finished else {}
        measured = []
        for task, problems, budget, sampling in self.parts:
            file, samples = folder.answers(task.name, budget), self.samples[task.name]
            asked = samples * len(problems)
            kept = len(set(file.columns("sample")[0]))
            processes.gather([])  # nobody writes before all have counted
            name = task.name if budget is None else f"{task.name}, critical path {budget}"
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
                on_written=partial(on_progress, name, kept, asked),
            )
            if not kept:
                folder.save_time(task.name, budget, (time.perf_counter() - started) / asked)
            before = earlier.get((task.name, budget))
            alone = before.alone if before else ()
            if len(alone) < min(self.alone, len(problems)):
                alone = self._time(policy, generator, problems, sampling)
            loaded = before.loaded if before else folder.time(task.name, budget)
            measured.append(Measured(summarise(rollouts, self.name), budget, loaded, alone))
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
        """Judge the stored answers again, by the references of today. Of a finished evaluation the results are measured
        and saved; of an unfinished one nothing is returned, and drawing goes on with the grader of today.

        Raises:
            UserError: the settings differ, or the stored answers are to other problems.
        """
        folder.check(settings, ("weights", "versions", "grader"))
        folder.hold()
        try:
            measured = self._judge_again(folder)
            folder.save(measured, folder.settings() | {"grader": settings["grader"]})
        finally:
            folder.close()
        return measured

    def _judge_again(self, folder: EvaluationFolder) -> list[Measured]:
        finished = folder.is_finished
        before = {(one.result.task, one.budget): one for one in folder.results()} if finished else {}
        judged, measured = [], []
        for task, problems, budget, sampling in self.parts:
            file = folder.answers(task.name, budget)
            repeated = [problem for problem in problems for _ in range(self.samples[task.name])]
            answers = file.read()
            if finished and len(answers) < len(repeated):
                fix = "give the command without --regrade: it draws the others"
                raise UserError(f"{len(repeated)} stored answers to {task.name}", f"{len(answers)}", fix)
            asked = _with_references(answers, repeated, file)
            again = judge_again(asked, task, explain=True, **reading_rules(self.prompt, sampling))
            judged.append((file, dict(zip(answers, again, strict=True)), len(repeated)))
            if finished:
                measured.append(replace(before[task.name, budget], result=summarise(again, self.name)))
        for file, new, number in judged:  # only after all of them could be judged
            if new:
                file.settle(new, [f"{self.seed}/{index}" for index in range(number)])
        return measured


def _with_references(answers: Mapping[int, Rollout], repeated: Sequence[Problem], file: AnswerFile) -> list[Rollout]:
    """The answers with their problems as they are now: a reference may have been corrected.

    Args:
        repeated: the problem of every answer of the evaluation.

    Raises:
        UserError: an answer is to another problem.
    """
    for index, rollout in answers.items():
        now = repeated[index] if index < len(repeated) else None
        if now is None or (now.id, now.prompt) != (rollout.problem.id, rollout.problem.prompt):
            raise UserError(
                f"the problems whose answers {file.path} holds",
                f"another one as number {index}, for '{rollout.problem.id}'",
                "put the problems back as they were, or evaluate into another --out",
            )
    return [replace(rollout, problem=repeated[index]) for index, rollout in answers.items()]
