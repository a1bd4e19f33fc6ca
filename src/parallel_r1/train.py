"""The loops: supervised fine-tuning, reinforcement learning, and the curriculum that chains them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from parallel_r1 import attend, coldstart, models
from parallel_r1.algorithms import grpo, sft
from parallel_r1.batch import Batch, collate, score_with_entropy, split
from parallel_r1.config import RL, SFT, Optimizer, Recipe, Stage
from parallel_r1.decoding import RAW, Decoding, decoding
from parallel_r1.engines.local import LocalEngine, compiled
from parallel_r1.errors import UserError
from parallel_r1.evaluate import Result, answer, evaluate
from parallel_r1.models import Policy
from parallel_r1.monitor import Monitor
from parallel_r1.parity import compare
from parallel_r1.rewards import Outcome, Reward, check_reward, parse_reward
from parallel_r1.rollout import Group, Problem, Rollout, group
from parallel_r1.run_folder import RunFolder
from parallel_r1.tasks import Task, load_task
from parallel_r1.trace import Trace

Loss = Callable[..., tuple[Float[Tensor, ""], dict[str, float]]]
"""Is told the log-probabilities of a batch, where the stage pays for them the entropies, the batch, and the sampled
tokens of all batches of the update; gives the loss and its metrics."""
Observer = Callable[[dict[str, Any]], None]
"""Is told every row of metrics as it is made."""
T = TypeVar("T")
PATIENCE = 5
"""A stage ends with an error when so many updates in a row had a gradient that is not finite."""


class Update(NamedTuple):
    """A step of a stage: its metrics, its answers (none in sft), and what is needed to go on after it."""

    metrics: dict[str, Any]
    rollouts: list[Rollout]
    state: Callable[[], dict[str, Any]]


class Source(Iterator[T]):
    """An endless source that counts what was taken, so that a run can go on where it was broken off."""

    def __init__(self, items: Iterator[T], taken: int = 0) -> None:
        self.items, self.taken = items, taken
        next(islice(items, taken, taken), None)

    def __next__(self) -> T:
        self.taken += 1
        return next(self.items)


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
        if stage.recompute:
            attend.recompute(model)
        else:
            model.activation_checkpointing_disable()
        self.entropy = isinstance(stage, RL) and stage.grpo.entropy > 0
        self.regularised = isinstance(stage, RL) and (stage.grpo.entropy > 0 or stage.grpo.kl > 0)
        self.skipped = 0  # updates in a row whose gradient was not finite
        optimizer = build_optimizer(model, stage.optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(stage.optimizer, updates))
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)

    def update(self, traces: Sequence[Trace], loss: Loss, **columns: Sequence[Any]) -> dict[str, float]:
        """One optimiser update on all traces.

        The loss is a mean over the sampled tokens of the whole batch, however it is cut into micro-batches. A trace
        with advantage 0 counts in that mean; where nothing else asks for its gradient it has none and is not computed.
        A batch without any gradient changes nothing and has no loss to report. A gradient that is not finite is
        dropped and reported as `skipped`.

        Args:
            traces: what to learn from.
            loss: of a micro-batch.
            columns: what `collate` needs of each trace: `advantages`, `weights`, `old`, `reference`.

        Returns the loss's metrics, added up over micro-batches (`*_max`: the largest).

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        stage = self.stage
        tokens = sum(len(span.token_ids) for trace in traces for span in trace.spans if span.sampled)
        advantages = columns.get("advantages", [1.0] * len(traces))
        useful = [index for index, advantage in enumerate(advantages) if advantage or self.regularised]
        totals: dict[str, float] = {}
        self.model.train()
        for _, batch in self.batches(traces, useful, columns):
            logprobs, entropies = self.score(batch)
            value, metrics = loss(logprobs, batch, tokens, **({} if entropies is None else {"entropies": entropies}))
            self.accelerator.backward(value)
            for key, number in metrics.items():
                before = totals.get(key, 0.0)
                totals[key] = max(before, number) if key.endswith("_max") else before + number
        self.model.eval()
        totals["lr"] = self.scheduler.get_last_lr()[0]
        if useful:
            if stage.optimizer.embeddings == "used":
                self.keep_unused_rows(traces)
            norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), stage.optimizer.clip))
            totals["gradient_norm"] = norm
            self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
            if self.skipped:
                totals["skipped"] = 1.0
                if self.skipped == PATIENCE:
                    raise FloatingPointError(f"{PATIENCE} updates in a row without one")
            else:
                self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return totals

    @torch.no_grad()
    def logprobs(self, traces: Sequence[Trace], model: PreTrainedModel | None = None) -> list[Float[Tensor, " _"]]:
        """For each trace the log-probabilities of its answer's tokens under the stage's scorer, in nats, by the model
        that learns or by another."""
        found: dict[int, Tensor] = {}
        for chosen, batch in self.batches(traces, range(len(traces))):
            found |= zip(chosen, batch.gather(self.score(batch, model)[0]), strict=True)
        return [found[index] for index in range(len(traces))]

    def batches(
        self, traces: Sequence[Trace], useful: Sequence[int], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """The useful traces in micro-batches, each with the indices of its traces."""
        stage = self.stage
        for rows in split([traces[i] for i in useful], stage.scorer, stage.micro_tokens, packing=stage.packing):
            chosen = [useful[index] for row in rows for index in row]
            of_chosen: dict[str, Any] = {
                name: [column[index] for index in chosen] for name, column in (columns or {}).items()
            }
            sizes = [len(row) for row in rows]
            batch = collate([traces[index] for index in chosen], stage.scorer, rows=sizes, **of_chosen)
            yield chosen, batch.to(self.accelerator.device)

    def score(
        self, batch: Batch, model: PreTrainedModel | None = None
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]:
        """`batch.score` of the distribution that is sampled, with the stage's precision; and where the stage pays for
        it, its entropy."""
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16"):
            return score_with_entropy(model or self.model, batch, self.shape, entropy=self.entropy)

    def state(self) -> dict[str, Any]:
        """All that an update changes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` said."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        self.skipped = state["skipped"]

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


def snapshot(policy: Policy, learner: Learner, step: int, source: Source[Any]) -> dict[str, Any]:
    """All that a stage needs to go on after a step."""
    return {
        "stage_step": step,
        "taken": source.taken,
        "version": policy.version,
        "random": torch.get_rng_state(),
        "learner": learner.state(),
    }


def resume(policy: Policy, learner: Learner, state: dict[str, Any] | None) -> tuple[int, int]:
    """Restore what `snapshot` said; the steps done and the items taken from the source."""
    if state is None:
        return 0, 0
    learner.restore(state["learner"])
    policy.version = state["version"]
    torch.set_rng_state(state["random"])
    return state["stage_step"], state["taken"]


def run_sft(policy: Policy, stage: SFT, seed: int, state: dict[str, Any] | None = None) -> Iterator[Update]:
    """Imitate the stage's examples. Changes the policy in place and yields every step; goes on from a `state`."""
    learner = Learner(policy.model, stage, stage.steps)
    done, taken = resume(policy, learner, state)
    source = Source(coldstart.examples(stage.data, seed), taken)
    for step in range(done + 1, stage.steps + 1):
        started = time.perf_counter()
        traces = [
            coldstart.to_trace(example, policy, stage.sampling.sampler) for example in islice(source, stage.batch)
        ]
        metrics = learner.update(traces, sft.loss)
        policy.version += 1
        seconds = time.perf_counter() - started
        tokens = sum(len(trace.prompt_ids) + len(trace.token_ids) for trace in traces)
        row = {
            "stage_step": step,
            **metrics,
            "parallel_ratio": fmean(trace.forks > 0 for trace in traces),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }
        yield Update(row, [], partial(snapshot, policy, learner, step, source))


def run_rl(policy: Policy, stage: RL, seed: int, state: dict[str, Any] | None = None) -> Iterator[Update]:
    """Draw answers, reward them, learn. Changes the policy in place and yields every step; goes on from a `state`.

    Where the scorer is not the sampler's exact partner, every step first measures how far apart they are."""
    task, reward = load_task(stage.task), parse_reward(stage.reward)
    learner = Learner(policy.model, stage, stage.steps * stage.grpo.minibatches, decoding(stage.sampling))
    settings = stage.grpo
    loss = partial(grpo.loss, settings=settings)
    reference = copy.deepcopy(policy.model) if settings.kl else None
    forward = compiled(policy.model) if stage.sampling.compile else None
    done, taken = resume(policy, learner, state)
    source = Source(task.problems("train", seed), taken)
    for step in range(done + 1, stage.steps + 1):
        started = time.perf_counter()
        engine = LocalEngine(policy.model, forward=forward)
        groups, thrown = draw_groups(
            policy, task, source, stage, partial(reward_group, reward=reward, step=step), seed, engine
        )
        sampled = time.perf_counter()
        credit = grpo.advantages([[rollout.reward or 0.0 for rollout in each.rollouts] for each in groups], settings)
        traces = [rollout.trace for members in groups for rollout in members.rollouts]
        columns: dict[str, Sequence[Any]] = {"advantages": [value for values in credit for value in values]}
        mismatch = {}
        if not stage.is_exact:
            columns["old"] = learner.logprobs(traces)
            found = compare(traces, columns["old"], policy.tags, stage.scorer)
            mismatch = {f"mismatch_{name}": value for name, value in found.differences().items()}
        if reference is not None:
            columns["reference"] = learner.logprobs(traces, reference)
        group_of = [number for number, members in enumerate(groups) for _ in members.rollouts]
        updates = []
        for part in range(settings.minibatches):
            mine = [
                index
                for index, trace in enumerate(traces)
                if group_of[index] % settings.minibatches == part and (settings.truncated or trace.finish != "length")
            ]
            lengths = [sum(len(span.token_ids) for span in traces[index].spans if span.sampled) for index in mine]
            weights = grpo.weights(lengths, settings, stage.sampling.budget.total)
            those = {name: [column[index] for index in mine] for name, column in columns.items()}
            updates.append(learner.update([traces[index] for index in mine], loss, weights=weights, **those))
            policy.version += 1
        seconds = time.perf_counter() - started
        rollouts = [rollout for members in groups for rollout in members.rollouts]
        row = {
            "stage_step": step,
            **describe(rollouts),
            "dead_groups": fmean(not any(values) for values in credit),
            "thrown_groups": thrown,
            **{key: fmean(update[key] for update in updates if key in update) for key in {**updates[0], **updates[-1]}},
            **mismatch,
            "prefilled": engine.counts.prefilled,
            "decoded": engine.counts.decoded,
            "peak_kv": engine.counts.peak_kv,
            "preempted": engine.counts.preempted,
            "tokens_per_second": sum(rollout.total for rollout in rollouts) / seconds,
            "sampling_seconds": sampled - started,
            "seconds": seconds,
        }
        yield Update(row, rollouts, partial(snapshot, policy, learner, step, source))


def draw_groups(
    policy: Policy,
    task: Task,
    source: Iterator[Problem],
    stage: RL,
    rewarded: Callable[[Group], Group],
    seed: int,
    engine: LocalEngine,
) -> tuple[list[Group], int]:
    """The groups of a step with their rewards, and how many were thrown away because all their answers earned the same
    and there was another try."""
    kept: list[Group] = []
    thrown = 0
    for attempt in range(stage.grpo.refill + 1):
        problems = list(islice(source, stage.problems - len(kept)))
        again = f"/{attempt}" if attempt else ""
        drawn = answer(policy, task, problems, stage.group, stage.sampling, f"{seed}/{policy.version}{again}", engine)
        groups = [rewarded(members) for members in group(drawn)]
        live = [each for each in groups if len({rollout.reward for rollout in each.rollouts}) > 1]
        last = attempt == stage.grpo.refill
        kept += groups if last else live
        thrown += 0 if last else len(groups) - len(live)
        if len(kept) >= stage.problems:
            break
    return kept, thrown


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
        **{
            f"reward_{name}": fmean((rollout.terms or {}).get(name, 0.0) for rollout in rollouts)
            for name in sorted(terms)
        },
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
    """Run every stage of a recipe, each from the weights of its start, and measure all of them. What the run's folder
    says is done is not done again, so a run that was broken off goes on.

    Args:
        recipe: checked by `check`.
        policy: from `build_policy`.
        run: where everything is written.
        tell: is told every row of metrics as it is made.

    Returns the evaluations in the order of the stages, the base model first.

    Raises:
        UserError: no room for checkpoints; gradients that are not finite.
    """
    results: list[Result] = []
    done = {name: stage for name, stage in recipe.stages.items() if run.checkpoint(name).exists()}
    saved = run.load_state()
    state = None if saved is None or saved["stage"] in done else saved
    step = sum(stage.steps for stage in done.values()) + (state["update"]["stage_step"] if state else 0)
    run.rewind(step)
    # The weights of every stage, and two states: each has the weights and two moments of each.
    run.check_space(sum(each.numel() for each in policy.model.parameters()) * 4 * (len(recipe.stages) + 1 + 2 * 3))

    monitor = Monitor().remember(run.metrics())

    def record(row: dict[str, Any]) -> None:
        for each in (row, *monitor(row)):
            run.log(each)
            tell(each)

    def measure(name: str, stage: Stage, policy: Policy | None) -> None:
        for task in recipe.evaluation.tasks:
            known = run.evaluation(f"{name}.{task}")
            if known is None:
                policy = policy or models.load(str(run.checkpoint(name)))
                started = time.perf_counter()
                known = evaluate(policy, task, recipe.evaluation, stage.sampling, name).to_json()
                figures = {key: value for key, value in known.items() if key != "by_problem"}
                record({"step": step, "kind": "evaluation", **figures, "seconds": time.perf_counter() - started})
                run.save_evaluation(f"{name}.{task}", known)
            results.append(Result(**known))

    first = next(iter(recipe.stages.values()))
    if recipe.model.path is not None:
        measure("base", first, policy)
    run.save_checkpoint("base", policy)
    for name, stage in recipe.stages.items():
        if name in done:
            measure(name, stage, None)
            continue
        start = recipe.start_of(name)
        if start != "base" or name != next(iter(recipe.stages)):
            policy = models.load(str(run.checkpoint(start)))
        before = state["update"] if state and state["stage"] == name else None
        if isinstance(stage, SFT):
            updates = run_sft(policy, stage, recipe.seed, before)
        else:
            updates = run_rl(policy, stage, recipe.seed, before)
        try:
            for metrics, rollouts, snap in updates:
                step += 1
                record({"step": step, "stage": name, "kind": stage.kind, "stage_steps": stage.steps, **metrics})
                now, every = metrics["stage_step"], getattr(stage, "save_rollouts_every", 1)
                if rollouts and (now in (1, stage.steps) or now % every == 0):
                    run.save_rollouts(step, rollouts)
                if now % recipe.save_every == 0:
                    run.save_state(step, {"stage": name, "update": snap()})
        except FloatingPointError as error:
            raise UserError(
                f"finite gradients in stage {name}",
                str(error),
                f"lower its optimizer.lr; the last good weights are {run.checkpoint(start)}",
            ) from error
        run.save_checkpoint(name, policy)
        measure(name, stage, policy)
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
