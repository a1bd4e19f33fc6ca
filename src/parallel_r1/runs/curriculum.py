"""Run a recipe: train and evaluate its stages in order, apply the stop rules, resume an interrupted run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel_r1 import models
from parallel_r1.answers.schemas import DEFAULT, load_schema
from parallel_r1.coldstart import examples as coldstart
from parallel_r1.errors import UserError
from parallel_r1.evaluation.answer_file import AnswerFile
from parallel_r1.evaluation.measure import Result, evaluate
from parallel_r1.evaluation.settings import Evaluation
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.training_card import read_card
from parallel_r1.models import lora as adapters
from parallel_r1.models.policy import Policy
from parallel_r1.models.tags import are_alike, check_schema
from parallel_r1.registry import plugin_error
from parallel_r1.runs.checkpoint import card_of, card_of_base
from parallel_r1.runs.estimate import check_positions
from parallel_r1.runs.folder import RunFolder, space
from parallel_r1.runs.lengths import check_prompts
from parallel_r1.runs.model_card import model_card
from parallel_r1.runs.monitor import Monitor
from parallel_r1.runs.recipe import Recipe
from parallel_r1.tasks.base import Split
from parallel_r1.training.loops import State, Step, run_rl, run_sft
from parallel_r1.training.optimizer import moments_of
from parallel_r1.training.settings import RL, SFT

log = logging.getLogger(__name__)
Observer = Callable[[dict[str, Any]], None]
"""A callback, called with every row of metrics as it is logged."""
ALIKE = (
    "the embeddings of the tags are equal: the model cannot tell them apart until they have learnt. Write them "
    "with parallel-r1 prepare --init mean, or raise optimizer.tags"
)


@dataclass
class Watch:
    """The validations of a stage, and the decisions of its stop rule. A stage without a rule has no validations.

    Attributes:
        seen: step of the stage -> value of the rule's metric, in order of the steps.
    """

    stage: SFT | RL
    seen: dict[int, float] = field(default_factory=dict)

    def due(self, step: int) -> bool:
        """Whether the stage is validated after a step."""
        rule = self.stage.stop
        return rule is not None and (step % rule.every == 0 or step == self.stage.steps)

    @property
    def best(self) -> int | None:
        """The step of the best validation: the earliest if several are equal; None before the first."""
        return max(self.seen, key=self.seen.__getitem__, default=None)

    @property
    def waited(self) -> int:
        """Number of validations since the last one that counted as a gain. The first validation counts as a gain."""
        min_gain = self.stage.stop.min_gain if self.stage.stop else 0.0
        last, waited = -float("inf"), 0
        for value in self.seen.values():
            last, waited = (value, 0) if value > last + min_gain else (last, waited + 1)
        return waited

    @property
    def over(self) -> bool:
        """Whether the stop rule ends the stage."""
        return self.stage.stop is not None and self.waited >= self.stage.stop.patience


class Curriculum:
    """A running recipe. The run folder is its only memory of what is finished, so an interrupted run resumes from it.

    Attributes:
        results: the evaluations so far.
        done: names of the finished stages.
        state: the saved state of the stage that was interrupted; None if there is none.
        step: number of steps so far, over all stages.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, on_row: Observer) -> None:
        self.recipe, self.run, self.on_row = recipe, run, on_row
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
        """Log a row of metrics, and the warnings that the monitor derives from it."""
        row = {"step": self.step, **row}
        for entry in (row, *self.monitor(row)):
            self.run.log(entry)
            self.on_row(entry)

    def measure(self, name: str, stage: SFT | RL, policy: Policy | None) -> None:
        """Evaluate the weights after stage `name` on all tasks, and write their model card; an evaluation that is saved
        already is not repeated.

        Args:
            stage: its sampling and prompt are used.
            policy: the weights; if None, they are loaded when needed.
        """
        for task in self.recipe.evaluation.tasks:
            result = self.run.evaluation(name, task)
            if result is None:
                policy = policy or load_checkpoint(self.recipe, self.run.checkpoint(name))
                started = time.perf_counter()
                file = self.run.answers(name, task)
                result = self.evaluate(policy, task, self.recipe.evaluation, stage, name, "test", file)
                seconds = time.perf_counter() - started
                row = {"step": self.step, "kind": "evaluation", **_figures(result), "seconds": seconds}
                self.run.log(row)  # before saving: `rewind` drops a row whose evaluation was not saved
                self.run.save_evaluation(name, task, result)
                self.on_row(row)  # after saving: if a tracker fails, the evaluation is not repeated
            self.results.append(Result(**result))
        if name in self.recipe.stages and not self.run.model_card(name).exists():
            policy = policy or load_checkpoint(self.recipe, self.run.checkpoint(name))
            results = [result for result in self.results if result.stage == name]
            self.run.save_model_card(name, model_card(self.recipe, name, policy, results))

    def evaluate(
        self,
        policy: Policy,
        task: str,
        settings: Evaluation,
        stage: SFT | RL,
        name: str,
        split: Split,
        file: AnswerFile | None = None,
    ) -> dict[str, Any]:
        """Evaluate weights on one task, with the sampling and the prompt of a stage.

        Args:
            file: keeps the answers; those that it has are not drawn again.
        """
        generator = make_generator(policy, self.recipe.engine)
        return evaluate(
            policy, task, settings, stage.sampling, name, split, prompt=stage.prompt, generator=generator, file=file
        ).to_json()

    def learn(self, name: str, policy: Policy) -> Policy:
        """Take the remaining steps of a stage. Returns the policy after the stage, whose checkpoint is then saved."""
        stage, start = self.recipe.stages[name], self.recipe.start_of(name)
        saved, self.state = self.state, None  # the loops let go of it once it is restored
        before = saved["update"] if saved and saved["stage"] == name else None
        now = before["stage_step"] if before else 0
        last = None if before is None or now < stage.steps else self.moments(name, before)
        moments = self.run.moments(start) if stage.optimizer.carry else None
        seed, shard = self.recipe.seed_of(name), self.recipe.processes.shard
        if isinstance(stage, SFT):
            updates = run_sft(policy, stage, seed, before, moments, shard=shard)
        else:
            updates = run_rl(policy, stage, seed, before, moments, shard=shard, engine=self.recipe.engine)
        del saved, before, moments
        watch, update = self.watch(name), None
        try:
            while not watch.over and (update := next(updates, None)):
                self.take(name, update, policy, watch)
                now = update.metrics["stage_step"]
                if now == stage.steps and name in self.recipe.carried:
                    last = self.moments(name, update.state())
        except FloatingPointError as error:
            if plugin_error(error) is not None:  # a division in a user's reward, not weights that diverged
                raise
            raise self.diverged(name, now, policy, watch, error) from error
        if watch.best is None:
            self.run.save_checkpoint(name, policy, last, card_of(self.recipe, name, policy.version))
            return policy
        self.run.hand_over(watch.best, name)
        del updates, update  # the learner of the last step, before there are two models
        return load_checkpoint(self.recipe, self.run.checkpoint(name))

    def diverged(self, name: str, now: int, policy: Policy, watch: Watch, error: FloatingPointError) -> UserError:
        """The error for a stage whose numbers are not finite after step `now`. It names the last good weights: the
        weights after that step, which are saved here if they are finite, else the best validated or the start."""
        if now and all(weight.isfinite().all() for weight in policy.model.parameters()):
            self.run.save_candidate(now, policy, card=card_of(self.recipe, name, policy.version))
            good = self.run.candidate(now)
        elif watch.best is None:
            good = self.run.checkpoint(self.recipe.start_of(name))
        else:
            good = self.run.candidate(watch.best)
        return UserError(
            f"finite numbers in stage {name}", str(error), f"lower its optimizer.lr; the last good weights are {good}"
        )

    def take(self, name: str, update: Step, policy: Policy, watch: Watch) -> None:
        """Log a step, validate if it is due, and save the state to resume from if it is due."""
        stage, (metrics, rollouts, state) = watch.stage, update
        now = metrics["stage_step"]
        self.step += 1
        self.record({"stage": name, "kind": stage.kind, "stage_steps": stage.steps, **metrics})
        if isinstance(stage, RL) and (now in (1, stage.steps) or now % stage.save_rollouts_every == 0):
            self.run.save_rollouts(self.step, rollouts)
        if watch.due(now):
            self.validate(name, now, policy, watch)
            if watch.best == now:
                moments = self.moments(name, state()) if name in self.recipe.carried else None
                self.run.save_candidate(now, policy, moments, card_of(self.recipe, name, policy.version))
        if watch.due(now) or now % self.recipe.save_every == 0:
            self.run.save_state(self.step, {"stage": name, "best": watch.best, "update": state()})

    def validate(self, name: str, now: int, policy: Policy, watch: Watch) -> None:
        """Evaluate a stage on the validation problems of its stop rule."""
        rule, started = watch.stage.stop, time.perf_counter()
        assert rule is not None
        settings = Evaluation(problems=rule.problems, samples=rule.samples, seed=self.recipe.evaluation.seed)
        result = self.evaluate(policy, rule.task, settings, watch.stage, name, "validation")
        watch.seen[now] = result[rule.metric]
        steps = {"stage_step": now, "stage_steps": watch.stage.steps, "best_step": watch.best}
        waited = {"waited": watch.waited}
        self.record(
            {"kind": "validation", **_figures(result), **steps, **waited, "seconds": time.perf_counter() - started}
        )

    def watch(self, name: str) -> Watch:
        """The logged validations of a stage."""
        stage = self.recipe.stages[name]
        rows = [row for row in self.run.metrics() if row["kind"] == "validation" and row["stage"] == name]
        return Watch(stage, {row["stage_step"]: row[stage.stop.metric] for row in rows} if stage.stop else {})

    def moments(self, name: str, state: State | None) -> State | None:
        """The moments of a stage's optimiser, if a later stage continues with them; else None."""
        return moments_of(state["learner"]) if state and name in self.recipe.carried else None


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("by_problem", "passes", "intervals")}


def build_policy(recipe: Recipe) -> Policy:
    """The policy that a recipe starts from: loaded, or random with a tokenizer trained for its first SFT stage."""
    model = recipe.model
    if model.path is not None:
        policy = _load(recipe, model.path, Path(model.adapter) if model.adapter else None)
        if model.format is not None:
            check_schema(policy.tags.schema, model.format, model.path)
        return policy
    assert model.architecture is not None
    shape = model.architecture.model_dump()
    sources = [stage.data for stage in recipe.stages.values() if isinstance(stage, SFT)]
    if not sources:
        raise UserError("an sft stage to train a tokenizer on", "none in this recipe", "give model.path instead")
    schema = load_schema(model.format or DEFAULT.name)
    texts = coldstart.plain_texts(sources[0], recipe.seed, 20_000, schema)
    tokenizer = models.train_tokenizer(texts, shape.pop("vocabulary"), shape.pop("digits"), schema)
    weights: Any = models.random_model(tokenizer, seed=recipe.seed, **shape)
    weights.to(models.device_of(recipe.engine.device))
    return Policy(weights, tokenizer, models.tags_of(tokenizer, weights))


def load_checkpoint(recipe: Recipe, folder: Path) -> Policy:
    """The policy after a stage, bit for bit. With an adapter: the recipe's model and the adapter of the stage."""
    if recipe.model.lora is None:
        return _load(recipe, str(folder))
    assert recipe.model.path is not None
    return _load(recipe, recipe.model.path, folder)


def _load(recipe: Recipe, path: str, start: Path | None = None) -> Policy:
    """Load weights for a recipe, with the number of updates that their training card says.

    Args:
        start: a checkpoint whose adapter to continue with.
    """
    lora, device = recipe.model.lora, recipe.engine.device
    if lora is None:
        policy = models.load(path, device=device)
    else:
        policy = adapters.load(path, lora, recipe.seed, start, device=device)
    card = read_card(start or path)
    policy.version = card.updates if card else 0
    return policy


def train(
    recipe: Recipe,
    policy: Policy,
    run: RunFolder,
    on_row: Observer,
    make: Callable[[Recipe, RunFolder, Observer], Curriculum] = Curriculum,
) -> list[Result]:
    """Train every stage of a recipe from the weights of its start, and evaluate the result. Stages and evaluations that
    are finished in the run folder are not repeated, so an interrupted run resumes. Every process calls this;
    `RunFolder` lets only the first one write.

    Args:
        recipe: checked by `check`.
        policy: from `build_policy`.
        run: the folder for all output.
        on_row: called with every row of metrics as it is logged.
        make: what runs the stages: this process, or a subclass that hands them to an engine.

    Returns:
        The evaluations in the order of the stages, the base model first.

    Raises:
        UserError: a budget or an example exceeds the model's positions; too little disk space for the checkpoints;
            losses or gradients that are not finite.
    """
    check_positions(policy.model.config, recipe)
    check_prompts(recipe, policy)
    for stage in recipe.stages.values():
        if isinstance(stage, SFT):
            coldstart.check_lengths(stage.data, policy, stage.prompt)
    curriculum = make(recipe, run, on_row)
    learning = sum(weight.numel() for weight in adapters.learning(policy.model).values())
    run.check_space(space(recipe, models.parameter_count(policy.model), learning))
    first = next(iter(recipe.stages))
    if not curriculum.step and are_alike(policy):
        warning = {"step": 0, "kind": "warning", "stage": first, "rule": "tags", "warning": ALIKE}
        run.log(warning)
        on_row(warning)
    if recipe.model.path is not None:
        curriculum.measure("base", recipe.stages[first], policy)
    run.save_checkpoint("base", policy, card=card_of_base(recipe))
    for name, stage in recipe.stages.items():
        if name in curriculum.done:
            curriculum.measure(name, stage, None)
            continue
        start = recipe.start_of(name)
        if start != "base" or name != first:
            policy = load_checkpoint(recipe, run.checkpoint(start))
        policy = curriculum.learn(name, policy)
        curriculum.measure(name, stage, policy)
    return curriculum.results
