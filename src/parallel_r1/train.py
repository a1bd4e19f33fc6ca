"""The loops: supervised fine-tuning, reinforcement learning, and the curriculum that chains them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1 import coldstart, models
from parallel_r1.algorithms import grpo, sft
from parallel_r1.batch import Batch, collate, score, split
from parallel_r1.config import RL, SFT, Optimizer, Recipe, Stage
from parallel_r1.decoding import RAW, Decoding, decoding
from parallel_r1.engines.local import LocalEngine
from parallel_r1.errors import UserError
from parallel_r1.evaluate import Result, answer, evaluate
from parallel_r1.models import Policy
from parallel_r1.parity import compare
from parallel_r1.rewards import Outcome, Reward, check_reward, parse_reward
from parallel_r1.rollout import Group, Rollout, group
from parallel_r1.run_folder import RunFolder
from parallel_r1.tasks import load_task
from parallel_r1.trace import Trace

Loss = Callable[[Float[Tensor, "b n"], Batch, int], tuple[Float[Tensor, ""], dict[str, float]]]
Observer = Callable[[dict[str, Any]], None]
"""Is told every row of metrics as it is made."""


class Learner:
    """Turns traces into updates. One place for micro-batches, normalisation, clipping and the learning rate."""

    def __init__(self, model: PreTrainedModel, stage: Stage, updates: int, shape: Decoding = RAW) -> None:
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        if self.accelerator.num_processes != 1:
            raise UserError(
                "one process",
                f"{self.accelerator.num_processes} processes",
                "start the command without torchrun or accelerate launch",
            )
        self.stage, self.shape = stage, shape
        optimizer = build_optimizer(model, stage.optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(stage.optimizer, updates))
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)

    def update(
        self,
        traces: Sequence[Trace],
        loss: Loss,
        advantages: Sequence[float] | None = None,
        old: Sequence[Float[Tensor, " _"]] | None = None,
    ) -> dict[str, float]:
        """One optimiser update on all traces.

        The loss is a mean over the sampled tokens of the whole batch, however it is cut into micro-batches. A trace
        with advantage 0 counts in that mean and has no gradient, so it is not computed; a batch without any gradient
        changes nothing and has no loss to report. `old` holds what `logprobs` said of each trace before the step, if
        that is not what the sampler said. Returns the loss's metrics, added up over micro-batches (`*_max`: the
        largest).
        """
        stage = self.stage
        tokens = sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled)
        weights = [1.0] * len(traces) if advantages is None else list(advantages)
        useful = [index for index, weight in enumerate(weights) if weight]
        totals: dict[str, float] = {}
        self.model.train()
        for _, batch in self.batches(traces, useful, weights, old):
            value, metrics = loss(self.score(batch), batch, tokens)
            self.accelerator.backward(value)
            for key, number in metrics.items():
                before = totals.get(key, 0.0)
                totals[key] = max(before, number) if key.endswith("_max") else before + number
        self.model.eval()
        totals["lr"] = self.scheduler.get_last_lr()[0]
        if useful:
            if stage.optimizer.embeddings == "used":
                self.keep_unused_rows(traces)
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), stage.optimizer.clip)
            totals["gradient_norm"] = float(norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return totals

    @torch.no_grad()
    def logprobs(self, traces: Sequence[Trace]) -> list[Float[Tensor, " _"]]:
        """For each trace the log-probabilities of its answer's tokens under the stage's scorer, in nats."""
        found: dict[int, Tensor] = {}
        for chosen, batch in self.batches(traces, range(len(traces))):
            found |= zip(chosen, batch.gather(self.score(batch)), strict=True)
        return [found[index] for index in range(len(traces))]

    def batches(
        self,
        traces: Sequence[Trace],
        useful: Sequence[int],
        advantages: Sequence[float] | None = None,
        old: Sequence[Float[Tensor, " _"]] | None = None,
    ) -> Iterator[tuple[list[int], Batch]]:
        """The useful traces in micro-batches, each with the indices of its traces."""
        stage = self.stage
        for rows in split([traces[i] for i in useful], stage.scorer, stage.micro_tokens, packing=stage.packing):
            chosen = [useful[index] for row in rows for index in row]
            batch = collate(
                [traces[index] for index in chosen],
                stage.scorer,
                None if advantages is None else [advantages[index] for index in chosen],
                old=None if old is None else [old[index] for index in chosen],
                rows=[len(row) for row in rows],
            )
            yield chosen, batch.to(self.accelerator.device)

    def score(self, batch: Batch) -> Float[Tensor, "b n"]:
        """`batch.score` of the distribution that is sampled, with the stage's precision."""
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16"):
            return score(self.model, batch, self.shape)

    def keep_unused_rows(self, traces: Sequence[Trace]) -> None:
        """Drop the gradients of embedding rows whose tokens are not in the batch."""
        used = {token for trace in traces for token in (*trace.prompt_ids, *trace.token_ids)}
        for table in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            gradient = table.weight.grad
            unused = torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
            unused[list(used)] = False
            gradient[unused] = 0.0


def build_optimizer(model: PreTrainedModel, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW; embeddings, norms and biases are not decayed."""
    tables = {id(table.weight) for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    decayed = [each for each in model.parameters() if each.ndim >= 2 and id(each) not in tables]
    rest = [each for each in model.parameters() if each.ndim < 2 or id(each) in tables]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def learning_rate(settings: Optimizer, updates: int) -> Callable[[int], float]:
    """The factor on the learning rate before update 0, 1, ..: a linear warm-up, then constant or half a cosine to 0."""
    warmup = round(settings.warmup * updates)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, updates - warmup)))

    return factor


def run_sft(policy: Policy, stage: SFT, seed: int) -> Iterator[dict[str, Any]]:
    """Imitate the stage's examples. Changes the policy in place and yields the metrics of every step."""
    source = coldstart.examples(stage.data, seed)
    learner = Learner(policy.model, stage, stage.steps)
    for step in range(1, stage.steps + 1):
        started = time.perf_counter()
        traces = [
            coldstart.to_trace(example, policy, stage.sampling.sampler) for example in islice(source, stage.batch)
        ]
        metrics = learner.update(traces, sft.loss)
        policy.version += 1
        seconds = time.perf_counter() - started
        tokens = sum(len(trace.prompt_ids) + len(trace.token_ids) for trace in traces)
        yield {
            "stage_step": step,
            **metrics,
            "parallel_ratio": fmean(trace.forks > 0 for trace in traces),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }


def run_rl(policy: Policy, stage: RL, seed: int) -> Iterator[tuple[dict[str, Any], list[Rollout]]]:
    """Draw answers, reward them, learn. Changes the policy in place and yields every step's metrics and answers.

    Where the scorer is not the sampler's exact partner, every step first measures how far apart they are."""
    task, reward = load_task(stage.task), parse_reward(stage.reward)
    source = task.problems("train", seed)
    learner = Learner(policy.model, stage, stage.steps * stage.grpo.minibatches, decoding(stage.sampling))
    loss = partial(grpo.loss, settings=stage.grpo)
    for step in range(1, stage.steps + 1):
        started = time.perf_counter()
        problems = list(islice(source, stage.problems))
        engine = LocalEngine(policy.model, compile=stage.sampling.compile)
        drawn = answer(policy, task, problems, stage.group, stage.sampling, f"{seed}/{policy.version}", engine)
        sampled = time.perf_counter()
        groups = [reward_group(members, reward, step) for members in group(drawn)]
        credit = [
            grpo.advantages([rollout.reward or 0.0 for rollout in members.rollouts], stage.grpo.std)
            for members in groups
        ]
        updates = []
        old: list[list[Tensor]] | None = None  # by group, as `credit`
        mismatch = {}
        if not stage.is_exact:
            traces = [rollout.trace for members in groups for rollout in members.rollouts]
            scored = learner.logprobs(traces)
            found = compare(traces, scored, policy.tags, stage.scorer)
            rest = iter(scored)
            old = [list(islice(rest, len(members.rollouts))) for members in groups]
            mismatch = {f"mismatch_{name}": value for name, value in found.differences().items()}
        for part in range(stage.grpo.minibatches):
            mine = slice(part, None, stage.grpo.minibatches)
            traces = [rollout.trace for members in groups[mine] for rollout in members.rollouts]
            before = None if old is None else [values for members in old[mine] for values in members]
            updates.append(learner.update(traces, loss, [value for values in credit[mine] for value in values], before))
            policy.version += 1
        seconds = time.perf_counter() - started
        rollouts = [rollout for members in groups for rollout in members.rollouts]
        yield (
            {
                "stage_step": step,
                **describe(rollouts),
                "dead_groups": fmean(not any(values) for values in credit),
                **{
                    key: fmean(update[key] for update in updates if key in update)
                    for key in {**updates[0], **updates[-1]}
                },
                **mismatch,
                "prefilled": engine.counts.prefilled,
                "decoded": engine.counts.decoded,
                "peak_kv": engine.counts.peak_kv,
                "preempted": engine.counts.preempted,
                "tokens_per_second": sum(rollout.total for rollout in rollouts) / seconds,
                "sampling_seconds": sampled - started,
                "seconds": seconds,
            },
            rollouts,
        )


def reward_group(members: Group, reward: Reward, step: int) -> Group:
    """A group with its rewards at a 1-based step."""
    rewarded = (rollout.rewarded(reward(Outcome.of(rollout), step)) for rollout in members.rollouts)
    return Group(members.problem, tuple(rewarded))


def describe(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over the answers of a step."""
    forked = [rollout for rollout in rollouts if rollout.trace.forks]
    logprobs = [value for rollout in rollouts for span in rollout.trace.spans for value in span.logprobs or ()]
    terms = {name for rollout in rollouts for name in rollout.terms or ()}
    return {
        "reward": fmean(rollout.reward or 0.0 for rollout in rollouts),
        **{f"reward_{name}": fmean((rollout.terms or {}).get(name, 0.0) for rollout in rollouts) for name in terms},
        "accuracy": fmean(rollout.correct for rollout in rollouts),
        "parallel_ratio": len(forked) / len(rollouts),
        "well_formed": fmean(rollout.trace.well_formed for rollout in forked) if forked else 1.0,
        "forks": fmean(rollout.trace.forks for rollout in rollouts),
        "critical_path": fmean(rollout.critical_path for rollout in rollouts),
        "total": fmean(rollout.total for rollout in rollouts),
        "surprise": -fmean(logprobs),
        "cut": fmean(rollout.trace.finish == "length" for rollout in rollouts),
    }


def build_policy(recipe: Recipe) -> Policy:
    """The policy that a recipe starts from: loaded, or random with a tokenizer trained on its first sft stage."""
    model = recipe.model
    models.check_attention(model.attention)
    if model.path is not None:
        return models.load(model.path)
    assert model.architecture is not None
    shape = model.architecture.model_dump()
    sources = [stage.data for stage in recipe.stages.values() if isinstance(stage, SFT)]
    if not sources:
        raise UserError("an sft stage to train a tokenizer on", "none in this recipe", "give model.path instead")
    texts = coldstart.plain_texts(sources[0], recipe.seed, 20_000)
    tokenizer = models.train_tokenizer(texts, shape.pop("vocabulary"))
    return Policy(models.random_model(tokenizer, seed=recipe.seed, **shape), tokenizer, models.tag_ids(tokenizer))


def train(recipe: Recipe, policy: Policy, run: RunFolder, tell: Observer) -> list[Result]:
    """Run every stage of a recipe, each from the weights of its start, and measure all of them.

    Args:
        recipe: checked by `check`.
        policy: from `build_policy`.
        run: where everything is written.
        tell: is told every row of metrics as it is made.

    Returns the evaluations in the order of the stages, the base model first.
    """
    results: list[Result] = []
    step = 0

    def record(row: dict[str, Any]) -> None:
        run.log(row)
        tell(row)

    def measure(name: str, policy: Policy, stage: Stage) -> None:
        for task in recipe.evaluation.tasks:
            started = time.perf_counter()
            result = evaluate(policy, task, recipe.evaluation, stage.sampling, name)
            run.save_evaluation(f"{name}.{task}", result.to_json())
            results.append(result)
            figures = {key: value for key, value in result.to_json().items() if key != "by_problem"}
            record({"step": step, "kind": "evaluation", **figures, "seconds": time.perf_counter() - started})

    first = next(iter(recipe.stages.values()))
    if recipe.model.path is not None:
        measure("base", policy, first)
    run.save_checkpoint("base", policy)
    for name, stage in recipe.stages.items():
        start = recipe.start_of(name)
        if start != "base" or name != next(iter(recipe.stages)):
            policy = models.load(str(run.checkpoint(start)))
        if isinstance(stage, SFT):
            for metrics in run_sft(policy, stage, recipe.seed):
                step += 1
                record({"step": step, "stage": name, "kind": "sft", "stage_steps": stage.steps, **metrics})
        else:
            for metrics, rollouts in run_rl(policy, stage, recipe.seed):
                step += 1
                record({"step": step, "stage": name, "kind": "rl", "stage_steps": stage.steps, **metrics})
                if metrics["stage_step"] in (1, stage.steps) or metrics["stage_step"] % stage.save_rollouts_every == 0:
                    run.save_rollouts(step, rollouts)
        run.save_checkpoint(name, policy)
        measure(name, policy, stage)
    return results


def check(recipe: Recipe) -> None:
    """Everything about a recipe that can be wrong and can be known before anything is loaded."""
    for task in recipe.evaluation.tasks:
        load_task(task)
    for stage in recipe.stages.values():
        if isinstance(stage, RL):
            load_task(stage.task)
            check_reward(stage.reward, forks=stage.sampling.sampler != "sequential")
        else:
            for task in {**stage.data.tasks, **stage.data.rehearse}:
                load_task(task)
            if stage.data.file is not None:
                coldstart.read_examples(coldstart.Path(stage.data.file))
