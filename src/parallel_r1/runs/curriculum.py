"""A recipe from its first stage to its last: what is done, what is measured, when a stage stops, what it hands over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel_r1 import models
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.errors import Missing, UserError
from parallel_r1.evaluation.measure import Result, evaluate, held_out
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.generation.generator import make_generator
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.runs import trackers as tracking
from parallel_r1.runs.checkpoint import card_of, card_of_base
from parallel_r1.runs.estimate import check_positions
from parallel_r1.runs.folder import RunFolder, space
from parallel_r1.runs.monitor import Monitor
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.base import Split, load_task, problem_stream
from parallel_r1.training.loops import State, Step, run_rl, run_sft
from parallel_r1.training.optimizer import moments_of
from parallel_r1.training.rewards.language import check_reward
from parallel_r1.training.settings import RL, SFT

log = logging.getLogger(__name__)
Observer = Callable[[dict[str, Any]], None]
"""Is told every row of metrics as it is made."""
Counted = tuple[str, int, int, Split]
"""A task, the most problems of it, the seed and the split: what a count of problems depends on."""


@dataclass
class Watch:
    """The validations of a stage, and what its stop rule makes of them. Without a rule there are none.

    Attributes:
        seen: steps of the stage -> the figure that should rise, in order.
    """

    stage: SFT | RL
    seen: dict[int, float] = field(default_factory=dict)

    def due(self, step: int) -> bool:
        """Whether there is a validation after a step."""
        rule = self.stage.stop
        return rule is not None and (step % rule.every == 0 or step == self.stage.steps)

    @property
    def best(self) -> int | None:
        """The step of the best validation, the first of equals."""
        return max(self.seen, key=self.seen.__getitem__, default=None)

    @property
    def waited(self) -> int:
        """Validations since the last gain; the first is one."""
        least = self.stage.stop.min_gain if self.stage.stop else 0.0
        last, waited = -float("inf"), 0
        for value in self.seen.values():
            last, waited = (value, 0) if value > last + least else (last, waited + 1)
        return waited

    @property
    def over(self) -> bool:
        """Whether the stage ends."""
        return self.stage.stop is not None and self.waited >= self.stage.stop.patience


class Curriculum:
    """A recipe under way. What is done is what lies in its folder, so a run that was broken off goes on."""

    def __init__(self, recipe: Recipe, run: RunFolder, tell: Observer) -> None:
        self.recipe, self.run, self.tell = recipe, run, tell
        self.results: list[Result] = []
        self.done = {name for name in recipe.stages if run.checkpoint(name).exists()}
        saved = run.load_state()
        self.state = None if saved is None or saved["stage"] in self.done else saved
        taken = {row["stage"]: row["stage_step"] for row in run.metrics() if row["kind"] in ("sft", "rl")}
        self.step = sum(taken[name] for name in self.done) + (self.state["update"]["stage_step"] if self.state else 0)
        if self.step:
            log.info("resuming after step %d; finished stages: %s", self.step, ", ".join(self.done) or "none")
        run.rewind(self.step)
        self.monitor = Monitor().remember(run.metrics())

    def record(self, row: dict[str, Any]) -> None:
        """Log a row of metrics and what the monitor has to say about it."""
        row = {"step": self.step, **row}
        for each in (row, *self.monitor(row)):
            self.run.log(each)
            self.tell(each)

    def measure(self, name: str, stage: SFT | RL, policy: Policy | None) -> None:
        """Measure the weights after stage `name` on all tasks, unless it has been done. Answers are drawn as in
        `stage`; the weights are loaded if None."""
        for task in self.recipe.evaluation.tasks:
            known = self.run.evaluation(f"{name}.{task}")
            if known is None:
                policy = policy or load_checkpoint(self.recipe, self.run.checkpoint(name))
                started = time.perf_counter()
                known = self.evaluate(policy, task, self.recipe.evaluation, stage, name, "test")
                seconds = time.perf_counter() - started
                row = {"step": self.step, "kind": "evaluation", **_figures(known), "seconds": seconds}
                self.run.log(row)  # the first: a row whose evaluation was not saved is dropped and comes again
                self.run.save_evaluation(f"{name}.{task}", known)
                self.tell(row)  # the last: where a tracker fails, nothing is measured twice
            self.results.append(Result(**known))

    def evaluate(
        self, policy: Policy, task: str, settings: Evaluation, stage: SFT | RL, name: str, split: Split
    ) -> dict[str, Any]:
        """Measure weights on one task, with answers drawn as in a stage."""
        generator = make_generator(policy, self.recipe.engine)
        result = evaluate(policy, task, settings, stage.sampling, name, split, prompt=stage.prompt, generator=generator)
        return result.to_json()

    def learn(self, name: str, policy: Policy) -> Policy:
        """Take the steps of a stage that are left. Returns the policy that it hands over, which lies in the folder."""
        stage, start = self.recipe.stages[name], self.recipe.start_of(name)
        before = self.state["update"] if self.state and self.state["stage"] == name else None
        moments = self.run.moments(start) if stage.optimizer.carry else None
        shard = self.recipe.processes.shard
        if isinstance(stage, SFT):
            updates = run_sft(policy, stage, self.recipe.seed, before, moments, shard=shard)
        else:
            updates = run_rl(policy, stage, self.recipe.seed, before, moments, shard=shard, engine=self.recipe.engine)
        watch, now = self.watch(name), before["stage_step"] if before else 0
        try:
            while not watch.over and (update := next(updates, None)):
                self.take(name, update, policy, watch)
                now = update.metrics["stage_step"]
                if now == stage.steps:
                    before = update.state()
        except FloatingPointError as error:
            if now and all(weight.isfinite().all() for weight in policy.model.parameters()):
                self.run.save_candidate(now, policy, card=card_of(self.recipe, name))
                good = self.run.candidate(now)
            else:
                good = self.run.checkpoint(start) if watch.best is None else self.run.candidate(watch.best)
            raise UserError(
                f"finite numbers in stage {name}",
                str(error),
                f"lower its optimizer.lr; the last good weights are {good}",
            ) from error
        if watch.best is None:
            self.run.save_checkpoint(name, policy, self.moments(name, before), card_of(self.recipe, name))
            return policy
        self.run.hand_over(watch.best, name)
        return load_checkpoint(self.recipe, self.run.checkpoint(name))

    def take(self, name: str, update: Step, policy: Policy, watch: Watch) -> None:
        """Log a step that was taken, validate if it is time, and save what is needed to go on."""
        stage, (metrics, rollouts, state) = watch.stage, update
        now = metrics["stage_step"]
        self.step += 1
        self.record({"stage": name, "kind": stage.kind, "stage_steps": stage.steps, **metrics})
        if isinstance(stage, RL) and (now in (1, stage.steps) or now % stage.save_rollouts_every == 0):
            self.run.save_rollouts(self.step, rollouts)
        if watch.due(now):
            self.validate(name, now, policy, watch)
            if watch.best == now:
                self.run.save_candidate(now, policy, self.moments(name, state()), card_of(self.recipe, name))
        if watch.due(now) or now % self.recipe.save_every == 0:
            self.run.save_state(self.step, {"stage": name, "best": watch.best, "update": state()})

    def validate(self, name: str, now: int, policy: Policy, watch: Watch) -> None:
        """Measure a stage on the problems of its stop rule."""
        rule, started = watch.stage.stop, time.perf_counter()
        assert rule is not None
        settings = Evaluation(problems=rule.problems, samples=rule.samples, seed=self.recipe.evaluation.seed)
        found = self.evaluate(policy, rule.task, settings, watch.stage, name, "validation")
        watch.seen[now] = found[rule.metric]
        about = {"stage_step": now, "stage_steps": watch.stage.steps, "best_step": watch.best, "waited": watch.waited}
        self.record({"kind": "validation", **_figures(found), **about, "seconds": time.perf_counter() - started})

    def watch(self, name: str) -> Watch:
        """The validations of a stage that were logged."""
        stage = self.recipe.stages[name]
        mine = [row for row in self.run.metrics() if row["kind"] == "validation" and row["stage"] == name]
        return Watch(stage, {row["stage_step"]: row[stage.stop.metric] for row in mine} if stage.stop else {})

    def moments(self, name: str, state: State | None) -> State | None:
        """What a stage's optimiser remembers, if a later stage goes on with it."""
        return moments_of(state["learner"]) if state and name in self.recipe.carried else None


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "by_problem"}


def build_policy(recipe: Recipe) -> Policy:
    """The policy that a recipe starts from: loaded, or random with a tokenizer trained on its first sft stage."""
    model = recipe.model
    if model.path is not None:
        return models.load(model.path) if model.lora is None else adapters.load(model.path, model.lora, recipe.seed)
    assert model.architecture is not None
    shape = model.architecture.model_dump()
    sources = [stage.data for stage in recipe.stages.values() if isinstance(stage, SFT)]
    if not sources:
        raise UserError("an sft stage to train a tokenizer on", "none in this recipe", "give model.path instead")
    texts = coldstart.plain_texts(sources[0], recipe.seed, 20_000)
    tokenizer = models.train_tokenizer(texts, shape.pop("vocabulary"))
    return Policy(models.random_model(tokenizer, seed=recipe.seed, **shape), tokenizer, models.tag_ids(tokenizer))


def load_checkpoint(recipe: Recipe, folder: Path) -> Policy:
    """The policy after a stage, to the last bit; one with an adapter is the model that the recipe names and the adapter
    of the stage."""
    model = recipe.model
    if model.lora is None:
        return models.load(str(folder))
    assert model.path is not None
    return adapters.load(model.path, model.lora, recipe.seed, folder)


def train(recipe: Recipe, policy: Policy, run: RunFolder, tell: Observer) -> list[Result]:
    """Run every stage of a recipe, each from the weights of its start, and measure all of them. What the run's folder
    says is done is not done again, so a run that was broken off goes on. Of several processes each runs all of this;
    `RunFolder` lets the first one write.

    Args:
        recipe: checked by `check`.
        policy: from `build_policy`.
        run: where everything is written.
        tell: is told every row of metrics as it is made.

    Returns the evaluations in the order of the stages, the base model first.

    Raises:
        UserError: more than the model's positions hold; no room for checkpoints; gradients that are not finite.
    """
    check_positions(policy.model.config, recipe)
    for stage in recipe.stages.values():
        if isinstance(stage, SFT):
            coldstart.check_lengths(stage.data, policy, stage.prompt.instruction)
    under_way = Curriculum(recipe, run, tell)
    learning = sum(each.numel() for each in adapters.learning(policy.model).values())
    run.check_space(space(recipe, models.parameter_count(policy.model), learning))
    first = next(iter(recipe.stages))
    if recipe.model.path is not None:
        under_way.measure("base", recipe.stages[first], policy)
    run.save_checkpoint("base", policy, card=card_of_base(recipe))
    for name, stage in recipe.stages.items():
        if name in under_way.done:
            under_way.measure(name, stage, None)
            continue
        start = recipe.start_of(name)
        if start != "base" or name != first:
            policy = load_checkpoint(recipe, run.checkpoint(start))
        policy = under_way.learn(name, policy)
        under_way.measure(name, stage, policy)
    return under_way.results


def check(
    recipe: Recipe, missing: list[Missing] | None = None, counts: dict[Counted, int] | None = None
) -> dict[str, int]:
    """Everything about a recipe that can be wrong and can be known before a model is loaded: all that it reads is read.

    Args:
        missing: is told what is not there; if None, that is an error too.
        counts: (task, most, seed, split) -> number of problems, filled in here and not counted again: for several
            recipes that measure the same.

    Returns how many problems of each task are measured.
    """
    measured: dict[str, int] = {}
    counts = {} if counts is None else counts
    tracking.check(recipe.tracking)
    if recipe.model.lora is not None:
        adapters.check(recipe.model.lora)
    settings = recipe.evaluation
    for task in settings.tasks:
        with _there(missing):
            measured[task] = _count((task, settings.problems, settings.seed, "test"), counts)
    for name, stage in recipe.stages.items():
        if isinstance(stage, RL):
            check_reward(stage.reward, forks=stage.sampling.opens_forks)
            with _there(missing):
                next(problem_stream(load_task(stage.task, stage.hold_back), "train", recipe.seed))
        else:
            with _there(missing):
                coldstart.check(stage.data)
        if stage.stop is not None:
            with _there(missing):
                _count((stage.stop.task, stage.stop.problems, settings.seed, "validation"), counts)
        if stage.optimizer.carry and recipe.start_of(name) == "base":
            raise UserError(
                f"a stage to carry moments on from, for stages.{name}.optimizer.carry",
                "'base', which has none",
                "leave it out, or name another start",
            )
    return measured


def _count(counted: Counted, counts: dict[Counted, int]) -> int:
    """How many problems of a split are measured: at most so many, or all that there are."""
    if counted not in counts:
        task, most, seed, split = counted
        counts[counted] = len(held_out(load_task(task), most, seed, split))
    return counts[counted]


@contextmanager
def _there(missing: list[Missing] | None) -> Iterator[None]:
    """Note what is not there, where that is no error."""
    try:
        yield
    except Missing as error:
        if missing is None:
            raise
        if str(error) not in map(str, missing):
            missing.append(error)
